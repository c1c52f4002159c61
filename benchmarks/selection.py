#!/usr/bin/env python3
"""What exact selection costs: time and memory of `miniplm difference-sampling` on synthetic scores.

  python benchmarks/selection.py --sequences 200000000 --directory /tmp     # 8 GB, deleted afterwards
  python benchmarks/selection.py --sequences 50000000 --original            # beside the original's load-cat-sort
  python benchmarks/selection.py --sequences 2000000000 --streaming         # scores made on the fly: no disk

Corpora are indices over sparse files; scores are random, with lengths and differences like those of real text. The
command runs in a process of its own. The table goes to --output, and a line of JSON is the last that is printed.
"""

import argparse
import json
import logging
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from measurement import Cost, measure
from report import Section, Target, machine_markdown

from megatron_miniplm.artifacts.atomic import write_text
from megatron_miniplm.artifacts.fingerprint import digest_values
from megatron_miniplm.artifacts.manifest import input_of
from megatron_miniplm.artifacts.score_blocks import SCORE_DTYPE, encode_block
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.errors import MiniPLMError, unusable_path
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.layout import bin_path
from megatron_miniplm.indexed.writer import write_index
from megatron_miniplm.runtime.command_line import report
from megatron_miniplm.selection.ranks import OneProcess
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.scored_corpus import CHUNK_SEQUENCES, map_in_order
from megatron_miniplm.selection.top import Ordered, find_thresholds, keeps

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
BLOCK_SEQUENCES = 4096
MEAN_LENGTH_TOKENS = 343  # of the documents of the scoring benchmark
MODELS = ("teacher", "reference")
#: A full sort needs some 40 bytes a sequence.
MAX_SORTED = 250_000_000
RATIO = 0.5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=20_000_000, metavar="N")
    parser.add_argument("--prefixes", type=int, default=20, metavar="N")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR")
    parser.add_argument("--views", action="store_true", help="measure the command with views, too")
    parser.add_argument("--original", action="store_true", help="measure the original's procedure, too")
    parser.add_argument("--streaming", action="store_true", help="only the search, on scores made on the fly")
    parser.add_argument("--output", type=Path, metavar="FILE", help="results page; default: none")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        if arguments.streaming:
            results = streaming(arguments.sequences)
        else:
            with tempfile.TemporaryDirectory(prefix="selection-", dir=arguments.directory) as directory:
                results = on_disk(Path(directory), arguments)
        if arguments.output is not None:
            parts = ["# Selection", machine_markdown(sys.argv), HOW_TO_READ, table(results).markdown()]
            write_text(arguments.output, "\n\n".join(parts))
    except MiniPLMError as error:
        return report(error)
    except OSError as error:
        return report(unusable_path(error))
    print(json.dumps(results))
    return 0


HOW_TO_READ = """\
- The command with one process a core (the streaming search: one of two threads), blocks of 4,096 sequences, files in
  the page cache where they fit. The first and only run of each.
- Memory is the sum of the proportional set sizes, mapped files included, at its highest.
- The original: `torch.load` of files of a million scores for each model, `cat`, difference, `sort`, `sort` of
  the kept ids; on chunks of 1,025 tokens, as its release has them."""


