"""Show the progress of a score directory, check that it is intact, or export it.

For an unfinished directory: the missing blocks, the processes that score them, and the time left at the speed of the
most recent blocks.

--verify compares every block with its checksum, names the damaged ones, and exits with 2.

--to-parquet writes one row per sequence of a finished store, for DuckDB, Polars or pandas: prefix, sequence (from 0 in
each prefix), nll (sum, nats) and num_tokens (-1 where a sampled run left it out); and where the corpus has a sidecar
also the id and the domain of the document, in chunk mode of the first document that the sequence has a piece of.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.directories import sole_writer_of_file
from megatron_miniplm.artifacts.leases import Holder, in_flight
from megatron_miniplm.artifacts.manifest import load_manifest, manifest_path
from megatron_miniplm.artifacts.score_blocks import runs_of
from megatron_miniplm.artifacts.scores import NOT_SCORED, ScoreStore
from megatron_miniplm.errors import CorruptArtifactError
from megatron_miniplm.runtime.progress import Progress, scaled
from megatron_miniplm.runtime.terminal import printable_json
from megatron_miniplm.runtime.text_table import duration
from megatron_miniplm.slurm.progress import recent_speed

_SHOWN_RUNS = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--verify", action="store_true", help="verify all checksums; reads all of the scores")
    parser.add_argument("--to-parquet", type=Path, metavar="FILE", help="write one row per sequence to this file")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> None:
    """Print the report to stdout.

    Raises:
        InputError: no directory of scores, or to be exported and unfinished.
        CorruptArtifactError: a block is damaged; under `--verify`, after all of them were printed.
    """
    store = ScoreStore.open(arguments.directory)
    faults: list[str] = []
    damaged: dict[int, str] = {}
    if arguments.verify:
        with Progress(store.num_bytes, "B") as progress:
            damaged = store.verify(progress.advance)
        if manifest_path(store.directory).exists():
            faults = store.manifest_faults(load_manifest(store.directory))
        faults += damaged.values()
    elif arguments.to_parquet:
        store.require_complete()
    with Progress(store.num_bytes, "B") as progress:
        status = describe(store, damaged, progress)
    if arguments.verify:
        status["faults"] = faults
    if arguments.to_parquet and not faults:
        _export(store, arguments.to_parquet)
        status["wrote"] = str(arguments.to_parquet)
    print(printable_json(status) if arguments.json else "\n".join(_lines(store, status)))
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise CorruptArtifactError(f"{faults[0]}{more}")


def describe(
    store: ScoreStore, damaged: dict[int, str] | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """What is there, what is missing, who works on it, and the mean NLL.

    Args:
        damaged: blocks that must not be read; they count as published.

    Raises:
        CorruptArtifactError: another block is damaged.
    """
    missing = store.missing_blocks()
    absent = set(missing)
    nll, num_tokens, num_published, num_not_scored = 0.0, 0, 0, 0
    for block in range(store.plan.num_blocks):
        if block not in absent and block not in (damaged or {}):
            scores = store.read_block(block)
            scored_N = scores["num_tokens"] != NOT_SCORED
            nll += float(scores["nll"].sum(dtype=np.float64))
            num_tokens += int(scores["num_tokens"].sum(where=scored_N, dtype=np.int64))
            num_published += len(scores)
            num_not_scored += len(scores) - int(scored_N.sum())
        if progress is not None:
            progress.advance(store.block_bytes(block))
    workers = _workers([holder for holder in in_flight(store.directory) if holder.block in absent])
    working = any(worker["alive"] for worker in workers)
    speed = recent_speed(store) if working and not damaged else None
    num_left = sum(len(store.plan.sequences(block)) for block in missing)
    return {
        "num_sequences": store.plan.num_sequences,
        "num_published_sequences": num_published,
        "num_not_scored_sequences": num_not_scored,
        "num_blocks": store.plan.num_blocks,
        "num_missing_blocks": len(missing),
        "missing_blocks": runs_of(missing),
        "num_tokens": num_tokens,
        "mean_nll": nll / num_tokens if num_tokens else None,
        "finished": not missing and manifest_path(store.directory).exists(),
        "tokens_per_second": speed.tokens_per_second if speed else None,
        "seconds_left": num_left / speed.sequences_per_second if speed else None,
        "workers": workers,
    }


def _workers(holders: list[Holder]) -> list[dict[str, Any]]:
    """One entry a process, the living first."""
    by_owner: dict[str, list[Holder]] = {}
    for holder in holders:
        by_owner.setdefault(holder.owner.name if holder.owner else "", []).append(holder)
    workers = []
    for held in by_owner.values():
        owner = held[0].owner
        workers.append(
            {
                "host": owner.host if owner else None,
                "pid": owner.pid if owner else None,
                "job": owner.job if owner else None,
                "since": owner.since if owner else None,
                "alive": held[0].alive,
                "blocks": [holder.block for holder in held],
            }
        )
    return sorted(workers, key=lambda worker: not worker["alive"])


def _export(store: ScoreStore, path: Path) -> None:
    from megatron_miniplm.commands.scores_parquet import write_parquet

    with sole_writer_of_file(path), Progress(store.plan.num_sequences, " sequences") as progress:
        write_parquet(store, path, progress.advance)


def _lines(store: ScoreStore, status: dict[str, Any]) -> list[str]:
    done = status["num_blocks"] - status["num_missing_blocks"]
    sequences = f"{status['num_published_sequences']:,} of {status['num_sequences']:,} sequences"
    lines = [f"{store.directory}: {done} of {status['num_blocks']} blocks, {sequences}"]
    if status["num_not_scored_sequences"]:
        lines[0] += f" ({status['num_not_scored_sequences']:,} of them left out by sampling)"
    if status["mean_nll"] is not None:
        lines.append(f"{status['num_tokens']:,} scored tokens, {status['mean_nll']:.4f} nats a token")
    if status["tokens_per_second"] is not None:
        rate, left = scaled(status["tokens_per_second"], " tokens"), duration(status["seconds_left"])
        lines.append(f"{rate}/s lately, about {left} left")
    if status["missing_blocks"]:
        lines.append(f"missing: {_written(status['missing_blocks'])}")
    elif not status["finished"]:
        lines.append("all blocks are there, but no manifest: run the same scoring command again")
    for worker in status["workers"]:
        job = f" (job {worker['job']})" if worker["job"] else ""
        who = f"{worker['host']} pid {worker['pid']}{job}" if worker["host"] else "of an unknown process"
        state = "working" if worker["alive"] else "dead (the next that is free takes over)"
        lines.append(f"{state}: {who}: {_written(runs_of(worker['blocks']))}")
    if "wrote" in status:
        lines.append(f"wrote {status['wrote']}")
    if "faults" in status:
        lines += status["faults"] or ["all checksums agree"]
    return lines


def _written(runs: list[list[int]]) -> str:
    """The first runs of blocks, and how many more there are."""
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs[:_SHOWN_RUNS])
    num_more = sum(last - first + 1 for first, last in runs[_SHOWN_RUNS:])
    return shown + (f" and {num_more} more" if num_more else "")
