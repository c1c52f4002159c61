"""Texts behind a corpus that are not what was encoded."""

from dataclasses import replace
from pathlib import Path

import pytest
from retokenized import build, convert

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.corpus.retokenization import excerpts
from megatron_miniplm.corpus.retokenization.convert import ConversionSettings, convert_prefixes
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.errors import InputError


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
