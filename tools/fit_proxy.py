#!/usr/bin/env python3
"""The same as `miniplm fit-proxy`; see megatron_miniplm/commands/fit_proxy.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("fit-proxy"))
