"""Corpus + model -> negative log-likelihood and token count of every sequence.

    plan      which block of sequences belongs to which data-parallel rank          pure
    windows   a sequence longer than the context becomes several, each token scored once   pure
    batching  windows of a block -> micro-batches of nearly equal lengths             pure
    nll       hidden states -> NLL a token, vocabulary-parallel, padded rows left out   torch
    store     blocks on disk: atomic, resumable, identified                           numpy
    engine    ties them to Megatron's forward-only schedule                           megatron

Blocks are the unit of everything: of work, of resuming, of files. What is computed for a block depends on that block
alone, so that the result is the same for any number of data-parallel ranks and after any interruption.
"""
