#!/usr/bin/env python3
"""What preprocessing costs: ours against Megatron's recipe and HF tokenizers, on the same text, machine and run.

  python benchmarks/preprocess.py                        # collects 420 MB of this machine's text, then all sections
  python benchmarks/preprocess.py --input text.jsonl --only documents chunks

Every command runs as a user runs it, in processes of its own. Times are medians over the repeats, peak memory is the
highest. The tables go to stdout as they are ready, and all together to --output.

Exit code: 0, 1 where outputs that must be identical are not, 2 where a command failed.
"""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

from bench import HERE, TRAINING_BYTES, Bench, Text
from preprocess_sections import SECTIONS
from real_text import collect_text
from report import machine_markdown

from megatron_miniplm.artifacts.atomic import write_text
from megatron_miniplm.errors import MiniPLMError, unusable_path
from megatron_miniplm.runtime.command_line import report

logger = logging.getLogger(__name__)

HOW_TO_READ = """\
- wall s: from start to end of the command. start-up s: the same of the same command on a single document.
- CPU s: user and system time of the command and all processes it waited for, its workers included (`wait4`).
- peak MB: the most that all processes of the command held together (PSS, read every 50 ms, or less often where
  reading it would take more than 5 % of a core).
- text MB/s: UTF-8 bytes of the text values; JSONL MB/s: bytes of the lines that hold them, uncompressed. Both include
  start-up; "without start-up" is text again. MB are 10^6 bytes.
- Inputs are in the page cache when a command starts. Ours waits until its output is on the disk (fsync), the others
  leave that to the kernel."""


def main() -> int:
    arguments = parse_arguments()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        return run(arguments)
    except MiniPLMError as error:
        return report(error)
    except OSError as error:
        return report(unusable_path(error))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", type=Path, metavar="FILE", help="JSONL with the key text (default: collect it)")
    parser.add_argument("--bytes", type=int, default=420_000_000, metavar="N", help="of JSONL to collect")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="sections to run")
    parser.add_argument(
        "--rivals",
        nargs="+",
        choices=("recipe", "tokenizers"),
        default=["recipe", "tokenizers"],
        help="against which ours is timed: Megatron's recipe, HF tokenizers",
    )
    parser.add_argument("--repeats", type=positive, default=3, metavar="N", help="runs of a command")
    parser.add_argument("--recipe-repeats", type=positive, default=1, metavar="N", help="runs of Megatron's recipe")
    parser.add_argument("--skip-startup", action="store_true", help="do not measure start-up")
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=32_000,
        metavar="V",
        help=f"of the byte-level BPE, trained on the first {TRAINING_BYTES // 10**6} MB of the text",
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="all cores")
    parser.add_argument(
        "--work-dir",
        type=Path,
        default=HERE.parent / "runs" / "benchmarks",
        metavar="DIR",
        help="for the collected text, which stays, and for what the commands write, which does not",
    )
    parser.add_argument("--output", type=Path, default=HERE / "results" / "preprocess.md", metavar="FILE")
    return parser.parse_args()


def positive(value: str) -> int:
    """A count of runs, of which a median is taken."""
    if (number := int(value)) < 1:
        raise argparse.ArgumentTypeError(f"{value} is no number of runs: give at least 1")
    return number


def run(arguments: argparse.Namespace) -> int:
    parts = ["# Preprocessing", machine_markdown(sys.argv), HOW_TO_READ]
    path = arguments.input or collected_text(arguments.work_dir, arguments.bytes)
    logger.info("reading %s", path)
    text = Text.of(path)
    parts.append(f"Input: {text.text_bytes:,} bytes of text in {text.jsonl_bytes:,} bytes of JSONL.")
    faults = []
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="run-", dir=arguments.work_dir) as run_dir:
        bench = Bench(
            text,
            Path(run_dir),
            vocab_size=arguments.vocab_size,
            num_workers=arguments.workers,
            repeats=arguments.repeats,
            recipe_repeats=arguments.recipe_repeats,
            rivals=arguments.rivals,
            with_startup=not arguments.skip_startup,
        )
        for name in arguments.only:
            section = SECTIONS[name](bench)
            faults += section.faults
            parts.append(section.markdown())
            print(parts[-1], flush=True)
            write_text(arguments.output, "\n\n".join(parts))
    logger.info("written to %s", arguments.output)
    return 1 if faults else 0


def collected_text(work_dir: Path, num_bytes: int) -> Path:
    """Real text of this machine; what an earlier run collected is taken again."""
    path = work_dir / f"text-{num_bytes}.jsonl"
    if not path.exists():
        logger.info("collecting %s bytes of text", f"{num_bytes:,}")
        collect_text(path, num_bytes)
    return path


if __name__ == "__main__":
    sys.exit(main())
