import logging
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import sample, write_sidecar

from megatron_miniplm.cli import run_tool
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.selection.difference import DIFFERENCE, Measure, warning_of


def differences(
    teacher_nll_N: np.ndarray, reference_nll_N: np.ndarray, num_scored_N: np.ndarray, reduction: str = "mean"
) -> np.ndarray:
    return Measure(reduction=reduction).values(teacher_nll_N, reference_nll_N, num_scored_N)


TEACHER = np.array([10.0, 2.0, 0.0, 6.0], np.float32)
REFERENCE = np.array([14.0, 1.0, 0.0, 6.0], np.float32)
NUM_TOKENS = np.array([8, 2, 0, 3], np.int32)


@pytest.mark.parametrize(
    ("reduction", "expected"), [("mean", [0.5, -0.5, -np.inf, 0.0]), ("sum", [4.0, -1.0, -np.inf, 0.0])]
)
def test_literal(reduction: str, expected: list[float]) -> None:
    value_N = differences(TEACHER, REFERENCE, NUM_TOKENS, reduction)
    assert value_N.tolist() == expected
    assert value_N.dtype == np.float64


def test_mean_is_the_default() -> None:
    assert np.array_equal(
        differences(TEACHER, REFERENCE, NUM_TOKENS), differences(TEACHER, REFERENCE, NUM_TOKENS, "mean")
    )


def test_the_difference_of_two_large_sums_is_taken_in_float64() -> None:
    large = np.array([16_777_216.0], np.float32)
    small = np.array([0.5], np.float32)
    assert differences(small, large, np.array([1]), "sum").tolist() == [16_777_215.5]


def test_the_reductions_rank_differently_where_lengths_differ() -> None:
    """The paper's formula prefers the long sequence, its code the short one."""
    teacher_nll_N, reference_nll_N, num_tokens_N = np.array([1.0, 100.0]), np.array([3.0, 110.0]), np.array([2, 100])
    by_mean = differences(teacher_nll_N, reference_nll_N, num_tokens_N, "mean")
    by_sum = differences(teacher_nll_N, reference_nll_N, num_tokens_N, "sum")
    assert (by_mean.argmax(), by_sum.argmax()) == (0, 1)


def test_bits_a_byte() -> None:
    value_N = Measure(reduction="bits-per-byte").values(TEACHER, REFERENCE, NUM_TOKENS, np.array([32, 4, 3, 0]))
    assert value_N.tolist() == pytest.approx([4 / 32 / np.log(2), -1 / 4 / np.log(2), -np.inf, -np.inf])


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("-teacher", [-1.25, -1.0, -np.inf, -2.0]),
        ("reference", [1.75, 0.5, -np.inf, 2.0]),
        ("reference-teacher", [0.5, -0.5, -np.inf, 0.0]),
        ("max(teacher, 1.5) * -2 + tokens", [5.0, -1.0, -np.inf, -1.0]),
        ("log(exp(reference)) / abs(-teacher)", [1.4, 0.5, -np.inf, 1.0]),
    ],
)
def test_expressions(expression: str, expected: list[float]) -> None:
    assert Measure(expression=expression).values(TEACHER, REFERENCE, NUM_TOKENS).tolist() == pytest.approx(expected)


def test_what_an_expression_needs() -> None:
    assert Measure(expression="-teacher / tokens").names == {"teacher", "tokens"}
    assert Measure().expression == DIFFERENCE
    assert Measure(expression="-teacher").values(TEACHER, None, NUM_TOKENS).tolist()[0] == -1.25


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("__import__('os')", "\"__import__('os')\" is not allowed"),
        ("teacher.real", "'teacher.real' is not allowed"),
        ("student - teacher", "'student' is not allowed"),
        ("exp + teacher", "'exp' is not allowed"),
        ("exp(teacher, 2)", "'exp(teacher, 2)' is not allowed"),
        ("teacher ** 9", "'teacher ** 9' is not allowed"),
        ("[teacher]", "'[teacher]' is not allowed"),
        ("teacher if 1 else 2", "is not allowed"),
        ("teacher -", "is not an expression"),
        ("tokens", "neither teacher nor reference"),
        ("True * teacher", "'True' is not allowed"),
    ],
)
def test_other_expressions_are_refused(expression: str, found: str) -> None:
    with pytest.raises(InputError) as raised:
        Measure(expression=expression)
    assert found in str(raised.value)


