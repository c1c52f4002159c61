"""What selection did to the data: the same measures of several data sets, side by side.

data        prefixes, directories and selections -> data sets, in any order of their prefixes; seeded samples
exact       from every sequence: lengths, domains, bytes of text; from every token, if not too many: copies, and n-grams
            of held-out corpora
diversity   from the sample, at equal numbers of tokens: entropy, coverage, distinct n-grams; from embeddings (hashed
            n-grams, or a Hugging Face model): mean cosine distance, log-determinant distance
measure     all of these for all data sets
report      text, JSON and a picture

Axes: N sequences of a data set, S sampled ones, T tokens, D dimensions of an embedding, V distinct values.
"""
