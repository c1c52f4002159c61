import json
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_miniplm.artifacts.manifest import verify_files
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder
from megatron_miniplm.corpus.tokenizer_training import TOKENIZER_TYPE_OF, TrainingSettings, train_tokenizer
from megatron_miniplm.errors import InputError

ALGORITHMS = tuple(TOKENIZER_TYPE_OF)


def settings(algorithm: str, vocab_size: int = 400) -> TrainingSettings:
    return TrainingSettings(algorithm=algorithm, vocab_size=vocab_size, json_keys=("text",), max_bytes=50_000)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_training_twice_gives_the_same_bytes(algorithm: str, prose_path: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        train_tokenizer([prose_path], tmp_path / name, settings(algorithm))
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert first == second
    assert "manifest.json" in first


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_manifest_describes_the_tokenizer(algorithm: str, prose_path: Path, tmp_path: Path) -> None:
    directory = tmp_path / "tokenizer"
    manifest = train_tokenizer([prose_path], directory, settings(algorithm))
    model = directory if algorithm == "bpe" else directory / "tokenizer.model"
    encoder = load_encoder(TOKENIZER_TYPE_OF[algorithm], model, num_threads=1)
    assert manifest.kind == "tokenizer"
    assert manifest.fingerprint == encoder.fingerprint()
    assert manifest.counts == {"vocab_size": 400} == {"vocab_size": encoder.vocab_size}
    assert manifest.settings["algorithm"] == algorithm
    assert [parent.role for parent in manifest.inputs] == ["text"]
    assert verify_files(directory, manifest) == []


def test_max_bytes_takes_the_first_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": word * 50}) + "\n" for word in ("abab ", "cdcd ")))
    train_tokenizer([path], tmp_path / "first", replace(settings("bpe", 300), max_bytes=1))
    train_tokenizer([path], tmp_path / "both", replace(settings("bpe", 300), max_bytes=None))
    assert "abab" in (tmp_path / "first" / "tokenizer.json").read_text()
    assert "cdcd" not in (tmp_path / "first" / "tokenizer.json").read_text()
    assert "cdcd" in (tmp_path / "both" / "tokenizer.json").read_text()


def test_the_same_command_again_does_nothing_and_another_is_refused(
    prose_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = train_tokenizer([prose_path], tmp_path / "tokenizer", settings("bpe"))
    with caplog.at_level("INFO"):
        assert train_tokenizer([prose_path], tmp_path / "tokenizer", settings("bpe")) == first
    assert "is complete already" in caplog.text
    with pytest.raises(InputError, match="holds something else already: choose another --output, or delete it"):
        train_tokenizer([prose_path], tmp_path / "tokenizer", settings("bpe", 500))
    with pytest.raises(InputError, match="holds something else already"):
        train_tokenizer([prose_path], tmp_path, settings("bpe"))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_text_before_an_invalid_line_is_not_taken_for_the_whole(
    algorithm: str, prose_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(prose_path.read_text() + '{"body": "x"}\n')
    with pytest.raises(InputError, match="expected the key 'text', found 'body'"):
        train_tokenizer([path], tmp_path / "tokenizer", settings(algorithm, 500))
    assert not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_errors_reach_the_user_and_nothing_is_written(algorithm: str, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a b c"}\n{"body": "x"}\n')
    with pytest.raises(InputError, match=r"a\.jsonl, line 2: expected the key 'text', found 'body'"):
        train_tokenizer([path], tmp_path / "tokenizer", settings(algorithm))
    with pytest.raises(InputError, match="--vocab-size 256 has no room for every byte: give at least 2"):
        train_tokenizer([path], tmp_path / "tokenizer", settings(algorithm, 256))
    assert not (tmp_path / "tokenizer").exists()


def test_sentencepiece_refuses_more_tokens_than_the_text_gives(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a b c"}\n')
    with pytest.raises(InputError, match=r"cannot train 9000 tokens on this text \(.*\): give another --vocab-size"):
        train_tokenizer([path], tmp_path / "tokenizer", settings("sentencepiece", 9000))
