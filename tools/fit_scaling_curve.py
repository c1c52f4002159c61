#!/usr/bin/env python3
"""The same as `miniplm fit-scaling-curve`; see megatron_miniplm/commands/fit_scaling_curve.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("fit-scaling-curve"))
