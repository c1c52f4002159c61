import json
from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

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
