"""Losses from scores of our choosing, against sums written out by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from held_out_texts import DOCUMENTS
from megatron_runs import write_corpus
from score_stores import write_scores

from megatron_miniplm.artifacts.scores import SCORE_DTYPE
from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.held_out import (
    SCORED_TOKENS,
    WHOLE_SEQUENCES,
    Counting,
    HeldOutCorpus,
    corpus_loss,
    describe,
    loss_of,
    read_corpora,
    scored_targets,
)
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.view import write_view


def scores_of(nll: list[float], num_tokens: list[int]) -> np.ndarray:
    scores = np.empty(len(nll), SCORE_DTYPE)
    scores["nll"], scores["num_tokens"] = nll, num_tokens
    return scores


def test_loss_of_a_few_sequences() -> None:
    """Sums of 6 and 3 nats over 2 and 4 tokens; the empty sequence is none. Residuals of the ratio are 3 and -3."""
    loss = loss_of(scores_of([6, 0, 3], [2, 0, 4]), np.array([3, 5, 9]))
    assert (loss.num_sequences, loss.num_tokens, loss.nll_nats, loss.text_bytes) == (2, 6, 9, 12)
    assert loss.nats_per_token == 1.5
    assert loss.perplexity == pytest.approx(math.e**1.5)
    assert loss.bits_per_byte == pytest.approx(9 / math.log(2) / 12)
    assert loss.standard_error_nats == pytest.approx(math.sqrt(2 * (3**2 + 3**2)) / 6)


def test_the_standard_error_is_the_spread_over_corpora() -> None:
    """Of 2,000 corpora that are drawn alike, losses spread as each of them says; lengths vary, and with them losses."""
    rng = np.random.default_rng(1)
    losses, errors = [], []
    for _ in range(2000):
        num_tokens = rng.integers(1, 60, 120)
        nll = num_tokens * rng.normal(3, 0.5, 120) + rng.normal(0, 1, 120) * np.sqrt(num_tokens) + 4
        loss = loss_of(scores_of(nll.tolist(), num_tokens.tolist()), None)
        losses.append(loss.nats_per_token)
        errors.append(loss.standard_error_nats)
    assert np.mean(errors) == pytest.approx(np.std(losses), rel=0.05)


def test_nothing_to_divide_by() -> None:
    nothing = loss_of(scores_of([0.0], [0]), np.array([0]))
    assert (nothing.nats_per_token, nothing.perplexity, nothing.bits_per_byte) == (None, None, None)
    assert loss_of(scores_of([4.0], [2]), None).standard_error_nats is None
    assert loss_of(scores_of([4000.0], [2]), None).perplexity is None, "beyond the range of a float"


@pytest.mark.parametrize(
    ("counting", "expected"),
    [
        (Counting(), [8, 0, 9, 0]),
        (Counting(masked_input=0), [8, 0, 0]),
        (Counting(bos_token=1), [7, 8, 0, 9, 0]),
        (Counting(bos_token=0, masked_input=0), [8, 0, 0]),
    ],
)
def test_targets_that_count(counting: Counting, expected: list[int]) -> None:
    assert scored_targets(np.array([7, 8, 0, 9, 0]), counting).tolist() == expected
    assert scored_targets(np.array([], np.int64), counting).tolist() == []


def test_domains_sum_to_the_whole(corpus: IndexedCorpus, tmp_path: Path) -> None:
    held_out = HeldOutCorpus(name="held", prefixes=(corpus.prefix,))
    texts = describe(held_out, Counting(), np.arange(100))
    loss = corpus_loss(write_scores(tmp_path / "scores", [corpus], [9.0, 0.0, 8.0, 2.0]), texts)
    assert list(loss.domains) == ["", "code", "prose"]
    for name in ("num_sequences", "num_tokens", "nll_nats", "text_bytes"):
        assert sum(getattr(part, name) for part in loss.domains.values()) == getattr(loss.whole, name)
    assert loss.domains["code"].nats_per_token == (9 + 2) / (3 + 2)
    assert loss.domains["prose"].nats_per_token is None
    assert loss.domains[""].text_bytes == 8 + 9 + 10 + 11, (
        "a token of n stands for n bytes here, the first is not scored"
    )


def test_bytes_of_a_sidecar_are_those_of_whole_sequences(corpus: IndexedCorpus) -> None:
    texts = describe(HeldOutCorpus(name="held", prefixes=(corpus.prefix,)), Counting(), None)
    assert texts.bytes_of == WHOLE_SEQUENCES
    assert texts.text_bytes_N is not None
    assert texts.text_bytes_N.tolist() == [len(text) for text in DOCUMENTS]


def test_a_view_has_the_texts_of_its_source(corpus: IndexedCorpus, tmp_path: Path) -> None:
    view = write_view(corpus, np.array([2, 2, 3]), tmp_path / "views", label="some", settings={})
    texts = describe(HeldOutCorpus(name="view", prefixes=(view, corpus.prefix)), Counting(), None)
    assert texts.text_bytes_N is not None
    assert texts.text_bytes_N.tolist() == [len(DOCUMENTS[index]) for index in (2, 2, 3, 0, 1, 2, 3)]
    by_code = {code: name for name, code in texts.domains.items()}
    assert [by_code[code] for code in texts.domain_N] == ["", "", "code", "code", "prose", "", "code"]


def test_without_a_sidecar_only_tokens_tell_bytes(corpus: IndexedCorpus, tmp_path: Path) -> None:
    bare = write_corpus(tmp_path / "bare", [[1, 2], [3]])
    both = HeldOutCorpus(name="both", prefixes=(bare.prefix, corpus.prefix))
    assert describe(both, Counting(), None).text_bytes_N is None
    texts = describe(HeldOutCorpus(name="bare", prefixes=(bare.prefix,)), Counting(), np.arange(100))
    assert (texts.bytes_of, texts.domains) == (SCORED_TOKENS, {})


def test_names_of_corpora(corpus: IndexedCorpus, tmp_path: Path) -> None:
    write_corpus(tmp_path / "a=b", [[1]])
    found = read_corpora([str(corpus.prefix), f"other={corpus.prefix}", str(tmp_path / "a=b")])
    assert [each.name for each in found] == ["held_text_document", "other", "a=b"]
    assert found[1].prefixes == found[0].prefixes
    with pytest.raises(InputError, match="two corpora are called held_text_document: name them, as in NAME=PREFIX"):
        read_corpora([str(corpus.prefix)] * 2)
    with pytest.raises(InputError, match=r"nothing\.idx does not exist"):
        read_corpora(["some=nothing"])
