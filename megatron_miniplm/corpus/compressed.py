"""The lines of compressed JSONL, decompressed on the way, in memory that no line can exceed."""

import lzma
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.errors import InputError, one_line

_PIECE_BYTES = 1 << 22  # of decompressed text, read at once
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_MAX_ZSTD_WINDOW_LOG = 27  # the library's own limit
_MIB = 1 << 20

#: Reads some bytes of decompressed text, none at its end; and tells how far it has come in the file.
Stream = tuple[Callable[[], bytes], Callable[[], int]]


@contextmanager
def decompressed(path: Path, compression: str) -> Iterator[Stream]:
    """Open a compressed file.

    Raises:
        InputError: it cannot be opened, or decompressed: from here, and from reading within the block.
    """
    import pyarrow

    try:
        with open_regular(path) as raw:
            if compression == "xz":
                yield _xz_reader(raw), raw.tell
                return
            with pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), compression) as stream:
                yield lambda: stream.read(_PIECE_BYTES), raw.tell
    except (pyarrow.ArrowException, OSError, lzma.LZMAError, EOFError, MemoryError) as error:
        raise InputError(_fault(path, compression, error)) from None


def _xz_reader(raw: BinaryIO) -> Callable[[], bytes]:
    """Reads all streams of a file and the padding between them; `lzma.open` ends in silence at what it cannot read."""
    decoder, data = lzma.LZMADecompressor(), b""

    def read() -> bytes:
        nonlocal decoder, data
        while True:
            if decoder.eof:
                data = decoder.unused_data.lstrip(b"\0")
                while not data and (data := raw.read(_MIB)):
                    data = data.lstrip(b"\0")
                if not data:
                    return b""
                decoder = lzma.LZMADecompressor()
            elif decoder.needs_input and not data and not (data := raw.read(_MIB)):
                raise EOFError("Truncated compressed stream")
            piece, data = decoder.decompress(data, _PIECE_BYTES), b""
            if piece:
                return piece

    return read


def whole_lines(
    read: Callable[[], bytes], *, unit_bytes: int, max_line_bytes: int
) -> Iterator[tuple[int, bytes | None]]:
    """The position and the lines of every unit of a stream; a unit in which no line starts is left out.

    In place of a line that is longer than `max_line_bytes` there is its position with None, and its unit ends before
    it. Shorter ones may be among them that exceed the bound all the same, by less than what is read at once.

    Args:
        read: returns some bytes, none at the end.
    """
    start, pending, line_start = 0, bytearray(), 0  # of the unfinished line, as seen from the first pending byte
    piece = read()
    while piece:
        searched = len(pending)
        pending += piece
        line_start = pending.rfind(b"\n", searched) + 1 or line_start
        while True:
            edge = (start // unit_bytes + 1) * unit_bytes - start  # the next unit, as seen from the first pending byte
            newline = pending.find(b"\n", max(edge - 1, searched))
            if newline < 0:
                break
            yield start, bytes(pending[: newline + 1])
            start, line_start, searched = start + newline + 1, line_start - newline - 1, 0
            del pending[: newline + 1]
        if len(pending) - line_start <= max_line_bytes:
            piece = read()
            continue
        if line_start:
            yield start, bytes(pending[:line_start])
        yield start + line_start, None
        num_skipped, piece = _skip_line(read)
        start, line_start = start + len(pending) + num_skipped, 0
        pending.clear()
        piece = piece or read()
    if pending:
        yield start, bytes(pending)


def _skip_line(read: Callable[[], bytes]) -> tuple[int, bytes]:
    """Read on behind the next newline; returns how many bytes that took, and what was read behind it."""
    num_skipped = 0
    while piece := read():
        newline = piece.find(b"\n")
        if newline >= 0:
            return num_skipped + newline + 1, piece[newline + 1 :]
        num_skipped += len(piece)
    return num_skipped, b""


def _fault(path: Path, compression: str, error: Any) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename} cannot be read ({error.strerror})"
    if compression == "zstd" and "too much memory" in str(error):
        window = _zstd_window_bytes(path)
        size = f"{window // _MIB:,} MiB" if window > 1 << _MAX_ZSTD_WINDOW_LOG else "more than 128 MiB"
        return (
            f"{path} needs a window of {size} to be decompressed, and at most {(1 << _MAX_ZSTD_WINDOW_LOG) // _MIB} "
            "MiB are supported: decompress it with zstd --long=31 -d, or compress it again with --long=27 or less"
        )
    if isinstance(error, MemoryError):
        return f"{path} needs more memory to be decompressed than there is: compress it again with smaller settings"
    return f"{path} cannot be decompressed ({one_line(error)}): it is truncated or damaged; copy or compress it again"


def _zstd_window_bytes(path: Path) -> int:
    """The window of the first frame (RFC 8878, 3.1.1.1); 0 where there is none at the start of the file."""
    with open_regular(path) as stream:
        head = stream.read(14)
    if not head.startswith(_ZSTD_MAGIC) or len(head) < 14:
        return 0
    descriptor = head[4]
    if descriptor & 0x20:  # a single segment: the window is the size of the content
        num_bytes = (1, 2, 4, 8)[descriptor >> 6]
        at = 5 + (0, 1, 2, 4)[descriptor & 3]
        return int.from_bytes(head[at : at + num_bytes], "little")
    base = 1 << (10 + (head[5] >> 3))
    return base + base // 8 * (head[5] & 7)
