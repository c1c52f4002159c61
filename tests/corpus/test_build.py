import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.artifacts.manifest import verify_files
from megatron_miniplm.corpus import build, readers
from megatron_miniplm.corpus.build import BuildSettings, append_eod, build_corpus
from megatron_miniplm.corpus.tokenizers import load_encoder
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus

TEXTS = ["one", "", "two\n two", "<|endoftext|>", "", "", "👍🏽 три"]


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "twice": text * 2}) + "\n" for text in texts), encoding="utf-8")
    return path


@pytest.fixture
def settings(tmp_path: Path, bpe_dir: Path) -> BuildSettings:
    return BuildSettings(
        inputs=(write_jsonl(tmp_path / "a.jsonl", TEXTS),),
        output_prefix=tmp_path / "out" / "corpus",
        json_keys=("text",),
        tokenizer_type="HuggingFaceTokenizer",
        tokenizer_model=bpe_dir,
        append_eod=True,
    )


def output_bytes(settings: BuildSettings) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in settings.output_prefix.parent.iterdir()}


def test_documents_become_sequences_and_those_without_tokens_only_boundaries(
    settings: BuildSettings, bpe_dir: Path
) -> None:
    ((prefix, manifest),) = build_corpus(settings, num_threads=2).items()
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
    ((prefix, manifest),) = build_corpus(settings, num_threads=2).items()
    assert manifest.kind == "corpus"
    assert manifest.fingerprint == IndexedCorpus.open(prefix).fingerprint()
    assert manifest.counts == {
        "num_sequences": 4,
        "num_documents": 7,
        "num_tokens": IndexedCorpus.open(prefix).num_tokens,
        "text_bytes": sum(len(text.encode()) for text in TEXTS),
    }
    assert manifest.settings == {
        "json_key": "text",
        "tokenizer_type": "HuggingFaceTokenizer",
        "vocab_size": 600,
        "eod_id": 0,
        "append_eod": True,
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
        replace(settings, inputs=(*settings.inputs, second), json_keys=("text", "twice")), num_threads=2
    )
    assert [prefix.name for prefix in manifests] == ["corpus_text_document", "corpus_twice_document"]
    text, twice = (manifest.counts for manifest in manifests.values())
    assert text["num_documents"] == twice["num_documents"] == len(TEXTS) + 1
    assert twice["text_bytes"] == 2 * text["text_bytes"]


def test_the_output_does_not_depend_on_the_batch_size(settings: BuildSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    build_corpus(settings, num_threads=2)
    whole = output_bytes(settings)
    monkeypatch.setattr(build, "read_batches", partial(readers.read_batches, batch_bytes=1))
    small = replace(settings, output_prefix=settings.output_prefix.parent.parent / "small" / "corpus")
    build_corpus(small, num_threads=2)
    assert output_bytes(small) == whole


def test_no_documents_make_an_empty_corpus(settings: BuildSettings, tmp_path: Path) -> None:
    ((prefix, manifest),) = build_corpus(
        replace(settings, inputs=(write_jsonl(tmp_path / "none.jsonl", []),)), num_threads=2
    ).items()
    assert manifest.counts == {"num_sequences": 0, "num_documents": 0, "num_tokens": 0, "text_bytes": 0}
    assert IndexedCorpus.open(prefix).boundaries_D.tolist() == [0]


def test_only_empty_documents_make_boundaries_without_sequences(settings: BuildSettings, tmp_path: Path) -> None:
    ((prefix, _),) = build_corpus(
        replace(settings, inputs=(write_jsonl(tmp_path / "empty.jsonl", ["", ""]),)), num_threads=2
    ).items()
    assert IndexedCorpus.open(prefix).boundaries_D.tolist() == [0, 0, 0]


def test_the_same_command_again_does_nothing(
    settings: BuildSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    first = build_corpus(settings, num_threads=2)
    before = output_bytes(settings)
    monkeypatch.setattr(build, "read_batches", None)
    with caplog.at_level("INFO"):
        assert build_corpus(settings, num_threads=1) == first
    assert "is complete already, from the same inputs and settings: nothing to do" in caplog.text
    assert output_bytes(settings) == before


@pytest.mark.parametrize("change", ["append_eod", "text", "inputs"])
def test_a_prefix_made_from_something_else_is_never_overwritten(settings: BuildSettings, change: str) -> None:
    build_corpus(settings, num_threads=2)
    before = output_bytes(settings)
    if change == "append_eod":
        settings = replace(settings, append_eod=False)
    elif change == "text":
        write_jsonl(settings.inputs[0], [*TEXTS[:-1], TEXTS[-1].upper()])
    else:
        settings = replace(settings, inputs=settings.inputs * 2)
    with pytest.raises(InputError) as caught:
        build_corpus(settings, num_threads=2)
    assert str(caught.value) == (
        f"{settings.prefix('text')} was made from other inputs or settings than those given now: "
        "choose another --output-prefix, or delete it"
    )
    assert output_bytes(settings) == before


def test_a_foreign_or_changed_pair_is_never_overwritten(settings: BuildSettings) -> None:
    ((prefix, _),) = build_corpus(settings, num_threads=2).items()
    with open(f"{prefix}.bin", "r+b") as stream:
        stream.write(b"\xff")
    with pytest.raises(InputError, match="has changed since it was made: choose another --output-prefix, or delete it"):
        build_corpus(settings, num_threads=2)
    Path(f"{prefix}.manifest.json").unlink()
    with pytest.raises(
        InputError, match=r"\.bin exists without corpus_text_document\.manifest\.json, so it is another"
    ):
        build_corpus(settings, num_threads=2)


def test_an_error_in_the_last_line_leaves_nothing_behind(settings: BuildSettings) -> None:
    with open(settings.inputs[0], "a") as stream:
        stream.write('{"text": 1}\n')
    with pytest.raises(InputError, match="line 8: expected a string"):
        build_corpus(settings, num_threads=2)
    assert output_bytes(settings) == {}


def test_append_eod_needs_a_token_for_it(settings: BuildSettings, bpe_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((bpe_dir / "tokenizer.json").read_bytes())
    with pytest.raises(InputError) as caught:
        build_corpus(replace(settings, tokenizer_model=tmp_path), num_threads=2)
    assert str(caught.value).startswith(f"--append-eod needs an end-of-document token, and {tmp_path} names none: set ")
    build_corpus(replace(settings, tokenizer_model=tmp_path, append_eod=False), num_threads=2)


def test_an_id_that_the_token_type_cannot_hold_is_refused(settings: BuildSettings, tmp_path: Path) -> None:
    model = tokenizers.models.WordLevel({"one": 70_000, "<unk>": 0}, unk_token="<unk>")
    tokenizers.Tokenizer(model).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(InputError, match="the tokenizer gave id 70000, but says that it has 2 tokens, for which Megat"):
        build_corpus(replace(settings, tokenizer_model=tmp_path, append_eod=False), num_threads=2)
    assert output_bytes(settings) == {}


@given(documents=st.lists(st.lists(st.integers(1, 9), max_size=4), max_size=8))
def test_append_eod_ends_every_document_that_has_tokens(documents: list[list[int]]) -> None:
    tokens_T, lengths_D = append_eod(
        np.array([token for document in documents for token in document], np.uint32),
        np.array([len(document) for document in documents], np.int64),
        0,
    )
    expected = [[*document, 0] if document else [] for document in documents]
    assert tokens_T.tolist() == [token for document in expected for token in document]
    assert lengths_D.tolist() == [len(document) for document in expected]
