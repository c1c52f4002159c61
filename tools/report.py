#!/usr/bin/env python3
"""The same as `miniplm report`; see megatron_miniplm/commands/report.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("report"))
