#!/usr/bin/env python3
"""What refined data costs a training run: building its indices, and its steps, beside plain Megatron.

  python benchmarks/training_data.py --sequences 100000000 --directory /tmp     # 8 GB, deleted afterwards
  python benchmarks/training_data.py --steps                                    # paired training runs on the CPU

Indices are built by Megatron's builder in a process of its own for each kind of data, on an empty cache; corpora are
indices over sparse files. Training runs are real ones, in turn, and compared by the median time of a step.
"""

import argparse
import json
import logging
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from measurement import measure
from report import Section, Target, machine_markdown
from selection import build, select

from megatron_miniplm.artifacts.atomic import write_text
from megatron_miniplm.errors import MiniPLMError, unusable_path
from megatron_miniplm.runtime.command_line import report

logger = logging.getLogger(__name__)

SEQUENCE_LENGTH = 1024
#: Kind of data: the selection and the weighting.
KINDS = {
    "plain": (None, "none"),
    "half": ("half", "none"),
    "everything": ("everything", "none"),
    "resampled": ("everything", "resample"),
    "loss": ("everything", "loss"),
}
VOCAB_SIZE = 8000
MODEL_FLAGS = (
    "--num-layers 2 --hidden-size 128 --num-attention-heads 4 --ffn-hidden-size 512 --swiglu --disable-bias-linear "
    "--normalization RMSNorm --position-embedding-type rope --seq-length 512 --max-position-embeddings 512 "
    "--micro-batch-size 4 --global-batch-size 4 --lr 1e-4 --lr-decay-style constant --split 100,0,0 --eval-iters 0 "
    f"--log-interval 1 --tokenizer-type NullTokenizer --vocab-size {VOCAB_SIZE} --train-iters"
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=10_000_000, metavar="N")
    parser.add_argument("--steps", action="store_true", help="training steps instead of indices")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="of each run (default: 3)")
    parser.add_argument("--iterations", type=int, default=40, metavar="N", help="of a training run (default: 40)")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="FILE", help="results page; default: none")
    parser.add_argument("--build-indices", nargs=2, metavar=("KIND", "DIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if arguments.build_indices:
        build_indices(arguments.build_indices[0], Path(arguments.build_indices[1]))
        return 0
    try:
        with tempfile.TemporaryDirectory(prefix="training-data-", dir=arguments.directory) as directory:
            run = steps if arguments.steps else indices
            section, results = run(Path(directory), arguments)
        if arguments.output is not None:
            parts = ["# Refined data in training", machine_markdown(sys.argv), section.markdown()]
            write_text(arguments.output, "\n\n".join(parts))
    except MiniPLMError as error:
        return report(error)
    except OSError as error:
        return report(unusable_path(error))
    print(json.dumps(results))
    return 0


def indices(directory: Path, arguments: argparse.Namespace) -> tuple[Section, dict[str, Any]]:
    """Time and memory of building the indices of one epoch."""
    build(directory, arguments.sequences, 1, None)
    for name, ratio in (("half", "0.5"), ("everything", "1.0")):
        select(directory, name, "--index-only", "--ratio", ratio, "--weights", "linear")
    costs: dict[str, list[Any]] = {kind: [] for kind in KINDS if kind != "loss"}
    for repeat in range(arguments.repeats):
        for kind, of_kind in costs.items():
            command = [sys.executable, __file__, "--build-indices", kind, str(directory)]
            of_kind.append(measure(command, directory / f"{kind}.{repeat}.log"))
            logger.info("%s: %.1f s, %.2f GB", kind, of_kind[-1].wall_seconds, of_kind[-1].peak_bytes / 1e9)
    seconds = {kind: statistics.median(cost.wall_seconds for cost in found) for kind, found in costs.items()}
    peaks = {kind: statistics.median(cost.peak_bytes for cost in found) for kind, found in costs.items()}
    rows = [
        {
            "data": kind,
            "seconds": f"{seconds[kind]:.1f}",
            "time / plain": f"{seconds[kind] / seconds['plain']:.2f}",
            "peak memory": f"{peaks[kind] / 1e9:.2f} GB",
            "memory / plain": f"{peaks[kind] / peaks['plain']:.2f}",
        }
        for kind in costs
    ]
    targets = [
        Target(figure="time / plain", value=seconds["everything"] / seconds["plain"], unit="x", at_most=1.5),
        Target(figure="memory / plain", value=peaks["everything"] / peaks["plain"], unit="x", at_most=1.2),
    ]
    section = Section(title=f"Indices of one epoch of {arguments.sequences:,} sequences", rows=rows, targets=targets)
    return section, {"seconds": seconds, "peak_memory_bytes": peaks}


def build_indices(kind: str, directory: Path) -> None:
    """In a process of its own: one data set with Megatron's builder."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training import global_vars

    from megatron_miniplm.training.dataset import refined_class

    selection, weighting = KINDS[kind]
    global_vars._GLOBAL_ARGS = SimpleNamespace(
        miniplm_selection=[str(directory / selection)] if selection else None,
        miniplm_weighting=weighting,
        miniplm_ratio_schedule=None,
        miniplm_temperature_schedule=None,
    )
    tokenizer = SimpleNamespace(tokenizer_type="NullTokenizer", vocab_size=32000, pad_vocab_size=False)
    with tempfile.TemporaryDirectory(dir=directory) as cache:
        config = GPTDatasetConfig(
            random_seed=1,
            sequence_length=SEQUENCE_LENGTH,
            blend=([str(directory / "part00_text_document")], None),
            split="100,0,0",
            path_to_cache=cache,
            tokenizer=build_tokenizer(tokenizer),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        cls = refined_class(GPTDataset, config)
        dataset, _, _ = BlendedMegatronDatasetBuilder(cls, [None, None, None], lambda: True, config).build()
        print(f"{len(dataset):,} samples")


def steps(directory: Path, arguments: argparse.Namespace) -> tuple[Section, dict[str, Any]]:
    """Median time of a training step of each kind, run in turn."""
    build(directory, 20_000, 1, None, vocab_size=VOCAB_SIZE)
    for name, ratio in (("half", "0.5"), ("everything", "1.0")):
        select(directory, name, "--index-only", "--ratio", ratio, "--weights", "linear")
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(arguments.repeats):
        for kind, of_kind in times.items():
            of_kind.append(train(directory, kind, arguments.iterations))
            logger.info("%s: %.1f ms a step", kind, of_kind[-1])
    medians = {kind: statistics.median(found) for kind, found in times.items()}
    speeds = {
        kind: statistics.median(plain / mine for plain, mine in zip(times["plain"], times[kind], strict=True))
        for kind in KINDS
    }
    rows = [
        {"data": kind, "ms a step": f"{medians[kind]:.1f}", "throughput / plain": f"{speeds[kind]:.3f}"}
        for kind in KINDS
    ]
    targets = [Target(figure="throughput / plain", value=min(speeds.values()), unit="x", at_least=0.98)]
    title = "Training steps on the CPU: 2 layers of 128, 4 x 512 tokens"
    section = Section(title=title, rows=rows, targets=targets)
    return section, {"milliseconds": medians, "throughput": speeds, "runs": times}


def train(directory: Path, kind: str, iterations: int) -> float:
    """Milliseconds of a step: the median of those after the first ten."""
    selection, weighting = KINDS[kind]
    flags = ["--miniplm-selection", str(directory / selection), "--miniplm-weighting", weighting] if selection else []
    data = ["--data-path", str(directory / "part00_text_document"), "--data-cache-path", str(directory / "cache")]
    command = [
        sys.executable,
        "-m",
        "megatron_miniplm.pretrain_gpt",
        *MODEL_FLAGS.split(),
        str(iterations),
        *data,
        *flags,
    ]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode:
        raise MiniPLMError(process.stderr[-2000:])
    found = re.findall(r"elapsed time per iteration \(ms\): (\S+)", process.stdout)
    return statistics.median(float(time) for time in found[10:])


if __name__ == "__main__":
    raise SystemExit(main())
