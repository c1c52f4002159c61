"""Text to sequences: files in, Megatron `.bin/.idx` with a provenance sidecar out.

    sources ──► units ──► readers ──► tokenization ──► ids ──┬─────────────────────► build ──► <prefix>_<key>_document
    files       16 MiB    documents         │                └─ chunking, sentences ─┘          <prefix>_<key>_chunk
                └────── workers: a unit each ────────┘

    compressed           lines of compressed JSONL, in bounded memory
    parquet_text         rows of Parquet; the only module that reads text with pyarrow
    fields               which values of a line or row are read, and when they are bad
    tokenizer_training   text ──► a tokenizer's directory
    retokenization       a corpus or view ──► the same sequences in another tokenizer

`build`, `tokenizer_training` and `retokenization.convert` are the verbs; nothing here imports torch, except for
HuggingFace directories that only transformers can load. Memory is bounded by the units on their way. What comes out of
a unit depends on nothing but the unit, so neither workers nor shards can change a byte.
"""
