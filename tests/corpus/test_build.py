import json
import os
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pyarrow
import pytest
import tokenizers
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from megatron_miniplm.artifacts import Manifest, load_manifest
from megatron_miniplm.artifacts.manifest import verify_files
from megatron_miniplm.corpus import build, sources, units
from megatron_miniplm.corpus.build import WHOLE, BuildSettings, Shard, build_corpus
from megatron_miniplm.corpus.readers import read_document
from megatron_miniplm.corpus.sentences import SentenceModel
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.sidecar import Sidecar, find_mismatch, sidecar_path

SENTENCE_MODEL = SentenceModel.train(topics.values(), max_characters=50_000)
TEXTS = ["one", "", "two\n two", "<|endoftext|>", "", "", "👍🏽 три"]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "twice": text * 2}) + "\n" for text in texts), encoding="utf-8")
    return path


def huggingface(model: Path) -> TokenizerSettings:
    return TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=model)


@pytest.fixture
def settings(tmp_path: Path, bpe_dir: Path) -> BuildSettings:
    return BuildSettings(
        inputs=(write_jsonl(tmp_path / "a.jsonl", TEXTS),),
        output_prefix=tmp_path / "out" / "corpus",
        json_keys=("text",),
        tokenizer=huggingface(bpe_dir),
        append_eod=True,
    )


def output_bytes(settings: BuildSettings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in settings.output_prefix.parent.iterdir()}


def test_documents_become_sequences_and_those_without_tokens_only_boundaries(
    settings: BuildSettings, bpe_dir: Path
) -> None:
    ((prefix, manifest),) = build_corpus(settings, num_workers=1).items()
    assert prefix == settings.output_prefix.with_name("corpus_text_document")
    corpus = IndexedCorpus.open(prefix)
    encoder = load_encoder("HuggingFaceTokenizer", bpe_dir, 2)
    decoded = [encoder.decode(corpus.sequence(index)) for index in range(len(corpus))]
    assert decoded == [f"{text}<|endoftext|>" for text in TEXTS if text]
    assert corpus.boundaries_D.tolist() == [0, 1, 1, 2, 3, 3, 3, 4]
    assert corpus.token_dtype == np.uint16
    assert manifest == load_manifest(prefix)
    assert verify_files(prefix, manifest) == []


def test_the_manifest_says_what_it_was_made_from(settings: BuildSettings, bpe_dir: Path) -> None:
    ((prefix, manifest),) = build_corpus(settings, num_workers=1).items()
    assert manifest.kind == "corpus"
    assert manifest.fingerprint == IndexedCorpus.open(prefix).fingerprint()
    assert manifest.counts == {
        "num_sequences": 4,
        "num_documents": 7,
        "num_empty_documents": 3,
        "num_tokens": IndexedCorpus.open(prefix).num_tokens,
        "text_bytes": sum(len(text.encode()) for text in TEXTS),
    }
    assert manifest.settings == {
        "json_key": "text",
        "sequence": "document",
        "append_eod": True,
        "vocab_size": 600,
        "eod_id": 0,
        "tokenizer_type": "HuggingFaceTokenizer",
    }
    assert [(parent.role, parent.path) for parent in manifest.inputs] == [
        ("text", "../a.jsonl"),
        ("tokenizer", os.path.relpath(bpe_dir, prefix.parent)),
    ]
    assert manifest.inputs[1].fingerprint == load_manifest(bpe_dir).fingerprint
    assert manifest.versions.keys() == {"tokenizers", "gigatoken"}


def test_a_pair_is_written_for_every_key_in_the_order_of_the_files(settings: BuildSettings, tmp_path: Path) -> None:
    second = write_jsonl(tmp_path / "b.jsonl", ["last"])
    manifests = build_corpus(
        replace(settings, inputs=(*settings.inputs, second), json_keys=("text", "twice")), num_workers=1
    )
    assert [prefix.name for prefix in manifests] == ["corpus_text_document", "corpus_twice_document"]
    text, twice = (manifest.counts for manifest in manifests.values())
    assert text["num_documents"] == twice["num_documents"] == len(TEXTS) + 1
    assert twice["text_bytes"] == 2 * text["text_bytes"]


