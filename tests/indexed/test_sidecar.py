import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import NO_FILES, damaged_bytes, put, put_no_file
from fuzzing import fuzz, refusal_of
from hypothesis import given
from hypothesis import strategies as st

from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter, write_view
from megatron_miniplm.indexed import sidecar as sidecar_module
from megatron_miniplm.indexed.pieces import Pieces, crc32_of_runs
from megatron_miniplm.indexed.sidecar import (
    SCHEMA,
    Sidecar,
    SidecarWriter,
    as_table,
    fill_domains_and_bytes,
    find_mismatch,
    sidecar_path,
)
from megatron_miniplm.indexed.view import data_prefix, source_sequence, source_sequences

LENGTHS_N = np.array([3, 5, 2, 7], np.int32)
TOKENS_T = np.arange(100, 117, dtype=np.uint16)
#: The second sequence holds the end of document 0 and the start of document 1.
SEQUENCE_P = np.array([0, 1, 1, 2, 3])
NUM_TOKENS_P = np.array([3, 1, 4, 2, 7])


def pieces(start: int = 0, stop: int = 5) -> Pieces:
    crc32_P = crc32_of_runs(TOKENS_T, NUM_TOKENS_P)
    return Pieces(
        sequence_P=SEQUENCE_P[start:stop],
        position_P=np.array([0, 0, 40, 40, 95])[start:stop],
        piece_P=np.array([0, 1, 0, 1, 0])[start:stop],
        start_byte_P=np.array([0, 12, 0, 9, 0])[start:stop],
        text_bytes_P=np.array([12, 3, 9, 8, 30])[start:stop],
        num_tokens_P=NUM_TOKENS_P[start:stop],
        crc32_P=crc32_P[start:stop],
        ids=["a", "a", "b", "b", "c"][start:stop],
        domains=None,
    )


@pytest.fixture
def corpus(tmp_path: Path) -> IndexedCorpus:
    prefix = tmp_path / "pile"
    with IndexedWriter(prefix, np.dtype("<u2")) as writer, SidecarWriter(prefix) as sidecar:
        writer.append(TOKENS_T, LENGTHS_N)
        sidecar.append(as_table(pieces(0, 3), "../a.jsonl", 0))
        sidecar.append(as_table(pieces(3, 5), "../b.jsonl", 0))
        sidecar.close()
        writer.close()
    return IndexedCorpus.open(prefix)


def test_rows_come_back_as_written(corpus: IndexedCorpus) -> None:
    sidecar = Sidecar.of(corpus)
    assert sidecar is not None
    (table,) = sidecar.tables()
    assert table.schema.names == [field.name for field in sidecar_module.SCHEMA]
    assert table["sequence"].to_pylist() == SEQUENCE_P.tolist()
    assert table["source"].to_pylist() == ["../a.jsonl"] * 3 + ["../b.jsonl"] * 2
    assert table["domain"].to_pylist() == [None] * 5
    first, second = sidecar.pieces_of(1)
    assert (first["id"], first["piece"], first["start_byte"], first["text_bytes"]) == ("a", 1, 12, 3)
    assert (second["id"], second["piece"], second["position"], second["num_tokens"]) == ("b", 0, 40, 4)
    assert sidecar.pieces_of(4) == []
    assert sidecar.source_path("../a.jsonl") == corpus.prefix.parent.parent / "a.jsonl"


def test_one_sequence_is_found_across_row_groups(corpus: IndexedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar_module, "_ROW_GROUP_PIECES", 2)
    with SidecarWriter(corpus.prefix) as writer:
        writer.append(as_table(pieces(), "../a.jsonl", 0))
        writer.close()
    sidecar = Sidecar(sidecar_path(corpus.prefix))
    assert len(list(sidecar.tables())) == 3
    assert [row["id"] for row in sidecar.pieces_of(1)] == ["a", "b"]
    assert find_mismatch(sidecar, corpus) is None


def test_nothing_is_visible_before_close(tmp_path: Path) -> None:
    with SidecarWriter(tmp_path / "pile") as writer:
        writer.append(as_table(pieces(), "a", 0))
        assert not sidecar_path(tmp_path / "pile").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_of_the_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with SidecarWriter(tmp_path / "pile") as writer:
        writer.append(as_table(pieces(), "a", 0))
        with pytest.raises(OSError, match="No space left") as caught:
            writer.close()
    assert caught.value.filename == str(sidecar_path(tmp_path / "pile"))
    assert list(tmp_path.iterdir()) == []


