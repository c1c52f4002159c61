import json
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_miniplm.cli import run_tool
from megatron_miniplm.mcore import doctor
from megatron_miniplm.mcore.versions import MegatronInstallation
from megatron_miniplm.runtime.requirements import GET_MEGATRON


def test_finds_what_is_installed_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_tool("doctor", ["--json"]) == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["megatron-core"]["status"] == "ok"
    assert findings["dataset helpers"]["found"] == "compiled"
    for finding in findings.values():
        assert finding["status"] == "ok" or (finding["cost"] and finding["remedy"]), finding


def test_a_missing_megatron_is_wrong_and_ends_with_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "find_megatron", lambda: MegatronInstallation(version=None, has_training=False))
    assert run_tool("doctor", []) == 2
    lines = capsys.readouterr().out.splitlines()
    at = next(number for number, line in enumerate(lines) if line.startswith("WRONG   megatron-core"))
    assert lines[at].endswith("not installed")
    assert lines[at + 2].strip() == f"fix:    {GET_MEGATRON}"


@pytest.mark.parametrize(
    ("version", "status", "code"),
    [
        ("0.16.1", "wrong", 2),
        ("0.17.1", "partly", 0),
        ("0.18.2", "ok", 0),
        ("0.20.0rc0", "partly", 0),
        ("0.21.0", "wrong", 2),
    ],
)
def test_what_works_with_each_megatron_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], version: str, status: str, code: int
) -> None:
    found = MegatronInstallation(version=version, has_training=True, location=Path("/data/megatron-lm"))
    monkeypatch.setattr(doctor, "find_megatron", lambda: found)
    assert run_tool("doctor", ["--json"]) == code
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    megatron = findings["megatron-core"]
    assert megatron["status"] == status
    assert ("through megatron_miniplm.launch" in megatron["found"] or "and through launch" in megatron["found"]) == (
        status != "wrong"
    )
    assert ("score-corpus" in megatron["cost"]) == (status == "partly")
    assert bool(megatron["remedy"]) == (status != "ok")
    assert "/data/megatron-lm" in megatron["found"]


@pytest.mark.parametrize(
    ("pyarrow", "numpy", "status"),
    [("24.0.0", "1.26.4", "ok"), ("25.0.0", "1.26.4", "wrong"), ("26.0.1", "2.2.6", "ok"), (None, "2.2.6", "wrong")],
)
def test_a_pyarrow_that_needs_another_numpy_is_found(
    monkeypatch: pytest.MonkeyPatch, pyarrow: str | None, numpy: str, status: str
) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: {"pyarrow": pyarrow, "numpy": numpy}[name])
    finding = doctor._pyarrow()
    assert finding.status == status
    assert ("pyarrow<25" in finding.remedy) == (pyarrow == "25.0.0")


def test_the_unrelated_apex_of_the_package_index_is_recognised(tmp_path: Path) -> None:
    """NVIDIA's has `apex.multi_tensor_apply`; the web toolkit of that name has not."""
    (tmp_path / "apex").mkdir()
    (tmp_path / "apex" / "__init__.py").touch()
    code = "from megatron_miniplm.mcore.doctor import _apex; print(_apex().status, _apex().remedy)"
    run = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert run.stdout.startswith("wrong pip uninstall apex; build it from NVIDIA's repository")