def test_no_documents_make_an_empty_corpus(settings: BuildSettings, tmp_path: Path) -> None:
    ((prefix, manifest),) = build_corpus(
        replace(settings, inputs=(write_jsonl(tmp_path / "none.jsonl", []),)), num_workers=1
    ).items()
    assert set(manifest.counts.values()) == {0}
    assert IndexedCorpus.open(prefix).boundaries_D.tolist() == [0]


def test_only_empty_documents_make_boundaries_without_sequences(settings: BuildSettings, tmp_path: Path) -> None:
    ((prefix, _),) = build_corpus(
        replace(settings, inputs=(write_jsonl(tmp_path / "empty.jsonl", ["", ""]),)), num_workers=1
    ).items()
    assert IndexedCorpus.open(prefix).boundaries_D.tolist() == [0, 0, 0]


def test_the_same_command_again_does_nothing(
    settings: BuildSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = build_corpus(settings, num_workers=1)
    before = output_bytes(settings)
    monkeypatch.setattr(build._ShardBuild, "run", None)
    with caplog.at_level("INFO"):
        assert build_corpus(settings, num_workers=2) == first
    assert "is complete already, from the same inputs and settings: nothing to do" in caplog.text
    assert output_bytes(settings) == before


@pytest.mark.parametrize("change", ["append_eod", "text", "inputs"])
def test_a_prefix_made_from_something_else_is_never_overwritten(settings: BuildSettings, change: str) -> None:
    build_corpus(settings, num_workers=1)
    before = output_bytes(settings)
    if change == "append_eod":
        settings = replace(settings, append_eod=False)
    elif change == "text":
        write_jsonl(settings.inputs[0], [*TEXTS[:-1], TEXTS[-1].upper()])
    else:
        settings = replace(settings, inputs=settings.inputs * 2)
    with pytest.raises(InputError) as caught:
        build_corpus(settings, num_workers=1)
    assert str(caught.value) == (
        f"{settings.prefix('text')} was made from other inputs or settings than those given now: choose another "
        "--output-prefix, or delete it together with its index caches in any --data-cache-path, which Megatron would "
        "go on using"
    )
    assert output_bytes(settings) == before


def test_a_foreign_or_changed_pair_is_never_overwritten(settings: BuildSettings) -> None:
    ((prefix, _),) = build_corpus(settings, num_workers=1).items()
    with open(f"{prefix}.bin", "r+b") as stream:
        stream.write(b"\xff")
    with pytest.raises(InputError, match="has changed since it was made: choose another --output-prefix, or delete it"):
        build_corpus(settings, num_workers=1)
    Path(f"{prefix}.manifest.json").unlink()
    with pytest.raises(
        InputError, match=r"\.bin exists without corpus_text_document\.manifest\.json, so it is another"
    ):
        build_corpus(settings, num_workers=1)


def test_no_key_is_written_where_another_key_finds_something_else(settings: BuildSettings) -> None:
    build_corpus(replace(settings, json_keys=("twice",), append_eod=False), num_workers=1)
    before = output_bytes(settings)
    with pytest.raises(InputError, match="corpus_twice_document was made from other inputs or settings"):
        build_corpus(replace(settings, json_keys=("text", "twice")), num_workers=1)
    assert output_bytes(settings) == before


def test_an_error_in_the_last_line_leaves_nothing_behind(settings: BuildSettings) -> None:
    with open(settings.inputs[0], "a") as stream:
        stream.write('{"text": 1}\n')
    with pytest.raises(InputError, match="line 8: expected a string"):
        build_corpus(settings, num_workers=1)
    assert output_bytes(settings) == {}


def test_append_eod_needs_a_token_for_it(settings: BuildSettings, bpe_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((bpe_dir / "tokenizer.json").read_bytes())
    with pytest.raises(InputError) as caught:
        build_corpus(replace(settings, tokenizer=huggingface(tmp_path)), num_workers=1)
    assert str(caught.value).startswith(f"--append-eod needs an end-of-document token, and {tmp_path} names none: set ")
    build_corpus(replace(settings, tokenizer=huggingface(tmp_path), append_eod=False), num_workers=1)


def test_an_id_that_the_token_type_cannot_hold_is_refused(settings: BuildSettings, tmp_path: Path) -> None:
    model = tokenizers.models.WordLevel({"one": 70_000, "<unk>": 0}, unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="the tokenizer gave id 70000, but says that it has 2 tokens, for which Megat"):
        build_corpus(replace(settings, tokenizer=huggingface(tmp_path), append_eod=False), num_workers=1)
    assert output_bytes(settings) == {}


def build_elsewhere(settings: BuildSettings, name: str, **changes: Any) -> tuple[Path, dict[Path, Manifest]]:
    """A build into a directory of its own, at the depth of the first one, so that relative paths are equal."""
    num_workers, shards = changes.pop("num_workers", 1), changes.pop("shards", (WHOLE,))
    directory = settings.output_prefix.parent.parent / name
    changed = replace(settings, output_prefix=directory / settings.output_prefix.name, **changes)
    return directory, build_corpus(changed, num_workers=num_workers, shards=shards)


def directory_bytes(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def set_unit(patch: pytest.MonkeyPatch, size: int) -> None:
    for module in (sources, units, build):
        patch.setattr(module, "UNIT_BYTES", size)
    patch.setattr(build, "_WORTH_WORKERS_BYTES", size)


SHAPES = {"document": {}, "chunk": {"chunk_length": 12, "domain_key": "domain"}}


@pytest.fixture
def long_input(tmp_path: Path) -> Path:
    """Some 60 KB in three domains, to be cut into small units."""
    texts = [text for text in topics.values() if text.isascii()][:20]
    texts += ["", "是。中文没有空格。真的。", "👩‍👩‍👧‍👦 emoji! Yes."]
    path = tmp_path / "long.jsonl"
    lines = [{"text": text[:3000], "domain": "abc"[number % 3]} for number, text in enumerate(texts)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


# In a process with threads, such as that of the tests, workers are spawned, and each imports what it needs anew.
@pytest.mark.parametrize("shape", ["document", pytest.param("chunk", marks=pytest.mark.slow)])
def test_workers_and_compression_change_no_byte(
    settings: BuildSettings, long_input: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_unit(monkeypatch, 5000)
    settings = replace(settings, inputs=(long_input,), **SHAPES[shape])
    expected, _ = build_elsewhere(settings, "1", num_workers=1)
    found, _ = build_elsewhere(settings, "3", num_workers=3)
    assert directory_bytes(found) == directory_bytes(expected)
    compressed = long_input.with_name("long.jsonl.zst")
    with pyarrow.output_stream(str(compressed), compression="zstd") as stream:
        stream.write(long_input.read_bytes())
    found, _ = build_elsewhere(settings, "zst", num_workers=2, inputs=(compressed,))
    (prefix,) = {path.with_suffix("") for path in expected.glob("*.idx")}
    for suffix in ("bin", "idx"):
        assert (found / f"{prefix.name}.{suffix}").read_bytes() == Path(f"{prefix}.{suffix}").read_bytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_shards_follow_one_another(
    settings: BuildSettings, long_input: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_unit(monkeypatch, 5000)
    settings = replace(settings, inputs=(long_input,), **SHAPES[shape])
    _, whole = build_elsewhere(settings, "whole")
    shards = [Shard(index=index, count=3) for index in range(3)]
    _, parts = build_elsewhere(settings, "shards", shards=shards)
    assert len(parts) == 3
    corpora = [IndexedCorpus.open(prefix) for prefix in parts]
    assert all(len(corpus) for corpus in corpora)
    (corpus,) = (IndexedCorpus.open(prefix) for prefix in whole)
    assert np.concatenate([part.lengths_N for part in corpora]).tolist() == corpus.lengths_N.tolist()
    assert b"".join(Path(f"{prefix}.bin").read_bytes() for prefix in parts) == Path(f"{corpus.prefix}.bin").read_bytes()
    for count in ("num_documents", "num_empty_documents", "num_sequences", "num_tokens", "text_bytes"):
        assert sum(manifest.counts[count] for manifest in parts.values()) == whole[corpus.prefix].counts[count]


def test_a_mended_file_changes_its_own_shard_only(settings: BuildSettings, tmp_path: Path) -> None:
    files = [tmp_path / f"part{index}.jsonl" for index in range(5)]
    for index, path in enumerate(files):
        path.write_text(f'{{"text": "file {index}"}}\n' * (index + 1))
    files[2].write_text('{"text": "first"}\n{"text": \n')
    settings = replace(settings, inputs=tuple(files))
    shards = [Shard(index=index, count=5, by_files=True) for index in range(5)]
    directory, _ = build_elsewhere(settings, "shards", shards=[*shards[:2], *shards[3:]])
    with pytest.raises(InputError, match=r"part2\.jsonl, line 2"):
        build_elsewhere(settings, "shards", shards=shards[2:3])
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    files[2].write_text('{"text": "first"}\n{"text": "mended, and longer than it was"}\n')
    _, parts = build_elsewhere(settings, "shards", shards=shards)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in directory.iterdir()}.items()
    assert [manifest.counts["num_documents"] for manifest in parts.values()] == [1, 2, 2, 4, 5]


def test_finished_shards_are_left_as_they_are(settings: BuildSettings, long_input: Path) -> None:
    settings = replace(settings, inputs=(long_input, *settings.inputs))
    shards = [Shard(index=index, count=2) for index in range(2)]
    directory, (*_,) = build_elsewhere(settings, "shards", shards=shards[:1])
    before = {path: path.stat().st_mtime_ns for path in directory.iterdir()}
    build_elsewhere(settings, "shards", shards=shards)
    assert before.items() <= {path: path.stat().st_mtime_ns for path in directory.iterdir()}.items()
    assert len(list(directory.glob("*.manifest.json"))) == 2


@hypothesis_settings(max_examples=30, deadline=None)
@given(
    documents=st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), st.sampled_from("ab")), max_size=12
    ),
    chunk_length=st.one_of(st.none(), st.integers(1, 40)),
    unit=st.integers(20, 2000),
)
def test_sequences_decode_to_the_documents(
    documents: list[tuple[str, str]],
    chunk_length: int | None,
    unit: int,
    bpe_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("property")
    path = directory / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text, "domain": domain}) + "\n" for text, domain in documents))
    with pytest.MonkeyPatch.context() as patch:
        set_unit(patch, unit)
        patch.setattr(build.SentenceModel, "train", lambda texts: SENTENCE_MODEL)
        (prefix,) = build_corpus(
            BuildSettings(
                inputs=(path,),
                output_prefix=directory / "corpus",
                json_keys=("text",),
                tokenizer=huggingface(bpe_dir),
                append_eod=True,
                chunk_length=chunk_length,
                domain_key="domain",
            ),
            num_workers=1,
        )
    corpus = IndexedCorpus.open(prefix)
    encoder = load_encoder("HuggingFaceTokenizer", bpe_dir, 1)
    sidecar = Sidecar.of(corpus)
    assert sidecar is not None
    assert find_mismatch(sidecar, corpus) is None
    rows = [row for table in sidecar.tables() for row in table.to_pylist()]
    tokens = np.concatenate([np.zeros(0, np.uint16), *(corpus.sequence(index) for index in range(len(corpus)))])
    # A literal <|endoftext|> in a text is the end-of-document token for this tokenizer too.
    pieces = np.split(tokens, np.cumsum([row["num_tokens"] for row in rows])[:-1]) if rows else []
    by_position: dict[int, list[int]] = {}
    for row, piece in zip(rows, pieces, strict=True):
        by_position.setdefault(row["position"], []).extend(piece.tolist())
    texts = [text for text, _ in documents if text]
    decoded = [encoder.decode_batch(np.array(ids), np.array([len(ids)]))[0] for _, ids in sorted(by_position.items())]
    assert decoded == [f"{text}<|endoftext|>".encode() for text in texts]
    assert chunk_length is None or corpus.lengths_N.max(initial=0) <= chunk_length
    domains = {}
    for row in rows:
        assert domains.setdefault(row["sequence"], row["domain"]) == row["domain"]


