import json
import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from megatron_runs import write_corpus
from score_stores import identity_of, write_scores

from megatron_miniplm.artifacts.leases import Leases, server_time_ns
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import run_tool
from megatron_miniplm.runtime.text_table import duration
from megatron_miniplm.slurm.progress import recent_speed

pytestmark = pytest.mark.usefixtures("in_tmp_path")

NLL = [3.5, 0.0, 1.25, 2.5, 0.5]
NUM_TOKENS = [3, 0, 1, 2, 1]


@pytest.fixture
def finished(corpora: list, tmp_path: Path) -> ScoreStore:
    return write_scores(tmp_path / "teacher", corpora, NLL, block_sequences=2)


@pytest.fixture
def started(corpora: list, tmp_path: Path) -> ScoreStore:
    """The first of three blocks."""
    identity = identity_of(corpora, model="teacher", block_sequences=2)
    store = ScoreStore.create_or_resume(tmp_path / "teacher", identity)
    store.write_block(0, NLL[:2], NUM_TOKENS[:2])
    return store


def test_finished(finished: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("scores", ["teacher"]) == 0
    assert capsys.readouterr().out == (
        "teacher: 3 of 3 blocks, 5 of 5 sequences\n7 scored tokens, 1.1071 nats a token\n"  # 7.75 / 7
    )


def test_progress(started: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("scores", ["teacher"]) == 0
    assert capsys.readouterr().out == (
        "teacher: 1 of 3 blocks, 2 of 5 sequences\n3 scored tokens, 1.1667 nats a token\nmissing: 1-2\n"
    )


def test_before_the_first_block(started: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    started.block_path(0).unlink()
    assert run_tool("scores", ["teacher"]) == 0
    assert capsys.readouterr().out == "teacher: 0 of 3 blocks, 0 of 5 sequences\nmissing: 0-2\n"


def test_json(started: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("scores", ["teacher", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "num_sequences": 5,
        "num_published_sequences": 2,
        "num_not_scored_sequences": 0,
        "num_blocks": 3,
        "num_missing_blocks": 2,
        "missing_blocks": [[1, 2]],
        "num_tokens": 3,
        "mean_nll": pytest.approx(3.5 / 3),
        "finished": False,
        "tokens_per_second": None,
        "seconds_left": None,
        "workers": [],
    }


def test_to_parquet(finished: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("scores", ["teacher", "--to-parquet", "scores.parquet"]) == 0
    assert capsys.readouterr().out.endswith("wrote scores.parquet\n")
    table = pq.read_table("scores.parquet")
    assert table.to_pydict() == {
        "prefix": ["web", "web", "code", "code", "code"],
        "sequence": [0, 1, 0, 1, 2],
        "nll": NLL,
        "num_tokens": NUM_TOKENS,
    }
    assert pq.ParquetFile("scores.parquet").num_row_groups == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["."], ". is not a directory of scores: it has no identity.json"),
        (["nothing"], "nothing is not a directory of scores: it has no identity.json"),
        (
            ["teacher", "--to-parquet", "scores.parquet"],
            "teacher is incomplete: 2 of 3 blocks are missing (first: 1): run the same scoring command again",
        ),
    ],
)
def test_errors_are_one_line(
    started: ScoreStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert run_tool("scores", argv) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", f"error: {message}\n")
    assert not (tmp_path / "scores.parquet").exists()


def test_who_works_and_when_it_is_done(
    started: ScoreStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    started.write_block(1, NLL[2:4], NUM_TOKENS[2:4])
    now_ns = server_time_ns(started.directory)
    for block, seconds in ((0, 40), (1, 30)):
        os.utime(started.block_path(block), ns=(0, now_ns - seconds * 10**9))
    with Leases(started.directory) as leases:
        assert leases.claim(2)
        assert run_tool("scores", ["teacher"]) == 0
        who = str(leases.owner)
        lines = capsys.readouterr().out.splitlines()[2:]
        assert lines == ["0 tokens/s lately, about 20 s left", "missing: 2", f"working: {who}: 2"]
        speed = recent_speed(started, now_ns)  # 3 tokens and 2 sequences in the 40 s since block 0
        assert speed is not None
        assert (speed.tokens_per_second, speed.sequences_per_second) == (3 / 40, 2 / 40)
        os.utime(leases.lease_path, (0, 0))
        assert run_tool("scores", ["teacher"]) == 0
        lines = capsys.readouterr().out.splitlines()[2:]
        assert lines == ["missing: 2", f"dead (the next that is free takes over): {who}: 2"]


def test_the_speed_is_that_of_the_last_minutes(started: ScoreStore) -> None:
    now_ns = server_time_ns(started.directory)
    assert recent_speed(started, now_ns) is None, "one block tells nothing"
    started.write_block(1, NLL[2:4], NUM_TOKENS[2:4])
    os.utime(started.block_path(0), ns=(0, now_ns - 3600 * 10**9))  # before the run was interrupted
    assert recent_speed(started, now_ns) is None


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(3.4, "3 s"), (150, "2 min"), (3700, "1 h 1 min"), (47.5 * 3600, "47 h 30 min"), (50 * 3600, "2 d 2 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_many_runs_are_abbreviated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = write_corpus(tmp_path / "many", [[1, 2]] * 40)
    store = ScoreStore.create_or_resume(tmp_path / "s", identity_of([corpus], model="s", block_sequences=1))
    for block in range(0, 40, 2):
        store.write_block(block, [1.0], [1])
    assert run_tool("scores", ["s"]) == 0
    assert capsys.readouterr().out.endswith("missing: 1, 3, 5, 7, 9, 11, 13, 15 and 12 more\n")


def test_sequences_that_were_left_out(started: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    started.write_block(1, [0.0, 2.0], [-1, 1])
    assert run_tool("scores", ["teacher"]) == 0
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first == "teacher: 2 of 3 blocks, 4 of 5 sequences (1 of them left out by sampling)"
    assert second == "4 scored tokens, 1.3750 nats a token"


def test_all_blocks_without_a_manifest(finished: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    (finished.directory / "manifest.json").unlink()
    assert run_tool("scores", ["teacher"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "all blocks are there, but no manifest: run the same scoring command again"


def test_verify_intact(finished: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("scores", ["teacher", "--verify"]) == 0
    assert capsys.readouterr().out.endswith("nats a token\nall checksums agree\n")


def test_verify_names_all_bad_blocks(finished: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    for block in (0, 2):
        finished.block_path(block).write_bytes(finished.block_path(block).read_bytes()[:-1])
    assert run_tool("scores", ["teacher", "--verify", "--to-parquet", "scores.parquet"]) == 2
    captured = capsys.readouterr()
    remedy = "delete it and run the same scoring command again"
    first = f"teacher/blocks/00000000.npy has 291 bytes, expected 292: {remedy}"
    second = f"teacher/blocks/00000002.npy has 283 bytes, expected 284: {remedy}"
    assert captured.out.splitlines()[-2:] == [first, second]
    assert captured.err == f"error: {first} (and 1 more)\n"
    assert not Path("scores.parquet").exists()
    assert run_tool("scores", ["teacher", "--verify", "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["faults"] == [first, second]
    assert run_tool("scores", ["teacher"]) == 2
    assert capsys.readouterr().err == f"error: {first}\n"


def test_verify_reads_the_manifest_too(finished: ScoreStore, capsys: pytest.CaptureFixture[str]) -> None:
    path = finished.directory / "identity.json"
    path.write_text(path.read_text().replace('"float32"', '"float16"'))
    assert run_tool("scores", ["teacher", "--verify"]) == 2
    assert "teacher/identity.json has changed since it was written" in capsys.readouterr().err
