#!/usr/bin/env python3
"""What a report costs: time and memory of `miniplm report` on a selection from synthetic scores.

  python benchmarks/selection_report.py --sequences 20000000
  python benchmarks/selection_report.py --sequences 200000000 --directory /tmp     # 8 GB, deleted afterwards

Corpora, scores and the selection are those of benchmarks/selection.py, which have no texts. The command runs in a
process of its own. The table goes to --output, and a line of JSON is the last that is printed.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measurement import measure
from report import Section, Target, machine_markdown
from selection import build, select

from megatron_miniplm.artifacts.atomic import write_text
from megatron_miniplm.cli import report as report_error
from megatron_miniplm.errors import MiniPLMError, unusable_path

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
TARGET_SEQUENCES, TARGET_SECONDS = 200_000_000, 90

HOW_TO_READ = """\
- One process of two threads, score blocks of 4,096 sequences, files in the page cache where they fit.
- Memory is the sum of the proportional set sizes, mapped files included, at its highest.
- The corpora have no sidecars: tables by domain and source are empty, examples are shown as token ids."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=20_000_000, metavar="N")
    parser.add_argument("--prefixes", type=int, default=20, metavar="N")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()), metavar="DIR")
    parser.add_argument("--output", type=Path, metavar="FILE", help="results page; default: none")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        with tempfile.TemporaryDirectory(prefix="selection-report-", dir=arguments.directory) as directory:
            results = reported(Path(directory), arguments.sequences, arguments.prefixes)
        if arguments.output is not None:
            parts = ["# Report of a selection", machine_markdown(sys.argv), HOW_TO_READ, table(results).markdown()]
            write_text(arguments.output, "\n\n".join(parts))
    except MiniPLMError as error:
        return report_error(error)
    except OSError as error:
        return report_error(unusable_path(error))
    print(json.dumps(results))
    return 0


def reported(directory: Path, num_sequences: int, num_prefixes: int) -> dict[str, Any]:
    """Build stores, select, and report as a user does."""
    start = time.perf_counter()
    build(directory, num_sequences, num_prefixes, None)
    select(directory, "indices", "--index-only")
    logger.info("built and selected in %.0f s", time.perf_counter() - start)
    output = directory / "report"
    command = [sys.executable, str(HERE.parent / "tools" / "report.py"), str(directory / "indices")]
    cost = measure([*command, "--output", str(output)], directory / "report.log")
    return {
        "num_sequences": num_sequences,
        "report_seconds": round(cost.wall_seconds, 2),
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "peak_memory_bytes": cost.peak_bytes,
        "html_bytes": (output / "report.html").stat().st_size,
    }


def table(results: dict[str, Any]) -> Section:
    targets = [Target(figure="page", value=results["html_bytes"] / 1e6, unit="MB", at_most=5)]
    if results["num_sequences"] >= TARGET_SEQUENCES:
        at_most = TARGET_SECONDS * results["num_sequences"] / TARGET_SEQUENCES
        targets += [
            Target(figure="report", value=results["report_seconds"], unit="s", at_most=at_most),
            Target(figure="memory", value=results["peak_memory_bytes"] / 1e9, unit="GB", at_most=1),
        ]
    rows = [{"figure": name, "measured": f"{value:,}"} for name, value in results.items()]
    return Section(title=f"{results['num_sequences']:,} sequences", rows=rows, targets=targets)


if __name__ == "__main__":
    sys.exit(main())
