#!/usr/bin/env python3
"""Scoring on 10 to 4,096 ranks, simulated: hand-out of blocks, the file server's load, stragglers, nodes that fail.

  python benchmarks/simulate_scale.py                                       # all tables, one minute
  python benchmarks/simulate_scale.py --only array --ranks 1024 --json      # one figure, five seconds
  python benchmarks/simulate_scale.py --only array --server-ops 5000 --block-seconds 20

What is simulated, and what it takes from measurement, stands in scale_model.py.
"""

import argparse
import json
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from report import Section, Target, machine_markdown
from scale_model import Outcome, Settings, Simulation

from megatron_miniplm.artifacts.atomic import write_text

logger = logging.getLogger(__name__)

RANKS = (10, 32, 128, 512, 1024, 2048, 4096)
TARGET_RANKS, TARGET_UTILISATION = 1024, 0.97
#: Title, and what differs from the flags.
SCENARIOS: dict[str, tuple[str, dict[str, Any]]] = {
    "array": ("An array of jobs of one node each", {}),
    "jobs-of-16": ("Jobs of 16 nodes each", {"nodes_per_job": 16}),
    "one-job": ("One job of all nodes", {"nodes_per_job": 0}),
    "replicas-of-8": ("Replicas of eight ranks, one to a node, an array of jobs", {"ranks_per_replica": 8}),
    "strong": ("A corpus that does not grow: 360,000 blocks, an array of jobs", {"num_blocks": 360_000}),
}


def main() -> int:
    arguments = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    machine = machine_markdown(sys.argv)
    base = {name: getattr(arguments, name) for name in (*_FLAGS, "num_blocks")}
    sections, found = [], {}
    for name in arguments.only:
        title, changes = SCENARIOS[name]
        outcomes = []
        for num_ranks in arguments.ranks:
            settings = Settings(num_ranks=num_ranks, **{**base, **changes})
            if num_ranks % settings.ranks_per_replica == 0:
                outcomes.append(Simulation(settings).run())
                logger.info("%s, %d ranks: %.2f %%", name, num_ranks, 100 * outcomes[-1].utilisation)
        found[name] = [asdict(outcome) for outcome in outcomes]
        sections.append(table(title, outcomes, with_target=name == "array").markdown())
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(sections))
    if arguments.output is not None:
        write_text(arguments.output, "\n\n".join(["# Scale", machine, *sections]))
    return 0


_FLAGS = {
    "ranks_per_replica": "tensor x pipeline parallel",
    "ranks_per_node": "GPUs of a node",
    "nodes_per_job": "that fail together; 0: all",
    "hours": "of work, whatever the number of ranks",
    "block_seconds": "mean time of a block on a rank that is no straggler",
    "block_spread": "standard deviation of its logarithm",
    "straggler_fraction": "of the ranks",
    "straggler_slowdown": "times slower than others",
    "failures_per_hour": "of 100 nodes",
    "restart_seconds": "until a job that failed works again: the queue, imports, the checkpoint",
    "server_ops": "calls a second that the file server can answer",
    "round_trip_seconds": "of one call",
    "seed": "of all that is random",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, nargs="+", default=list(RANKS), metavar="N")
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    parser.add_argument("--blocks", dest="num_blocks", type=int, metavar="N", help="of a corpus that does not grow")
    for name, meaning in _FLAGS.items():
        default = getattr(Settings, name)
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=type(default), default=default, help=f"{meaning} (default: {default})"
        )
    parser.add_argument("--json", action="store_true", help="figures instead of tables")
    parser.add_argument("--output", type=Path, metavar="FILE", help="results page; default: none")
    return parser


def table(title: str, outcomes: list[Outcome], *, with_target: bool) -> Section:
    rows = [
        {
            "ranks": f"{outcome.num_ranks:,}",
            "blocks": f"{outcome.num_blocks:,}",
            "hours": f"{outcome.wall_hours:.2f}",
            "utilisation": f"{outcome.utilisation:.2%}",
            "failures": str(outcome.num_failures),
            "lost work": f"{outcome.lost_fraction:.2%}",
            "blocks redone": f"{outcome.num_redone:,}",
            "hand-out, mean s": f"{outcome.wait_seconds:.3f}",
            "longest s": f"{outcome.max_wait_seconds:.1f}",
            "tail s": f"{outcome.tail_seconds:.0f}",
            "calls a claim": f"{outcome.claim_ops:,.0f}",
            "calls / s": f"{outcome.server_ops_per_second:,.0f}",
            "server busy": f"{outcome.server_busy_fraction:.1%}",
        }
        for outcome in outcomes
    ]
    targets = [
        Target(
            figure=f"utilisation at {TARGET_RANKS:,} ranks",
            value=100 * outcome.utilisation,
            unit="%",
            at_least=100 * TARGET_UTILISATION,
        )
        for outcome in outcomes
        if with_target and outcome.num_ranks == TARGET_RANKS
    ]
    return Section(title=title, rows=rows, targets=targets)


if __name__ == "__main__":
    sys.exit(main())
