from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from megatron_miniplm.commands.compare_runs import table, verdicts
from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.curves import LossCurve, read_curve

TAG = "lm loss validation vs samples"


def write_logs(directory: Path, points: list[tuple[int, float]], tag: str = TAG) -> Path:
    with SummaryWriter(str(directory)) as writer:
        for step, value in points:
            writer.add_scalar(tag, value, step)
    return directory


def curve(*losses: list[float]) -> LossCurve:
    tokens_E = np.arange(1, len(losses[0]) + 1) * 1000
    return LossCurve(tokens_E=tokens_E, loss_RE=np.array(losses))


def test_reads_tokens_and_losses_of_every_seed(tmp_path: Path) -> None:
    first = write_logs(tmp_path / "1", [(10, 3.0), (20, 2.0)])
    second = write_logs(tmp_path / "2", [(10, 4.0), (20, 1.0)])
    read = read_curve([first, second], tokens_per_sample=128)
    assert read.tokens_E.tolist() == [1280, 2560]
    assert read.loss_RE.tolist() == [[3.0, 2.0], [4.0, 1.0]]
    assert read.mean_E.tolist() == [3.5, 1.5]


def test_the_last_of_a_repeated_evaluation_counts(tmp_path: Path) -> None:
    """A resumed run evaluates again where it was."""
    logs = write_logs(tmp_path, [(10, 3.0), (20, 2.5), (20, 2.0)])
    assert read_curve([logs], tokens_per_sample=1).loss_RE.tolist() == [[3.0, 2.0]]


def test_several_validation_sets_need_a_name(tmp_path: Path) -> None:
    write_logs(tmp_path, [(10, 3.0)], "lm loss validation-prose vs samples")
    assert read_curve([tmp_path], tokens_per_sample=1).loss_RE.tolist() == [[3.0]]
    write_logs(tmp_path, [(10, 5.0)], "lm loss validation-code vs samples")
    with pytest.raises(InputError, match=r"holds the validation sets .*: name one"):
        read_curve([tmp_path], tokens_per_sample=1)
    assert read_curve([tmp_path], tokens_per_sample=1, validation_set="code").loss_RE.tolist() == [[5.0]]


def test_logs_without_held_out_loss_are_refused(tmp_path: Path) -> None:
    logs = write_logs(tmp_path / "logs", [(1, 2.0)], "lm loss")
    with pytest.raises(InputError, match="holds no validation loss: train with --tensorboard-dir and --eval-interval"):
        read_curve([logs], tokens_per_sample=1)
    with pytest.raises(InputError, match="is not a directory of TensorBoard logs"):
        read_curve([tmp_path / "nothing"], tokens_per_sample=1)


def test_seeds_evaluated_at_other_points_are_refused(tmp_path: Path) -> None:
    first = write_logs(tmp_path / "1", [(10, 3.0)])
    second = write_logs(tmp_path / "2", [(20, 3.0)])
    with pytest.raises(InputError, match="was evaluated after other numbers of samples"):
        read_curve([first, second], tokens_per_sample=1)


@pytest.mark.parametrize(
    ("loss", "tokens"), [(5.0, 1000.0), (4.0, 1000.0), (3.5, 1500.0), (3.0, 2000.0), (2.25, 2750.0), (1.9, None)]
)
def test_tokens_to_reach_interpolates(loss: float, tokens: float | None) -> None:
    assert curve([4.0, 3.0, 2.0]).tokens_to_reach(loss) == tokens


def test_standard_error_is_that_of_the_mean() -> None:
    assert curve([1.0], [3.0]).standard_error_E == pytest.approx([1.0])
    assert curve([1.0]).standard_error_E is None


def test_table_and_verdicts() -> None:
    curves = {"conventional": curve([4.0, 3.0, 2.0]), "refined": curve([3.5, 2.0, 1.5])}
    assert table(curves)[-3:] == [
        "       1,000          4.0000          3.5000",
        "       2,000          3.0000          2.0000",
        "       3,000          2.0000          1.5000",
    ]
    assert verdicts(curves)[1:] == [
        "refined - conventional after 3,000 tokens: -0.5000",
        "refined reaches the final loss of conventional (2.0000) after 2,000 tokens (67%)",
        "conventional does not reach the final loss of refined (1.5000) in 3,000 tokens",
    ]
