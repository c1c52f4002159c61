"""Show the stages of a SLURM pipeline: state, jobs, progress, time left, and what went wrong.

RUN_DIR is the directory of the run that submit_pipeline.sh was given. Works on any machine that sees it, while its jobs
run; where squeue cannot be asked it says so and shows what the run's own files tell.

  done           with the settings that the pipeline has now
  running        or waiting for its nodes to start up
  requeued       was interrupted, or failed and is tried again; its job waits for its turn
  queued         waits for its turn
  waiting        for stages that it needs
  held back      a stage that it needs did not end well: it will never run
  on hold        waits to be released, see `scontrol release`
  failed         bad input, too many failures, or killed without a word
  interrupted    and no job is left that would go on
  cancelled      while it ran
  stale          done with other settings, to be done again
  not submitted  or cancelled before it ran

Without squeue: `unknown` has started and may run or not, `not started` may be queued or not.

LEFT is the time left at the speed of late. Exit code 0 whatever the state of the pipeline.
"""

import argparse
from pathlib import Path

from megatron_miniplm.terminal import printable_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> None:
    """Print the report to stdout.

    Raises:
        InputError: no pipeline was submitted there, or its pipeline.tsv is of another format or damaged.
    """
    from megatron_miniplm.pipeline.report import report_on
    from megatron_miniplm.pipeline.text import report_lines

    report = report_on(arguments.run_dir)
    print(printable_json(report.as_json()) if arguments.json else "\n".join(report_lines(report)))
