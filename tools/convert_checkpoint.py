#!/usr/bin/env python3
"""The same as `miniplm convert-checkpoint`; see megatron_miniplm/commands/convert_checkpoint.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("convert-checkpoint"))
