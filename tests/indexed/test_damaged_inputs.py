"""What merge, split, materialize and convert make of `.idx` and sidecar files in which any byte may be wrong."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus.retokenization.convert import TOKENS, ConversionSettings, convert_prefixes
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.indexed import IndexedWriter
from megatron_miniplm.indexed.layout import HEADER
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


@fuzz(80)
@given(data=st.data(), action=st.sampled_from(sorted(ACTIONS)))
def test_fuzz_a_damaged_index_is_used_or_refused(data: st.DataObject, action: str, prefix: Path) -> None:
    directory = prefix.parent / "fuzz"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for suffix in (".bin", ".idx"):
        shutil.copy(prefix.with_name(prefix.name + suffix), directory)
    content = bytearray((directory / "corpus.idx").read_bytes())
    places = st.integers(0, HEADER.size - 1) | st.integers(0, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(places)
        new = data.draw(st.binary(min_size=1, max_size=1) | st.sampled_from([b"\xff" * 8, b"\x7f" * 8, bytes(8)]))
        content[place : place + len(new)] = new[: len(content) - place]
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    (directory / "corpus.idx").write_bytes(content)
    error = refusal_of(lambda: ACTIONS[action](directory / "corpus", directory / "out"))
    assert error is None or "\n" not in str(error)
