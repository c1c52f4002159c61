"""Corpus + model -> negative log-likelihood and token count of every sequence.

    pool      the sequences of all prefixes under one numbering                           numpy
    windows   a sequence longer than the context becomes several, each token scored once  numpy
    batching  windows of a block -> micro-batches of nearly equal lengths                 numpy
    nll       hidden states -> NLL a token, vocabulary-parallel, padded rows left out     torch
    scorer    a model on Megatron's forward-only schedule                                 megatron
    engine    missing blocks, dealt to the replicas, through the scorer, to the store     megatron

The store itself is `artifacts.scores`: the selection reads it too. Blocks are the unit of everything: of work, of
resuming, of files. What is computed for a block depends on that block alone, so that the result is the same for any
number of data-parallel ranks and after any interruption.
"""
