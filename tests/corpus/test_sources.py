from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus.sources import UNIT_BYTES, Source, expand_inputs, shard_spans
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
