"""Corpus + model -> negative log-likelihood and token count of every sequence.

    windows    a sequence longer than the context becomes several, each token scored once   numpy
    packing    windows of a block -> full rows, by best fit                                 numpy
    rows       a block's rows: tokens, positions, boundaries, and which predictions count   numpy
    sample     a random part of the sequences, for the proxy                                numpy
    nll        hidden states -> NLL a token, vocabulary-parallel, tile by tile              torch
    feed       rows read ahead, token NLLs taken in and summed, each by a thread            torch
    faults     the first layer whose output is not finite                                   megatron
    scorer     a model on Megatron's forward-only schedule                                  megatron
    continuations   texts of which only the end counts: what downstream tasks ask               megatron
    dispatch   one replica's work: claim blocks, score them, publish them                   megatron
    identity   what is scored with what                                                     megatron
    watch      progress, tokens/s and MFU, on the terminal and for TensorBoard
    engine     all of it: store, model, every replica, the end                              megatron
    proxy      a small model that predicts the difference from a sample of scores               megatron

The store itself is `artifacts.scores`: the selection reads it too. Blocks are the unit of everything: of work, of
claims, of files. What is computed for a block depends on that block alone, so that the result is the same for any
number of data-parallel ranks and after any interruption.
"""
