"""Distillation in real Megatron: what is logged against both models' full logits, and every layout against the others.

The student is the tiny model of iteration 4, loaded in every layout; the teacher is twice as deep and wider.
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from megatron_runs import (
    ARCHITECTURE_FLAGS,
    DATA_FLAGS,
    PADDED_VOCAB_SIZE,
    TRAINING_FLAGS,
    VOCAB_SIZE,
    TinyRun,
    error_lines,
    launcher,
    run,
    train,
)

pytestmark = pytest.mark.slow

NUM_ITERATIONS = 3
SAMPLES_PER_ITERATION = 4
TEACHER_FLAGS = [
    *("--num-layers", "4", "--hidden-size", "48", "--ffn-hidden-size", "96"),
    "--untie-embeddings-and-output-weights",
]
ALPHA = 0.3
#: Printed with seven digits, of numbers near 5.
TOLERANCE_NATS = 3e-6

#: One model's logits for the samples of the first iteration, in the order of training; with a teacher's logits also the
#: losses and the gradient, in plain torch.
LOGITS_SCRIPT = """
import sys
from megatron_miniplm.mcore import program
program.prepare()
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from megatron_miniplm.mcore import models
from megatron_miniplm.mcore import checkpoints
from megatron_miniplm.training import student
output, teacher, alpha, count, total, vocab_size = (sys.argv.pop(1) for _ in range(6))
args = program.parse()
program.initialize()
checkpoints.take_architecture(args, checkpoints.checkpoint_directory(args.load))
(model,) = models.load_for_scoring(args)
dataset, _, _ = student.train_valid_test_datasets_provider([int(total), 0, 0])
samples = [dataset[index] for index in range(int(count))]
assert all(sample["loss_mask"].all() for sample in samples)
tokens, labels, positions = (
    torch.stack([sample[key] for sample in samples]) for key in ("tokens", "labels", "position_ids")
)
mask = torch.ones(tokens.shape[1], tokens.shape[1]).triu(1).bool()[None, None]
logits = model(tokens, positions, mask)
result = {"labels": labels, "logits": logits.detach()}
if teacher != "none":
    theirs = torch.load(teacher)
    assert torch.equal(labels, theirs["labels"]) and logits.shape == theirs["logits"].shape
    lm = cross_entropy(logits.double().flatten(0, 1), labels.flatten())
    real = [both.double()[..., : int(vocab_size)].flatten(0, 1) for both in (logits, theirs["logits"])]
    kd = kl_div(*(log_softmax(both, -1) for both in real), reduction="batchmean", log_target=True)
    ((1 - float(alpha)) * lm + float(alpha) * kd).backward()
    norms = [parameter.grad.norm() for parameter in model.parameters()]
    result = {"lm": lm.item(), "kd": kd.item(), "grad_norm": torch.stack(norms).norm().item()}