def test_a_view_leads_to_the_sequences_and_the_sidecar_of_its_source(corpus: IndexedCorpus, tmp_path: Path) -> None:
    view = write_view(corpus, np.array([3, 1, 1]), tmp_path / "views", label="refined", settings={})
    second = write_view(IndexedCorpus.open(view), np.array([1, 0]), tmp_path / "more", label="refined", settings={})
    assert source_sequences(IndexedCorpus.open(view)).tolist() == [3, 1, 1]
    assert source_sequences(IndexedCorpus.open(second)).tolist() == [1, 3]
    assert source_sequences(corpus).tolist() == [0, 1, 2, 3]
    assert [source_sequence(IndexedCorpus.open(view), index) for index in range(3)] == [3, 1, 1]
    assert source_sequence(corpus, 2) == 2
    sidecar = Sidecar.of(IndexedCorpus.open(second))
    assert sidecar is not None
    assert sidecar.path == sidecar_path(corpus.prefix)


def test_a_view_of_another_corpus_is_refused(corpus: IndexedCorpus, tmp_path: Path) -> None:
    view = write_view(corpus, np.array([3, 1]), tmp_path / "views", label="refined", settings={})
    with IndexedWriter(corpus.prefix, np.dtype("<u2")) as writer:
        writer.append(TOKENS_T, LENGTHS_N[::-1])
        writer.close()
    with pytest.raises(
        CorruptArtifactError, match=r"sequence 0 at byte 20 is no sequence of .*pile: the view was made"
    ):
        source_sequences(IndexedCorpus.open(view))
    with pytest.raises(
        CorruptArtifactError, match=r"sequence 0 at byte 20 is no sequence of .*pile: the view was made"
    ):
        source_sequence(IndexedCorpus.open(view), 0)


def rewrite(corpus: IndexedCorpus, **columns: object) -> Sidecar:
    path = sidecar_path(corpus.prefix)
    table = pq.read_table(path)
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(name), pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)
    return Sidecar(path)


def test_a_flipped_bit_is_found_in_its_sequence(corpus: IndexedCorpus) -> None:
    with open(f"{corpus.prefix}.bin", "r+b") as stream:
        stream.seek(2 * 9)
        stream.write(b"\xff")
    found = find_mismatch(Sidecar(sidecar_path(corpus.prefix)), corpus)
    assert found is not None
    assert found.startswith(f"{corpus.prefix}.bin: sequence 2 does not match its checksum in pile.documents.parquet")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"num_tokens": [3, 1, 5, 1, 7]}, "sequence 1 has other tokens there than in the index"),
        ({"sequence": [0, 1, 1, 2, 4]}, "sequence 4 has other tokens there than in the index"),
        ({"sequence": [0, 1, 2, 2, 3]}, "sequence 2 has other tokens there than in the index"),
        ({"num_tokens": [3, 1, 4, 2, 6]}, "does not match its checksum"),
    ],
)
def test_the_sidecar_of_another_corpus_is_found(
    corpus: IndexedCorpus, columns: dict[str, object], message: str
) -> None:
    found = find_mismatch(rewrite(corpus, **columns), corpus)
    assert found is not None
    assert message in found


def test_a_sidecar_that_ends_early_is_found(corpus: IndexedCorpus) -> None:
    with SidecarWriter(corpus.prefix) as writer:
        writer.append(as_table(pieces(0, 3), "a", 0))
        writer.close()
    found = find_mismatch(Sidecar(sidecar_path(corpus.prefix)), corpus)
    assert found is not None
    assert "ends with sequence 1, the index with 3" in found


def test_what_is_no_sidecar_is_refused(corpus: IndexedCorpus, tmp_path: Path) -> None:
    path = sidecar_path(corpus.prefix)
    with pytest.raises(InputError, match="does not exist: preprocess again to make it"):
        Sidecar(tmp_path / "none.documents.parquet")
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CorruptArtifactError, match=r"pile\.documents\.parquet is not a whole Parquet file"):
        Sidecar(path)
    pq.write_table(pa.table({"sequence": [0]}), path)
    with pytest.raises(CorruptArtifactError, match="has sidecar format none, this release reads 1 and 2"):
        Sidecar(path)


