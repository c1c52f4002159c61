"""Pages and texts for people: what artifacts on disk hold, and how they came about. No other package imports this one.

inspection   what an artifact holds, and every way in which it contradicts itself
provenance   sequence -> the documents that it came from
reopening    selection -> the scores, corpora and rule that it was made from, checked to belong together
explain      why a selection keeps a sequence or drops it
report       selection -> one HTML page, in five modules:
    tally        the pass over the scores: counts, histograms, examples, overlaps
    histograms   their ranges, and what other ratios would keep
    plots        histograms -> pictures, by matplotlib
    origins      counts by domain and source, and the texts of examples, from the sidecars
    report       all of it -> HTML, by the templates in templates/
"""
