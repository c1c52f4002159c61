"""A small model that predicts the difference from the text, where one pass of the teacher over all of it is too dear.

    targets     sampled scores -> true differences, held out or for training in shuffled order numpy
    head        hidden states of a window -> its predicted difference                    torch
    fitting     a model and its head on Megatron's training schedule                     megatron
    engine      fit, predict every sequence into a score store, report how far to trust it megatron

The cheap variant of MiniPLM (arXiv 2410.17215): the teacher scores a random part of the corpus, a proxy the rest.
"""
