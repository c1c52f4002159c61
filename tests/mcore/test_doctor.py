import subprocess
import sys
from pathlib import Path

import pytest

from megatron_miniplm.mcore import doctor


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
