import json
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from megatron_miniplm.artifacts.run_records import VALIDATION_RECORD, write_record
from megatron_miniplm.cli import run_tool


def write_logs(directory: Path, losses: list[float]) -> str:
    with SummaryWriter(str(directory)) as writer:
        for step, loss in enumerate(losses, start=1):
            writer.add_scalar("lm loss validation-heldout vs samples", loss, step * 10)
    return str(directory)


def test_table_json_and_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    slow, fast = write_logs(tmp_path / "slow", [4.0, 3.0]), write_logs(tmp_path / "fast", [3.0, 2.0])
    output = tmp_path / "comparison"
    argv = ["--tokens-per-sample", "100", "--run", "slow", slow, "--run", "fast", fast, "--output", str(output)]
    assert run_tool("compare-runs", [*argv, "--json", str(tmp_path / "elsewhere/curves.json")]) == 0
    assert "fast reaches the final loss of slow (3.0000) after 1,000 tokens (50%)" in capsys.readouterr().out
    assert json.loads((output / "curves.json").read_text())["fast"] == {
        "tokens": [1000, 2000],
        "loss_nats_per_token": [[3.0, 2.0]],
    }
    assert (tmp_path / "elsewhere/curves.json").read_bytes() == (output / "curves.json").read_bytes()
    assert (output / "curves.png").exists()


def test_a_run_without_logs_is_one_line_and_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("compare-runs", ["--tokens-per-sample", "1", "--run", "alone"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == "error: --run alone: give each kind of run one name and at least one log directory\n"


def record(directory: str, *names: str) -> None:
    """What the run in this directory says that it was validated on, in turn."""
    entries = [[{"name": name, "fingerprint": name * 8, "share": 1.0, "split": None}] for name in names]
    write_record(Path(directory) / VALIDATION_RECORD, validation=entries)


def compare(*log_dirs: str) -> int:
    runs = [word for number, log_dir in enumerate(log_dirs) for word in ("--run", f"run{number}", log_dir)]
    return run_tool("compare-runs", ["--tokens-per-sample", "100", *runs])


def test_runs_that_were_validated_on_different_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = write_logs(tmp_path / "one", [4.0, 3.0]), write_logs(tmp_path / "other", [3.0, 2.0])
    assert compare(one, other) == 0
    said = capsys.readouterr()
    assert "does not say what it was validated on, nor do 1 others" in said.err
    record(one, "a")
    record(other, "a")
    assert compare(one, other) == 0
    assert capsys.readouterr().err == ""
    record(other, "b")
    assert compare(one, other) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "one was validated on a [aaaaaaaa]" in said.err
    assert "--valid-data-path" in said.err
    record(one, "a", "b")
    assert compare(one) == 2, "one run, before and after it was resumed"
