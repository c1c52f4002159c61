import gzip
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.artifacts import Manifest, load_manifest
from megatron_miniplm.artifacts.manifest import verify_files
from megatron_miniplm.corpus import sources, units
from megatron_miniplm.corpus.build import BuildSettings, Shard, build_corpus
from megatron_miniplm.corpus.retokenization import excerpts, from_tokens
from megatron_miniplm.corpus.retokenization.convert import ConversionSettings, convert_prefixes
from megatron_miniplm.corpus.retokenization.from_tokens import INVALID_UTF8, split_at_eod
from megatron_miniplm.corpus.retokenization.prefixes import ROUND_TRIP_SUFFIX
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter, write_view
from megatron_miniplm.indexed.merge import merge_prefixes
from megatron_miniplm.indexed.sidecar import Sidecar, SidecarWriter, sidecar_path
from megatron_miniplm.reports.inspection import find_faults

WORDS = ["one", "two,", "three.", "Four", "five!", "naïve", "👍🏽", "три", "слова\n\nA", "line\tand", "", "", "spaces."]
NUM_DOCUMENTS = 60


@pytest.fixture(autouse=True)
def small_units(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many units a file, and many runs a corpus."""
    for module in (sources, units):
        monkeypatch.setattr(module, "UNIT_BYTES", 700)
    monkeypatch.setattr(from_tokens, "_RUN_BYTES", 300)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    rng = np.random.default_rng(0)
    made = [" ".join(rng.choice(WORDS, rng.integers(1, 60))).strip() for _ in range(NUM_DOCUMENTS)]
    return [*made[:5], "", *made[5:], ""]


@pytest.fixture
def bpe_settings(bpe_dir: Path) -> TokenizerSettings:
    return TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=bpe_dir)


@pytest.fixture
def sp_settings(sentencepiece_path: Path) -> TokenizerSettings:
    return TokenizerSettings(tokenizer_type="SentencePieceTokenizer", tokenizer_model=sentencepiece_path)


def write_texts(directory: Path, kind: str, texts: Sequence[str]) -> list[Path]:
    """Two files of a kind; the second has the last third."""
    directory.mkdir(parents=True, exist_ok=True)
    edge = 2 * len(texts) // 3
    paths = []
    for name, part in (("a", texts[:edge]), ("b", texts[edge:])):
        path = directory / f"{name}.{kind}"
        lines = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(part))
        if kind == "parquet":
            table = pa.table({"text": part, "id": list(range(len(part)))})
            pq.write_table(table, path, row_group_size=4)
        elif kind == "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        elif kind == "jsonl.zst":
            path.write_bytes(pa.Codec("zstd").compress(lines.encode(), asbytes=True))
        else:
            path.write_text(lines)
        paths.append(path)
    return paths


def build(
    directory: Path,
    texts: Sequence[str],
    tokenizer: TokenizerSettings,
    *,
    kind: str = "jsonl",
    append_eod: bool = True,
    chunk_length: int | None = None,
) -> Path:
    """The prefix of a corpus in `directory/teacher`."""
    settings = BuildSettings(
        inputs=tuple(write_texts(directory, kind, texts)),
        output_prefix=directory / "teacher" / "corpus",
        json_keys=("text",),
        tokenizer=tokenizer,
        append_eod=append_eod,
        id_key="id",
        chunk_length=chunk_length,
    )
    ((prefix, _),) = build_corpus(settings, num_workers=1).items()
    return prefix


def convert(prefix: Path, output_dir: Path, settings: ConversionSettings, num_workers: int = 1) -> Path:
    ((output, manifest),) = convert_prefixes([prefix], output_dir, settings, num_workers=num_workers).items()
    assert manifest == load_manifest(output)
    assert verify_files(output, manifest) == []
    assert find_faults(output) == []
    return output


def sequences_of(prefix: Path) -> list[list[int]]:
    corpus = IndexedCorpus.open(prefix)
    return [corpus.sequence(index).tolist() for index in range(len(corpus))]


def ids_of(encoder: TextEncoder, text: str) -> list[int]:
    return encoder.encode([text])[0].tolist()


def expected_sequences(prefix: Path, texts: Sequence[str], encoder: TextEncoder) -> list[list[int]]:
    """Every sequence of a corpus in another tokenizer, from the texts of its pieces."""
    edge = 2 * len(texts) // 3
    parts = {"a": texts[:edge], "b": texts[edge:]}
    sequences: dict[int, list[int]] = {}
    for table in Sidecar(sidecar_path(prefix)).tables():
        for row in table.to_pylist():
            data = parts[Path(row["source"]).name[0]][int(row["id"])].encode()
            start, stop = row["start_byte"], row["start_byte"] + row["text_bytes"]
            ids = ids_of(encoder, data[start:stop].decode())
            sequences.setdefault(row["sequence"], []).extend(ids + [encoder.eod_id] * (stop == len(data)))
    return [sequences[index] for index in range(len(sequences))]


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
@pytest.mark.parametrize("chunk_length", [None, 32])
def test_a_view_becomes_its_text_in_the_other_tokenizer(
    tmp_path: Path,
    texts: list[str],
    bpe_settings: TokenizerSettings,
    sp_settings: TokenizerSettings,
    sp: TextEncoder,
    kind: str,
    chunk_length: int | None,
) -> None:
    prefix = build(tmp_path, texts, bpe_settings, kind=kind, chunk_length=chunk_length)
    corpus = IndexedCorpus.open(prefix)
    expected = expected_sequences(prefix, texts, sp)
    if chunk_length is None:
        assert expected == [[*ids_of(sp, text), sp.eod_id] for text in texts if text]
    settings = ConversionSettings(tokenizer=sp_settings)
    rng = np.random.default_rng(1)
    for name, chosen in (
        ("ascending", np.flatnonzero(rng.random(len(corpus)) < 0.3)),
        ("one", np.array([len(corpus) - 1])),
        ("none", np.zeros(0, np.int64)),
        ("unordered", rng.integers(0, len(corpus), 2 * len(corpus))),
    ):
        view = write_view(corpus, chosen, tmp_path / "views" / name, label="refined", settings={})
        output = convert(view, tmp_path / "student" / name, settings)
        assert sequences_of(output) == [expected[index] for index in chosen]
        assert [path for path in output.parent.iterdir() if path.name.startswith(".")] == []
    assert sequences_of(convert(prefix, tmp_path / "student" / "all", settings)) == expected


def test_both_roads_and_preprocess_data_agree(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings
) -> None:
    texts = [text for text in texts if text]  # a document without tokens is a boundary there and nothing here
    direct = build(tmp_path / "direct", texts, sp_settings)
    for teacher, source in ((bpe_settings, "bpe"), (sp_settings, "sp")):
        prefix = build(tmp_path / source, texts, teacher)
        for road in ("text", "tokens"):
            settings = ConversionSettings(tokenizer=sp_settings, converted_from=road)
            output = convert(prefix, tmp_path / source / road, settings)
            for suffix in (".bin", ".idx"):
                ours, theirs = (each.with_name(each.name + suffix).read_bytes() for each in (output, direct))
                assert ours == theirs
            rows = [row for table in Sidecar(sidecar_path(output)).tables() for row in table.to_pylist()]
            wanted = [row for table in Sidecar(sidecar_path(direct)).tables() for row in table.to_pylist()]
            assert [{**row, "source": ""} for row in rows] == [{**row, "source": ""} for row in wanted]


def test_chunks_go_by_way_of_their_tokens(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings, sp: TextEncoder
) -> None:
    prefix = build(tmp_path, texts, bpe_settings, chunk_length=32)
    output = convert(prefix, tmp_path / "out", ConversionSettings(tokenizer=sp_settings, converted_from="tokens"))
    assert sequences_of(output) == expected_sequences(prefix, texts, sp)
    counts = load_manifest(output).counts
    assert counts["num_round_trip_failures"] == 0
    assert output.with_name(output.name + ROUND_TRIP_SUFFIX).read_bytes() == b""


@pytest.mark.parametrize("road", ["text", "tokens"])
def test_the_output_does_not_depend_on_the_workers(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings, road: str
) -> None:
    prefix = build(tmp_path, texts, bpe_settings, chunk_length=32)
    settings = ConversionSettings(tokenizer=sp_settings, converted_from=road)
    outputs = [convert(prefix, tmp_path / f"out{num}", settings, num_workers=num) for num in (1, 2)]
    first, second = ({path.name: path.read_bytes() for path in output.parent.glob("corpus*")} for output in outputs)
    assert first == second


def test_the_manifest_says_what_it_was_made_from(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings
) -> None:
    prefix = build(tmp_path, texts, bpe_settings)
    for road in ("text", "tokens"):
        output = convert(prefix, tmp_path / road, ConversionSettings(tokenizer=sp_settings, converted_from=road))
        manifest = load_manifest(output)
        assert manifest.settings == {
            "json_key": "text",
            "sequence": "document",
            "append_eod": True,
            "id_key": "id",
            "converted_from": road,
            "vocab_size": 600,
            "eod_id": load_manifest(output).settings["eod_id"],
            "tokenizer_type": "SentencePieceTokenizer",
        }
        parents = [(parent.role, parent.path) for parent in manifest.inputs]
        assert parents[:3] == [
            ("source", "../teacher/corpus_text_document"),
            ("text", "../a.jsonl"),
            ("text", "../b.jsonl"),
        ]
        assert [role for role, _ in parents[3:]] == ["tokenizer", "source tokenizer"][: 1 + (road == "tokens")]
        assert manifest.counts["num_sequences"] == NUM_DOCUMENTS
        assert manifest.counts["text_bytes"] == sum(len(text.encode()) for text in texts)
    blend = (tmp_path / "text" / "data_args.txt").read_text()
    assert (
        blend
        == f"{load_manifest(tmp_path / 'text' / prefix.name).counts['num_tokens']} {tmp_path / 'text' / prefix.name}\n"
    )


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "parquet"])
def test_a_conversion_can_be_merged_viewed_and_converted_again(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings, kind: str
) -> None:
    """Across two tokenizers, a merge of views out of order, and files that are read more than once."""
    prefix = build(tmp_path, texts, bpe_settings, kind=kind, chunk_length=32)
    student = convert(prefix, tmp_path / "student", ConversionSettings(tokenizer=sp_settings))
    corpus, rng = IndexedCorpus.open(student), np.random.default_rng(2)
    chosen = [np.arange(3, len(corpus), 2), np.arange(0, len(corpus), 3), rng.integers(0, len(corpus), 40)]
    views = [write_view(corpus, one, tmp_path / "views", label="refined", settings={}) for one in chosen]
    merge_prefixes(views, tmp_path / "merged" / "corpus")
    back = convert(tmp_path / "merged" / "corpus", tmp_path / "back", ConversionSettings(tokenizer=bpe_settings))
    bpe = load_encoder(bpe_settings.tokenizer_type, bpe_settings.tokenizer_model, 1)
    expected = expected_sequences(prefix, texts, bpe)
    assert sequences_of(back) == [expected[index] for one in chosen for index in one]


def test_the_shards_of_a_corpus_are_converted_one_by_one(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings, sp: TextEncoder
) -> None:
    settings = BuildSettings(
        inputs=tuple(write_texts(tmp_path, "jsonl", texts)),
        output_prefix=tmp_path / "shards" / "corpus",
        json_keys=("text",),
        tokenizer=bpe_settings,
        append_eod=True,
    )
    shards = list(build_corpus(settings, num_workers=1, shards=[Shard(index=index, count=3) for index in range(3)]))
    outputs = convert_prefixes(shards, tmp_path / "out", ConversionSettings(tokenizer=sp_settings), num_workers=1)
    found = [sequence for output in outputs for sequence in sequences_of(output)]
    assert found == [[*ids_of(sp, text), sp.eod_id] for text in texts if text]
    assert len((tmp_path / "out" / "data_args.txt").read_text().splitlines()) == 3


def word_tokenizer(directory: Path) -> TokenizerSettings:
    """Knows no end of document, and has no token for white space."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    return TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=directory)


@pytest.mark.parametrize("road", ["text", "tokens"])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [4, 1, 2, 2, 0]])
def test_what_has_no_token_is_left_out_and_counted(
    tmp_path: Path, bpe_settings: TokenizerSettings, road: str, order: list[int]
) -> None:
    prefix = build(tmp_path, ["a", "  ", "a b", "\n", "b"], bpe_settings, append_eod=False)
    view = write_view(IndexedCorpus.open(prefix), np.array(order), tmp_path / "view", label="refined", settings={})
    settings = ConversionSettings(tokenizer=word_tokenizer(tmp_path / "words"), converted_from=road)
    output = convert(view, tmp_path / "out", settings)
    expected = [[1], [], [1, 2], [], [2]]
    assert sequences_of(output) == [expected[index] for index in order if expected[index]]
    assert load_manifest(output).counts["num_empty_sequences"] == sum(not expected[index] for index in order)
    kept = [index for index in order if expected[index]]
    sizes = [len(("a", "  ", "a b", "\n", "b")[index]) for index in kept]
    rows = [row for table in Sidecar(sidecar_path(output)).tables() for row in table.to_pylist()]
    assert [(row["sequence"], row["text_bytes"]) for row in rows] == list(enumerate(sizes))


