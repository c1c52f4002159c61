"""Text to token ids, exactly as Megatron's tokenizers of the same names give them, as fast as is exact.

tokenizers (settings, what all share, the choice) ──► huggingface_encoder ──┐
                                                ├──► tiktoken_encoder ──────┼──► gigatoken_engine, after its check
                                                ├──► sentencepiece_encoder ─┘
                                                └──► NullEncoder

`added_tokens` says which texts gigatoken would encode differently from HuggingFace; `piece_bytes` and `token_bytes` go
from ids back to bytes.
"""
