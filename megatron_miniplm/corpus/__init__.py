"""Text to sequences: JSONL in, Megatron `.bin/.idx` out.

    readers ──► batches of texts ──► tokenizers ──► flat ids + lengths ──► build ──► <prefix>_<key>_document.bin/.idx
                      └──► tokenizer_training ──► a tokenizer's directory

`build` and `tokenizer_training` are the verbs; nothing here imports torch. Memory is bounded by one batch of text.
"""
