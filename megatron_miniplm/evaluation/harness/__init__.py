"""Downstream tasks by lm-evaluation-harness (`lm_eval`), on a Megatron model that all ranks hold together.

    orders    rank 0 decides, the other ranks follow                                        torch.distributed
    text      text -> token ids, as lm_eval's own Hugging Face model does it                transformers
    model     `megatron-miniplm`: what lm_eval asks, as continuations to be scored          lm_eval
    task_loading   names -> tasks with their data sets, before a model is loaded            lm_eval
    results   one file a finished task; the table, the JSON and the samples made of them    lm_eval
    run       all of it
    tasks/    task files of ours: the group of the paper, and StoryCloze from its CSV

Rank 0 alone imports lm_eval, reads the data sets and computes the metrics. The model itself comes from outside, as
functions to load it and to score with it: nothing here knows Megatron.
"""
