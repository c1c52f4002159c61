#!/usr/bin/env python3
"""The same as `miniplm merge-datasets`; see megatron_miniplm/commands/merge_datasets.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("merge-datasets"))
