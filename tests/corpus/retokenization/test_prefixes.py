"""What a prefix is converted from: its text, its sidecar and its tokenizer."""

from dataclasses import replace
from pathlib import Path

import pytest
from retokenized import NUM_DOCUMENTS, build, convert, word_tokenizer

from megatron_miniplm.artifacts import Manifest, load_manifest
from megatron_miniplm.corpus.retokenization.convert import ConversionSettings
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError
from megatron_miniplm.indexed.sidecar import Sidecar, SidecarWriter, sidecar_path


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
