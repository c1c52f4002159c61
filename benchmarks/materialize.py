#!/usr/bin/env python3
"""What it costs to write views, and to copy them out into corpora.

  python benchmarks/materialize.py --directory /tmp      # about 8 GB at most, deleted afterwards
  python benchmarks/materialize.py --gigabytes 0.2 --prefixes 2 --sequences 1000000

The table goes to --output, and a line of JSON is the last that is printed.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from measurement import MemoryPoll
from report import Section, Target, machine_markdown

from megatron_miniplm.artifacts.atomic import write_text
from megatron_miniplm.errors import InputError, MiniPLMError, unusable_path
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter, write_view
from megatron_miniplm.indexed.layout import bin_path
from megatron_miniplm.indexed.materialize import materialize
from megatron_miniplm.indexed.pieces import Pieces
from megatron_miniplm.indexed.sidecar import SidecarWriter, as_table
from megatron_miniplm.indexed.writer import write_index
from megatron_miniplm.runtime.command_line import report

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
TOKEN_DTYPE = np.dtype("<u2")
MEAN_LENGTH_TOKENS = 343
BATCH_SEQUENCES = 100_000
LOOP_SEQUENCES = 300_000
NUM_RUNS = 3

HOW_TO_READ = """\
- Documents of 1 to 685 tokens, 343 on average, of 2 bytes; a view keeps half of them at random. Files are in the page
  cache; MB are 10^6 bytes of tokens that are written. Times are the median of the runs, `cp` and `materialize` in turn.
- `cp` ends before its data are on the disk; `cp`, synced is `cp` and `sync FILE`. `materialize` digests and syncs all.
- The loop: for each kept index `dataset[index]` of Megatron's `IndexedDataset`, `.tobytes()`, `write`; nothing synced.
- Peaks are of the process, with what Python and its libraries hold."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of the prefix that is copied (default 2)")
    parser.add_argument("--prefixes", type=int, default=20, help="of which views are written (default 20)")
    parser.add_argument("--sequences", type=int, default=10_000_000, help="of each of them (default 10 million)")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "materialize.md", metavar="FILE")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        machine = machine_markdown(sys.argv)
        require_space(arguments)
        sections, figures = [], {}
        for measure in (views, copies):  # the second loads Megatron, which would count as memory of the first
            with tempfile.TemporaryDirectory(prefix="materialize-", dir=arguments.directory) as directory:
                section, found = measure(Path(directory), arguments)
            sections.append(section)
            figures.update(found)
    except MiniPLMError as error:
        return report(error)
    except OSError as error:
        return report(unusable_path(error))
    tables = [section.markdown() for section in sections]
    write_text(arguments.output, "\n\n".join(["# Materialize", machine, HOW_TO_READ, *tables]))
    print("\n".join(tables))
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


def require_space(arguments: argparse.Namespace) -> None:
    """Refuse to fill a disk.

    Raises:
        InputError: there is too little space.
    """
    needed_bytes = int(max(3 * arguments.gigabytes * 1e9, arguments.prefixes * arguments.sequences * 40)) + 10**9
    if (free_bytes := shutil.disk_usage(arguments.directory).free) < needed_bytes:
        raise InputError(
            f"{arguments.directory} has {free_bytes:,} bytes free, {needed_bytes:,} are needed: lower --gigabytes, "
            "--prefixes or --sequences"
        )


def timed[Result](step: Callable[[], Result]) -> tuple[float, Result]:
    os.sync()  # what an earlier step has left to the disk is not this one's
    start = time.perf_counter()
    result = step()
    return time.perf_counter() - start, result


def half_of(num_sequences: int) -> np.ndarray:
    return np.flatnonzero(np.random.default_rng(1).random(num_sequences) < 0.5)


