"""Downstream tasks by lm-evaluation-harness (`lm_eval`), on a Megatron model that all ranks hold together.

    orders         rank 0 decides, the other ranks follow                                       torch.distributed
    task_loading   names -> tasks with their data sets, before a model is loaded                lm_eval
    model          `megatron-miniplm`: what lm_eval asks, as continuations to be scored         lm_eval, transformers
    results        asks one task after another; a file for each, and table, JSON and samples    lm_eval
    tasks/         task files of ours: the group of the paper, and StoryCloze from its CSV

Rank 0 alone imports lm_eval, reads the data sets and computes the metrics. The model itself comes from outside, as
functions to load it and to score with it: nothing here knows Megatron.
"""
