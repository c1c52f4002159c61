"""Cheaper or simpler ways to use a teacher, which the method is compared with.

Text of the teacher as training data (sequence-level distillation): prompts from a corpus, continuations sampled.

    corpus ──► generation_plan: which sequences, in which blocks ──► generation: Megatron's inference engine
                                                                           │
    new corpus .bin/.idx with a manifest ◄── generated_corpus ◄── generation_parts: a file a block

A small model that predicts the difference from the text, where one pass of the teacher over all of it is too expensive.
The teacher scores a random part of the corpus, the proxy the rest (the cheap variant of MiniPLM, arXiv 2410.17215).

    proxy_targets   sampled scores -> true differences, held out or for training in shuffled order     numpy
    proxy_head      hidden states of a window -> its predicted difference                               torch
    proxy_fitting   a model and its head on Megatron's training schedule                                megatron
    proxy           fit, predict every sequence into a score store, report how far to trust it          megatron
"""
