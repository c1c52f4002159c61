"""Loss curves as a picture, and what every picture needs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts import atomic_output
from megatron_miniplm.evaluation.curves import LossCurve
from megatron_miniplm.runtime.requirements import missing_packages_are_user_errors


def load_pyplot() -> Any:
    """`matplotlib.pyplot`, drawing to files.

    Raises:
        MissingPackageError: matplotlib is missing.
    """
    with missing_packages_are_user_errors("a picture"):
        import matplotlib
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def plot_curves(curves: Mapping[str, LossCurve], path: Path) -> None:
    """Draw mean held-out loss against tokens, with a band of one standard error where there are several seeds.

    Raises:
        MissingPackageError: matplotlib is missing.
    """
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(figsize=(6.4, 4.0), constrained_layout=True)
    for name, curve in curves.items():
        millions_E = curve.tokens_E / 1e6
        (line,) = axes.plot(millions_E, curve.mean_E, marker="o", markersize=3, label=name)
        if (error_E := curve.standard_error_E) is not None:
            axes.fill_between(
                millions_E, curve.mean_E - error_E, curve.mean_E + error_E, color=line.get_color(), alpha=0.2
            )
    axes.set_xlabel("training tokens (millions)")
    axes.set_ylabel("held-out loss (nats a token)")
    axes.grid(alpha=0.3)
    axes.legend(title="trained on")
    with atomic_output(path) as stream:
        figure.savefig(stream, format="png", dpi=150)
    pyplot.close(figure)
