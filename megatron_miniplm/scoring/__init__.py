"""Corpus + model -> negative log-likelihood and token count of every sequence.

    rows       a block's sequences -> windows that fit the context -> full rows, by best fit numpy
    nll        hidden states -> NLL a token, vocabulary-parallel, tile by tile              torch
    feed       rows read ahead, token NLLs taken in and summed, each by a thread            torch
    scorer     a model on Megatron's forward-only schedule                                  megatron
    continuations   texts of which only the end counts: what downstream tasks ask               megatron
    dispatch   one replica's work: claim blocks, score them, publish them                   megatron
    identity   what is scored with what, and which sequences where only a sample is         megatron
    watch      progress, tokens/s and MFU; the first layer whose output is not finite
    engine     all of it: store, model, every replica, the end                              megatron

The store itself is `artifacts.scores`: the selection reads it too. Blocks are the unit of everything: of work, of
claims, of files. What is computed for a block depends on that block alone, so that the result is the same for any
number of data-parallel ranks and after any interruption.
"""