def copies(directory: Path, arguments: argparse.Namespace) -> tuple[Section, dict[str, float]]:
    """One prefix, with and without sidecar, against `cp` and against the loop."""
    source = IndexedCorpus.open(write_prefix(directory / "corpus", arguments.gigabytes))
    kept_K = half_of(len(source))
    view = write_view(source, kept_K, directory / "views", label="refined", settings={})
    num_bytes = IndexedCorpus.open(view).num_tokens * TOKEN_DTYPE.itemsize
    bin_bytes, output = source.bin_bytes, directory / "copy"
    seconds: dict[str, list[float]] = {"cp": [], "cp, synced": [], "materialize": []}
    peak_bytes, target = 0, directory / "cp.bin"
    for _ in range(NUM_RUNS):
        elapsed, _done = timed(lambda: subprocess.run(["cp", bin_path(source.prefix), target], check=True))
        start = time.perf_counter()
        subprocess.run(["sync", target], check=True)
        seconds["cp"].append(elapsed)
        seconds["cp, synced"].append(elapsed + time.perf_counter() - start)
        target.unlink()
        with MemoryPoll(os.getpid()) as memory:
            seconds["materialize"].append(timed(lambda: materialize([view], output))[0])
        peak_bytes = max(peak_bytes, memory.peak_bytes)
        logger.info("%s", {name: round(values[-1], 2) for name, values in seconds.items()})
        shutil.rmtree(output)
    loop_seconds, loop_bytes = original_loop(source.prefix, kept_K[:LOOP_SEQUENCES], directory / "loop")
    write_sidecar(source)
    with_sidecar_seconds = timed(lambda: materialize([view], output))[0]

    rates = {
        name: size / statistics.median(seconds[name]) / 1e6
        for name, size in (("cp", bin_bytes), ("cp, synced", bin_bytes), ("materialize", num_bytes))
    }
    rates["loop"] = loop_bytes / loop_seconds / 1e6
    rates["materialize, with the sidecar"] = num_bytes / with_sidecar_seconds / 1e6
    sidecar_seconds = max(1e-9, with_sidecar_seconds - statistics.median(seconds["materialize"]))
    rows = [
        {
            "step": name,
            "MB/s": f"{rate:,.0f}",
            "s": ", ".join(f"{value:.2f}" for value in seconds.get(name, [])) or "-",
        }
        for name, rate in rates.items()
    ]
    return Section(
        title=f"{num_bytes:,} bytes in {len(kept_K):,} of {len(source):,} documents",
        rows=rows,
        notes=[f"The sidecar takes {sidecar_seconds:.1f} s, {len(kept_K) / sidecar_seconds / 1e6:.2f} M rows/s."],
        targets=[
            Target(figure="of cp's rate", value=rates["materialize"] / rates["cp"], unit="x", at_least=0.5),
            Target(
                figure="of synced cp's rate", value=rates["materialize"] / rates["cp, synced"], unit="x", at_least=0.5
            ),
            Target(figure="of the loop's rate", value=rates["materialize"] / rates["loop"], unit="x", at_least=20),
            Target(figure="peak", value=peak_bytes / 1e6, unit="MB", at_most=500),
        ],
    ), {**{f"{name}, MB/s": rate for name, rate in rates.items()}, "materialize peak, MB": peak_bytes / 1e6}


def write_prefix(prefix: Path, gigabytes: float) -> Path:
    rng = np.random.default_rng(0)
    num_sequences = int(gigabytes * 1e9 / TOKEN_DTYPE.itemsize / MEAN_LENGTH_TOKENS)
    with IndexedWriter(prefix, TOKEN_DTYPE) as writer:
        for start in range(0, num_sequences, BATCH_SEQUENCES):
            lengths_N = rng.integers(1, 2 * MEAN_LENGTH_TOKENS, min(BATCH_SEQUENCES, num_sequences - start))
            writer.append(rng.integers(0, 1 << 16, int(lengths_N.sum()), TOKEN_DTYPE), lengths_N)
        writer.close()
    return prefix


