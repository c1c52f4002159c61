from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import NO_FILES, damaged_bytes, put_no_file, remove
from fuzzing import fuzz, peak_bytes_of, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.artifacts import parquet_pages
from megatron_miniplm.corpus import parquet_text
from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.readers import Documents, UnitReader
from megatron_miniplm.corpus.sources import Source, expand_inputs, whole_span
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


def test_a_small_file_that_holds_gigabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read in bounded memory, whether a page repeats one text or the beginnings of texts."""
    monkeypatch.setattr(parquet_text, "MAX_BATCH_BYTES", 8 << 20)
    long, num_rows = "x" * (1 << 20), 600
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * num_rows), pa.array([long]))
    files = {
        "dictionary": write(tmp_path / "a.parquet", pa.table({"text": texts}), compression="zstd"),
        "plain": write(tmp_path / "b.parquet", pa.table({"text": texts}), compression="zstd", store_schema=False),
        "prefixes": write(
            tmp_path / "c.parquet",
            pa.table({"text": texts.cast(pa.string())}),
            compression="zstd",
            use_dictionary=False,
            column_encoding={"text": "DELTA_BYTE_ARRAY"},
        ),
    }
    for name, path in files.items():
        assert path.stat().st_size < 1 << 20, name
        found = []
        (source,) = expand_inputs([path])

        def measure(source: Source = source, found: list[int] = found) -> None:
            for unit in units_of(whole_span(source), TEXT):
                assert unit.content.nbytes <= (9 << 20)
                found.append(len(UnitReader(TEXT).read(unit).texts["text"]))

        assert peak_bytes_of(measure) < 200 << 20, name
        assert sum(found) == num_rows


def test_many_rows_without_a_value(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"text": pa.nulls(3 << 20, pa.string())}), row_group_size=3 << 20)
    assert path.stat().st_size < 10_000
    (source,) = expand_inputs([path])
    sizes = [len(unit.content) for unit in units_of(whole_span(source), TEXT)]
    assert max(sizes) <= parquet_text.MAX_BATCH_ROWS
    assert sum(sizes) == 3 << 20


def test_a_page_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", pa.table({"text": ["x" * (2 << 20)]}), compression="zstd")
    assert len(read(path)[0].texts["text"][0]) == 2 << 20
    monkeypatch.setattr(parquet_pages, "MAX_PAGE_BYTES", 1 << 20)
    with pytest.raises(InputError, match=r"a\.parquet row group 0 cannot be read \(the page at byte 4 has 2,097,1"):
        read(path)


def test_only_the_field_of_an_object_is_read(tmp_path: Path) -> None:
    """Lists beside it do not matter; lists around it are refused."""
    rows = [{"set": "web", "tags": ["a"] * 1000}, {"set": "books", "tags": []}]
    path = write(tmp_path / "a.parquet", pa.table({"text": ["a", "b"], "meta": rows}))
    fields = Fields(text_keys=("text",), domain_key="meta.set")
    (source,) = expand_inputs([path])
    (unit,) = units_of(whole_span(source), fields)
    assert unit.content.schema.field("meta").type == pa.struct([("set", pa.string())])
    assert UnitReader(fields).read(unit).domains == ["web", "books"]
    with pytest.raises(InputError, match=r"a\.parquet: expected text or labels in the column 'meta', found lists"):
        read(path, Fields(text_keys=("text",), domain_key="meta.tags"))


@st.composite
def parquet_files(draw: st.DrawFn, path: Path) -> bytes:
    """A file of odd types, encodings and sizes, as any writer may have made it."""
    num_rows = draw(st.integers(0, 12))
    words = st.none() | st.sampled_from(["one", "", "é", "x" * 300, "\0"])
    texts = pa.array(draw(st.lists(words, min_size=num_rows, max_size=num_rows)), pa.string())
    kinds = [pa.string(), pa.large_string(), pa.binary(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())]
    text = texts.cast(draw(st.sampled_from(kinds)))
    odd = [
        pa.int64(),
        pa.bool_(),
        pa.list_(pa.string()),
        pa.struct([("set", pa.string())]),
        pa.timestamp("us"),
        pa.null(),
    ]
    meta = draw(
        st.sampled_from([pa.nulls(num_rows, kind) for kind in odd])
        | st.sampled_from(
            [
                pa.array([{"id": 1, "tags": ["a"] * row} for row in range(num_rows)]),
                pa.array([[{"id": row}] for row in range(num_rows)]),
                pa.array([{"id": str(row)} if row % 2 else None for row in range(num_rows)]),
                pa.array([[("id", "a")] for _ in range(num_rows)], pa.map_(pa.string(), pa.string())),
            ]
        )
    )
    encoding = draw(st.sampled_from([None, "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"]))
    table = pa.table({"text": text, "meta": meta})
    with suppress(pa.ArrowException, OSError):  # a type that this encoding does not fit
        pq.write_table(
            table,
            path,
            row_group_size=draw(st.integers(1, 8)),
            compression=draw(st.sampled_from(["none", "snappy", "zstd", "gzip", "brotli", "lz4"])),
            use_dictionary=encoding is None and draw(st.booleans()),
            column_encoding={"text": encoding} if encoding else None,
            data_page_version=draw(st.sampled_from(["1.0", "2.0"])),
            write_statistics=draw(st.booleans()),
            store_schema=draw(st.booleans()),
            data_page_size=draw(st.sampled_from([1, 100, 1 << 20])),
            write_page_checksum=draw(st.booleans()),
        )
        return path.read_bytes()
    pq.write_table(table, path)
    return path.read_bytes()


@fuzz("parquet", 60)
@given(data=st.data())
def test_fuzz_parquet_damaged_file_is_read_or_refused(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No traceback, whatever byte is wrong."""
    path = tmp_path_factory.getbasetemp() / "fuzzed.parquet"
    remove(path)
    whole = data.draw(parquet_files(path))
    start = max(4, len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"))
    match data.draw(st.sampled_from(("none", "bytes", "bytes", "footer", "footer", "pages", "no file"))):
        case "bytes":
            path.write_bytes(data.draw(damaged_bytes(whole)))
        case "footer":
            path.write_bytes(whole[:start] + data.draw(damaged_bytes(whole[start:])))
        case "pages":  # of the same size, so that the footer finds them
            pages = data.draw(damaged_bytes(whole[4:start]))
            path.write_bytes(whole[:4] + (pages + bytes(start))[: start - 4] + whole[start:])
        case "no file":
            put_no_file(path, data.draw(st.sampled_from(NO_FILES)))
    fields = data.draw(
        st.sampled_from(
            [TEXT, *(Fields(text_keys=("text",), id_key=key) for key in ("meta.id", "meta", "meta.tags", "meta.x"))]
        )
    )
    error = refusal_of(lambda: read(path, fields))
    assert error is None or str(path) in str(error)
