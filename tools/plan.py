#!/usr/bin/env python3
"""The same as `miniplm plan`; see megatron_miniplm/commands/plan.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("plan"))
