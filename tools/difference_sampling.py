#!/usr/bin/env python3
"""The same as `miniplm difference-sampling`; see megatron_miniplm/commands/difference_sampling.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("difference-sampling"))
