from pathlib import Path

import pytest
from megatron_runs import write_corpus

from megatron_miniplm.artifacts.manifest import ArtifactInput, Manifest
from megatron_miniplm.errors import FingerprintMismatchError
from megatron_miniplm.mcore.identity import TokenizerIdentity, _check_tokenizer

CHANGED_BY = (
    "transformers 5.0 builds a Qwen2Tokenizer from model, with another pre_tokenizer than its tokenizer.json has"
)


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """A corpus whose manifest names the tokenizer `aaaa`."""
    corpus = write_corpus(tmp_path / "corpus", [[1, 2]])
    tokenizer = ArtifactInput(role="tokenizer", path="tokenizer", fingerprint="a" * 32)
    Manifest(kind="corpus", fingerprint=corpus.fingerprint(), counts={}, inputs=(tokenizer,)).write(corpus.prefix)
    return corpus.prefix


def test_another_tokenizer_is_refused_with_its_cause_and_the_flags_that_help(prefix: Path) -> None:
    def identity(fingerprint: str, **further: object) -> TokenizerIdentity:
        return TokenizerIdentity(place="model", fingerprint=fingerprint, vocab_size=9, **further)  # type: ignore[arg-type]

    _check_tokenizer(prefix, identity("a" * 32))
    _check_tokenizer(prefix, identity("b" * 32, must_match=False))
    with pytest.raises(FingerprintMismatchError) as caught:
        _check_tokenizer(prefix, identity("b" * 32))
    assert "but model is [bbbbbbbb]: give --tokenizer-type and --tokenizer-model of the tokenizer" in str(caught.value)
    with pytest.raises(FingerprintMismatchError) as caught:
        _check_tokenizer(prefix, identity("b" * 32, changed_by=CHANGED_BY))
    assert f"[bbbbbbbb] ({CHANGED_BY}, which the model_type in config.json asks for): give" in str(caught.value)