@given(st.lists(st.lists(st.integers(0, 2), max_size=6), max_size=6))
def test_segments_end_with_documents_and_sequences(sequences: list[list[int]]) -> None:
    tokens = [token for sequence in sequences for token in sequence]
    stops_N = np.cumsum([len(sequence) for sequence in sequences], dtype=np.int64)
    stops_S, has_eod_S = split_at_eod(np.array(tokens, np.uint16), stops_N, 0)
    expected = []
    position = 0
    for sequence in sequences:
        for index, token in enumerate(sequence):
            position += 1
            if token == 0 or index == len(sequence) - 1:
                expected.append((position, token == 0))
    assert list(zip(stops_S.tolist(), has_eod_S.tolist(), strict=True)) == expected


def test_what_does_not_come_back_is_listed(
    tmp_path: Path, bpe: TextEncoder, bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings, sp: TextEncoder
) -> None:
    """A character that is cut in two, and words in other ids than the tokenizer gives them."""
    whole, other = ids_of(bpe, "the thing"), [token for letter in "the" for token in ids_of(bpe, letter)]
    cut = ids_of(bpe, "é")[:1]
    assert len(ids_of(bpe, "é")) > 1
    eod = [bpe.eod_id]
    sequences = [whole + eod, other, [], eod + eod + whole, cut + eod + whole + eod + cut, whole]
    with IndexedWriter(tmp_path / "foreign", np.dtype("<u2")) as writer:
        for sequence in sequences:
            writer.append(np.array(sequence, np.int64), np.array([len(sequence)]))
        writer.close()
    settings = ConversionSettings(
        tokenizer=sp_settings,
        converted_from="tokens",
        source_tokenizer_type=bpe_settings.tokenizer_type,
        source_tokenizer_model=bpe_settings.tokenizer_model,
    )
    output = convert(tmp_path / "foreign", tmp_path / "out", settings)
    the_thing, the, broken, end = ids_of(sp, "the thing"), ids_of(sp, "the"), ids_of(sp, "\ufffd"), [sp.eod_id]
    assert sequences_of(output) == [
        the_thing + end,
        the,
        end + end + the_thing,
        broken + end + the_thing + end + broken,
        the_thing,
    ]
    lines = output.with_name(output.name + ROUND_TRIP_SUFFIX).read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"sequence": 4, "reason": INVALID_UTF8}]
    counts = load_manifest(output).counts
    assert counts["num_round_trip_failures"] == 1
    assert counts["num_texts_with_other_ids"] == 1
    assert counts["num_empty_sequences"] == 1


