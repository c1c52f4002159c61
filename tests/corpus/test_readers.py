import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from text_units import compress, read, read_units, write, write_parquet

from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.readers import LineCounter, Rejected, UnitReader, read_texts
from megatron_miniplm.corpus.sources import expand_inputs, shard_spans, whole_span
from megatron_miniplm.corpus.units import units_of
from megatron_miniplm.errors import InputError


def test_blank_lines_windows_line_ends_and_a_missing_last_newline(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\r\n{"text": "a"}\r\n  \n\n{"text": "b"}')
    (documents,) = read_units(path, Fields(text_keys=("text",)))
    assert (documents.texts["text"], documents.num_lines, documents.positions) == (["a", "b"], 5, [2, 21])


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    assert read(write(tmp_path / "a.jsonl")) == []
    assert read(compress(tmp_path / "a.jsonl", ".gz")) == []


BAD_LINES = [
    (b'{"text": "a', "expected one JSON object a line, but it is not JSON"),
    (b"[" * 100_000, "expected one JSON object a line, but it is not JSON"),
    (b'{"text": "a"} {"text": "b"}', "expected one JSON object a line, but it is not JSON (Extra data"),
    (b"\x00\x00\x00", "expected one JSON object a line, found NUL bytes: copy or write the file again"),
    (b'["a"]', "expected a JSON object, found a list: put the text under a key"),
    (b"null", "expected a JSON object, found null"),
    (b'{"body": "a", "id": 1}', "expected the key 'text', found 'body', 'id': name the key"),
    (b"{}", "expected the key 'text', found none"),
    (b'{"text": 3}', "expected a string under 'text', found a number: fix or remove the line"),
    (b'{"text": null}', "expected a string under 'text', found null"),
    (b'{"text": ["a"]}', "expected a string under 'text', found a list"),
    (b'{"text": "\xff"}', "expected UTF-8, found byte 0xff at byte 10 of the line: convert the file to UTF-8"),
    (b'{"text": "a", "other": "\xff"}', "expected UTF-8, found byte 0xff at byte 24 of the line"),
    (b'\xef\xbb\xbf{"text": "a"}', "not JSON (Unexpected UTF-8 BOM"),
    (b'{"text": "a\\ud800b"}', "found the lone surrogate \\ud800 at character 1: remove it or write the pair"),
    (b'{"text": "\xed\xa0\x80"}', "expected UTF-8, found byte 0xed"),
]


@pytest.mark.parametrize(("line", "reason"), BAD_LINES)
def test_a_bad_line_is_refused_with_its_place(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "fine"}', line)
    with pytest.raises(InputError) as caught:
        list(read_texts(expand_inputs([path]), ["text"]))
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert reason in str(caught.value)


def test_bad_lines_do_not_keep_the_good_ones_back(tmp_path: Path) -> None:
    lines = [line for line, _ in BAD_LINES]
    path = write(tmp_path / "a.jsonl", b'{"text": "first"}', *lines, b'{"text": "last", "other": "\\ud800"}')
    (documents,) = read_units(path, Fields(text_keys=("text",)))
    assert documents.texts["text"] == ["first", "last"]
    assert [line.index for line in documents.rejected] == list(range(1, len(lines) + 1))


def test_the_line_number_inside_a_shard_is_that_of_the_file(tmp_path: Path, unit_bytes: Callable[[int], None]) -> None:
    unit_bytes(64)
    path = write(tmp_path / "a.jsonl", *[b'{"text": "0123456789"}'] * 20, b"bad", *[b'{"text": "0123456789"}'] * 3)
    fields = Fields(text_keys=("text",))
    reader = UnitReader(fields)
    found = []
    for shard in range(3):
        for span in shard_spans(expand_inputs([path]), shard, 3):
            counter = LineCounter(span)
            for unit in units_of(span, fields):
                documents = reader.read(unit)
                found += [counter.describe(line) for line in documents.rejected]
                counter.advance(documents.num_lines)
    assert [message.split(": ")[0] for message in found] == [f"{path}, line 21"]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("left", [0.5, 0.999])
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, suffix: str, left: float) -> None:
    lines = [json.dumps({"text": f"{number * 7919 % 10007:x}" * 50}).encode() for number in range(2000)]
    path = compress(write(tmp_path / "a.jsonl", *lines), suffix)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])
    with pytest.raises(InputError, match=r"cannot be decompressed \(Truncated compressed stream\): it is truncated or"):
        read(path)


def test_a_flipped_bit_of_gzip_is_refused(tmp_path: Path) -> None:
    path = compress(write(tmp_path / "a.jsonl", *[b'{"text": "abc"}'] * 1000), ".gz")
    data = bytearray(path.read_bytes())
    data[-6] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match="cannot be decompressed"):
        read(path)


def test_several_members_of_a_gzip_file_are_all_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a"}\n{"te') + gzip.compress(b'xt": "b"}\n'))
    assert read(path) == ["a", "b"]


def test_a_bad_row_and_a_missing_column_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a", None], "meta": [{"set": "b"}] * 2}, 100)
    with pytest.raises(InputError, match=r"a\.parquet, row 1: expected a string under 'text', found null"):
        list(read_texts(expand_inputs([path]), ["text"]))
    with pytest.raises(InputError, match=r"a\.parquet: expected the column 'body', found 'meta', 'text': name the"):
        list(read_texts(expand_inputs([path]), ["body"]))
    (documents,) = read_units(path, Fields(text_keys=("text",), domain_key="meta.set"))
    assert (documents.domains, documents.rejected) == (
        ["b"],
        [Rejected(index=1, position=1, reason="expected a string under 'text', found null: fix or remove the line")],
    )


def test_a_truncated_parquet_file_is_refused(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", {"text": ["a"]}, 100)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"a\.parquet is not a whole Parquet file"):
        read(path)


def test_a_whole_span_is_one_shard(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}')
    (source,) = expand_inputs([path])
    assert [whole_span(source)] == shard_spans([source], 0, 1)
