from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_miniplm.artifacts import parquet_pages
from megatron_miniplm.artifacts.parquet_pages import ColumnPages, read_pages, rows_within

ENCODINGS: dict[str, dict[str, Any]] = {
    "dictionary": {},
    "plain": {"use_dictionary": False},
    "lengths": {"use_dictionary": False, "column_encoding": {"text": "DELTA_LENGTH_BYTE_ARRAY"}},
    "prefixes": {"use_dictionary": False, "column_encoding": {"text": "DELTA_BYTE_ARRAY"}},
}


def pages_of(path: Path, texts: list[str | None], **options: Any) -> ColumnPages:
    pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, data_page_size=64, **options)
    with path.open("rb") as stream:
        return read_pages(stream, pq.ParquetFile(path).metadata.row_group(0).column(0))


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("encoding", ENCODINGS)
@settings(max_examples=25)
@given(data=st.data())
def test_rows_take_no_more_than_their_pages_say(
    encoding: str, version: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    texts = data.draw(st.lists(st.none() | st.sampled_from(["", "a", "b" * 50, "b" * 51 + "c", "d" * 300]), min_size=1))
    path = tmp_path_factory.getbasetemp() / "pages.parquet"
    pages = pages_of(path, texts, write_batch_size=4, data_page_version=version, **ENCODINGS[encoding])
    assert pages.values_P.sum() == len(texts)
    assert (pages.repeated_bytes > 0) <= (encoding in ("dictionary", "prefixes"))
    num_rows = data.draw(st.integers(1, len(texts)))
    for start in range(len(texts) - num_rows + 1):
        taken = sum(len(text) for text in texts[start : start + num_rows] if text)
        assert taken <= pages.most_bytes(num_rows)


def test_rows_to_read_at_once(tmp_path: Path) -> None:
    repeated = pages_of(tmp_path / "a.parquet", ["x" * 100_000] * 64)
    assert repeated.repeated_bytes >= 100_000
    assert 1 <= rows_within([repeated], 1_000_000, 64) <= 9
    assert rows_within([repeated], 1, 64) == 1
    plain = pages_of(tmp_path / "b.parquet", ["x" * 100] * 64, use_dictionary=False)
    assert rows_within([plain], 1 << 20, 64) == 64


def test_headers_that_are_damaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pages_of(path, ["x" * 100], use_dictionary=False)
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    content = bytearray(path.read_bytes())
    for damage in (b"\xff" * 20, b"\x1c" * 40, b"\x19\xfc\xff\xff\xff\xff\x7f" * 4, b"\x00"):
        path.write_bytes(content[:4] + damage + content[4 + len(damage) :])
        with path.open("rb") as stream, pytest.raises(ValueError, match=r"page|nest"):
            read_pages(stream, column)
    path.write_bytes(content)
    monkeypatch.setattr(parquet_pages, "MAX_PAGE_BYTES", 50)
    with (
        path.open("rb") as stream,
        pytest.raises(ValueError, match=r"the page at byte 4 has 1\d\d bytes, the limit is"),
    ):
        read_pages(stream, column)
