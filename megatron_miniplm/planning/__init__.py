"""What the whole pipeline costs, before any of it runs; arithmetic only.

shapes      a directory or a name -> the shape of a model
sequences   how long the sequences of a corpus are, and the windows of them that scoring feeds to a model
cost        models and corpus -> FLOPs, hours and bytes of every stage
plan        all stages, the same students by other methods, and from how many students on ours is cheaper

The formulas of one model are in `megatron_miniplm.mcore.flops`. Only commands import this package.
"""
