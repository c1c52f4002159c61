import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from megatron_miniplm.artifacts import Manifest, load_manifest
from megatron_miniplm.artifacts.manifest import prefix_manifest_path
from megatron_miniplm.corpus import sources, units
from megatron_miniplm.corpus.build import BuildSettings, Shard, build_corpus
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.errors import FingerprintMismatchError, InputError, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter, copying, layout, sidecar, write_view
from megatron_miniplm.indexed.materialize import materialize
from megatron_miniplm.indexed.merge import blend_prefixes, merge_prefixes
from megatron_miniplm.indexed.sidecar import Sidecar, sidecar_path
from megatron_miniplm.reports.inspection import find_faults

VOCAB_SIZE = 100
NUM_SHARDS = 4


def write_documents(prefix: Path, documents: Sequence[Sequence[Sequence[int]]], dtype: str = "<u2") -> IndexedCorpus:
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        for document in documents:
            tokens = [token for sequence in document for token in sequence]
            lengths = [len(sequence) for sequence in document]
            writer.append(np.array(tokens, np.int64), np.array(lengths, np.int64), np.array([len(document)]))
        writer.close()
    return IndexedCorpus.open(prefix)


def contents(prefix: Path) -> tuple[list[list[int]], list[int]]:
    """Sequences and document boundaries."""
    corpus = IndexedCorpus.open(prefix)
    return [corpus.sequence(index).tolist() for index in range(len(corpus))], corpus.boundaries_D.tolist()


@pytest.mark.parametrize("tool", ["merge", "materialize"])
def test_more_sequences_than_megatron_can_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    """With a limit of 3 in place of 2^31 - 1; nothing is written."""
    prefixes = [tmp_path / "a", tmp_path / "b"]
    for prefix in prefixes:
        write_documents(prefix, [[[1, 2]], [[3], [4]]])
    monkeypatch.setattr(layout, "MAX_SEQUENCES", 3)
    if tool == "merge":
        merge_prefixes(prefixes[:1], tmp_path / "few" / "c")
        with pytest.raises(
            InputError, match=r"many/c: 6 sequences, Megatron numbers at most 3 per prefix: use several"
        ):
            merge_prefixes(prefixes, tmp_path / "many" / "c")
    else:
        materialize(prefixes, tmp_path / "few")
        write_documents(tmp_path / "more", [[[1], [2], [3], [4]]])
        with pytest.raises(InputError, match=r"many/more: 4 sequences, Megatron numbers at most 3 per prefix"):
            materialize([*prefixes, tmp_path / "more"], tmp_path / "many")
    assert not (tmp_path / "many").exists()


def test_the_limit_is_that_of_int32() -> None:
    layout.refuse_too_many("web", np.iinfo(np.int32).max)
    with pytest.raises(InputError, match=r"web: 2,147,483,648 sequences, Megatron numbers at most 2,147,483,647"):
        layout.refuse_too_many("web", 2**31)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BuildSettings:
    """Two files of numbers, in many small units, so that shards begin within files."""
    for module in (sources, units):
        monkeypatch.setattr(module, "UNIT_BYTES", 300)
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        with open(tmp_path / f"{name}.jsonl", "w") as stream:
            for _ in range(40):
                text = " ".join(map(str, rng.integers(0, VOCAB_SIZE - 1, rng.integers(1, 15))))
                stream.write(json.dumps({"text": text, "domain": str(rng.choice(["web", "code"]))}) + "\n")
    return BuildSettings(
        inputs=(tmp_path / "a.jsonl", tmp_path / "b.jsonl"),
        output_prefix=tmp_path / "whole" / "corpus",
        json_keys=("text",),
        tokenizer=TokenizerSettings(tokenizer_type="NullTokenizer", vocab_size=VOCAB_SIZE),
        append_eod=True,
        domain_key="domain",
    )


def make_shards(settings: BuildSettings, directory: Path) -> list[Path]:
    shards = [Shard(index=index, count=NUM_SHARDS) for index in range(NUM_SHARDS)]
    return list(build_corpus(replace(settings, output_prefix=directory / "corpus"), num_workers=1, shards=shards))


