"""Scores -> chosen sequences and weights: difference sampling (MiniPLM, arXiv 2410.17215, section 2.2). No torch.

scored_corpus   two score stores side by side, a piece at a time          disk
difference      two NLLs -> the number that sequences are ranked by       pure
rule            what the user has asked for                               pure
candidates      pieces, domains, sizes -> what takes part, with its value  disk
top             a stream of values -> the exact threshold                 pure
weighting       values of the kept sequences -> weights                   pure
sampling        all of these, in order; writing: indices, weights, views  disk
ranks           the processes that share the work
split           corpus -> reference part and pool, as views               disk
"""
