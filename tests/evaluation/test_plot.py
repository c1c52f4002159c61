"""Pictures of loss curves."""

from pathlib import Path

import numpy as np

from megatron_miniplm.evaluation.curves import LossCurve
from megatron_miniplm.evaluation.plot import plot_curves


def test_a_picture_is_written(tmp_path: Path) -> None:
    losses = {"a": [[4.0, 3.0], [4.2, 3.1]], "b": [[3.0, 2.0]]}
    tokens_E = np.array([1000, 2000])
    curves = {name: LossCurve(tokens_E=tokens_E, loss_RE=np.array(rows)) for name, rows in losses.items()}
    plot_curves(curves, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