@pytest.mark.parametrize("chunk_length", [None, 16])
def test_all_shards_are_the_corpus_of_a_run_without_shards(
    settings: BuildSettings, tmp_path: Path, chunk_length: int | None
) -> None:
    settings = replace(settings, chunk_length=chunk_length)
    ((whole, expected),) = build_corpus(settings, num_workers=1).items()
    shards = make_shards(settings, tmp_path / "shards")
    merged = tmp_path / "elsewhere" / "deep" / "merged"
    manifest = merge_prefixes([shards[2], shards[0], shards[3], shards[1]], merged)
    for suffix in (".bin", ".idx"):
        ours, theirs = (prefix.with_name(prefix.name + suffix).read_bytes() for prefix in (merged, whole))
        assert ours == theirs
    assert rows(merged) == rows(whole)
    assert (manifest.settings, manifest.counts) == (expected.settings, expected.counts)
    assert (manifest.fingerprint, manifest.versions) == (expected.fingerprint, expected.versions)
    assert find_faults(merged) == []


@pytest.mark.parametrize("chunk_length", [None, 16])
@pytest.mark.parametrize("row_group_pieces", [1, 7, 1 << 17])
def test_the_sidecar_of_all_shards_has_the_bytes_of_a_run_without_shards(
    settings: BuildSettings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    row_group_pieces: int,
    chunk_length: int | None,
) -> None:
    monkeypatch.setattr(sidecar, "_ROW_GROUP_PIECES", row_group_pieces)
    settings = replace(settings, chunk_length=chunk_length)
    ((whole, _),) = build_corpus(settings, num_workers=1).items()
    merged = tmp_path / "merged" / "corpus"
    merge_prefixes(make_shards(settings, tmp_path / "shards"), merged)
    assert sidecar_path(merged).read_bytes() == sidecar_path(whole).read_bytes()


def rows(prefix: Path) -> list[dict[str, object]]:
    """The sidecar, with the text files where they lie."""
    found = Sidecar(sidecar_path(prefix))
    rows = [row for table in found.tables() for row in table.to_pylist()]
    return [{**row, "source": found.source_path(row["source"]).resolve()} for row in rows]


def test_the_parents_are_the_shards_and_what_is_behind_them(settings: BuildSettings, tmp_path: Path) -> None:
    shards = make_shards(settings, tmp_path / "shards")
    manifest = merge_prefixes(shards, tmp_path / "merged" / "corpus")
    expected = [("corpus", f"../shards/{prefix.name}", load_manifest(prefix).fingerprint) for prefix in shards]
    text = [("text", f"../{name}.jsonl") for name in ("a", "b")]
    found = [(parent.role, parent.path, parent.fingerprint) for parent in manifest.inputs]
    assert found[:NUM_SHARDS] == expected
    assert [(role, path) for role, path, _ in found[NUM_SHARDS:]] == text


def test_views_are_copied_with_their_pieces(settings: BuildSettings, tmp_path: Path) -> None:
    ((whole, _),) = build_corpus(replace(settings, chunk_length=16), num_workers=1).items()
    corpus = IndexedCorpus.open(whole)
    chosen = [np.array([1, 2, 5, 11]), np.array([7, 3, 3, 0])]
    views = [write_view(corpus, one, tmp_path / "views", label="refined", settings={}) for one in chosen]
    merged = tmp_path / "views" / "merged"
    merge_prefixes(views, merged)
    order = np.concatenate(chosen).tolist()
    assert contents(merged)[0] == [corpus.sequence(index).tolist() for index in order]
    of_sequence = [[row for row in rows(whole) if row["sequence"] == index] for index in order]
    assert rows(merged) == [
        {**row, "sequence": sequence} for sequence, found in enumerate(of_sequence) for row in found
    ]
    assert find_faults(merged) == []


DOCUMENTS = st.lists(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=3), max_size=6)