NUM_SEQUENCES = 40


@pytest.fixture
def corpus(tmp_path: Path) -> IndexedCorpus:
    return write_corpus(tmp_path / "web", [[k, k, k] for k in range(NUM_SEQUENCES)])


@pytest.fixture
def teacher(tmp_path: Path, corpus: IndexedCorpus) -> Path:
    return write_scores(tmp_path / "teacher", [corpus], np.full(NUM_SEQUENCES, 2.0)).directory


@pytest.fixture
def reference(tmp_path: Path, corpus: IndexedCorpus) -> Path:
    """Worse than the teacher, but for the first two of forty."""
    return write_scores(tmp_path / "reference", [corpus], np.arange(NUM_SEQUENCES) + 0.5).directory


@pytest.mark.parametrize("how", ["the same directory", "a link to it", "another store of the same model"])
def test_one_model_as_teacher_and_reference(teacher: Path, corpus: IndexedCorpus, tmp_path: Path, how: str) -> None:
    other = teacher
    if how == "a link to it":
        other = tmp_path / "link"
        other.symlink_to(teacher)
    elif how == "another store of the same model":
        other = write_scores(tmp_path / "again" / "teacher", [corpus], np.ones(NUM_SEQUENCES)).directory
    with pytest.raises(InputError, match="are scores of one and the same model, so that every difference is 0"):
        sample(teacher, other, tmp_path / "selection")
    assert not (tmp_path / "selection").exists()


def test_stores_of_different_contexts(teacher: Path, corpus: IndexedCorpus, tmp_path: Path) -> None:
    settings = {"context_tokens": 128}
    other = write_scores(tmp_path / "long", [corpus], np.ones(NUM_SEQUENCES), settings=settings).directory
    with pytest.raises(FingerprintMismatchError, match=r"teacher was scored with --seq-length 64, .*long with 128"):
        sample(teacher, other, tmp_path / "selection")


@pytest.mark.parametrize("with_sidecar", [True, False])
def test_per_domain_without_domains(
    teacher: Path, reference: Path, corpus: IndexedCorpus, tmp_path: Path, with_sidecar: bool
) -> None:
    if with_sidecar:
        write_sidecar(corpus, [None] * NUM_SEQUENCES, [3] * NUM_SEQUENCES)
    with pytest.raises(InputError, match="domain"):
        sample(teacher, reference, tmp_path / "selection", per_domain=True)
    assert not (tmp_path / "selection").exists()


def test_swapped_stores_are_said(
    teacher: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logging.getLogger().handlers.clear()
    for name, pair in {"right": (teacher, reference), "swapped": (reference, teacher)}.items():
        scores = ["--teacher-scores", str(pair[0]), "--reference-scores", str(pair[1])]
        output = ["--output", str(tmp_path / name), "--ratio", "0.5", "--workers", "1"]
        assert run_tool("difference-sampling", [*scores, *output]) == 0
        said = capsys.readouterr().err
        assert ("are not swapped" in said) == (name == "swapped")
    assert "worse than the reference on 95.0% of the sequences" in said


def test_an_expression_of_ones_own_is_not_judged(
    teacher: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--rank-by=-reference", "--reference-scores", str(reference), "--workers", "1"]
    assert run_tool("difference-sampling", [*flags, "--output", str(tmp_path / "own"), "--ratio", "0.5"]) == 0
    assert "swapped" not in capsys.readouterr().err


@pytest.mark.parametrize("value", [0.0, 0.7])
def test_values_that_are_all_equal_are_warned_of(value: float) -> None:
    summary = {"num_eligible": 9, "num_kept": 4, "lowest_kept_value": value, "mean_value": value + 1e-15}
    summary |= {"mean_kept_value": value, "negative_fraction": 0.0}
    warning = warning_of(summary, is_difference=True)
    assert warning is not None
    assert "every sequence has the same value" in warning
    assert warning_of({**summary, "mean_value": value - 0.1}, is_difference=True) is None
    nothing = {**summary, "lowest_kept_value": None, "mean_value": 0.0, "mean_kept_value": 0.0}
    assert warning_of(nothing, is_difference=False) is not None
