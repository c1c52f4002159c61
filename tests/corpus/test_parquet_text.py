from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.readers import Documents, UnitReader
from megatron_miniplm.corpus.sources import expand_inputs, whole_span
from megatron_miniplm.corpus.units import units_of
from megatron_miniplm.errors import InputError

TEXT = Fields(text_keys=("text",))


def write(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def read(path: Path, fields: Fields = TEXT) -> list[Documents]:
    reader = UnitReader(fields)
    return [reader.read(unit) for source in expand_inputs([path]) for unit in units_of(whole_span(source), fields)]


def unchecked_strings(*values: bytes) -> pa.Array:
    """A string column that holds any bytes, as careless writers leave it."""
    return pa.Array.from_buffers(pa.string(), len(values), pa.array(values, pa.binary()).buffers())


def test_rows_that_are_not_utf8_are_bad_and_the_others_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"text": unchecked_strings(b"ok", b"caf\xe9", b"fine")}))
    (documents,) = read(path)
    assert documents.texts["text"] == ["ok", "fine"]
    assert [(line.position, line.reason) for line in documents.rejected] == [
        (1, "expected UTF-8 under 'text', found byte 0xe9 at byte 3: convert the text to UTF-8")
    ]


def test_labels_within_objects_that_are_not_utf8_are_bad(tmp_path: Path) -> None:
    meta = pa.StructArray.from_arrays([unchecked_strings(b"web", b"\xff")], ["set"])
    path = write(tmp_path / "a.parquet", pa.table({"text": ["a", "b"], "meta": meta}))
    (documents,) = read(path, Fields(text_keys=("text",), domain_key="meta.set"))
    assert (documents.texts["text"], documents.domains) == (["a"], ["web"])
    assert [line.position for line in documents.rejected] == [1]


@pytest.mark.parametrize(
    "kind", [pa.binary(), pa.large_binary(), pa.binary_view(), pa.large_string(), pa.string_view()]
)
def test_bytes_and_all_kinds_of_strings_are_text(tmp_path: Path, kind: pa.DataType) -> None:
    try:
        texts = pa.array(["a", "é", None]).cast(kind)
    except pa.ArrowNotImplementedError:
        pytest.skip(f"pyarrow {pa.__version__} cannot cast to {kind}")
    (documents,) = read(write(tmp_path / "a.parquet", pa.table({"text": texts})))
    assert documents.texts["text"] == ["a", "é"]
    assert [line.position for line in documents.rejected] == [2]


def test_dictionaries_and_bytes_that_are_no_utf8(tmp_path: Path) -> None:
    (documents,) = read(
        write(tmp_path / "a.parquet", pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}))
    )
    assert documents.texts["text"] == ["a", "b", "a"]
    (documents,) = read(write(tmp_path / "b.parquet", pa.table({"text": pa.array([b"a", b"\xff"], pa.binary())})))
    assert (documents.texts["text"], documents.rejected[0].reason) == (
        ["a"],
        "expected UTF-8 under 'text', found byte 0xff at byte 0: convert the file to UTF-8",
    )


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table([["a"], ["b"]], names=["text", "text"]), "the column 'text' stands there 2 times"),
        (
            pa.table({"text": [1]}),
            "expected text in the column 'text', found the type int64: cast the column to string",
        ),
        (pa.table({"text": [["a"]]}), "expected text in the column 'text', found the type list<"),
        (pa.table({"body": ["a"]}), "expected the column 'text', found 'body': name the column of the text"),
    ],
)
def test_a_column_that_cannot_be_read_is_refused_once_for_the_file(
    tmp_path: Path, table: pa.Table, message: str
) -> None:
    with pytest.raises(InputError, match=rf"a\.parquet: {message}"):
        read(write(tmp_path / "a.parquet", table))


def test_a_column_named_in_another_encoding_is_one_line(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"tezt": ["a"]}), store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"tezt", b"te\xfft"))
    with pytest.raises(InputError, match=r"a\.parquet is not a whole Parquet file \('utf-8' codec"):
        read(path)


def test_a_text_within_an_object_is_read(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.parquet", pa.table({"data": [{"text": "a"}, None, {"text": None}], "data.x": ["1", "2", "3"]})
    )
    (documents,) = read(path, Fields(text_keys=("data.text", "data.x")))
    assert documents.texts == {"data.text": ["a"], "data.x": ["1"]}
    assert [line.reason.split(":")[0] for line in documents.rejected] == [
        "expected the key 'data.text', found null under 'data'",
        "expected a string under 'data.text', found null",
    ]


@fuzz(60)
@given(data=st.data())
def test_fuzz_a_damaged_file_is_read_or_refused(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No traceback, whatever byte is wrong."""
    path = tmp_path_factory.mktemp("fuzz") / "a.parquet"
    table = pa.table({"text": ["one", "two", None] * 5, "meta": [{"id": 1}] * 15})
    write(path, table, row_group_size=4, compression=data.draw(st.sampled_from(["none", "snappy", "zstd"])))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    error = refusal_of(lambda: read(path, Fields(text_keys=("text",), id_key="meta.id")))
    assert error is None or str(path) in str(error)
