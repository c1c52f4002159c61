"""Scores as a Parquet file, with the ids and domains of sequences."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from megatron_runs import write_corpus
from score_stores import write_scores

from megatron_miniplm.cli import run_tool
from megatron_miniplm.commands import scores_parquet
from megatron_miniplm.indexed import IndexedCorpus, sidecar, write_view

pytestmark = pytest.mark.usefixtures("in_tmp_path")


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IndexedCorpus:
    """Sequence n is of document `d<n>`, but 3 is of none and 4 begins with a piece of `x`; row groups of 64."""
    monkeypatch.setattr(sidecar, "_ROW_GROUP_PIECES", 64)
    monkeypatch.setattr(scores_parquet, "ROW_GROUP_SEQUENCES", 70)
    monkeypatch.setattr(scores_parquet, "_CACHED_ROW_GROUPS", 2)
    corpus = write_corpus(tmp_path / "pile", [[number, 1] if number != 3 else [] for number in range(500)])
    sequences = [0, 1, 2, 4, *range(4, 500)]
    ids = ["x" if place == 3 else f"d{number}" for place, number in enumerate(sequences)]
    columns = {name: pa.array([0] * len(sequences), sidecar.SCHEMA.field(name).type) for name in PLAIN_COLUMNS}
    columns |= {"sequence": pa.array(sequences, pa.int64()), "id": pa.array(ids)}
    columns |= {"source": pa.array(["t"] * len(sequences)).dictionary_encode()}
    columns |= {"domain": pa.array([f"m{number % 3}" for number in sequences]).dictionary_encode()}
    with sidecar.SidecarWriter(corpus.prefix) as writer:
        writer.append(pa.Table.from_pydict(columns, schema=sidecar.SCHEMA))
        writer.close()
    return corpus


PLAIN_COLUMNS = ("position", "piece", "start_byte", "text_bytes", "num_tokens", "crc32")


def label(number: int | None) -> tuple[str | None, str | None]:
    if number is None or number == 3:
        return None, None
    return "x" if number == 4 else f"d{number}", f"m{number % 3}"


def test_parquet_has_id_and_domain(labelled: IndexedCorpus, tmp_path: Path, corpora: list) -> None:
    """Of a corpus, of views of it in any order, and of a prefix without a sidecar."""
    ascending_K, shuffled_K = np.arange(0, 500, 7), np.random.default_rng(0).permutation(500)[:200]
    views = [
        IndexedCorpus.open(write_view(labelled, kept_K, tmp_path / "views", label="some", settings={}))
        for kept_K in (ascending_K, shuffled_K)
    ]
    prefixes = [labelled, views[0], corpora[2], views[1]]
    num_sequences = sum(map(len, prefixes))
    write_scores(tmp_path / "teacher", prefixes, np.arange(num_sequences), block_sequences=64)
    assert run_tool("scores", ["teacher", "--to-parquet", "scores.parquet"]) == 0
    table = pq.read_table("scores.parquet").to_pydict()
    expected = [*range(500), *ascending_K.tolist(), None, None, None, *shuffled_K.tolist()]
    assert list(zip(table["id"], table["domain"], strict=True)) == list(map(label, expected))
    assert table["nll"] == list(range(num_sequences))
    assert table["sequence"] == [place for prefix in prefixes for place in range(len(prefix))]


def test_parquet_of_a_corpus_that_is_gone_has_plain_columns(
    labelled: IndexedCorpus, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_scores(tmp_path / "teacher", [labelled], np.zeros(500), block_sequences=64)
    for path in tmp_path.glob("pile*"):
        path.unlink()
    assert run_tool("scores", ["teacher", "--to-parquet", "scores.parquet"]) == 0
    assert pq.read_table("scores.parquet").column_names == ["prefix", "sequence", "nll", "num_tokens"]
    assert "pile is not here: its sequences are written without id and domain" in caplog.text


def test_parquet_of_a_corpus_that_has_changed_is_refused(
    labelled: IndexedCorpus, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_scores(tmp_path / "teacher", [labelled], np.zeros(500), block_sequences=64)
    for suffix in (".bin", ".idx"):
        labelled.prefix.with_suffix(suffix).unlink()
    write_corpus(labelled.prefix, [[2, 1]] * 500)
    assert run_tool("scores", ["teacher", "--to-parquet", "scores.parquet"]) == 2
    assert "pile is now [" in capsys.readouterr().err
    assert not Path("scores.parquet").exists()
