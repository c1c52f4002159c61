"""Text -> token ids as lm_eval's own Hugging Face model (`HFLM`) makes them, so that both roads ask the same."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class TextEncoder(Protocol):
    """What `MegatronLM` needs of a tokenizer.

    Attributes:
        prefix_token: stands in for an empty context.
        end_token: ends a text.
    """

    @property
    def prefix_token(self) -> int: ...

    @property
    def end_token(self) -> int: ...

    def encode(self, text: str, *, add_special_tokens: bool | None) -> list[int]:
        """Ids of a text; None: with the special tokens that the tokenizer adds by itself, once."""
        ...


@dataclass(frozen=True)
class HuggingFaceText:
    """A tokenizer of transformers: `HFLM.tok_encode` and `HFLM.prefix_token_id` (models/huggingface.py)."""

    tokenizer: Any

    @classmethod
    def open(cls, place: str | Path, *, trust_remote_code: bool = False) -> "HuggingFaceText":
        from transformers import AutoTokenizer

        return cls(AutoTokenizer.from_pretrained(str(place), trust_remote_code=trust_remote_code))

    @property
    def prefix_token(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.end_token if bos is None else bos

    @property
    def end_token(self) -> int:
        return self.tokenizer.eos_token_id

    def encode(self, text: str, *, add_special_tokens: bool | None) -> list[int]:
        if add_special_tokens is None:
            # A tokenizer that starts a text with BOS must not start one with a second.
            add_special_tokens = not text.startswith(self.tokenizer.decode(self.prefix_token))
        return self.tokenizer.encode(text, add_special_tokens=add_special_tokens)


@dataclass(frozen=True)
class MegatronText:
    """A tokenizer of Megatron of another kind; it adds no special tokens."""

    tokenizer: Any

    @property
    def prefix_token(self) -> int:
        try:
            bos = self.tokenizer.bos
        except (AttributeError, NotImplementedError):
            bos = None
        return self.end_token if bos is None or bos < 0 else bos

    @property
    def end_token(self) -> int:
        return self.tokenizer.eod

    def encode(self, text: str, *, add_special_tokens: bool | None) -> list[int]:
        return list(self.tokenizer.tokenize(text))
