#!/usr/bin/env python3
"""The same as `miniplm evaluate-lm`; see megatron_miniplm/commands/evaluate_lm.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("evaluate-lm"))
