import json
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from megatron_miniplm.cli import run_tool
from megatron_miniplm.evaluation.scaling import ScalingLaw

LAWS = {"conventional": ScalingLaw(2.19e7, 0.41, 3.30), "refined": ScalingLaw(8.56e10, 0.59, 3.25)}
FLOPS_PER_TOKEN = 1.26e9
TOKENS_PER_SAMPLE = 1024


def write_points(path: Path) -> str:
    compute_P = np.geomspace(1e18, 6.3e19, 8)
    methods = {
        name: [{"compute_flops": compute, "loss": law.loss(compute)} for compute in compute_P.tolist()]
        for name, law in LAWS.items()
    }
    path.write_text(json.dumps(methods))
    return str(path)


def write_logs(directory: Path, law: ScalingLaw, shift: float) -> str:
    """Ten evaluations, of which the first is no part of the curve."""
    with SummaryWriter(str(directory)) as writer:
        for samples in range(5_000_000, 55_000_000, 5_000_000):
            loss = law.loss(samples * TOKENS_PER_SAMPLE * FLOPS_PER_TOKEN) + shift
            writer.add_scalar("lm loss validation vs samples", 9.0 if samples == 5_000_000 else loss, samples)
    return str(directory)


def run(*argv: str) -> int:
    return run_tool("fit-scaling-curve", list(argv))


def test_points_give_table_json_and_the_same_pictures_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--points", write_points(tmp_path / "points.json"), "--bootstrap", "100", "--extrapolate-to", "1.26e21"]
    printed, written = [], []
    for name in ("first", "second"):
        output = tmp_path / name
        assert run(*argv, "--output", str(output), "--json", str(output / "curve.json")) == 0
        printed.append(capsys.readouterr().out)
        written.append({path.name: path.read_bytes() for path in output.iterdir()})
    assert printed[0] == printed[1]
    assert written[0] == written[1]
    assert set(written[0]) == {"curve.json", "scaling.png", "scaling.svg"}
    assert "1.26e+21       20 x       3.349 [3.349, 3.349]  3.280 [3.280, 3.280]" in printed[0]
    assert "refined is at 3.280, which conventional never reaches: its L_inf is 3.300 [never]" in printed[0]
    results = json.loads(written[0]["curve.json"])
    assert results["methods"]["refined"]["exponent"]["value"] == pytest.approx(0.59, abs=1e-3)
    at_largest_run, at_1t_tokens = results["compute_equivalent_gains"]["refined"]
    assert at_largest_run["value"] == pytest.approx(
        LAWS["conventional"].compute(LAWS["refined"].loss(6.3e19)) / 6.3e19, rel=0.01
    )
    assert at_1t_tokens == {"compute_flops": 1.26e21, "value": None, "low": None, "high": None}


def test_logs_are_runs_and_early_evaluations_are_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dirs = [write_logs(tmp_path / str(seed), LAWS["conventional"], shift) for seed, shift in enumerate((-0.01, 0.01))]
    result = tmp_path / "curve.json"
    argv = ["--tokens-per-sample", str(TOKENS_PER_SAMPLE), "--skip-tokens", "6000000000", "--bootstrap", "200"]
    assert run(*argv, "--run", "conventional", str(FLOPS_PER_TOKEN), *dirs, "--json", str(result)) == 0
    assert "conventional: whole runs were resampled" in capsys.readouterr().out
    method = json.loads(result.read_text())["methods"]["conventional"]
    assert (method["num_points"], method["num_runs"]) == (18, 2)
    last_flops = 50_000_000 * TOKENS_PER_SAMPLE * FLOPS_PER_TOKEN
    assert method["losses"][0]["compute_flops"] == pytest.approx(last_flops)
    assert method["losses"][0]["value"] == pytest.approx(LAWS["conventional"].loss(last_flops), abs=0.002)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "holds no methods"),
        ('{"a": [{"compute_flops": NaN, "loss": 2}]}', "point 0 of a"),
        ('{"a": [{"compute_flops": %s, "loss": 2}]}' % ("9" * 5000), "point 0 of a"),
        ('{"a": []}', "a holds no points"),
        ('{"a": [{"compute_flops": 1e18}]}', 'point 0 of a is {"compute_flops": 1e+18}: expected'),
        ('{"a": [{"compute_flops": 1e18, "loss": true}]}', "point 0 of a"),
        ('{"a": [{"compute_flops": 1, "loss": 2, "run": 1}, {"compute_flops": 1, "loss": 2}]}', 'a have no "run"'),
        ('{"a": [{"compute_flops": 1, "loss": 2}]}', "a: the points have 1 distinct computes"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_points_is_one_line(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "points.json"
    path.write_text(text)
    assert run("--points", str(path), "--json", str(tmp_path / "curve.json")) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert not (tmp_path / "curve.json").exists()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--run", "a", "1e9", "logs"], "--run needs --tokens-per-sample"),
        (["--run", "a", "logs", "--tokens-per-sample", "8"], "--run a logs: give a name, its training FLOPs a token"),
        (["--points", "missing.json"], "missing.json cannot be used: No such file or directory"),
        (["--points", "x", "--confidence", "90"], "--confidence 90 must lie between 0 and 1"),
        (["--points", "x", "--extrapolate-to", "-1"], "--extrapolate-to -1: give positive FLOPs"),
        (["--points", "x", "--seed", "-1"], "--seed -1"),
    ],
)
def test_flags_that_cannot_be_used_are_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*argv) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
