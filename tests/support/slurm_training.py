"""Training as jobs of `slurm/train.sbatch`, at a size that one core trains in seconds, and what is seen of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from megatron_runs import (
    ARCHITECTURE_FLAGS,
    DATA_FLAGS,
    REPOSITORY,
    TRAINING_FLAGS,
    launcher,
    random_sequences,
    run,
    write_corpus,
)
from slurm_cluster import SlurmCluster
from slurm_jobs import PipelineRun, write_order

STAGE = "train-teacher"
NUM_ITERATIONS = 60
#: From here on, iterations take as long as ordered, so that what stops a start comes in the middle.
SLOW_ITERATION = 12
SAVE_INTERVAL = 5
#: For a start of torch and Megatron on a machine that is busy with other tests.
PATIENCE_SECONDS = 600
#: For intervals: longer than any training here.
NEVER = 1000
OURS = ("-m", "megatron_miniplm.pretrain_gpt")
PACED = (str(REPOSITORY / "tests" / "support" / "paced_pretrain.py"),)
LENGTH_FLAGS, TOKENIZER_FLAGS = DATA_FLAGS[:2], DATA_FLAGS[2:]


@dataclass(frozen=True, kw_only=True)
class UndisturbedTraining:
    """A training without SLURM, in one go.

    Attributes:
        corpus: its data; Megatron's index of it is in `cache`.
        checkpoint: that of the last iteration.
        losses: by iteration.
    """

    corpus: Path
    cache: Path
    checkpoint: Path
    losses: dict[int, float]


def train_undisturbed(directory: Path) -> UndisturbedTraining:
    corpus, cache, checkpoint = directory / "corpus", directory / "cache", directory / "checkpoint"
    write_corpus(corpus, random_sequences(range(2, 150)))
    flags = [*TOKENIZER_FLAGS, *training_flags(cache, save_interval=NEVER), "--data-path", str(corpus)]
    outputs = ["--save", str(checkpoint), "--tensorboard-dir", str(directory / "tensorboard")]
    done = run([*launcher(1), *OURS, *flags, *outputs], PATIENCE_SECONDS)
    assert done.returncode == 0, done.stderr[-4000:]
    (losses,) = curves_of(directory / "tensorboard")
    assert list(losses) == list(range(1, NUM_ITERATIONS + 1))
    return UndisturbedTraining(corpus=corpus, cache=cache, checkpoint=checkpoint, losses=losses)


class TrainingRun(PipelineRun):
    """A run that trains one model, on the data of an undisturbed training."""

    def __init__(self, slurm: SlurmCluster, directory: Path, undisturbed: UndisturbedTraining) -> None:
        configuration: dict[str, str | Iterable[str | Path]] = {
            "CORPUS": (undisturbed.corpus,),
            "TOKENIZER": TOKENIZER_FLAGS,
            "TRAINING_PROGRAM": PACED,
            "TEACHER_TRAINING": training_flags(undisturbed.cache, save_interval=SAVE_INTERVAL),
            "REFERENCE_MODEL": ("--load-hf", "no-such-model"),
            "RANKS_TRAINING": "1",
            "TIME_TRAINING": "30",
        }
        self._orders = directory / "orders"
        self._orders.mkdir(parents=True)
        exports = f'export MINIPLM_TEST_ORDERS="{self._orders}" SLOW_ITERATION={SLOW_ITERATION}'
        super().__init__(slurm, directory, configuration, environment=exports)

    @property
    def checkpoint(self) -> Path:
        return self.directory / "teacher" / "checkpoint"

    def order_seconds(self, seconds: float) -> None:
        """How long each iteration takes, of running and future starts; see paced_pretrain.py."""
        write_order(self._orders / "seconds", str(seconds))

    def train(self) -> str:
        """Submit the training; returns the job's id."""
        return self.submit(STAGE)

    def wait_for_iteration(self, job: str, iteration: int, timeout_seconds: float) -> None:
        self.slurm.wait_for_output(job, f"iteration {iteration:8d}/", timeout_seconds)

    def saved_iteration(self) -> int:
        """That of the latest checkpoint; 0 where there is none."""
        path = self.checkpoint / "latest_checkpointed_iteration.txt"
        return int(path.read_text()) if path.exists() else 0

    def curves(self) -> list[dict[int, float]]:
        """The float32 losses that each start has given to TensorBoard, by iteration."""
        return curves_of(self.directory / "teacher" / "tensorboard")


def training_flags(cache: Path, *, save_interval: int) -> list[str]:
    """Megatron's flags without tokenizer, data and checkpoint, which the stage adds."""
    return [
        *(*ARCHITECTURE_FLAGS, *LENGTH_FLAGS, *TRAINING_FLAGS, "--train-iters", str(NUM_ITERATIONS)),
        *("--eval-interval", str(NEVER), "--save-interval", str(save_interval)),
        *("--data-cache-path", str(cache), "--tensorboard-log-interval", "1"),
    ]


def curves_of(log_dir: Path) -> list[dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = []
    for path in sorted(log_dir.glob("events.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        if "lm loss" in events.Tags()["scalars"]:
            curves.append({event.step: event.value for event in events.Scalars("lm loss")})
    return curves
