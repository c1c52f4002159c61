import bz2
import gzip
import logging
import lzma
import os
from pathlib import Path

import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus.readers import read_texts
from megatron_miniplm.corpus.sources import UNIT_BYTES, Source, expand_inputs, files_of, kind_of, shard_spans
from megatron_miniplm.errors import InputError

MAGIC = {
    ".gz": b"\x1f\x8b", ".zst": b"\x28\xb5\x2f\xfd", ".zstd": b"\x51\x2a\x4d\x18", ".bz2": b"BZh", ".xz": b"\xfd7zXZ\0",
    ".parquet": b"PAR1",
}  # fmt: skip


def touch(path: Path) -> Path:
    """A file that begins as its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MAGIC.get(path.suffix.lower(), b"{}"))
    return path


def test_directories_and_globs_stand_for_their_files_by_path(tmp_path: Path) -> None:
    names = ["b.jsonl", "a/2.jsonl.gz", "a/1.jsonl.zst", "a/1.parquet", "c.json", "d.ndjson.zstd"]
    files = [touch(tmp_path / name) for name in names]
    outputs = ("c_text_document.documents.parquet", "c.rejected.jsonl", "c.round_trip.jsonl", "c.manifest.json")
    for name in (".hidden/a.jsonl", ".b.jsonl", "notes.txt", "a/1.jsonl.tmp", "manifest.json", *outputs):
        touch(tmp_path / name)
    assert [source.path for source in expand_inputs([tmp_path])] == sorted(files)
    assert [source.path for source in expand_inputs([f"{tmp_path}/a/*.jsonl.*"])] == [
        tmp_path / "a" / name for name in ("1.jsonl.tmp", "1.jsonl.zst", "2.jsonl.gz")
    ]
    assert [source.path for source in expand_inputs([f"{tmp_path}/**/*.parquet", files[0]])] == [
        tmp_path / "a" / "1.parquet",
        files[0],
    ]
    kinds = {source.path.name: (source.format, source.compression) for source in expand_inputs([tmp_path])}
    assert kinds == {
        "b.jsonl": ("jsonl", None),
        "2.jsonl.gz": ("jsonl", "gzip"),
        "1.jsonl.zst": ("jsonl", "zstd"),
        "1.parquet": ("parquet", None),
        "c.json": ("jsonl", None),
        "d.ndjson.zstd": ("jsonl", "zstd"),
    }


def test_a_named_file_is_read_whatever_it_is_called(tmp_path: Path) -> None:
    (source,) = expand_inputs([touch(tmp_path / "corpus.txt")])
    assert (source.format, source.compression, source.size_bytes) == ("jsonl", None, 2)


def test_a_name_with_glob_characters_is_a_file_if_it_is_there(tmp_path: Path) -> None:
    path = touch(tmp_path / "a[1].jsonl")
    assert [source.path for source in expand_inputs([path])] == [path]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", r"none\.jsonl does not exist: give files, directories or globs of text to --input"),
        ("*.parquet", r"\*\.parquet matches no file: fix the pattern in --input"),
        ("empty", r"empty holds no file to read: expected names that end in \.jsonl, \.json, \.ndjson, \.parquet"),
    ],
)
def test_what_stands_for_no_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        expand_inputs([tmp_path / name])


@given(
    sizes=st.lists(st.tuples(st.integers(0, 20 * UNIT_BYTES), st.booleans()), max_size=6),
    num_shards=st.integers(1, 9),
)
def test_shards_hold_every_byte_once_and_about_as_much(sizes: list[tuple[int, bool]], num_shards: int) -> None:
    sources = [
        Source(path=Path(f"{number}"), format="jsonl", compression="gzip" if is_whole else None, size_bytes=size)
        for number, (size, is_whole) in enumerate(sizes)
    ]
    shards = [shard_spans(sources, index, num_shards) for index in range(num_shards)]
    covered: dict[str, int] = {}
    for span in (span for shard in shards for span in shard):
        assert span.start == covered.get(span.source.path.name, 0)
        assert span.source.compression is None or (span.start, span.stop) == (0, span.source.size_bytes)
        assert span.stop % UNIT_BYTES == 0 or span.stop == span.source.size_bytes
        covered[span.source.path.name] = span.stop
    assert covered == {str(number): size for number, (size, _) in enumerate(sizes) if size}
    share = sum(size for size, _ in sizes) / num_shards
    slack = UNIT_BYTES * (1 + len(sizes)) + max((size for size, is_whole in sizes if is_whole), default=0)
    assert all(sum(span.size_bytes for span in shard) <= share + slack for shard in shards)


def test_files_that_are_given_twice_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "b.jsonl").symlink_to("a.jsonl")
    assert len(expand_inputs([tmp_path / "a.jsonl"])) == 1
    assert not caplog.records
    assert len(expand_inputs([tmp_path, tmp_path / "a.jsonl"])) == 3
    assert caplog.messages == ["2 of the files are given more than once: their text will be in the corpus as often"]


LINE = b'{"text": "a"}\n'
COMPRESSED = {
    "jsonl": LINE,
    "gz": gzip.compress(LINE),
    "bz2": bz2.compress(LINE),
    "xz": lzma.compress(LINE),
    "zst": pyarrow.compress(LINE, codec="zstd", asbytes=True),
}


def write(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("suffix", COMPRESSED)
@pytest.mark.parametrize("name", ["a.jsonl.{}", "A.JSONL.{}", "a.jsonl", "corpus"])
def test_text_is_read_by_its_first_bytes_whatever_it_is_called(tmp_path: Path, name: str, suffix: str) -> None:
    path = write(tmp_path / name.format(suffix if name.islower() else suffix.upper()), COMPRESSED[suffix])
    assert list(read_texts(expand_inputs([path]), ["text"])) == ["a"]


def test_a_directory_is_searched_without_regard_to_case(tmp_path: Path) -> None:
    names = ["1.jsonl", "2.JSON"]
    names += [f"{kind}.{name}.{kind}" for kind in COMPRESSED if kind != "jsonl" for name in ("jsonl", "NDJSON")]
    names = [*names, *(name.upper() for name in names if name.startswith("gz"))]
    for name in names:
        kind = name.rpartition(".")[2].lower()
        write(tmp_path / name, COMPRESSED.get(kind, LINE))
    assert files_of(tmp_path) == sorted(tmp_path / name for name in names)
    assert list(read_texts(expand_inputs([tmp_path]), ["text"])) == ["a"] * len(names)


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".xz", ".bz2", ".parquet"])
def test_an_empty_file_is_no_compressed_file(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"a.jsonl{suffix}", b"")
    with pytest.raises(InputError, match=rf"a\.jsonl\{suffix} is empty, and so not a .* file"):
        expand_inputs([path])
    with pytest.raises(InputError, match="is empty"):
        expand_inputs([tmp_path])


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl.gz", LINE, r"a\.jsonl\.gz is named as a gzip file, but does not begin as one \(0x7b227465\)"),
        ("a.jsonl.gz", COMPRESSED["zst"], r"is named as a gzip file, but does not begin as one"),
        ("a.jsonl.lz4", b"\x04\x22\x4d\x18rest", r"a\.jsonl\.lz4 is a lz4 file, which is not read: compress the text"),
        ("a.zip", b"PK\x03\x04rest", r"a\.zip is a zip file, which is not read"),
    ],
)
def test_what_is_not_read_is_refused_by_the_name_of_its_kind(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        kind_of(write(tmp_path / name, data))


def test_a_directory_says_what_it_passes_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jsonl", "b.txt", "c.txt", "d.jsonl.lz4", "noname", ".hidden.jsonl", "c.rejected.jsonl"):
        write(tmp_path / name, LINE)
    os.mkfifo(tmp_path / "f.jsonl")
    write(tmp_path / "sub" / "a.jsonl", LINE)
    (tmp_path / "linked").symlink_to(tmp_path / "sub")
    with caplog.at_level(logging.INFO):
        assert files_of(tmp_path) == [tmp_path / "a.jsonl", tmp_path / "sub" / "a.jsonl"]
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}: 2 files to read, 8 passed over (2 named .txt, ")
    for reason in (
        "1 named .lz4",
        "1 named without a suffix",
        "1 hidden",
        "1 written by miniplm",
        "1 no regular file (f.jsonl)",
        "1 linked directories",
    ):
        assert reason in message


def test_a_directory_of_text_alone_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.jsonl", LINE)
    with caplog.at_level(logging.INFO):
        files_of(tmp_path)
    assert caplog.messages == []


def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "f.jsonl")
    with pytest.raises(InputError, match=r"f\.jsonl is a FIFO, expected a regular file"):
        expand_inputs([tmp_path / "f.jsonl"])


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = write(Path(os.fsdecode(os.fsencode(tmp_path) + b"/a\xff.jsonl")), LINE)
    with pytest.raises(InputError, match=r"a\\xff\.jsonl' is not UTF-8, as the names of input files must be"):
        expand_inputs([path])


def test_a_window_beyond_the_library_s_is_named_with_the_remedy(tmp_path: Path) -> None:
    """A frame of one raw block with a window of 2 GiB, as `zstd --long=31` writes it."""
    frame = b"\x28\xb5\x2f\xfd" + bytes([0, (31 - 10) << 3]) + ((len(LINE) << 3) | 1).to_bytes(3, "little") + LINE
    path = write(tmp_path / "a.jsonl.zst", frame)
    with pytest.raises(InputError, match=r"needs a window of 2,048 MiB .* zstd --long=31 -d, or compress it again"):
        list(read_texts(expand_inputs([path]), ["text"]))
