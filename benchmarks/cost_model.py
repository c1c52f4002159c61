#!/usr/bin/env python3
"""The formulas of `miniplm plan` against what the commands of the quickstart execute.

  python benchmarks/cost_model.py [--work-dir runs/cost_model]

Corpus, tokenizer, flags and models are those of examples/quickstart; each model is trained for a few steps, and teacher
and reference score a twentieth of the pool. Every command runs twice, in one process on one core: once with torch's
counter of operations, once with a clock (executed_flops.py). The page of results is results/cost_model.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from report import Section, Target, machine_markdown

from megatron_miniplm.artifacts import write_text
from megatron_miniplm.artifacts.data_args import expand_prefixes
from megatron_miniplm.errors import InputError, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.planning.sequences import SequenceLengths
from megatron_miniplm.planning.shapes import model_shape
from megatron_miniplm.runtime.command_line import report
from megatron_miniplm.scoring.identity import is_sampled

REPOSITORY = Path(__file__).parents[1]
DRIVER = Path(__file__).with_name("executed_flops.py")
CONTEXT_TOKENS, BATCH_ROWS = 128, 16
SAMPLE_FRACTION, SAMPLE_SEED = 0.05, 1
#: Timed steps, and how many of them come before a step takes its usual time.
NUM_STEPS, NUM_FIRST_STEPS = 25, 5
TOLERANCE_PERCENT = 15.0

HOW_TO_READ = """\
- executed: matrix products that torch's FlopCounterMode saw; planned: the formulas of `megatron_miniplm.mcore.flops`.
- Megatron's attention without Transformer Engine multiplies the whole square of a row, and torch counts the square of
  each document in scoring: the plan counts the causal half, which is what fused kernels execute.
