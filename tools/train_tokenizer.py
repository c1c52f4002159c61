#!/usr/bin/env python3
"""The same as `miniplm train-tokenizer`; see megatron_miniplm/commands/train_tokenizer.py."""

from megatron_miniplm.cli import run_tool

if __name__ == "__main__":
    raise SystemExit(run_tool("train-tokenizer"))
