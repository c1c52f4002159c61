"""Text of the teacher as training data (sequence-level distillation): prompts from a corpus, continuations sampled.

    corpus ──► plan: which sequences, in which blocks ──► engine: Megatron's inference engine ──► parts: a file a block
                                                                                                        │
                                      new corpus .bin/.idx with a manifest ◄── corpus: all parts in order ┘

`plan` and `parts` are NumPy only, `engine` alone touches `megatron.core.inference`, and `corpus` is the verb that ties
them to disk.
"""
