import errno
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter, write_view
from megatron_miniplm.indexed import sidecar as sidecar_module
from megatron_miniplm.indexed.pieces import Pieces, crc32_of_runs
from megatron_miniplm.indexed.sidecar import (
    Sidecar,
    SidecarWriter,
    as_table,
    find_mismatch,
    sidecar_path,
    source_sequence,
    source_sequences,
)

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


def test_checksums_are_those_of_zlib() -> None:
    expected = [zlib.crc32(run.tobytes()) for run in np.split(TOKENS_T, np.cumsum(LENGTHS_N)[:-1])]
    assert crc32_of_runs(TOKENS_T, LENGTHS_N).tolist() == expected
    assert crc32_of_runs(TOKENS_T[:0], LENGTHS_N[:0]).tolist() == []


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
    table = pyarrow.parquet.read_table(path)
    for name, values in columns.items():
        index = table.schema.get_field_index(name)
        table = table.set_column(index, table.schema.field(name), pyarrow.array(values, table.schema.field(name).type))
    pyarrow.parquet.write_table(table, path)
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
    pyarrow.parquet.write_table(pyarrow.table({"sequence": [0]}), path)
    with pytest.raises(CorruptArtifactError, match="has sidecar format none, this release reads 1"):
        Sidecar(path)
