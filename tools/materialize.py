#!/usr/bin/env python3
"""The same as `miniplm materialize`; see megatron_miniplm/commands/materialize.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("materialize"))
