"""Four small documents to measure a loss on, and their domains."""

DOCUMENTS = ["12 7 12 99", "5", "7 8 9 10 11", "3 3 3"]
DOMAINS = ["code", "prose", "", "code"]
