"""Check the installation: print what is installed, what each missing part costs, and the command that fixes it.

Exits with 2 if something stops all Megatron programs from running.
"""

import argparse
import dataclasses

from megatron_miniplm.commands import MEGATRON_PROGRAMS
from megatron_miniplm.errors import EXIT_BAD_INPUT
from megatron_miniplm.runtime.terminal import printable_json

_MARKS = {"ok": "ok    ", "partly": "PARTLY", "absent": "absent", "wrong": "WRONG "}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def run(arguments: argparse.Namespace) -> int:
    from megatron_miniplm.mcore.doctor import examine

    findings = list(examine(MEGATRON_PROGRAMS))
    if arguments.json:
        print(printable_json([dataclasses.asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{_MARKS[finding.status]}  {finding.name:<18}  {finding.found}")
            if finding.status != "ok":
                print(f"{'':28}impact: {finding.cost}\n{'':28}fix:    {finding.remedy}")
    return EXIT_BAD_INPUT if any(finding.status == "wrong" for finding in findings) else 0
