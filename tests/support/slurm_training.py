"""Training as jobs of `slurm/train.sbatch`, at a size that one core trains in seconds, and what is seen of it."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
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
from slurm_jobs import PipelineRun

STAGE = "train-teacher"
NUM_ITERATIONS = 60
#: From here on, a start without a checkpoint waits in each iteration, so that what stops it comes in the middle.
SLOW_ITERATION = 12
#: No checkpoint but that of the stop, and the last.
NEVER = 1000
OURS = ("-m", "megatron_miniplm.pretrain_gpt")
PACED = (str(REPOSITORY / "tests" / "support" / "paced_pretrain.py"),)
LENGTH_FLAGS, TOKENIZER_FLAGS = DATA_FLAGS[:2], DATA_FLAGS[2:]


class TrainingRun(PipelineRun):
    """A run of which one model is trained, with what it has to equal.

    Args:
        slow_seconds: how long a slow iteration waits.
        launcher: srun or torchrun.
        environment: more lines of the environment file.
        settings: more of the configuration.
    """

    def __init__(
        self,
        slurm: SlurmCluster,
        directory: Path,
        corpus: Path,
        flags: Sequence[str],
        *,
        num_nodes: int = 1,
        num_ranks: int = 1,
        program: Sequence[str] = PACED,
        slow_seconds: float = 0,
        environment: Iterable[str] = (),
        **settings: str | Iterable[str | Path],
    ) -> None:
        configuration: dict[str, str | Iterable[str | Path]] = {
            "CORPUS": (corpus,),
            "TOKENIZER": TOKENIZER_FLAGS,
            "TRAINING_PROGRAM": program,
            "TEACHER_TRAINING": flags,
            "REFERENCE_MODEL": ("--load-hf", "no-such-model"),
            "NODES_TRAINING": str(num_nodes),
            "RANKS_TRAINING": str(num_ranks),
            "TIME_TRAINING": "30",
            **settings,
        }
        lines = [f"export SLOW_ITERATION={SLOW_ITERATION} SLOW_SECONDS={slow_seconds}", *environment]
        super().__init__(slurm, directory, configuration, environment="\n".join(lines))

    @property
    def checkpoint(self) -> Path:
        return self.directory / "teacher" / "checkpoint"

    def train(self) -> str:
        """Submit the training; returns the job's id."""
        return self.submit(STAGE)

    def wait_for_iteration(self, job: str, iteration: int, timeout_seconds: float = 120) -> None:
        self.slurm.wait_for_output(job, f"iteration {iteration:8d}/", timeout_seconds)

    def saved_iteration(self) -> int:
        """That of the latest checkpoint; 0 where there is none."""
        path = self.checkpoint / "latest_checkpointed_iteration.txt"
        return int(path.read_text()) if path.exists() else 0

    def curves(self) -> list[dict[int, float]]:
        """The float32 losses that each start has given to TensorBoard, by iteration."""
        return curves_of(self.directory / "teacher" / "tensorboard")

    def processes_of(self, attempt: str) -> list[int]:
        """Ids of the processes that train for an attempt (`<job>.<number>`) on whatever node, and of its srun."""
        wanted = {f"MINIPLM_ATTEMPT={attempt}", f"MINIPLM_CURRENT={self.directory}/slurm/current/{STAGE}"}
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if not entry.name.isdecimal() or "--train-iters" not in _words(entry / "cmdline"):
                    continue
                if wanted <= _words(entry / "environ"):
                    found.append(int(entry.name))
        return found


def training_flags(cache: Path, *, save_interval: int = NEVER) -> list[str]:
    """Megatron's flags without tokenizer, data and checkpoint, which the stage adds."""
    return [
        *(*ARCHITECTURE_FLAGS, *LENGTH_FLAGS, *TRAINING_FLAGS, "--train-iters", str(NUM_ITERATIONS)),
        *("--eval-interval", str(NEVER), "--save-interval", str(save_interval)),
        *("--data-cache-path", str(cache), "--tensorboard-log-interval", "1"),
    ]


def train_undisturbed(corpus: Path, directory: Path, flags: Sequence[str], num_processes: int) -> dict[int, float]:
    """The losses of the same training without Slurm, in one go."""
    ours = ["--data-path", str(corpus), "--tensorboard-dir", str(directory)]
    done = run([*launcher(num_processes), *OURS, *TOKENIZER_FLAGS, *flags, *ours])
    assert done.returncode == 0, done.stderr[-4000:]
    (losses,) = curves_of(directory)
    assert list(losses) == list(range(1, NUM_ITERATIONS + 1))
    return losses


def write_training_corpus(prefix: Path) -> Path:
    write_corpus(prefix, random_sequences(range(2, 150)))
    return prefix


def curves_of(log_dir: Path) -> list[dict[int, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = []
    for path in sorted(log_dir.glob("events.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        if "lm loss" in events.Tags()["scalars"]:
            curves.append({event.step: event.value for event in events.Scalars("lm loss")})
    return curves


def _words(path: Path) -> set[str]:
    """Of a file below /proc that ends each with a zero byte."""
    return set(path.read_bytes().decode(errors="replace").split("\0"))