@given(st.lists(DOCUMENTS, min_size=1, max_size=3), st.integers(1, 12))
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_sequences_and_documents_follow_one_another_however_they_are_cut(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[list[list[int]]]], copy_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("merge")
    prefixes = [directory / f"part{index}" for index in range(len(parts))]
    for prefix, documents in zip(prefixes, parts, strict=True):
        write_documents(prefix, documents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_COPY_BYTES", copy_bytes)
        patch.setattr(copying, "_INDEX_CHUNK", 3)
        merge_prefixes(prefixes, directory / "merged")
    documents = [document for part in parts for document in part]
    boundaries = np.cumsum([0, *map(len, documents)]).tolist()
    assert contents(directory / "merged") == ([sequence for document in documents for sequence in document], boundaries)


@given(st.data())
@hypothesis_settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_view_is_copied_run_by_run(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("merge")
    corpus = write_documents(directory / "corpus", [[[0, 1], []], [[2]], [], [[3, 4, 5], [6], [7]]])
    chosen = np.array(data.draw(st.lists(st.integers(0, len(corpus) - 1), max_size=9)), np.int64)
    view = write_view(corpus, chosen, directory / "views", label="refined", settings={})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_COPY_BYTES", data.draw(st.integers(1, 12)))
        merge_prefixes([view], directory / "merged")
    assert contents(directory / "merged") == contents(view)
    assert not IndexedCorpus.open(directory / "merged").is_view


def test_an_unordered_view_finds_its_pieces_in_parts(
    settings: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "_UNORDERED_SEQUENCES", 3)
    ((whole, _),) = build_corpus(settings, num_workers=1).items()
    chosen = np.random.default_rng(1).integers(0, 80, 20)
    view = write_view(IndexedCorpus.open(whole), chosen, tmp_path, label="refined", settings={})
    merge_prefixes([view], tmp_path / "merged")
    by_sequence = {row["sequence"]: row for row in rows(whole)}
    expected = [{**by_sequence[index], "sequence": place} for place, index in enumerate(chosen.tolist())]
    assert rows(tmp_path / "merged") == expected


def test_without_one_sidecar_there_is_none(
    settings: BuildSettings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ((whole, _),) = build_corpus(settings, num_workers=1).items()
    other = write_documents(tmp_path / "foreign", [[[1, 2]]]).prefix
    with caplog.at_level("INFO"):
        manifest = merge_prefixes([whole, other], tmp_path / "merged")
    assert f"no sidecar is written: {other} has none" in caplog.text
    assert not sidecar_path(tmp_path / "merged").exists()
    assert manifest.settings == {}
    assert manifest.counts == {"num_sequences": 81, "num_documents": 81, "num_tokens": manifest.counts["num_tokens"]}


def test_a_finished_merge_is_left_and_anything_else_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    prefixes = [write_documents(tmp_path / name, [[[number]]]).prefix for number, name in enumerate("abc")]
    first = merge_prefixes(prefixes[:2], tmp_path / "merged")
    before = (tmp_path / "merged.bin").stat().st_mtime_ns
    with caplog.at_level("INFO"):
        assert merge_prefixes(prefixes[:2], tmp_path / "merged") == first
    assert "is complete already" in caplog.text
    assert (tmp_path / "merged.bin").stat().st_mtime_ns == before
    for others, output, message in (
        (prefixes, "merged", "was made from other inputs or settings than those given now"),
        (prefixes, "a", "a.bin exists without a.manifest.json, so it is another tool's"),
    ):
        with pytest.raises(InputError, match=f"{message}: choose another --output-prefix, or delete it"):
            merge_prefixes(others, tmp_path / output)


def test_an_error_leaves_nothing_behind(
    settings: BuildSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards(settings, tmp_path / "shards")
    monkeypatch.setattr(copying, "_gather", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        merge_prefixes(shards, tmp_path / "out" / "merged")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_cannot_be_one_corpus_is_refused(settings: BuildSettings, tmp_path: Path) -> None:
    ((document, _),) = build_corpus(settings, num_workers=1).items()
    ((chunk, _),) = build_corpus(replace(settings, chunk_length=16), num_workers=1).items()
    wide = write_documents(tmp_path / "wide", [[[1]]], "<i4").prefix
    remedy = "they cannot be one corpus; preprocess both in the same way"
    for other, difference in ((chunk, "sequence document, {} has chunk"), (wide, "token dtype uint16, {} has int32")):
        with pytest.raises(FingerprintMismatchError) as caught:
            merge_prefixes([document, other], tmp_path / "merged")
        assert str(caught.value) == f"{document} has {difference.format(other)}: {remedy}"


def test_tokenizers_must_be_one(tmp_path: Path) -> None:
    for name in "ab":
        prefix = write_documents(tmp_path / name, [[[1]]]).prefix
        Manifest(
            kind="corpus",
            fingerprint=IndexedCorpus.open(prefix).fingerprint(),
            counts={},
            inputs=({"role": "tokenizer", "path": ".", "fingerprint": name * 32},),  # type: ignore[arg-type]
        ).write(prefix)
    with pytest.raises(FingerprintMismatchError, match=r"a has tokenizer aaaaaaaa, .*b has bbbbbbbb: they cannot be"):
        merge_prefixes([tmp_path / "a", tmp_path / "b"], tmp_path / "merged")


def test_shards_must_be_there_once(settings: BuildSettings, tmp_path: Path) -> None:
    shards = make_shards(settings, tmp_path / "shards")
    again = make_shards(settings, tmp_path / "again")
    others = make_shards(replace(settings, append_eod=False), tmp_path / "others")
    view = write_view(IndexedCorpus.open(shards[0]), np.array([0]), tmp_path, label="refined", settings={})
    cases = (
        ([shards[0], shards[3]], "2 of 4 shards are missing (1, 2): give them too, or make them with "),
        ([*shards, again[2]], f"{shards[2]} and {again[2]} are both shard 2: give one of them"),
        ([*shards, view], f"{view} is no shard, but {shards[0]} is: merge the shards first, alone"),
        (
            [*shards[:3], others[3]],
            f"{shards[0]} has append_eod True, {others[3]} has False: they cannot be one corpus",
        ),
    )
    for prefixes, message in cases:
        with pytest.raises((InputError, FingerprintMismatchError)) as caught:
            merge_prefixes(prefixes, tmp_path / "merged")
        assert str(caught.value).startswith(message)
    build_corpus(replace(settings, inputs=settings.inputs[:1]), num_workers=1, shards=[Shard(index=3, count=4)])
    stranger = tmp_path / "whole" / "corpus_text_document_00003-of-00004"
    with pytest.raises(InputError, match=r"is a shard of another corpus than .*: merge those of one run and key"):
        merge_prefixes([*shards[:3], stranger], tmp_path / "merged")


def test_a_blend_names_the_prefixes_and_is_not_overwritten(tmp_path: Path) -> None:
    prefixes = [
        write_documents(tmp_path / name, [[[1]] * number]).prefix for number, name in enumerate(("none", "one", "two"))
    ]
    manifest = blend_prefixes(prefixes, tmp_path / "blend")
    assert (tmp_path / "blend" / "data_args.txt").read_text() == f"1 {prefixes[1]}\n2 {prefixes[2]}\n"
    assert manifest.counts == {"num_sequences": 3, "num_tokens": 3}
    assert blend_prefixes(prefixes, tmp_path / "blend") == manifest
    with pytest.raises(InputError, match="blend holds another list of prefixes"):
        blend_prefixes(prefixes[:2], tmp_path / "blend")
    (tmp_path / "blend" / "manifest.json").unlink()
    blend_prefixes(prefixes, tmp_path / "blend")
    (tmp_path / "blend" / "manifest.json").unlink()
    with pytest.raises(
        InputError, match=r"data_args\.txt is another list: choose another --as-data-args, or delete it"
    ):
        blend_prefixes(prefixes[:2], tmp_path / "blend")


def test_what_a_killed_merge_has_left_is_written_over(tmp_path: Path) -> None:
    prefixes = [write_documents(tmp_path / name, [[[number]]]).prefix for number, name in enumerate("ab")]
    output = tmp_path / "merged"
    merge_prefixes(prefixes, output)
    whole = {suffix: output.with_suffix(suffix).read_bytes() for suffix in (".bin", ".idx", ".manifest.json")}
    output.with_suffix(".manifest.json").unlink()
    output.with_suffix(".bin").write_bytes(b"\xff")
    (tmp_path / ".merged.lengths.tmp").touch()
    merge_prefixes(prefixes, output)
    assert {suffix: output.with_suffix(suffix).read_bytes() for suffix in whole} == whole
    assert not (tmp_path / ".merged.lengths.tmp").exists()


def test_a_merge_that_has_changed_is_refused(tmp_path: Path) -> None:
    prefix = write_documents(tmp_path / "a", [[[1]]]).prefix
    merge_prefixes([prefix], tmp_path / "merged")
    (tmp_path / "merged.bin").write_bytes(b"\x02\x00")
    with pytest.raises(
        InputError, match="merged has changed since it was made: choose another --output-prefix, or del"
    ):
        merge_prefixes([prefix], tmp_path / "merged")


@pytest.mark.parametrize("num_shards", [None, "4", 2, 10**12])
def test_shards_that_say_no_possible_number_are_refused_at_once(
    settings: BuildSettings, tmp_path: Path, num_shards: object
) -> None:
    shards = make_shards(settings, tmp_path / "shards")
    for shard in shards:
        path = prefix_manifest_path(shard)
        manifest = json.loads(path.read_text())
        manifest["settings"]["num_shards"] = num_shards
        path.write_text(json.dumps(manifest))
    with pytest.raises(MiniPLMError, match=r"gives no number of shards|shards are missing|is not a valid manifest"):
        merge_prefixes(shards, tmp_path / "merged")
