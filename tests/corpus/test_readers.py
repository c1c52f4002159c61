import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_miniplm.corpus import sources, units
from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.readers import Documents, LineCounter, Rejected, UnitReader, read_texts
from megatron_miniplm.corpus.sources import Source, expand_inputs, shard_spans, whole_span
from megatron_miniplm.corpus.units import count_lines, units_of
from megatron_miniplm.errors import InputError

#: Any text without surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def compress(path: Path, suffix: str) -> Path:
    """A compressed twin of a file."""
    twin = path.with_name(path.name + suffix)
    with pyarrow.output_stream(str(twin), compression={".gz": "gzip", ".zst": "zstd"}[suffix]) as stream:
        stream.write(path.read_bytes())
    return twin


def read_units(path: Path, fields: Fields, num_shards: int = 1) -> list[Documents]:
    reader = UnitReader(fields)
    spans = [span for shard in range(num_shards) for span in shard_spans(expand_inputs([path]), shard, num_shards)]
    return [reader.read(unit) for span in spans for unit in units_of(span, fields)]


def read(path: Path, fields: Fields = Fields(text_keys=("text",))) -> list[str]:  # noqa: B008
    return [text for documents in read_units(path, fields) for text in documents.texts["text"]]


@pytest.fixture
def unit_bytes(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    def set_size(size: int) -> None:
        monkeypatch.setattr(sources, "UNIT_BYTES", size)
        monkeypatch.setattr(units, "UNIT_BYTES", size)

    return set_size


@settings(max_examples=60)
@given(
    texts=st.lists(TEXTS, max_size=12),
    ascii_only=st.booleans(),
    unit=st.integers(1, 200),
    num_shards=st.integers(1, 4),
    ends_with_newline=st.booleans(),
)
def test_any_texts_come_back_once_for_any_unit_shards_and_compression(
    texts: list[str],
    ascii_only: bool,
    unit: int,
    num_shards: int,
    ends_with_newline: bool,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    data = b"\n".join(json.dumps({"text": text}, ensure_ascii=ascii_only).encode() for text in texts)
    path = tmp_path_factory.mktemp("jsonl") / "a.jsonl"
    path.write_bytes(data + b"\n" * (ends_with_newline and len(texts) > 0))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sources, "UNIT_BYTES", unit)
        patch.setattr(units, "UNIT_BYTES", unit)
        plain = read_units(path, Fields(text_keys=("text",)), num_shards)
        assert [text for documents in plain for text in documents.texts["text"]] == texts
        assert sum(documents.num_lines for documents in plain) == len(texts)
        positions = [position for documents in plain for position in documents.positions]
        assert [data[position:].split(b"\n")[0] for position in positions] == data.split(b"\n")[: len(texts)]
        for suffix in (".gz", ".zst"):
            compressed = read_units(compress(path, suffix), Fields(text_keys=("text",)), num_shards)
            # The same units, but for those in which no line starts.
            assert compressed == [documents for documents in plain if documents.num_lines]


def test_keys_are_read_side_by_side(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"q": "1", "a": "one"}', b'{"q": "2", "a": "two", "other": null}')
    (documents,) = read_units(path, Fields(text_keys=("q", "a")))
    assert documents.texts == {"q": ["1", "2"], "a": ["one", "two"]}


def test_ids_and_domains_may_be_integers_and_lie_deeper(tmp_path: Path) -> None:
    fields = Fields(text_keys=("text",), id_key="id", domain_key="meta.set")
    path = write(
        tmp_path / "a.jsonl",
        b'{"text": "a", "id": 7, "meta": {"set": "books"}}',
        b'{"text": "b", "id": "x", "meta": {"set": 3}, "score": NaN}',  # NaN takes the slower parser
        b'{"text": "c", "id": true, "meta": {"set": 3}}',
        b'{"text": "d", "id": 1, "meta": {}}',
        b'{"text": "e", "id": 1, "meta": "books"}',
    )
    (documents,) = read_units(path, fields)
    assert documents.texts["text"] == ["a", "b"]
    assert (documents.ids, documents.domains) == (["7", "x"], ["books", "3"])
    assert [(line.index, line.reason) for line in documents.rejected] == [
        (2, "expected a string or an integer under 'id', found true"),
        (3, "expected the key 'meta.set': name the key in --id-key and --domain-key"),
        (4, "expected the key 'meta.set': name the key in --id-key and --domain-key"),
    ]


def test_dots_lead_into_objects_unless_a_key_has_them(tmp_path: Path) -> None:
    fields = Fields(text_keys=("data.text", "title"), id_key="meta.id")
    path = write(
        tmp_path / "a.jsonl",
        b'{"data": {"text": "a"}, "title": "A", "meta": {"id": 1}}',
        b'{"data.text": "b", "data": 3, "title": "B", "meta.id": "two", "meta": null}',
        b'{"data": {"body": "c"}, "title": "C", "meta": {"id": 3}}',
        b'{"data": "d", "title": "D", "meta": {"id": 4}}',
        b'{"other": {"text": "e"}, "title": "E", "meta": {"id": 5}}',
        b'{"data": {"text": 6}, "title": "F", "meta": {"id": 6}}',
    )
    (documents,) = read_units(path, fields)
    assert documents.texts == {"data.text": ["a", "b"], "title": ["A", "B"]}
    assert documents.ids == ["1", "two"]
    assert [line.reason.split(": ")[0] for line in documents.rejected] == [
        "expected the key 'data.text', found 'body' under 'data'",
        "expected the key 'data.text', found a string under 'data'",
        "expected the key 'data', found 'meta', 'other', 'title'",
        "expected a string under 'data.text', found a number",
    ]


def test_a_key_and_what_lies_within_it_can_both_be_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'{"data": {"text": "a"}}', b'{"data": "b", "data.text": "c"}')
    (documents,) = read_units(path, Fields(text_keys=("data", "data.text")))
    assert documents.texts == {"data": ["b"], "data.text": ["c"]}


