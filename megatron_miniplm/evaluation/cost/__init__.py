"""What the whole road costs, before any of it runs; arithmetic only.

shapes       a directory or a name -> the shape of a model
sequences    how long the sequences of a corpus are, and what scoring feeds of them to a model
road         models and corpus -> floating point operations and bytes of every stage
comparison   the same students by other methods, and from how many students on ours is cheaper
hardware     operations -> hours

The formulas of one model are in `megatron_miniplm.mcore.flops`.
"""
