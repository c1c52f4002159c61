#!/usr/bin/env python3
"""The same as `miniplm inspect`; see megatron_miniplm/commands/inspect.py."""

# Not named inspect.py: a script's directory comes first on sys.path, and would hide the standard library's module.
from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("inspect"))