def test_a_finished_prefix_is_left_as_it_is(
    tmp_path: Path,
    texts: list[str],
    bpe_settings: TokenizerSettings,
    sp_settings: TokenizerSettings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    prefix = build(tmp_path, texts, bpe_settings)
    settings = ConversionSettings(tokenizer=sp_settings)
    output = convert(prefix, tmp_path / "out", settings)
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    monkeypatch.setattr(excerpts, "_wanted", None)
    with caplog.at_level("INFO"):
        convert(prefix, tmp_path / "out", settings)
    assert "is complete already, from the same inputs and settings: nothing to do" in caplog.text
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before
    with pytest.raises(
        InputError, match="was made from other inputs or settings than those given now: choose another -"
    ):
        convert(prefix, tmp_path / "out", replace(settings, tokenizer=bpe_settings))


def test_an_error_leaves_finished_prefixes_only(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings
) -> None:
    first = build(tmp_path, texts, bpe_settings)
    second = build(tmp_path / "other", texts, bpe_settings, chunk_length=32)
    (tmp_path / "other" / "b.jsonl").unlink()
    with pytest.raises(
        InputError, match=r"b\.jsonl, the text behind .*, does not exist: bring the old file back, or conv"
    ):
        convert_prefixes([first, second], tmp_path / "out", ConversionSettings(tokenizer=sp_settings), num_workers=1)
    assert {path.name.split(".")[0] for path in (tmp_path / "out").iterdir()} == {first.name}


def test_text_that_is_not_what_was_encoded_is_refused(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings
) -> None:
    prefix = build(tmp_path, texts, bpe_settings)
    settings = ConversionSettings(tokenizer=sp_settings)
    path = tmp_path / "a.jsonl"
    path.write_text(path.read_text().replace("three", "THREE"))
    with pytest.raises(
        InputError, match="has changed since it was encoded: bring the old file back, or convert with -"
    ):
        convert(prefix, tmp_path / "out", settings)
    manifest = load_manifest(prefix)
    path.write_text(path.read_text()[7:])
    inputs = tuple(
        replace(parent, fingerprint=excerpts.digest_file_samples(path)) if parent.path == "../a.jsonl" else parent
        for parent in manifest.inputs
    )
    replace(manifest, inputs=inputs).write(prefix)
    with pytest.raises(
        InputError, match=r"a\.jsonl holds other documents than the sidecar says: bring the old file back"
    ):
        convert(prefix, tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_text_that_nothing_names_is_refused(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings
) -> None:
    prefix = build(tmp_path, texts, bpe_settings)
    settings = ConversionSettings(tokenizer=sp_settings)
    sidecar_path(prefix).rename(tmp_path / "hidden")
    with pytest.raises(InputError, match=r"is unknown without .*\.documents\.parquet: convert with --from tokens"):
        convert(prefix, tmp_path / "out", settings)
    output = convert(prefix, tmp_path / "tokens", replace(settings, converted_from="tokens"))
    assert not sidecar_path(output).exists()
    (tmp_path / "hidden").rename(sidecar_path(prefix))
    Path(f"{prefix}.manifest.json").unlink()
    with pytest.raises(InputError, match=r"is unknown without .*\.manifest\.json: convert with --from tokens"):
        convert(prefix, tmp_path / "out", settings)


def test_a_sidecar_of_another_corpus_is_refused(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings
) -> None:
    prefix = build(tmp_path, texts, bpe_settings)
    (table,) = Sidecar(sidecar_path(prefix)).tables()
    with SidecarWriter(prefix) as writer:
        writer.append(table.slice(0, len(table) - 1))
        writer.close()
    for road in ("text", "tokens"):
        with pytest.raises(CorruptArtifactError, match="belongs to another"):
            convert(prefix, tmp_path / "out", ConversionSettings(tokenizer=sp_settings, converted_from=road))


def test_the_source_tokenizer_must_be_that_of_the_corpus(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings
) -> None:
    prefix = build(tmp_path, texts, bpe_settings)
    settings = ConversionSettings(tokenizer=sp_settings, converted_from="tokens")
    other = replace(
        settings,
        source_tokenizer_type="SentencePieceTokenizer",
        source_tokenizer_model=sp_settings.tokenizer_model,
    )
    with pytest.raises(
        FingerprintMismatchError, match=r"was encoded with tokenizer .*: give the one it was encoded with"
    ):
        convert(prefix, tmp_path / "out", other)
    manifest = load_manifest(prefix)
    gone = tuple(
        replace(parent, path="../gone") if parent.role == "tokenizer" else parent for parent in manifest.inputs
    )
    replace(manifest, inputs=gone).write(prefix)
    with pytest.raises(InputError, match=r"gone, the tokenizer of .*, does not exist: give --source-tokenizer-model"):
        convert(prefix, tmp_path / "out", settings)
    Manifest(kind="corpus", fingerprint=manifest.fingerprint, counts={}).write(prefix)
    with pytest.raises(InputError, match="has no manifest that names its tokenizer: give --source-tokenizer-type and"):
        convert(prefix, tmp_path / "out", settings)


def test_documents_that_end_need_a_token_for_it(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings
) -> None:
    prefix = build(tmp_path, texts, bpe_settings)
    settings = ConversionSettings(tokenizer=word_tokenizer(tmp_path / "words"))
    with pytest.raises(
        InputError, match="end with an end-of-document token, and the new tokenizer names none: set eos_"
    ):
        convert(prefix, tmp_path / "out", settings)


def test_names_in_the_output_are_kept_apart(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings
) -> None:
    first, second = (build(tmp_path / name, texts, bpe_settings) for name in ("one", "two"))
    settings = ConversionSettings(tokenizer=sp_settings)
    with pytest.raises(
        InputError, match="two of the inputs are called corpus_text_document: convert them into two dir"
    ):
        convert_prefixes([first, second], tmp_path / "out", settings, num_workers=1)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "data_args.txt").write_text("1 /elsewhere/corpus\n")
    with pytest.raises(
        InputError, match=r"names /elsewhere/corpus, which this command does not write: give another --"
    ):
        convert(first, tmp_path / "out", settings)
