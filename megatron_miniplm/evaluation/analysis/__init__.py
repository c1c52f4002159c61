"""What selection did to the data: the same measures of several data sets, side by side.

data         prefixes, directories and selections -> data sets, whatever the order of their prefixes; seeded samples
exact        from every sequence: lengths, domains and bytes of text (.idx and sidecar, no token is read)
scan         from every token, where they are not too many: copies, and n-grams of held-out corpora
vocabulary   from the sample: entropy, coverage, distinct n-grams, at equal numbers of tokens
embeddings   the sample -> unit vectors: hashed n-grams without a model, or a Hugging Face model
diversity    from the vectors: mean pairwise cosine distance, log-determinant distance
measure      the verb: all of them for all data sets
table, plot  for people and for scripts

Axes: N sequences of a data set, S sampled ones, T tokens, D dimensions of an embedding, V distinct values.
"""
