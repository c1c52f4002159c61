"""One module a tool: flags, a call into the stage, a line of result. See `megatron_miniplm.cli`."""
