"""Text to token ids, exactly as Megatron's tokenizers of the same names give them, as fast as is exact.

settings ───► tokenizers (what all share, choice) ──► huggingface_encoder ──┐
                                                ├──► tiktoken_encoder ──────┼──► gigatoken_engine, after its check
                                                ├──► sentencepiece_encoder ─┘
                                                └──► NullEncoder

`huggingface_files` reads tokenizer.json and finds the texts that gigatoken would encode differently; `token_bytes` goes
from ids back to bytes.
"""
