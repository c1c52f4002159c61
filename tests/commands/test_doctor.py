"""What doctor prints, and its exit code."""

import json
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
