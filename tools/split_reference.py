#!/usr/bin/env python3
"""The same as `miniplm split-reference`; see megatron_miniplm/commands/split_reference.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("split-reference"))
