"""The model that lm_eval sees, and its tokenizer.

Splitting a request into context and continuation, with its rule for spaces, is `TemplateLM`'s. Truncation, rolling
windows and token ids are those of lm_eval's own Hugging Face model (`HFLM`), by its functions where it has them.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from megatron_miniplm.errors import InputError


class TaskTokenizer(Protocol):
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


#: (context, continuation) token ids -> log-likelihood of each continuation, and whether it is the greedy one.
Score = Callable[[Sequence[tuple[list[int], list[int]]]], list[tuple[float, bool]]]


@register_model("megatron-miniplm")
class MegatronLM(TemplateLM):
    """Log-likelihoods by a Megatron model; it generates nothing.

    Args:
        text: the tokenizer.
        score: of any number of continuations at once; it drops the start of what exceeds `max_length` inputs.
        max_length: most tokens that the model is fed at once.
        vocab_size: ids below it are the model's.
    """

    def __init__(self, text: TaskTokenizer, score: Score, *, max_length: int, vocab_size: int) -> None:
        super().__init__()
        self._text = text
        self._score = score
        self.max_length = max_length
        self._vocab_size = vocab_size

    @property
    def eot_token_id(self) -> int:
        return self._text.end_token

    @property
    def prefix_token_id(self) -> int:
        return self._text.prefix_token

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._text.encode(string, add_special_tokens=add_special_tokens)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        return super().loglikelihood(requests, disable_tqdm=disable_tqdm or not sys.stderr.isatty())

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        for (_, continuation), context_ids, ids in requests:
            self._check(continuation, context_ids, ids)
        return self._score([(context, continuation) for _, context, continuation in requests])

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[list[int], list[int]]] = []
        num_windows = []
        for (text,) in (request.args for request in requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            pieces = [make_disjoint_window(pair) for pair in rolling]
            for pair in pieces:
                self._check(text, *pair)
            windows += pieces
            num_windows.append(len(pieces))
        log_likelihoods = iter(self._score(windows))
        return [sum(next(log_likelihoods)[0] for _ in range(count)) for count in num_windows]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        raise InputError(cannot_generate(sorted({request.task_name or "a task" for request in requests})))

    def _check(self, text: str, context_ids: list[int], ids: list[int]) -> None:
        """Refuse a continuation that cannot be scored."""
        if not ids:
            raise InputError(
                f"the continuation {text[:60]!r} has no tokens of its own after its context: mend the task"
            )
        if len(ids) > self.max_length:
            raise InputError(
                f"the continuation {text[:60]!r} has {len(ids)} tokens, and the model reads {self.max_length} at most: "
                "raise --seq-length as far as the model goes"
            )
        if (largest := max(*context_ids, *ids)) >= self._vocab_size:
            raise InputError(
                f"the tokenizer gives token {largest}, the model has {self._vocab_size}: give the model's tokenizer"
            )


def cannot_generate(names: Sequence[str]) -> str:
    """What to do with tasks that let the model write."""
    return (
        f"{', '.join(names)}: megatron-miniplm gives log-likelihoods and generates no text: export the model "
        "(miniplm convert-checkpoint --save-hf DIR) and run lm_eval --model hf --model_args pretrained=DIR"
    )