def test_bad_lines_are_listed_and_counted(settings: BuildSettings, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\nnot json\n\n{"text": 5}\n{"text": "also good"}\n')
    settings = replace(settings, inputs=(path, *settings.inputs), skip_bad_lines=True)
    ((prefix, manifest),) = build_corpus(settings, num_workers=1).items()
    assert (manifest.counts["num_documents"], manifest.counts["num_rejected_lines"]) == (2 + len(TEXTS), 2)
    listed = [json.loads(line) for line in Path(f"{prefix}.rejected.jsonl").read_text().splitlines()]
    assert [(entry["file"], entry["line"]) for entry in listed] == [(str(path), 2), (str(path), 4)]
    assert listed[1]["reason"] == "expected a string under 'text', found a number: fix or remove the line"
    assert f"{prefix.name}.rejected.jsonl" in manifest.files
    assert verify_files(prefix, manifest) == []


def test_a_job_without_one_good_line_fails_and_publishes_nothing(settings: BuildSettings, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"body": "a"}\n\n{"body": "b"}\n')
    settings = replace(settings, inputs=(path,), skip_bad_lines=True)
    with pytest.raises(
        InputError, match=r"all 2 lines are bad, the first: .*bad\.jsonl, line 1: expected the key 'text'"
    ):
        build_corpus(settings, num_workers=1)
    assert output_bytes(settings) == {}


def test_a_text_within_an_object_names_its_pair(settings: BuildSettings, tmp_path: Path) -> None:
    path = tmp_path / "nested.jsonl"
    path.write_text('{"data": {"text": "inside"}}\n')
    ((prefix, manifest),) = build_corpus(
        replace(settings, inputs=(path,), json_keys=("data.text",)), num_workers=1
    ).items()
    assert prefix.name == "corpus_data.text_document"
    assert manifest.settings["json_key"] == "data.text"
    assert read_document(path, 0, "data.text") == ("inside", 1)


@pytest.mark.parametrize("key", ["a/b", "", "a\0"])
def test_a_key_that_no_file_can_be_named_after_is_refused(settings: BuildSettings, key: str) -> None:
    with pytest.raises(InputError, match="cannot be part of a file name: rename the key in the text"):
        build_corpus(replace(settings, json_keys=(key,)), num_workers=1)


def test_a_line_bound_is_recorded_where_it_is_not_the_usual_one(settings: BuildSettings) -> None:
    settings = replace(settings, max_line_bytes=50, skip_bad_lines=True)
    ((_, manifest),) = build_corpus(settings, num_workers=1).items()
    assert manifest.settings["max_line_bytes"] == 50
    assert manifest.counts["num_rejected_lines"] == sum(
        len(json.dumps({"text": t, "twice": t * 2})) > 50 for t in TEXTS
    )
    with pytest.raises(InputError, match="--max-line-bytes 0 leaves no line: give at least 1"):
        build_corpus(replace(settings, max_line_bytes=0), num_workers=1)


def test_the_sidecar_names_the_document_of_every_sequence(settings: BuildSettings, tmp_path: Path) -> None:
    path = tmp_path / "labelled.jsonl"
    lines = [{"text": text, "id": number, "meta": {"set": "prose"}} for number, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = replace(settings, inputs=(path,), id_key="id", domain_key="meta.set")
    ((prefix, _),) = build_corpus(settings, num_workers=1).items()
    sidecar = Sidecar(sidecar_path(prefix))
    rows = [row for table in sidecar.tables() for row in table.to_pylist()]
    assert [row["id"] for row in rows] == ["0", "2", "3", "6"]
    assert {row["domain"] for row in rows} == {"prose"}
    assert [row["text_bytes"] for row in rows] == [len(TEXTS[number].encode()) for number in (0, 2, 3, 6)]
    assert {sidecar.source_path(row["source"]) for row in rows} == {path}
    data = path.read_bytes()
    assert [json.loads(data[row["position"] :].split(b"\n")[0])["text"] for row in rows] == [
        text for text in TEXTS if text
    ]


def test_a_prefix_whose_manifest_a_kill_prevented_is_made_again(settings: BuildSettings) -> None:
    ((prefix, _),) = build_corpus(settings, num_workers=1).items()
    before = output_bytes(settings)
    Path(f"{prefix}.manifest.json").unlink()
    prefix.with_name(f".{prefix.name}.lengths.tmp").touch()
    build_corpus(settings, num_workers=1)
    assert output_bytes(settings) == before