def replace_sidecar(
    corpus: IndexedCorpus, change: Callable[[pa.Table], pa.Table], *, version: str | None = None
) -> Path:
    """Replace the sidecar by a changed one, as another tool would write it."""
    path = sidecar_path(corpus.prefix)
    table = change(pq.read_table(path))
    metadata = {b"miniplm_sidecar_version": (version or str(sidecar_module.FORMAT_VERSION)).encode()}
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


def with_column(name: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        return table.set_column(table.schema.get_field_index(name), name, values)

    return change


def read_all(corpus: IndexedCorpus) -> list[pa.Table]:
    sidecar = Sidecar.of(corpus)
    assert sidecar is not None
    return list(sidecar.tables())


def test_a_sidecar_of_format_1_is_read(corpus: IndexedCorpus) -> None:
    replace_sidecar(corpus, lambda table: table, version="1")
    (table,) = read_all(corpus)
    assert table["sequence"].to_pylist() == SEQUENCE_P.tolist()
    sidecar = Sidecar.of(corpus)
    assert sidecar is not None
    assert sidecar.group(0, ["id"])["id"].to_pylist() == ["a", "a", "b", "b", "c"]
    assert sidecar.last_sequences.tolist() == [3]
    replace_sidecar(corpus, lambda table: table, version="3")
    with pytest.raises(CorruptArtifactError, match="has sidecar format 3, this release reads 1 and 2"):
        read_all(corpus)


@pytest.mark.parametrize("same_lengths", [True, False])
def test_the_sidecar_of_another_corpus_is_refused_as_it_is_read(
    corpus: IndexedCorpus, tmp_path: Path, same_lengths: bool
) -> None:
    """Corpora in chunks all have the same lengths: there the checksums tell."""
    lengths_N = LENGTHS_N if same_lengths else LENGTHS_N[::-1]
    with IndexedWriter(tmp_path / "other", np.dtype("<u2")) as writer:
        writer.append(TOKENS_T[::-1], lengths_N)
        writer.close()
    other = IndexedCorpus.open(tmp_path / "other")
    sidecar_path(other.prefix).write_bytes(sidecar_path(corpus.prefix).read_bytes())
    with pytest.raises(CorruptArtifactError, match="belongs to another corpus"):
        read_all(other)
    sidecar = Sidecar.of(other)
    assert sidecar is not None
    with pytest.raises(CorruptArtifactError, match="belongs to another corpus"):
        sidecar.pieces_of(1)
    with pytest.raises(CorruptArtifactError, match="belongs to another corpus"):
        sidecar.group(0, ["id"])
    domain_N, bytes_N = np.zeros(4, np.uint16), np.zeros(4, np.int64)
    with pytest.raises(CorruptArtifactError, match="belongs to another corpus"):
        fill_domains_and_bytes(sidecar, other, domain_N, bytes_N)


def test_a_view_is_compared_with_its_source(corpus: IndexedCorpus, tmp_path: Path) -> None:
    view = IndexedCorpus.open(write_view(corpus, np.array([3, 1]), tmp_path / "views", label="some", settings={}))
    assert len(read_all(view)[0]) == len(SEQUENCE_P)
    replace_sidecar(corpus, lambda table: table.slice(0, 4))
    with pytest.raises(CorruptArtifactError, match="ends with sequence 2, the index with 3"):
        read_all(view)


def test_a_damaged_page_is_found(corpus: IndexedCorpus) -> None:
    """In any column, though no statistics and no schema know of it."""
    path = sidecar_path(corpus.prefix)
    content = path.read_bytes()
    column = pq.ParquetFile(path).metadata.row_group(0).column(9)
    data = bytearray(content)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start + column.total_compressed_size - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptArtifactError, match="row group 0: cannot be read"):
        read_all(corpus)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.slice(0, 0), "has no rows, the index with 3"),
        (lambda table: table.append_column("piece", table["piece"]), "has more than one column piece"),
        (lambda table: table.drop_columns(["piece"]), "has column piece of type none, expected int32"),
        (with_column("position", pa.nulls(5, pa.int64())), "has 5 nulls in column position"),
        (with_column("position", pa.array([0.0] * 5)), "has column position of type double, expected int64"),
        (with_column("sequence", pa.array([-1, 0, 1, 2, 3])), "has a negative number in column sequence"),
        (with_column("sequence", pa.array([0, 1, 1, 2, 2**62])), "has other tokens there than in the index"),
        (with_column("num_tokens", pa.array([2**31 - 1] * 5, pa.int32())), "has other tokens there than in the index"),
        (with_column("id", pa.array(["a"] * 5).dictionary_encode()), "has column id of type dictionary"),
    ],
)
def test_rows_that_cannot_be(corpus: IndexedCorpus, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    replace_sidecar(corpus, change)
    with pytest.raises(CorruptArtifactError, match=message):
        read_all(corpus)


def test_a_row_group_that_would_fill_the_memory(corpus: IndexedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sidecar_module, "_ROW_GROUP_PIECES", 3)
    with pytest.raises(CorruptArtifactError, match=r"has 5 rows and .* expected at most 3"):
        read_all(corpus)


def test_an_error_of_several_lines(corpus: IndexedCorpus) -> None:
    """Thrift's, of a damaged footer."""
    path = sidecar_path(corpus.prefix)
    content = bytearray(path.read_bytes())
    content[len(content) - 8 - int.from_bytes(content[-8:-4], "little")] = 0
    path.write_bytes(content)
    with pytest.raises(CorruptArtifactError, match="is not a whole Parquet file") as caught:
        Sidecar(path)
    assert "\n" not in str(caught.value)


def test_ids_that_would_fill_the_memory(corpus: IndexedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """One long id, which the file holds once."""
    replace_sidecar(corpus, with_column("id", pa.array(["x" * (1 << 20)] * 5)))
    assert sidecar_path(corpus.prefix).stat().st_size < 2 << 20
    assert len(read_all(corpus)) == 1
    monkeypatch.setattr(sidecar_module, "_MAX_ROW_GROUP_BYTES", 4 << 20)
    with pytest.raises(CorruptArtifactError, match=r"row group 0: cannot be read \(its pages hold up to [67],.* bytes"):
        read_all(corpus)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[IndexedCorpus, bytes]:
    """A corpus, and the bytes of its sidecar."""
    prefix = tmp_path_factory.mktemp("fuzzed") / "pile"
    with IndexedWriter(prefix, np.dtype("<u2")) as writer, SidecarWriter(prefix) as written:
        writer.append(TOKENS_T, LENGTHS_N)
        written.append(as_table(pieces(), "../a.jsonl", 0))
        written.close()
        writer.close()
    return IndexedCorpus.open(prefix), sidecar_path(prefix).read_bytes()


@st.composite
def changed_columns(draw: st.DrawFn) -> Callable[[pa.Table], pa.Table]:
    """One column with other values, of another type, twice, or gone."""
    field = draw(st.sampled_from(list(SCHEMA)))
    what = draw(st.sampled_from(("values", "values", "values", "type", "drop", "order", "rows", "twice")))
    if what == "drop":
        return lambda table: table.drop_columns([field.name])
    if what == "twice":
        return lambda table: table.append_column(field.name, table[field.name])
    if what == "order":
        return lambda table: table.select([field.name, *(name for name in table.column_names if name != field.name)])
    if what == "rows":
        order = draw(st.lists(st.integers(0, 4), max_size=12))
        return lambda table: table.take(pa.array(order, pa.int64()))
    if what == "type":
        kind = draw(
            st.sampled_from([pa.float64(), pa.int8(), pa.binary(), pa.list_(pa.int64()), pa.null(), pa.date64()])
        )
        return with_column(field.name, pa.nulls(5, kind))
    if pa.types.is_integer(field.type):
        is_unsigned = pa.types.is_unsigned_integer(field.type)
        bits = field.type.bit_width - (0 if is_unsigned else 1)
        numbers = st.integers(0 if is_unsigned else -(2**bits), 2**bits - 1) | st.integers(0, 8) | st.none()
        return with_column(field.name, pa.array(draw(st.lists(numbers, min_size=5, max_size=5)), field.type))
    texts = st.none() | st.sampled_from(["", "a", "/dev/zero", "../../x", "\0", "x" * 5000]) | st.text(max_size=4)
    array = pa.array(draw(st.lists(texts, min_size=5, max_size=5)), pa.string())
    return with_column(field.name, array.dictionary_encode() if pa.types.is_dictionary(field.type) else array)


@fuzz("sidecar", 60)
@given(data=st.data())
def test_fuzz_sidecar(pristine: tuple[IndexedCorpus, bytes], data: st.DataObject) -> None:
    """Bytes of the file, values of its rows, or no file: rows that belong to the corpus, or one of our errors."""
    corpus, whole = pristine
    path = sidecar_path(corpus.prefix)
    put(path, whole)
    match data.draw(st.sampled_from(("bytes", "bytes", "footer", "rows", "rows", "no file"))):
        case "bytes":
            path.write_bytes(data.draw(damaged_bytes(whole)))
        case "footer":
            start = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
            path.write_bytes(whole[:start] + data.draw(damaged_bytes(whole[start:])))
        case "rows":
            for change in data.draw(st.lists(changed_columns(), min_size=1, max_size=2)):
                with suppress(pa.ArrowException, KeyError):  # the second change does not fit the first
                    replace_sidecar(corpus, change)
        case "no file":
            put_no_file(path, data.draw(st.sampled_from(NO_FILES)))

    def one_sequence() -> None:
        sidecar = Sidecar.of(corpus)
        if sidecar is not None:
            sidecar.pieces_of(1)

    def places() -> None:
        sidecar = Sidecar.of(corpus)
        if sidecar is not None:
            _ = sidecar.last_sequences
            sidecar.group(0, ["id", "domain"])
            domain_N, bytes_N = np.zeros(4, np.uint16), np.zeros(4, np.int64)
            fill_domains_and_bytes(sidecar, corpus, domain_N, bytes_N)

    def all_tokens() -> None:
        sidecar = Sidecar.of(corpus)
        if sidecar is not None:
            find_mismatch(sidecar, corpus)

    def all_rows() -> None:
        sidecar = Sidecar.of(corpus)
        if sidecar is not None:
            list(sidecar.tables())

    for action in (all_rows, one_sequence, places, all_tokens):
        error = refusal_of(action)
        assert error is None or str(corpus.prefix.parent) in str(error)


def stored_by_content(corpus: IndexedCorpus, tmp_path: Path) -> IndexedCorpus:
    """As Hugging Face's cache, git-annex and DVC lay files out: each is a link to a name made of its content."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for number, path in enumerate(sorted(corpus.prefix.parent.glob(f"{corpus.prefix.name}.*"))):
        (tmp_path / "blobs" / f"{number:064x}").write_bytes(path.read_bytes())
        (tmp_path / "snapshot" / path.name).symlink_to(f"../blobs/{number:064x}")
    return IndexedCorpus.open(tmp_path / "snapshot" / corpus.prefix.name)


def test_a_store_by_content_keeps_its_sidecar(corpus: IndexedCorpus, tmp_path: Path) -> None:
    found, expected = Sidecar.of(stored_by_content(corpus, tmp_path)), Sidecar.of(corpus)
    assert found is not None
    assert expected is not None
    assert found.pieces_of(2) == expected.pieces_of(2)


def test_a_view_of_a_store_by_content_finds_its_sidecar(corpus: IndexedCorpus, tmp_path: Path) -> None:
    """The view's data is a blob, whose name says nothing of the corpus: the manifests do, through a view of a view."""
    linked = stored_by_content(corpus, tmp_path)
    view = write_view(linked, np.array([2, 1]), tmp_path / "views", label="some", settings={})
    again = write_view(IndexedCorpus.open(view), np.array([1, 0]), tmp_path / "more", label="some", settings={})
    for prefix, places in ((view, [2, 1]), (again, [1, 2])):
        of_view = IndexedCorpus.open(prefix)
        assert data_prefix(prefix) == linked.prefix
        assert source_sequences(of_view).tolist() == places
        found, expected = Sidecar.of(of_view), Sidecar.of(corpus)
        assert found is not None
        assert expected is not None
        assert found.pieces_of(places[0]) == expected.pieces_of(places[0])
