import logging
from collections.abc import Sequence

import numpy as np
import pytest

from megatron_miniplm.corpus.tokenization import gigatoken_engine
from megatron_miniplm.corpus.tokenization.gigatoken_engine import (
    HARD_TEXTS,
    GigatokenEngine,
    exact_or_none,
    texts_of_control_strings,
    texts_of_vocabulary,
)
from megatron_miniplm.corpus.tokenization.token_bytes import flatten_ids, split_ids


@pytest.fixture
def made(bpe_dir) -> tuple[list[int], object]:
    """Counts the engines that the second value makes."""
    import gigatoken

    count = [0]

    def make():
        count[0] += 1
        return gigatoken.Tokenizer.from_json((bpe_dir / "tokenizer.json").read_bytes())

    return count, make


def test_an_engine_lives_on_while_the_process_stays_small(made) -> None:
    count, make = made
    engine = GigatokenEngine(make, num_threads=1)
    for _ in range(3):
        engine.encode(HARD_TEXTS)
    assert count == [1]


def test_an_engine_that_was_made_anew_gives_the_same_ids(made, monkeypatch: pytest.MonkeyPatch) -> None:
    count, make = made
    expected = split_ids(*GigatokenEngine(make, num_threads=1).encode(HARD_TEXTS))
    monkeypatch.setattr(gigatoken_engine, "MAX_CACHE_BYTES", -(1 << 40))
    engine = GigatokenEngine(make, num_threads=1)
    for _ in range(3):
        assert split_ids(*engine.encode(HARD_TEXTS)) == expected
    assert count == [5]


def test_memory_stays_bounded_when_every_word_is_new(made, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 MB of distinct words take some 400 MB in one engine."""
    count, make = made
    monkeypatch.setattr(gigatoken_engine, "MAX_CACHE_BYTES", 24 << 20)
    engine = GigatokenEngine(make, num_threads=1)
    words = np.random.default_rng(0)
    start_bytes = gigatoken_engine._resident_bytes()
    for _ in range(20):
        letters = (words.integers(97, 123, 2_000_000, dtype=np.uint8)).tobytes().decode()
        engine.encode([" ".join(letters[start : start + 7] for start in range(0, len(letters), 7))])
        assert gigatoken_engine._resident_bytes() - start_bytes < 200 << 20
    assert count[0] > 1


@pytest.mark.parametrize("num_threads", [1, 2])
def test_ids_do_not_depend_on_the_size_of_calls(made, num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    _, make = made
    engine = GigatokenEngine(make, num_threads)
    expected = split_ids(*engine.encode(HARD_TEXTS))
    for characters in (1, 7, 300):
        monkeypatch.setattr(gigatoken_engine, "CALL_CHARACTERS", characters)
        assert split_ids(*engine.encode(HARD_TEXTS)) == expected
        assert split_ids(*engine.encode(list(HARD_TEXTS))) == expected
        assert split_ids(*engine.encode([])) == []


def encode_lengths(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    return flatten_ids([[len(text)] for text in texts])


def encode_otherwise(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    return flatten_ids([[len(text) + ("☃" in text)] for text in texts])


def test_a_fast_road_is_taken_only_where_it_is_exact(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert exact_or_none(lambda: encode_otherwise, encode_lengths, ["a"], library="x") is encode_otherwise
        assert caplog.messages == []
        assert exact_or_none(lambda: encode_otherwise, encode_lengths, ["a", "☃"], library="x") is None
        assert exact_or_none(lambda: {}["no"], encode_lengths, ["a"], library="x") is None
    assert caplog.messages == [
        "encoding with the slower x: gigatoken gives other ids for this one",
        "encoding with the slower x: gigatoken does not support this one ('no')",
    ]


def test_the_texts_of_a_check_hold_what_they_are_made_of() -> None:
    texts = texts_of_control_strings(["<a>", "<b>"])
    assert texts[:4] == ["<a> <b>", "<a><b>", "a<a>b <a>  <a>\n", "a<b>b <b>  <b>\n"]
    assert [text.count("<a>") for text in texts[4:]] == [5, 0]
    pieces = [chr(0x4E00 + index) for index in range(20_000)]
    texts = texts_of_vocabulary(pieces)
    assert texts == texts_of_vocabulary(pieces)
    assert len(texts) < 20_000 / 32
    ordered, shuffled = texts[: len(texts) // 2], texts[len(texts) // 2 :]
    assert "".join(ordered) == "".join(sorted("".join(shuffled))) != "".join(shuffled)
    assert texts_of_vocabulary([]) == []