def test_many_keys_are_not_all_listed(tmp_path: Path) -> None:
    line = json.dumps({f"key{number:04d}": "x" for number in range(1000)} | {"k" * 500: ""}).encode()
    (documents,) = read_units(write(tmp_path / "a.jsonl", line), Fields(text_keys=("text",)))
    assert documents.rejected[0].reason.endswith("'key0009' and 991 more: name the key of the text in --json-keys")


def test_one_line_of_ten_megabytes_is_one_document(tmp_path: Path, unit_bytes: Callable[[int], None]) -> None:
    unit_bytes(1 << 20)
    text = "x" * 10_000_000
    path = write(tmp_path / "a.jsonl", json.dumps({"text": text}).encode(), b'{"text": "y"}')
    assert read(path) == read(compress(path, ".zst")) == [text, "y"]


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


@settings(max_examples=60)
@given(data=st.binary(max_size=40).map(lambda data: data.replace(b"\x01", b"\n")), stop=st.integers(0, 40))
def test_lines_before_a_byte_are_those_that_start_before_it(
    data: bytes, stop: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(data)
    starts = [0, *(position + 1 for position, byte in enumerate(data) if byte == 10)]
    expected = sum(start < stop for start in starts)
    source = Source(path=path, format="jsonl", compression=None, size_bytes=len(data))
    assert count_lines(source, min(stop, len(data))) == sum(start < min(stop, len(data)) for start in starts)
    assert stop > len(data) or count_lines(source, stop) == expected


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


def write_parquet(path: Path, columns: dict[str, list[Any]], row_group_size: int) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


@pytest.mark.parametrize("row_group_size", [1, 7, 100])
@pytest.mark.parametrize("unit", [50, 400, 1 << 24])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_parquet_rows_come_back_once(
    tmp_path: Path, unit_bytes: Callable[[int], None], row_group_size: int, unit: int, num_shards: int
) -> None:
    unit_bytes(unit)
    texts = [f"text {number} é" for number in range(100)]
    path = write_parquet(tmp_path / "a.parquet", {"text": texts, "id": list(range(100))}, row_group_size)
    fields = Fields(text_keys=("text",), id_key="id")
    found = read_units(path, fields, num_shards)
    assert [text for documents in found for text in documents.texts["text"]] == texts
    assert [position for documents in found for position in documents.positions] == list(range(100))
    assert [label for documents in found for label in documents.ids or ()] == [str(number) for number in range(100)]
    assert found == [documents for shard in [read_units(path, fields)] for documents in shard]


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
