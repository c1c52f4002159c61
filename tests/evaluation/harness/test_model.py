import types
from collections.abc import Sequence
from typing import Any

import pytest
from small_requests import lm, request
from task_files import BOS

from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.harness.model import HuggingFaceText, MegatronLM, MegatronText

MAX_LENGTH = 8


def test_the_model_writes_nothing(text: HuggingFaceText) -> None:
    with pytest.raises(InputError, match=r"^a task: megatron-miniplm .*convert-checkpoint --save-hf DIR"):
        lm(text).generate_until([request("once", {})])


def test_the_model_is_found_by_its_name() -> None:
    from lm_eval.api.registry import get_model

    assert get_model("megatron-miniplm") is MegatronLM


def test_rolling_windows_score_every_token_once(text: HuggingFaceText) -> None:
    """28 tokens and a BOS in windows of 8: each answer is minus the tokens that count."""
    asked: list[Any] = []

    def answers(pairs: Sequence[Any]) -> list[tuple[float, bool]]:
        asked.extend(pairs)
        return [(-float(len(continuation)), False) for _, continuation in pairs]

    long, empty, short = "the river and the stone of light " * 4, "", "the"
    model = lm(text, answers, max_length=MAX_LENGTH)
    model_values = model.loglikelihood_rolling([request(one) for one in (long, empty, short)])
    ids = [text.encode(one, add_special_tokens=None) for one in (long, empty, short)]
    assert model_values == [-len(one) for one in ids]
    assert [token for _, continuation in asked for token in continuation] == [token for one in ids for token in one]
    assert {len(context) + len(continuation) for context, continuation in asked[:3]} == {MAX_LENGTH + 1}


@pytest.mark.parametrize(
    ("context", "continuation", "settings", "message"),
    [
        ("the", "", {}, "the continuation '' has no tokens of its own"),
        (
            "the",
            " river stone light of and to in walked",
            {},
            r"has 16 tokens, and the model reads 7 at most: raise --seq",
        ),
        ("the", " river", {"vocab_size": 300}, r"the tokenizer gives token 3\d\d, the model has 300"),
    ],
)
def test_what_cannot_be_scored(
    text: HuggingFaceText, context: str, continuation: str, settings: dict[str, int], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        lm(text, **{"max_length": 7, **settings}).loglikelihood([request(context, continuation)])


def test_bos_comes_once(text: HuggingFaceText) -> None:
    plain_ids = text.encode("the river", add_special_tokens=False)
    assert text.encode("the river", add_special_tokens=None) == [text.prefix_token, *plain_ids]
    assert text.encode(f"{BOS}the river", add_special_tokens=None) == [text.prefix_token, *plain_ids]


def test_other_tokenizers_of_megatron() -> None:
    """One with BOS, one whose BOS is -1, one that has none."""
    tokenizers = [
        types.SimpleNamespace(bos=5, eod=7),
        types.SimpleNamespace(bos=-1, eod=7),
        types.SimpleNamespace(eod=7),
    ]
    assert [MegatronText(one).prefix_token for one in tokenizers] == [5, 7, 7]
    tokenizer = types.SimpleNamespace(eod=7, tokenize=lambda text: tuple(map(ord, text)))
    assert MegatronText(tokenizer).encode("ab", add_special_tokens=None) == [97, 98]
