"""The report of a selection for a person: one HTML page with tables, plots and texts.

opening      selection -> its scores, corpora and rule, checked to belong together
kept         kept sequences, a piece of the corpus at a time
axes         ranges of histograms, from a sample
tally        the pass over the scores: counts, histograms, examples, overlaps
examples     which sequences are shown; excerpts: their texts
origins      counts by domain and source, from the sidecars
what_if      other ratios, from the histogram
plots        histograms -> PNG
html, page   all of it -> HTML
writing      ties them to disk
"""