def on_disk(directory: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Build stores, select as a user does, and compare with a full sort."""
    start = time.perf_counter()
    build(directory, arguments.sequences, arguments.prefixes, 1025 if arguments.original else None)
    logger.info("built in %.0f s", time.perf_counter() - start)
    cost = select(directory, "indices", "--index-only")
    results: dict[str, Any] = {
        "num_sequences": arguments.sequences,
        "selection_seconds": round(cost.wall_seconds, 2),
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "peak_memory_bytes": cost.peak_bytes,
    }
    logger.info("selected: %s", results)
    if arguments.views:
        with_views = select(directory, "views")
        results |= {
            "seconds_with_views": round(with_views.wall_seconds, 2),
            "peak_memory_bytes_with_views": with_views.peak_bytes,
        }
    if arguments.sequences <= MAX_SORTED:
        results["identical"] = is_identical(directory)
    if arguments.original:
        save_as_original(directory)
        original = measure([sys.executable, "-c", ORIGINAL, str(directory)], directory / "original.log")
        results |= {
            "original_seconds": round(original.wall_seconds, 2),
            "original_peak_memory_bytes": original.peak_bytes,
            "original_identical": is_as_original(directory),
        }
    return results


def select(directory: Path, name: str, *flags: str) -> Cost:
    """Run the command into `directory/name`."""
    command = [sys.executable, str(HERE.parent / "tools" / "difference_sampling.py"), "--ratio", str(RATIO), *flags]
    scores = [word for model in MODELS for word in (f"--{model}-scores", str(directory / model))]
    return measure([*command, *scores, "--output", str(directory / name)], directory / f"{name}.log")


def build(
    directory: Path, num_sequences: int, num_prefixes: int, length_tokens: int | None, vocab_size: int = 0
) -> None:
    """Corpora, and a store of each model; nothing is synced, since what is measured is reading.

    Args:
        length_tokens: of every sequence; None draws lengths.
        vocab_size: of random tokens; 0 leaves the data out, as sparse files.
    """
    bounds = [num_sequences * position // num_prefixes for position in range(num_prefixes + 1)]
    corpora = []
    for position, (start, stop) in enumerate(pairwise(bounds)):
        prefix = directory / f"part{position:02d}_text_document"
        parts = [made.length_N[part] for made, part in made_scores(start, stop, length_tokens)]
        length_N = np.concatenate([np.zeros(0, np.int32), *parts])
        num_tokens = int(length_N.sum(dtype=np.int64))
        with open(bin_path(prefix), "wb") as stream:
            if vocab_size:
                stream.write(np.random.default_rng(1).integers(0, vocab_size, num_tokens).astype("<u2").tobytes())
            stream.truncate(2 * num_tokens)
        boundaries_D = np.arange(len(length_N) + 1)
        write_index(prefix, token_dtype=np.dtype("<u2"), lengths_N=length_N, boundaries_D=boundaries_D)
        corpora.append(IndexedCorpus.open(prefix))
    entries = [
        {"name": corpus.prefix.name, "fingerprint": corpus.fingerprint(), "num_sequences": len(corpus)}
        for corpus in corpora
    ]
    inputs = tuple(
        input_of("corpus", corpus.prefix, entry["fingerprint"], relative_to=directory / MODELS[0])
        for corpus, entry in zip(corpora, entries, strict=True)
    )
    stores = {}
    for model in MODELS:
        identity = {
            "model": {"weights": digest_values(model), "architecture": {}},
            "corpus": entries,
            "settings": {"block_sequences": BLOCK_SEQUENCES},
        }
        stores[model] = ScoreStore.create_or_resume(directory / model, identity)
        stores[model].block_path(0).parent.mkdir()
    for start in range(0, num_sequences, BLOCK_SEQUENCES):
        ((made, part),) = made_scores(start, min(start + BLOCK_SEQUENCES, num_sequences), length_tokens)
        for model, store in stores.items():
            scores = np.empty(part.stop - part.start, SCORE_DTYPE)
            scores["nll"], scores["num_tokens"] = made.nll_N[model][part], made.length_N[part] - 1
            store.block_path(start // BLOCK_SEQUENCES).write_bytes(encode_block(scores, store.seal))
    for store in stores.values():
        store.finish(inputs, {})


class MadeScores:
    """Scores of one chunk of sequences, always the same.

    Attributes:
        length_N: tokens, log-normal, at least 2; or all the same.
        nll_N: sums in nats, by model; the difference a token is skewed and centred on a quarter of a nat.
    """

    def __init__(self, chunk: int, length_tokens: int | None = None) -> None:
        rng = np.random.default_rng(chunk)
        self.length_N = np.clip(rng.lognormal(5.4, 0.9, CHUNK_SEQUENCES), 2, 1 << 20).astype(np.int32)
        if length_tokens is not None:
            self.length_N[:] = length_tokens
        num_scored_N = self.length_N - 1
        teacher_N = rng.normal(2.7, 0.6, CHUNK_SEQUENCES).astype(np.float32)
        difference_N = rng.gamma(4.0, 0.12, CHUNK_SEQUENCES).astype(np.float32) - np.float32(0.2)
        self.nll_N = {"teacher": teacher_N * num_scored_N, "reference": (teacher_N + difference_N) * num_scored_N}


@lru_cache(maxsize=4)
def made_chunk(chunk: int, length_tokens: int | None) -> MadeScores:
    return MadeScores(chunk, length_tokens)


def made_scores(start: int, stop: int, length_tokens: int | None) -> Iterator[tuple[MadeScores, slice]]:
    """The scores of a run of sequences: chunks, and which part of each."""
    for chunk in range(start // CHUNK_SEQUENCES, -(-stop // CHUNK_SEQUENCES)):
        first = chunk * CHUNK_SEQUENCES
        yield made_chunk(chunk, length_tokens), slice(max(start - first, 0), min(stop - first, CHUNK_SEQUENCES))


def kept_ids(directory: Path) -> np.ndarray:
    """Global ids that the command has kept, int64."""
    selection = Selection.open(directory / "indices")
    return np.concatenate([prefix.indices() + prefix.start for prefix in selection.prefixes])


def is_identical(directory: Path) -> bool:
    """Whether the command keeps what sorting everything keeps."""
    stores = [ScoreStore.open(directory / model) for model in MODELS]
    value_N = np.empty(stores[0].plan.num_sequences)
    for block in range(stores[0].plan.num_blocks):
        teacher, reference = (store.read_block(block) for store in stores)
        part = stores[0].plan.sequences(block)
        difference_N = reference["nll"].astype(np.float64) - teacher["nll"].astype(np.float64)
        value_N[part.start : part.stop] = difference_N / teacher["num_tokens"]
    np.negative(value_N, out=value_N)
    wanted_K = np.sort(np.argsort(value_N, kind="stable")[: int(RATIO * len(value_N))])
    return np.array_equal(wanted_K, kept_ids(directory))


def is_as_original(directory: Path) -> bool:
    """Whether the original keeps the same set, but for ties at the threshold: its sort is unstable."""
    differing = np.setxor1d(np.load(directory / "original.npy"), kept_ids(directory))
    stores = [ScoreStore.open(directory / model) for model in MODELS]
    found = set()
    for index in differing.tolist():
        teacher, reference = (store.read(range(index, index + 1))[0] for store in stores)
        found.add((float(reference["nll"]) - float(teacher["nll"])) / int(teacher["num_tokens"]))
    logger.info("%d sequences differ, with %d differences", len(differing), len(found))
    return len(found) <= 1


def save_as_original(directory: Path) -> None:
    """The scores as the original has them: mean NLLs, float32, in files of a million."""
    import torch

    for model in MODELS:
        store = ScoreStore.open(directory / model)
        (directory / f"original_{model}").mkdir()
        for number, start in enumerate(range(0, store.plan.num_sequences, 1_000_000)):
            scores = store.read(range(start, min(start + 1_000_000, store.plan.num_sequences)))
            mean_N = (scores["nll"].astype(np.float64) / scores["num_tokens"]).astype(np.float32)
            torch.save(torch.from_numpy(mean_N), directory / f"original_{model}" / f"scores_{number}.pt")


#: What MiniPLM's release does with its scores (scripts/miniplm/difference_sampling), without its plots and texts.
ORIGINAL = """
import os, re, sys
import numpy as np, torch
directory = sys.argv[1]
def load(model):
    path = os.path.join(directory, f"original_{model}")
    numbers = sorted(int(re.match(r"scores_(\\d+).pt", name).group(1)) for name in os.listdir(path))
    return torch.cat([torch.load(os.path.join(path, f"scores_{number}.pt"), map_location="cpu") for number in numbers])
teacher, reference = load("teacher"), load("reference")
values, order = torch.sort(reference - teacher, descending=True)
kept = torch.sort(order[: int(0.5 * len(order))])[0]
np.save(os.path.join(directory, "original.npy"), kept.numpy())
"""


def streaming(num_sequences: int) -> dict[str, Any]:
    """The search for the threshold and one more pass, over scores that are made anew in every pass."""
    chunks = range(-(-num_sequences // CHUNK_SEQUENCES))
    pool = [MadeScores(chunk) for chunk in range(8)]

    def look(chunk: int) -> Ordered:
        """Chunks differ in a shift of the reference's scores: making normal numbers would take longer than the rest."""
        made = pool[chunk % len(pool)]
        size = min(CHUNK_SEQUENCES, num_sequences - chunk * CHUNK_SEQUENCES)
        shift = np.float64(chunk) * 1e-9
        difference_N = made.nll_N["reference"][:size].astype(np.float64) - made.nll_N["teacher"][:size] + shift
        first = chunk * CHUNK_SEQUENCES
        return Ordered(ids_N=np.arange(first, first + size), value_N=difference_N / (made.length_N[:size] - 1))

    def stream() -> Iterator[Ordered]:
        return map_in_order(look, chunks)

    rule = Rule(ratio=RATIO)
    start = time.perf_counter()
    thresholds = find_thresholds(stream, rule.targets, num_groups=1, ranks=OneProcess())
    search_seconds = time.perf_counter() - start
    num_kept = sum(int(keeps(thresholds, ordered).sum()) for ordered in stream())
    return {
        "num_sequences": num_sequences,
        "selection_seconds": round(time.perf_counter() - start, 2),
        "search_seconds": round(search_seconds, 2),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "identical": num_kept == int(RATIO * num_sequences),
    }


def table(results: dict[str, Any]) -> Section:
    targets = []
    if results["num_sequences"] >= 200_000_000:
        scale = results["num_sequences"] / 200_000_000
        targets = [
            Target(figure="selection", value=results["selection_seconds"], unit="s", at_most=60 * scale),
            Target(figure="memory", value=results["peak_memory_bytes"] / 1e9, unit="GB", at_most=1),
        ]
    if "original_seconds" in results:
        targets += [
            Target(
                figure="original / ours, time",
                value=results["original_seconds"] / results["selection_seconds"],
                unit="x",
                at_least=3,
            ),
            Target(
                figure="original / ours, memory",
                value=results["original_peak_memory_bytes"] / results["peak_memory_bytes"],
                unit="x",
                at_least=10,
            ),
        ]
    rows = [
        {"figure": name, "measured": f"{value:,}" if value is not True else "yes"} for name, value in results.items()
    ]
    return Section(title=f"{results['num_sequences']:,} sequences", rows=rows, targets=targets)


if __name__ == "__main__":
    sys.exit(main())
