"""A small model that predicts the difference from the text, where one pass of the teacher over all of it is too dear.

    targets     sampled scores -> true differences, for training and held out           numpy
    stream      the training sequences in shuffled order, endlessly                      numpy
    head        hidden states of a window -> its predicted difference                    torch
    fitting     a model and its head on Megatron's training schedule                     megatron
    agreement   predicted and true differences -> how far to trust the prediction        numpy
    engine      fit, predict every sequence into a score store, report                   megatron

The cheap variant of MiniPLM (arXiv 2410.17215): the teacher scores a random part of the corpus, a proxy the rest.
"""
