"""Files, cut into units: every line and row once."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from text_units import compress, read, read_units, write, write_parquet

from megatron_miniplm.corpus import sources, units
from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.sources import Source
from megatron_miniplm.corpus.units import count_lines

#: Any text without surrogates.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))


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


def test_one_line_of_ten_megabytes_is_one_document(tmp_path: Path, unit_bytes: Callable[[int], None]) -> None:
    unit_bytes(1 << 20)
    text = "x" * 10_000_000
    path = write(tmp_path / "a.jsonl", json.dumps({"text": text}).encode(), b'{"text": "y"}')
    assert read(path) == read(compress(path, ".zst")) == [text, "y"]


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
