"""What merge, split, materialize and convert make of `.idx` and sidecar files in which any byte may be wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from damage import damaged_bytes, damaged_indices
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus.retokenization.convert import TOKENS, ConversionSettings, convert_prefixes
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.indexed import IndexedWriter
from megatron_miniplm.indexed.materialize import materialize
from megatron_miniplm.indexed.merge import merge_prefixes
from megatron_miniplm.selection.split import split_reference

NULL = TokenizerSettings(tokenizer_type="NullTokenizer", vocab_size=100)
#: An input prefix and a directory to write.
ACTIONS: dict[str, Callable[[Path, Path], object]] = {
    "merge": lambda prefix, output: merge_prefixes([prefix], output / "merged"),
    "split": lambda prefix, output: split_reference([prefix], output, reference_fraction=0.5, seed=1),
    "materialize": lambda prefix, output: materialize([prefix], output),
    "convert": lambda prefix, output: convert_prefixes(
        [prefix],
        output,
        ConversionSettings(tokenizer=NULL, converted_from=TOKENS, source_tokenizer_type="NullTokenizer"),
        num_workers=1,
    ),
}


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("damaged") / "corpus"
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        writer.append(np.arange(60), np.array([10] * 6), np.array([2, 0, 4]))
        writer.close()
    return prefix


@fuzz("idx", 80)
@given(data=st.data(), action=st.sampled_from(sorted(ACTIONS)))
def test_fuzz_idx_that_is_damaged_is_used_or_refused(data: st.DataObject, action: str, prefix: Path) -> None:
    directory = prefix.parent / "fuzz"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for suffix in (".bin", ".idx"):
        shutil.copy(prefix.with_name(prefix.name + suffix), directory)
    path = directory / "corpus.idx"
    path.write_bytes(data.draw(damaged_indices(path.read_bytes()) | damaged_bytes(path.read_bytes())))
    error = refusal_of(lambda: ACTIONS[action](directory / "corpus", directory / "out"))
    assert error is None or "\n" not in str(error)
