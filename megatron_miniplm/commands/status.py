"""Show the stages of a SLURM pipeline: state, jobs, progress, time left, and what went wrong.

RUN_DIR is the directory of the run that submit_pipeline.sh was given. Works on any machine that sees it, while its jobs
run. If squeue does not answer, it says so and shows what the files of the run tell.

  done           finished with the current settings
  running        or its nodes are starting up
  requeued       interrupted or failed; its job is queued again
  queued         waiting for resources
  waiting        waiting for the stages that it needs
  held back      a stage that it needs did not succeed: it will never run
  on hold        waiting to be released, see `scontrol release`
  failed         bad input, too many failures, or killed
  interrupted    and no job is left to continue it
  cancelled      while it ran
  stale          finished with other settings, to be run again
  not submitted  or cancelled before it ran

Without squeue: an `unknown` stage has started and may still run, a `not started` one may be queued.

LEFT is the time left at the recent speed. The exit code is 0 whatever the state of the pipeline.
"""

import argparse
from pathlib import Path

from megatron_miniplm.runtime.terminal import printable_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> None:
    """Print the report to stdout.

    Raises:
        InputError: no pipeline was submitted there, or its pipeline.tsv is of another format or damaged.
    """
    from megatron_miniplm.slurm.report import report_on
    from megatron_miniplm.slurm.text import report_lines

    report = report_on(arguments.run_dir)
    print(printable_json(report.as_json()) if arguments.json else "\n".join(report_lines(report)))