def write_sidecar(corpus: IndexedCorpus) -> None:
    """Rows of the shape that preprocessing writes, with checksums that are none."""
    rng = np.random.default_rng(2)
    position = 0
    with SidecarWriter(corpus.prefix) as writer:
        for start in range(0, len(corpus), BATCH_SEQUENCES):
            lengths_N = np.array(corpus.lengths_N[start : start + BATCH_SEQUENCES])
            num, text_bytes_N = len(lengths_N), lengths_N * 4
            pieces = Pieces(
                sequence_P=np.arange(num),
                position_P=position + np.cumsum(text_bytes_N, dtype=np.int64),
                piece_P=np.zeros(num, np.int64),
                start_byte_P=np.zeros(num, np.int64),
                text_bytes_P=text_bytes_N,
                num_tokens_P=lengths_N,
                crc32_P=rng.integers(0, 1 << 32, num, np.uint32),
                ids=None,
                domains=rng.choice(["web", "code", "books"], num).tolist(),
            )
            writer.append(as_table(pieces, "text.jsonl", start))
            position = int(pieces.position_P[-1])
        writer.close()


def original_loop(prefix: Path, kept_K: np.ndarray, path: Path) -> tuple[float, int]:
    """Copy as MiniPLM's scripts do, one item after the other; returns seconds and bytes."""
    from megatron.core.datasets.indexed_dataset import IndexedDataset

    dataset = IndexedDataset(str(prefix))

    def copy() -> int:
        with open(path, "wb") as stream:
            for index in kept_K.tolist():
                stream.write(dataset[index].tobytes())
            return stream.tell()

    return timed(copy)


def views(directory: Path, arguments: argparse.Namespace) -> tuple[Section, dict[str, float]]:
    """Views of half of many prefixes, by one thread and by two."""
    num_sequences = arguments.sequences
    lengths_N = np.random.default_rng(0).integers(1, 2 * MEAN_LENGTH_TOKENS, num_sequences, np.int32)
    prefixes = [directory / f"prefix{number:02d}" for number in range(arguments.prefixes)]
    write_index(prefixes[0], token_dtype=TOKEN_DTYPE, lengths_N=lengths_N, boundaries_D=np.arange(num_sequences + 1))
    bin_bytes = int(lengths_N.sum(dtype=np.int64)) * TOKEN_DTYPE.itemsize
    for prefix in prefixes:
        with open(bin_path(prefix), "wb") as stream:
            stream.truncate(bin_bytes)  # nobody reads the tokens
        if prefix != prefixes[0]:
            shutil.copyfile(f"{prefixes[0]}.idx", f"{prefix}.idx")
    np.save(directory / "kept.npy", half_of(num_sequences))
    del lengths_N
    kept_K = np.load(directory / "kept.npy", mmap_mode="r")

    def write(prefix: Path) -> Path:
        return write_view(IndexedCorpus.open(prefix), kept_K, directory / "views", label="refined", settings={})

    rows, targets, figures = [], [], {}
    for num_threads in (1, 2):
        with MemoryPoll(os.getpid()) as memory, ThreadPoolExecutor(num_threads) as pool:
            elapsed, written = timed(lambda pool=pool: list(pool.map(write, prefixes)))
        assert len(set(written)) == len(prefixes)
        shutil.rmtree(directory / "views")
        peak_megabytes = memory.peak_bytes / 1e6
        logger.info("%d threads: %.1f s, %.0f MB", num_threads, elapsed, peak_megabytes)
        rows.append({"threads": str(num_threads), "s": f"{elapsed:.1f}", "peak, MB": f"{peak_megabytes:.0f}"})
        figures |= {f"views, {num_threads} threads, s": elapsed, f"views, {num_threads} threads, MB": peak_megabytes}
        name = f"{num_threads} thread" + "s" * (num_threads > 1)
        targets += [
            Target(figure=f"views, {name}", value=elapsed, unit="s", at_most=40),
            Target(figure=f"peak, {name}", value=peak_megabytes, unit="MB", at_most=500),
        ]
    title = f"{len(prefixes)} views of {len(kept_K):,} of {num_sequences:,} sequences each"
    return Section(title=title, rows=rows, targets=targets), figures


if __name__ == "__main__":
    sys.exit(main())