torch.save(result, output)
"""


@dataclass(frozen=True)
class Losses:
    """As logged, by iteration."""

    lm: dict[int, float]
    kd: dict[int, float]
    grad_norm: dict[int, float]


@pytest.fixture(scope="module")
def teacher(tiny: TinyRun) -> Path:
    checkpoint = tiny.directory / "kd_teacher"
    flags = [*TEACHER_FLAGS, "--train-iters", "6", "--seed", "77", "--save", str(checkpoint), "--save-interval", "6"]
    train(tiny.directory, *flags)
    return checkpoint


def command(tiny: TinyRun, *flags: str, num_processes: int = 1) -> list[str]:
    module = ["-m", "megatron_miniplm.pretrain_gpt", *ARCHITECTURE_FLAGS, *DATA_FLAGS, *TRAINING_FLAGS]
    data = ["--data-path", str(tiny.directory / "first"), "--data-cache-path", str(tiny.directory / "cache")]
    student = ["--load", str(tiny.checkpoint), "--finetune", "--train-iters", str(NUM_ITERATIONS)]
    return [*launcher(num_processes), *module, *data, *student, *flags]


def distil(tiny: TinyRun, teacher: Path | None, *flags: str, alpha: float = ALPHA, num_processes: int = 1) -> Losses:
    """Train the tiny student further, with a teacher or without."""
    ours = ["--miniplm-kd-teacher", str(teacher), "--miniplm-kd-alpha", str(alpha)] if teacher else []
    process = run(command(tiny, *ours, *flags, num_processes=num_processes))
    assert process.returncode == 0, process.stderr[-4000:]

    def logged(name: str) -> dict[int, float]:
        found = re.findall(rf"iteration +(\d+)/.* {name}: (\S+)", process.stdout)
        return {int(iteration): float(loss) for iteration, loss in found}

    return Losses(lm=logged("lm loss"), kd=logged("kd loss"), grad_norm=logged("grad norm"))


@pytest.fixture(scope="module")
def distilled(tiny: TinyRun, teacher: Path) -> Losses:
    """One process, two micro-batches an iteration."""
    return distil(tiny, teacher)


def first_iteration(tiny: TinyRun, checkpoint: Path, teacher_logits: Path | None = None) -> Path:
    """What `LOGITS_SCRIPT` saves of a checkpoint."""
    output = tiny.directory / f"{checkpoint.name}_first_iteration.pt"
    numbers = [ALPHA, SAMPLES_PER_ITERATION, NUM_ITERATIONS * SAMPLES_PER_ITERATION, VOCAB_SIZE]
    arguments = [str(output), str(teacher_logits or "none"), *map(str, numbers)]
    flags = [*ARCHITECTURE_FLAGS, *DATA_FLAGS, *TRAINING_FLAGS, *(() if teacher_logits else TEACHER_FLAGS)]
    data = ["--data-path", str(tiny.directory / "first"), "--data-cache-path", str(tiny.directory / "cache")]
    process = run([sys.executable, "-c", LOGITS_SCRIPT, *arguments, *flags, *data, "--load", str(checkpoint)])
    assert process.returncode == 0, process.stderr[-4000:]
    return output


def test_losses_and_gradient_are_those_of_both_models_full_logits(
    tiny: TinyRun, teacher: Path, distilled: Losses
) -> None:
    expected = torch.load(first_iteration(tiny, tiny.checkpoint, first_iteration(tiny, teacher)))
    print(expected, distilled)
    assert expected["kd"] > 0.1
    assert distilled.lm[1] == pytest.approx(expected["lm"], abs=TOLERANCE_NATS)
    assert distilled.kd[1] == pytest.approx(expected["kd"], abs=TOLERANCE_NATS)
    assert distilled.grad_norm[1] == pytest.approx(expected["grad_norm"], abs=6e-4), "printed with three decimals"


@pytest.mark.parametrize(
    "flags",
    [
        ["--tensor-model-parallel-size", "2", "--make-vocab-size-divisible-by", str(PADDED_VOCAB_SIZE // 2)],
        ["--pipeline-model-parallel-size", "2"],
        [],
    ],
    ids=["TP2", "PP2", "DP2"],
)
def test_layouts_agree(tiny: TinyRun, teacher: Path, distilled: Losses, flags: list[str]) -> None:
    losses = distil(tiny, teacher, *flags, num_processes=2)
    print(flags, losses, distilled)
    assert list(losses.kd) == list(distilled.kd) == [1, 2, 3]
    assert losses.lm == pytest.approx(distilled.lm, abs=TOLERANCE_NATS)
    assert losses.kd == pytest.approx(distilled.kd, abs=TOLERANCE_NATS)


def test_micro_batches_add_up_to_the_batch(tiny: TinyRun, teacher: Path, distilled: Losses) -> None:
    losses = distil(tiny, teacher, "--micro-batch-size", "1")
    print(losses)
    assert losses.lm == pytest.approx(distilled.lm, abs=TOLERANCE_NATS)
    assert losses.kd == pytest.approx(distilled.kd, abs=TOLERANCE_NATS)


def test_alpha_0_changes_nothing(tiny: TinyRun, teacher: Path) -> None:
    """With dropout, so that a teacher that draws random numbers would show; evaluation runs between the steps."""
    dropout = ["--hidden-dropout", "0.1", "--attention-dropout", "0.1"]
    evaluation = ["--split", "90,10,0", "--eval-interval", "1", "--eval-iters", "1"]
    flags = [*dropout, *evaluation]
    without, beside = distil(tiny, None, *flags), distil(tiny, teacher, *flags, alpha=0)
    print(without, beside)
    assert list(beside.kd) == [1, 2, 3]
    assert not without.kd
    assert without.lm == beside.lm


def test_alpha_1_learns_from_the_teacher_alone(tiny: TinyRun, teacher: Path) -> None:
    losses = distil(tiny, teacher, "--train-iters", "10", alpha=1)
    print(losses)
    assert losses.kd[10] < 0.6 * losses.kd[1]


def test_a_student_that_is_its_teacher_differs_in_nothing(tiny: TinyRun) -> None:
    """With tied embeddings over two stages; later on Adam makes steps of what is left of the gradient, rounding."""
    losses = distil(tiny, tiny.checkpoint, "--pipeline-model-parallel-size", "2", alpha=1, num_processes=2)
    print(losses)
    assert losses.kd[1] == pytest.approx(0, abs=1e-6)


def test_bfloat16_and_other_ways_to_scale_the_loss(tiny: TinyRun, teacher: Path, distilled: Losses) -> None:
    losses = distil(tiny, teacher, "--bf16", "--calculate-per-token-loss")
    print(losses)
    assert losses.lm == pytest.approx(distilled.lm, abs=0.05)
    assert losses.kd == pytest.approx(distilled.kd, abs=0.05)


def test_a_teacher_of_another_vocabulary_is_one_line(tiny: TinyRun, teacher: Path) -> None:
    flags = ["--vocab-size", "300", "--miniplm-kd-teacher", str(teacher)]
    flags_without_load = [flag for flag in command(tiny, *flags) if flag not in ("--load", str(tiny.checkpoint))]
    process = run(flags_without_load)
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert "has a vocabulary padded to 128, the student one to 384: give both one tokenizer" in line


def test_a_missing_teacher_is_one_line(tiny: TinyRun) -> None:
    """Of two ranks, one says it."""
    process = run(command(tiny, "--miniplm-kd-teacher", str(tiny.directory / "none"), num_processes=2))
    assert process.returncode != 0
    assert [line for line in process.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: {tiny.directory / 'none'} is not a Megatron checkpoint: it has no latest_checkpointed_iteration.txt"
    ]
