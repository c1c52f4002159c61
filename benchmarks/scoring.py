#!/usr/bin/env python3
"""Scored tokens a second, ours against a careful loop over transformers; bubbles of a pipeline; vocabulary memory.

  python benchmarks/scoring.py                                          # 28M parameters, float32, all cores of a CPU
  python benchmarks/scoring.py --shape qwen1.5-1.8b --bf16 --rows 16 --only full documents      # one GPU

Weights are random; the documents are real text of this machine. The table goes to --output, and a line of JSON is the
last that is printed.
"""

import argparse
import json
import logging
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from real_text import collect_text
from report import Section, Target, machine_markdown

from megatron_miniplm.artifacts.atomic import write_text
from megatron_miniplm.errors import InputError, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter
from megatron_miniplm.mcore.flops import PEAK_FLOPS
from megatron_miniplm.runtime.command_line import report

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
CONTEXT_TOKENS = 1024
#: Of the real text: files that are larger are left out, so that documents have some 300 tokens.
MAX_DOCUMENT_BYTES = 3_500
TEXT_BYTES = 40_000_000
NUM_MICRO_BATCHES = 32


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A Qwen2-style model, and how much is scored with it.

    Attributes:
        config: for transformers' `Qwen2Config`.
        num_full: sequences of the full context.
        num_documents: real ones.
    """

    config: dict[str, Any]
    num_full: int
    num_documents: int


def _config(hidden: int, ffn: int, layers: int, heads: int, groups: int, vocab: int, *, tied: bool) -> dict[str, Any]:
    return {
        "hidden_size": hidden,
        "intermediate_size": ffn,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": groups,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 4096,
    }


SHAPES = {
    "28m": Shape(config=_config(512, 1408, 4, 8, 8, 32_000, tied=True), num_full=32, num_documents=96),
    "qwen1.5-1.8b": Shape(
        config=_config(2048, 5504, 24, 16, 16, 151_936, tied=False), num_full=2048, num_documents=8192
    ),
    #: Two stages of equal work: the vocabulary costs little.
    "balanced": Shape(config=_config(512, 1408, 8, 8, 8, 2_048, tied=True), num_full=32, num_documents=0),
}

HOW_TO_READ = """\
- scored tokens/s: predictions that count, by the time from the first row to the last published block or sum; imports,
  building and loading are not in it. Medians of runs that took turns.
- transformers: SDPA, rows padded to 1024 in the order of the corpus, batches of as many rows as ours has in one.
- peak MB: of the process on a CPU, of torch's allocations on a GPU.
- MFU: operations of the model for the tokens that are no padding, by those that the GPU could do."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=("28m", "qwen1.5-1.8b"), default="28m")
    parser.add_argument("--bf16", action="store_true", help="both in bfloat16 (default: float32)")
    parser.add_argument("--rows", type=int, default=4, help="rows of 1024 tokens in a micro-batch")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--work-dir", type=Path, default=HERE.parent / "runs" / "benchmarks", metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="FILE", help="default: results/scoring[_SHAPE][_bf16].md")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    suffix = ("" if arguments.shape == "28m" else f"_{arguments.shape}") + ("_bf16" if arguments.bf16 else "")
    output = arguments.output or HERE / "results" / f"scoring{suffix}.md"
    try:
        bench = Bench(arguments)
        parts = ["# Scoring", machine_markdown(sys.argv), HOW_TO_READ]
        summary: dict[str, Any] = {"shape": arguments.shape, "precision": bench.precision}
        for name in arguments.only:
            section, found = SECTIONS[name](bench)
            summary[name] = found
            parts.append(section.markdown())
            print(parts[-1], flush=True)
            write_text(output, "\n\n".join(parts))
    except MiniPLMError as error:
        return report(error)
    print(json.dumps(summary))
    return 0


