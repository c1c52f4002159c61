#!/usr/bin/env python3
"""The same as `miniplm preprocess-data`; see megatron_miniplm/commands/preprocess_data.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("preprocess-data"))
