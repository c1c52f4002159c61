"""Scores -> chosen sequences: difference sampling (MiniPLM, arXiv 2410.17215, section 2.2). NumPy only.

difference   two models' scores -> one number a sequence         pure
top          numbers -> the exact top set                        pure
sampling     score stores -> indices, views, data_args.txt       disk
split        corpus -> reference part and pool, as views         disk
"""
