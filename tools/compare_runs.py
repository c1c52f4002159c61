#!/usr/bin/env python3
"""The same as `miniplm compare-runs`; see megatron_miniplm/commands/compare_runs.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("compare-runs"))