- CPU seconds: of a training step (median), or of all scored rows, on one thread; what the clock would show on a core
  of one's own. Planned with the operations a second that the training of the teacher reached, as `--flops-per-second`
  would: how far one rate carries over to other models and stages. GFLOP/s: planned operations by CPU seconds."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=REPOSITORY / "runs" / "cost_model", metavar="DIR")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "cost_model.md")
    arguments = parser.parse_args()
    head = ["# The cost model against what is executed", machine_markdown(sys.argv), HOW_TO_READ]
    try:
        quickstart = Quickstart(arguments.work_dir)
        stages = [quickstart.training(name) for name in ("teacher", "reference", "student")]
        stages += [quickstart.scoring(name) for name in ("teacher", "reference")]
        stages.append(quickstart.training("student", "--recompute-granularity", "full"))
    except MiniPLMError as error:
        return report(error)
    section = section_of(stages)
    write_text(arguments.output, "\n\n".join([*head, section.markdown()]))
    print(section.markdown())
    return 0 if all(target.met for target in section.targets) else 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One training step, or the scoring of some sequences."""

    name: str
    executed_flops: float
    planned_flops: float
    cpu_seconds: float

    @property
    def flops_per_second(self) -> float:
        return self.planned_flops / self.cpu_seconds


class Quickstart:
    """Corpus and models of examples/quickstart in a directory, made on first use."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory.absolute()
        self._tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", f"{self._dir}/tokenizer"]
        self._prepare()

    def training(self, name: str, *more_flags: str) -> Measured:
        """Steps of one model, executed and planned."""
        recompute = bool(more_flags)
        save = self._dir / name / "checkpoint"
        flags = [*self._flags(name), *self._flags("all_models"), *self._tokenizer, *more_flags]
        if recompute:
            flags += ["--recompute-method", "uniform", "--recompute-num-layers", "1"]
        # As in run.sh, but for the end, which must not move the schedule of the learning rate.
        flags += ["--lr-decay-iters", "450", "--seed", "1", "--eval-interval", "450"]
        flags += ["--train-data-path", *(self._dir / "split" / "reference" / "data_args.txt").read_text().split()]
        flags += ["--valid-data-path", f"{self._dir}/data/heldout_text_document"]
        counted = self._measure("count", "pretrain", [*flags, "--train-iters", "3", "--save", str(save)])
        timed = self._measure("time", "pretrain", [*flags, "--train-iters", str(NUM_STEPS)])
        shape = model_shape(str(save))
        tokens = CONTEXT_TOKENS * BATCH_ROWS
        return Measured(
            name=f"training step, {name}" + (", recomputed" if recompute else ""),
            executed_flops=statistics.median(counted),
            planned_flops=tokens * shape.training_flops_per_token(CONTEXT_TOKENS, recompute=recompute),
            cpu_seconds=statistics.median(timed[NUM_FIRST_STEPS:]),
        )

    def scoring(self, name: str) -> Measured:
        """A part of the pool, executed and planned."""
        flags = ["--load", f"{self._dir}/{name}/checkpoint", "--use-checkpoint-args", *self._tokenizer]
        flags += ["--seq-length", str(CONTEXT_TOKENS), "--micro-batch-size", str(BATCH_ROWS)]
        flags += ["--corpus", f"{self._dir}/split/pool", "--block-sequences", "2048"]
        flags += ["--sample-fraction", str(SAMPLE_FRACTION), "--sample-seed", str(SAMPLE_SEED)]
        found = {}
        for quantity in ("count", "time"):
            with tempfile.TemporaryDirectory(dir=self._dir) as scores:
                store = ["--scores", f"{scores}/{name}"]
                (found[quantity],) = self._measure(quantity, "score-corpus", [*flags, *store])
        windows = self._sampled.windows(context_tokens=CONTEXT_TOKENS, overlap_tokens=CONTEXT_TOKENS // 4)
        return Measured(
            name=f"scoring, {name}",
            executed_flops=found["count"],
            planned_flops=windows.forward_flops(model_shape(f"{self._dir}/{name}/checkpoint")),
            cpu_seconds=found["time"],
        )

    @cached_property
    def _sampled(self) -> SequenceLengths:
        (prefix,) = expand_prefixes([self._dir / "split" / "pool"])
        lengths_N = IndexedCorpus.open(prefix).lengths_N
        chosen_N = is_sampled(range(len(lengths_N)), fraction=SAMPLE_FRACTION, seed=SAMPLE_SEED)
        return SequenceLengths.of(np.asarray(lengths_N)[chosen_N])

    def _prepare(self) -> None:
        """The stages of run.sh up to the split; those that are done say so themselves."""
        text = self._dir / "text"
        if not (text / "pool.jsonl").exists():
            _run([sys.executable, "examples/quickstart/build_corpus.py", "--output", str(text)])
        miniplm = [str(Path(sys.executable).with_name("miniplm"))]
        training = ["--type", "bpe", "--vocab-size", "2048", "--max-bytes", "4000000"]
        source = ["--input", f"{text}/pool.jsonl", "--output", f"{self._dir}/tokenizer"]
        _run([*miniplm, "train-tokenizer", *training, *source])
        for part in ("pool", "heldout"):
            files = ["--input", f"{text}/{part}.jsonl", "--output-prefix", f"{self._dir}/data/{part}"]
            _run([*miniplm, "preprocess-data", *files, *self._tokenizer, "--append-eod", "--workers", "1"])
        split = ["--input", f"{self._dir}/data/pool_text_document", "--output", f"{self._dir}/split"]
        _run([*miniplm, "split-reference", *split, "--reference-fraction", "0.35"])

    def _flags(self, array: str) -> list[str]:
        """An array of examples/quickstart/models.sh."""
        script = f'source examples/quickstart/models.sh; printf "%s\\n" "${{{array}[@]}}"'
        return _run(["bash", "-c", script]).split()

    def _measure(self, quantity: str, program: str, flags: list[str]) -> list[float]:
        found_path = self._dir / "found.json"
        _run([sys.executable, str(DRIVER), quantity, str(found_path), program, *flags])
        (values,) = json.loads(found_path.read_text(encoding="utf-8")).values()
        return values


def _run(command: list[str]) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment)
    if found.returncode:
        raise InputError(f"exit code {found.returncode} of {' '.join(command)}: {found.stderr[-2000:].strip()}")
    return found.stdout


def section_of(stages: list[Measured]) -> Section:
    """The table, with times planned from the rate of the first stage."""
    rate = stages[0].flops_per_second
    misses = [100 * (stage.planned_flops / stage.executed_flops - 1) for stage in stages]
    rows = [
        {
            "stage": stage.name,
            "executed, GFLOP": f"{stage.executed_flops / 1e9:,.3f}",
            "planned": f"{stage.planned_flops / 1e9:,.3f}",
            "miss": f"{miss:+.1f} %",
            "GFLOP/s": f"{stage.flops_per_second / 1e9:.1f}",
            "CPU seconds": f"{stage.cpu_seconds:.3f}",
            "planned s": f"{stage.planned_flops / rate:.3f}",
            "miss of time": f"{100 * (stage.flops_per_second / rate - 1):+.0f} %",
        }
        for stage, miss in zip(stages, misses, strict=True)
    ]
    largest = max(map(abs, misses))
    return Section(
        title="Executed and planned",
        rows=rows,
        targets=[Target(figure="largest miss of operations", value=largest, unit="%", at_most=TOLERANCE_PERCENT)],
    )


if __name__ == "__main__":
    sys.exit(main())
