"""Real Megatron in processes of its own, at a size that one core trains in a second.

A start costs about 6 seconds, so tests share what one process made; `tiny` in tests/conftest.py trains once a session.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from rank_server import run_forked

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter

if TYPE_CHECKING:
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig

REPOSITORY = Path(__file__).parents[2]
SCORE_CORPUS = REPOSITORY / "tools" / "score_corpus.py"
TIMEOUT_SECONDS = 240

#: 28 rows of padding at --make-vocab-size-divisible-by 128, initialised like the others.
VOCAB_SIZE = 100
PADDED_VOCAB_SIZE = 128
CONTEXT_TOKENS = 64
OVERLAP_TOKENS = CONTEXT_TOKENS // 4
#: Two of the many shapes that a model may have: grouped queries (2 groups of 4 heads) and tied embeddings.
NUM_LAYERS, HIDDEN_SIZE, FFN_SIZE, NUM_HEADS, NUM_GROUPS = 2, 32, 64, 4, 2
#: Not Megatron's default of 1e-5: shapes no tensor, and Megatron's --use-checkpoint-args does not bring it back.
NORM_EPSILON = 1e-3
ARCHITECTURE_FLAGS = (
    f"--num-layers {NUM_LAYERS} --hidden-size {HIDDEN_SIZE} --ffn-hidden-size {FFN_SIZE} "
    f"--num-attention-heads {NUM_HEADS} --group-query-attention --num-query-groups {NUM_GROUPS} "
    f"--max-position-embeddings {CONTEXT_TOKENS} --position-embedding-type rope --normalization RMSNorm --swiglu "
    f"--norm-epsilon {NORM_EPSILON} "
    "--disable-bias-linear --attention-dropout 0 --hidden-dropout 0 --init-method-std 0.3"
).split()
DATA_FLAGS = (
    f"--seq-length {CONTEXT_TOKENS} --tokenizer-type NullTokenizer --vocab-size {VOCAB_SIZE} "
    f"--make-vocab-size-divisible-by {PADDED_VOCAB_SIZE}"
).split()
TRAINING_FLAGS = [
    *("--micro-batch-size", "2", "--global-batch-size", "4", "--lr", "1e-2", "--lr-decay-style", "constant"),
    *("--split", "100,0,0", "--eval-iters", "0", "--log-interval", "1"),
]
#: What decides how a sequence is cut: nothing to predict, one prediction, just one window, just two, many.
EDGE_LENGTHS = (0, 1, 2, CONTEXT_TOKENS, CONTEXT_TOKENS + 1, CONTEXT_TOKENS + 2, 3 * CONTEXT_TOKENS, 0)


@dataclass(frozen=True, kw_only=True)
class TinyRun:
    """A trained model and its corpus.

    Attributes:
        directory: holds everything, and has room for more.
        prefixes: of the corpus; the second has no sequences.
        checkpoint: for `--load`; holds iterations 2 and 4.
        losses: by iteration.
    """

    directory: Path
    prefixes: tuple[Path, ...]
    checkpoint: Path
    losses: dict[int, float]

    @property
    def corpora(self) -> list[IndexedCorpus]:
        return [IndexedCorpus.open(prefix) for prefix in self.prefixes]


def write_corpus(prefix: Path, sequences: Iterable[Sequence[int] | np.ndarray]) -> IndexedCorpus:
    """Write sequences as a Megatron prefix, uint16."""
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        for sequence in sequences:
            writer.append(np.asarray(sequence, np.int64), np.array([len(sequence)]))
        writer.close()
    return IndexedCorpus.open(prefix)


def dataset_config(prefix: Path, cache: Path, **others: Any) -> "GPTDatasetConfig":
    """What Megatron's dataset is told of one prefix, all of it for training, unless the others say else."""
    from megatron.core.datasets.gpt_dataset import GPTDatasetConfig
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer

    sizes = {"vocab_size": VOCAB_SIZE, "pad_vocab_size": False, "padded_vocab_size": VOCAB_SIZE}  # the last for 0.17
    tokenizer = SimpleNamespace(tokenizer_type="NullTokenizer", **sizes)
    settings = {
        "random_seed": 1234,
        "sequence_length": CONTEXT_TOKENS,
        "blend": ([str(prefix)], None),
        "split": "100,0,0",
        "path_to_cache": str(cache),
        "tokenizer": build_tokenizer(tokenizer),
        "reset_position_ids": False,
        "reset_attention_mask": False,
        "eod_mask_loss": False,
        "create_attention_mask": False,
    }
    return GPTDatasetConfig(**{**settings, **others})