class Bench:
    """Models and corpora in the work directory, made on first use, and jobs that are run on them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.shape = SHAPES[arguments.shape]
        self.precision = "bfloat16" if arguments.bf16 else "float32"
        self.directory: Path = arguments.work_dir / "scoring"
        self.directory.mkdir(parents=True, exist_ok=True)

    def model(self, name: str) -> Path:
        """Random weights of a shape, as transformers draws and saves them."""
        directory = self.directory / name
        if not (directory / "model.safetensors.index.json").exists() and not (directory / "model.safetensors").exists():
            import torch
            from transformers import Qwen2Config, Qwen2ForCausalLM

            logger.info("drawing the weights of %s", name)
            torch.manual_seed(0)
            model = Qwen2ForCausalLM(Qwen2Config(**SHAPES[name].config))
            model.to(getattr(torch, "bfloat16" if name == "qwen1.5-1.8b" else "float32")).save_pretrained(directory)
        return directory

    def documents(self) -> Path:
        """Real documents of some 300 tokens, as many as the shape asks for."""
        prefix = self.directory / f"documents-{self.shape.num_documents}"
        if not prefix.with_name(f"{prefix.name}.idx").exists():
            whole = self._tokenized()
            lengths = np.minimum(whole.lengths_N[: self.shape.num_documents], CONTEXT_TOKENS + 1)
            _write(prefix, (whole.sequence(i)[:length] for i, length in enumerate(lengths)))
        return prefix

    def full_sequences(self, num_sequences: int, vocab_size: int) -> Path:
        """The same text as one stream, cut into full contexts; ids beyond a small vocabulary are folded into it."""
        prefix = self.directory / f"full-{num_sequences}-{vocab_size}"
        if not prefix.with_name(f"{prefix.name}.idx").exists():
            whole = self._tokenized()
            length = CONTEXT_TOKENS + 1
            stream = np.concatenate([whole.sequence(i) for i in range(len(whole))])
            stream = np.resize(stream, num_sequences * length) % vocab_size
            _write(prefix, stream.reshape(num_sequences, length))
        return prefix

    def _tokenized(self) -> IndexedCorpus:
        prefix = self.directory / "text_text_document"
        if not prefix.with_name(f"{prefix.name}.idx").exists():
            jsonl = self.directory / "text.jsonl"
            collect_text(jsonl, TEXT_BYTES)
            lines = [line for line in jsonl.read_bytes().splitlines(True) if len(line) < MAX_DOCUMENT_BYTES]
            jsonl.write_bytes(b"".join(lines))
            tokenizer = str(self.directory / "tokenizer")
            _miniplm(
                "train-tokenizer", "--type", "bpe", "--vocab-size", "32000", "--input", jsonl, "--output", tokenizer
            )
            _miniplm(
                *("preprocess-data", "--input", jsonl, "--output-prefix", self.directory / "text", "--append-eod"),
                *("--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tokenizer),
            )
        return IndexedCorpus.open(prefix)

    def job(self, engine: str, model: str, corpus: Path, *flags: str, num_processes: int = 1) -> dict[str, Any]:
        """Run `scoring_job.py` once; what it printed.

        Raises:
            InputError: it failed.
        """
        logger.info("%s: %s on %s %s", engine, model, corpus.name, " ".join(flags))
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_processes)]
        command = [sys.executable, *(launcher if num_processes > 1 else []), str(HERE / "scoring_job.py")]
        command += ["--engine", engine, "--model", str(self.model(model)), "--corpus", str(corpus)]
        command += ["--context", str(CONTEXT_TOKENS), *flags]
        if self.arguments.bf16:
            command.append("--bf16")
        threads = str(max(1, len(os.sched_getaffinity(0)) // num_processes))
        environment = {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
        process = subprocess.run(command, capture_output=True, text=True, env=environment)
        if process.returncode:
            raise InputError(f"{' '.join(command)} failed: {process.stderr[-2000:]}")
        return json.loads(process.stdout.strip().splitlines()[-1])


def _miniplm(command: str, *arguments: str | Path) -> None:
    script = HERE.parent / "tools" / f"{command.replace('-', '_')}.py"
    subprocess.run([sys.executable, str(script), *map(str, arguments)], check=True)


def _write(prefix: Path, sequences: Any) -> None:
    with IndexedWriter(prefix, np.dtype("<u2")) as writer:
        for sequence in sequences:
            writer.append(np.asarray(sequence), np.array([len(sequence)]))
        writer.close()


Found = tuple[Section, dict[str, Any]]


def full(bench: Bench) -> Found:
    corpus = bench.full_sequences(bench.shape.num_full, 32_000)
    return _against_transformers(bench, corpus, "Full sequences", at_least=1.15)


def documents(bench: Bench) -> Found:
    return _against_transformers(bench, bench.documents(), "Real documents", at_least=3.0)


def _against_transformers(bench: Bench, corpus: Path, title: str, *, at_least: float) -> Found:
    rows = ["--rows", str(bench.arguments.rows)]
    model = bench.arguments.shape
    ours, theirs = _in_turn(
        bench,
        lambda: bench.job("ours", model, corpus, *rows),
        lambda: bench.job("transformers", model, corpus, *rows),
    )
    ratio = ours["tokens_per_second"] / theirs["tokens_per_second"]
    lengths = IndexedCorpus.open(corpus).lengths_N
    peak = next((flops for part, flops in PEAK_FLOPS.items() if part in ours["device"]), None)
    mfu = ours["flops"] / statistics.median(ours["seconds"]) / peak if peak else None
    targets = [Target(figure="scored tokens/s, ours / transformers", value=ratio, unit="x", at_least=at_least)]
    if mfu is not None:
        targets.append(Target(figure="MFU", value=100 * mfu, unit="%", at_least=55))
    difference = abs(ours["nll"] - theirs["nll"]) / ours["scored_tokens"]
    section = Section(
        title=f"{title}: {len(lengths)} of {lengths.mean():.0f} tokens on average, {bench.precision}",
        rows=[_row("ours", ours), _row("transformers", theirs)],
        targets=targets,
        notes=[f"Device: {ours['device']}. The sums of all NLLs differ by {difference:.1e} nats a token."],
    )
    found = {
        "ours_tokens_per_second": round(ours["tokens_per_second"], 1),
        "transformers_tokens_per_second": round(theirs["tokens_per_second"], 1),
        "ratio": round(ratio, 3),
        "ours_peak_bytes": ours["peak_bytes"],
        "mfu": mfu,
    }
    return section, found


def _in_turn(bench: Bench, *jobs: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """Each job's repetitions, joined; they take turns, so that what else the machine does meets all of them."""
    rounds = [[job() for job in jobs] for _ in range(bench.arguments.repetitions)]
    return [_joined(list(runs)) for runs in zip(*rounds, strict=True)]


