import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from damage import NO_FILES, damaged_bytes, damaged_json, put, put_no_file
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus.compressed import decompressed, whole_lines
from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.readers import Documents, LineCounter, UnitReader
from megatron_miniplm.corpus.sources import expand_inputs, whole_span
from megatron_miniplm.corpus.units import units_of
from megatron_miniplm.errors import InputError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda data: pyarrow.compress(data, codec="zstd", asbytes=True),
}
FIELDS = Fields(text_keys=("text",))


def read(path: Path, max_line_bytes: int) -> tuple[list[str], list[str]]:
    """The texts, and what is wrong with the other lines."""
    (source,) = expand_inputs([path])
    span = whole_span(source)
    reader, counter = UnitReader(FIELDS, max_line_bytes), LineCounter(span)
    texts, rejected = [], []
    for unit in units_of(span, FIELDS, max_line_bytes):
        documents: Documents = reader.read(unit)
        texts += documents.texts["text"]
        rejected += [counter.describe(line) for line in documents.rejected]
        counter.advance(documents.num_lines)
    return texts, rejected


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("long", [3_000, 1_500_000, 5_000_000])
@pytest.mark.parametrize("ends", [b"\n", b""])
def test_a_line_beyond_the_bound_is_bad_and_the_others_are_read(
    tmp_path: Path, suffix: str, long: int, ends: bytes
) -> None:
    lines = [json.dumps({"text": text}).encode() for text in ("a", "b", "x" * long, "c", "y" * long)]
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](b"\n".join(lines) + ends))
    texts, rejected = read(path, 2_000)
    assert texts == ["a", "b", "c"]
    reason = "expected at most 2,000 bytes, found a longer line: remove it, or give a larger --max-line-bytes"
    assert rejected == [f"{path}, line 3: {reason}", f"{path}, line 5: {reason}"]
    assert read(path, long + 20) == (["a", "b", "x" * long, "c", "y" * long], [])


def test_memory_does_not_grow_with_a_line() -> None:
    """The stream gives more than a machine holds; of the line nothing is kept."""
    pieces = iter([b'{"text": "a"}\n{"text": "', *[b"x" * (1 << 20)] * 5000, b'"}\n{"text": "b"}\n'])
    found = list(whole_lines(lambda: next(pieces, b""), unit_bytes=16 << 20, max_line_bytes=4 << 20))
    second = 14 + 10 + (5000 << 20) + 3
    assert found == [(0, b'{"text": "a"}\n'), (14, None), (second, b'{"text": "b"}\n')]


@fuzz("text", 150)
@given(
    data=st.lists(st.sampled_from([b"\n", b"a", b"bb", b"c" * 30, b"\n\n"]), max_size=40).map(b"".join),
    piece=st.integers(1, 50),
    unit=st.integers(1, 60),
    bound=st.integers(1, 40),
)
def test_fuzz_text_lines_come_once_and_in_order(data: bytes, piece: int, unit: int, bound: int) -> None:
    pieces = iter([data[start : start + piece] for start in range(0, len(data), piece)])
    position = 0
    for start, lines in whole_lines(lambda: next(pieces, b""), unit_bytes=unit, max_line_bytes=bound):
        if lines is None:
            assert start == position
            stop = data.find(b"\n", start) + 1 or len(data)
            assert stop - start > bound
            position = stop
        else:
            assert (start, lines) == (position, data[position : position + len(lines)])
            assert lines.endswith(b"\n") or start + len(lines) == len(data)
            position += len(lines)
    assert position == len(data)


@fuzz("text", 60)
@given(data=st.data(), suffix=st.sampled_from(sorted(COMPRESS)))
def test_fuzz_text_damaged_file_is_read_or_refused(
    data: st.DataObject, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Lines of any kind, whole or damaged, in a file that is whole, damaged, several joined, or no file."""
    path = tmp_path_factory.getbasetemp() / f"a.jsonl{suffix}"
    line = st.binary(max_size=30) | st.just(b'{"text": "a"}') | damaged_json({"text": "a", "meta": {"set": ["b", 1]}})
    lines = data.draw(st.lists(line, max_size=6))
    content = COMPRESS[suffix](b"\n".join(lines))
    match data.draw(st.sampled_from(("none", "bytes", "bytes", "joined", "long", "no file"))):
        case "bytes":
            content = data.draw(damaged_bytes(content))
        case "joined":
            parts = st.sampled_from([content, b"", bytes(4), COMPRESS[suffix](b""), b"\xfd7zXZ\x00", b"PAR1"])
            content = b"".join(data.draw(st.lists(parts, max_size=4)))
        case "long":  # more than any bound, in few bytes
            content = COMPRESS[suffix](
                b'{"text": "' + b"x" * (3 << 20) + b'"}\n' + b"\n" * data.draw(st.integers(0, 99))
            )
    put(path, content)
    if data.draw(st.integers(0, 19)) == 19:
        put_no_file(path, data.draw(st.sampled_from([kind for kind in NO_FILES if kind != "sparse"])))
    error = refusal_of(lambda: read(path, 1000))
    assert error is None or str(path) in str(error)


@pytest.mark.parametrize(
    ("between", "after", "is_whole"),
    [(b"", b"", True), (bytes(4), b"", True), (b"", bytes(8), True), (b"damage", b"", False), (b"", b"damage", False)],
)
def test_all_streams_of_an_xz_file_are_read(tmp_path: Path, between: bytes, after: bytes, is_whole: bool) -> None:
    one = lzma.compress(b'{"text": "hello"}\n' * 2000)
    path = tmp_path / "text.jsonl.xz"
    path.write_bytes(one + between + one + after)

    def read() -> bytes:
        with decompressed(path, "xz") as (next_piece, _):
            return b"".join(iter(next_piece, b""))

    if is_whole:
        assert read() == b'{"text": "hello"}\n' * 4000
    else:
        with pytest.raises(InputError, match=r"text\.jsonl\.xz"):
            read()
