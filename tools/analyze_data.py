#!/usr/bin/env python3
"""The same as `miniplm analyze-data`; see megatron_miniplm/commands/analyze_data.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("analyze-data"))
