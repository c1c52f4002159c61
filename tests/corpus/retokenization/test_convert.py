from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from retokenized import build, convert, expected_sequences, ids_of, sequences_of, word_tokenizer, write_texts

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.corpus.build import BuildSettings, Shard, build_corpus
from megatron_miniplm.corpus.retokenization import excerpts
from megatron_miniplm.corpus.retokenization.convert import ConversionSettings, convert_prefixes
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus, write_view
from megatron_miniplm.indexed.merge import merge_prefixes
from megatron_miniplm.indexed.sidecar import Sidecar, sidecar_path


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


@pytest.mark.parametrize("road", ["text", "tokens"])
def test_the_output_does_not_depend_on_the_workers(
    tmp_path: Path, texts: list[str], bpe_settings: TokenizerSettings, sp_settings: TokenizerSettings, road: str
) -> None:
    prefix = build(tmp_path, texts, bpe_settings, chunk_length=32)
    settings = ConversionSettings(tokenizer=sp_settings, converted_from=road)
    outputs = [convert(prefix, tmp_path / f"out{num}", settings, num_workers=num) for num in (1, 2)]
    first, second = ({path.name: path.read_bytes() for path in output.parent.glob("corpus*")} for output in outputs)
    assert first == second


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