def _joined(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One result of several runs of a job."""
    seconds = [second for run in runs for second in run["seconds"]]
    tokens_per_second = runs[0]["scored_tokens"] / statistics.median(seconds)
    return {**runs[0], "seconds": seconds, "tokens_per_second": tokens_per_second}


def _row(name: str, found: dict[str, Any]) -> dict[str, str]:
    return {
        "engine": name,
        "scored tokens/s": f"{found['tokens_per_second']:,.0f}",
        "seconds": " ".join(f"{seconds:.1f}" for seconds in found["seconds"]),
        "peak MB": f"{found['peak_bytes'] / 1e6:,.0f}",
    }


def pipeline(bench: Bench) -> Found:
    """Two stages of equal work against two replicas: the same cores, and nothing that waits for anything."""
    corpus = bench.full_sequences(NUM_MICRO_BATCHES, SHAPES["balanced"].config["vocab_size"])
    two_stages, small_blocks = ("--pipeline-model-parallel-size", "2"), ("--block-sequences", "4")
    stages, replicas = _in_turn(
        bench,
        lambda: bench.job("ours", "balanced", corpus, "--rows", "1", *two_stages, num_processes=2),
        lambda: bench.job("ours", "balanced", corpus, "--rows", "1", *small_blocks, num_processes=2),
    )
    loss = 1 - stages["tokens_per_second"] / replicas["tokens_per_second"]
    section = Section(
        title=f"Pipeline of two stages, {NUM_MICRO_BATCHES} micro-batches",
        rows=[_row("PP2", stages), _row("DP2", replicas)],
        targets=[Target(figure="lost to bubbles", value=100 * loss, unit="%", at_most=15.0)],
        notes=["Filling and draining alone cost 1 / 33 = 3.0 %."],
    )
    return section, {"loss_fraction": round(loss, 4)}


def vocabulary(bench: Bench) -> Found:
    """Memory of the vocabulary part beyond its operands, at Qwen's 151,936 rows."""
    rows = []
    peaks = {}
    for num_tokens in (1024, 8192, 32768):
        for num_rows in (32_000, 151_936):
            command = [sys.executable, str(HERE / "vocabulary_memory.py"), str(num_tokens), str(num_rows)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            peaks[num_tokens, num_rows] = found["peak_bytes"]
            rows.append(
                {
                    "tokens": f"{num_tokens:,}",
                    "vocabulary": f"{num_rows:,}",
                    "all logits, MB": f"{num_tokens * num_rows * 4 / 1e6:,.0f}",
                    "peak beyond the operands, MB": f"{found['peak_bytes'] / 1e6:,.0f}",
                }
            )
    section = Section(
        title="Memory of the vocabulary part (hidden size 256, float32, CPU)",
        rows=rows,
        targets=[
            Target(figure="largest peak", value=max(peaks.values()) / 1e6, unit="MB", at_most=256.0),
        ],
        notes=["Beyond a tile of logits there are a few numbers a token and a copy of the target's rows."],
    )
    return section, {"peak_bytes": max(peaks.values())}


SECTIONS = {"full": full, "documents": documents, "pipeline": pipeline, "vocabulary": vocabulary}


if __name__ == "__main__":
    sys.exit(main())