def random_sequences(lengths: Iterable[int], seed: int = 0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, VOCAB_SIZE, length) for length in lengths]


def train_tiny_checkpoint(directory: Path) -> TinyRun:
    """Write three prefixes (157 sequences, 0, and 21) and train on the first."""
    rng = np.random.default_rng(7)
    lengths = {"first": [*EDGE_LENGTHS, *rng.integers(2, 150, 149)], "empty": [], "second": rng.integers(0, 90, 21)}
    for seed, name in enumerate(lengths):
        write_corpus(directory / name, random_sequences(lengths[name], seed))
    checkpoint = directory / "checkpoint"
    losses = train(directory, "--train-iters", "4", "--save", str(checkpoint), "--save-interval", "2")
    return TinyRun(
        directory=directory,
        prefixes=tuple(directory / name for name in lengths),
        checkpoint=checkpoint,
        losses=losses,
    )


def train(directory: Path, *flags: str, num_processes: int = 1) -> dict[int, float]:
    """Train the tiny model with `megatron_miniplm.pretrain_gpt`, on `directory/first` unless the flags name other data.

    Returns:
        The logged loss of each iteration.
    """
    data = [] if "--data-args-path" in flags else ["--data-path", str(directory / "first")]
    module = ["-m", "megatron_miniplm.pretrain_gpt", *ARCHITECTURE_FLAGS, *DATA_FLAGS, *TRAINING_FLAGS]
    process = run(launcher(num_processes) + module + data + ["--data-cache-path", str(directory / "cache"), *flags])
    assert process.returncode == 0, process.stderr[-4000:]
    found = re.findall(r"iteration +(\d+)/.* lm loss: (\S+)", process.stdout)
    return {int(iteration): float(loss) for iteration, loss in found}


def score_command(
    checkpoint: Path, prefixes: Sequence[Path], scores: Path, *flags: str, num_processes: int = 1
) -> list[str]:
    """The command of one scoring run; a flag given twice counts as Megatron's parser has it, the last wins."""
    ours = ["--corpus", *map(str, prefixes), "--scores", str(scores)]
    return [
        *launcher(num_processes),
        str(SCORE_CORPUS),
        *("--load", str(checkpoint), "--micro-batch-size", "8", *DATA_FLAGS, "--block-sequences", "50"),
        *ours,
        *flags,
    ]


def score(tiny: TinyRun, name: str, *flags: str, num_processes: int = 1) -> ScoreStore:
    """Score the tiny corpus into `directory/name`."""
    command = score_command(
        tiny.checkpoint,
        tiny.prefixes,
        tiny.directory / name,
        "--use-checkpoint-args",
        *flags,
        num_processes=num_processes,
    )
    process = run(command)
    assert process.returncode == 0, process.stderr[-4000:]
    store = ScoreStore.open(tiny.directory / name)
    store.require_complete()
    return store


def launcher(num_processes: int) -> list[str]:
    """Plain `python` for a world of one, which starts 2 seconds sooner, torchrun otherwise."""
    if num_processes == 1:
        return [sys.executable]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
    return [sys.executable, *torchrun]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def run(
    command: Sequence[str], timeout_seconds: float = TIMEOUT_SECONDS, *, largest_file_bytes: int | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a program behind `launcher` in forked ranks, see `rank_server`."""
    return run_forked(command, environment(), timeout_seconds, largest_file_bytes=largest_file_bytes)


def run_real(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """The same in processes of their own; each caller stands in `rank_server.REAL_STARTS`."""
    return subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=TIMEOUT_SECONDS)


def error_lines(stderr: str) -> list[str]:
    """The lines that our tools print for a user's error; Megatron and torch warn on stderr too."""
    ours = stderr.split("Exception ignored in:")[0]  # of a finalizer of Megatron, at exit
    assert "Traceback" not in ours, stderr[-4000:]
    return [line for line in stderr.splitlines() if line.startswith("error: ")]


def directory_bytes(directory: Path) -> dict[str, bytes]:
    """Content of every file below a directory, by relative path."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}
