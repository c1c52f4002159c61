"""What sequences are ranked by: how much better the teacher knows one than the reference does, or an expression.

NLLs are sums in nats; `mean` divides by the scored tokens, which is what the paper's released code ranks by; `sum` is
the paper's formula, log p_teacher(x) / p_reference(x). They rank alike only where all sequences have one length.
`bits-per-byte` divides by the bytes of text and by ln 2, which compares sequences whatever the tokenizer.
"""

import ast
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.selection.scored_corpus import REFERENCE, TEACHER, ScoredCorpus

REDUCTIONS = ("mean", "sum", "bits-per-byte")
UNITS = {"mean": "nats a token", "sum": "nats", "bits-per-byte": "bits a byte"}
DIFFERENCE = "reference - teacher"

_OPERATORS: dict[type, Callable[..., np.ndarray]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: np.divide,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "abs": np.abs,
    "exp": np.exp,
    "log": np.log,
    "max": np.maximum,
    "min": np.minimum,
}
_NAMES = frozenset({"teacher", "reference", "tokens"})


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What sequences are ranked by; the greatest are kept.

    Attributes:
        expression: of `teacher` and `reference` (their NLLs, reduced) and `tokens` (scored ones), with + - * /,
            brackets, numbers, abs, exp, log, max and min.
        reduction: one of `REDUCTIONS`.
    """

    expression: str = DIFFERENCE
    reduction: str = "mean"

    def __post_init__(self) -> None:
        """Check the expression.

        Raises:
            InputError: it has something else in it, or needs no score at all.
        """
        if self.reduction not in REDUCTIONS:
            raise InputError(f"--score-reduction {self.reduction!r} is not one of {', '.join(REDUCTIONS)}")
        nodes = list(ast.walk(self._tree()))
        called = [node.func for node in nodes if isinstance(node, ast.Call)]
        for node in nodes:
            if not any(node is function for function in called):
                self._check(node)
        if not self.names & {"teacher", "reference"}:
            raise InputError(f"--rank-by {self.expression!r} has neither teacher nor reference in it")

    @property
    def names(self) -> frozenset[str]:
        """Which of teacher, reference and tokens the expression needs."""
        return frozenset(node.id for node in ast.walk(self._tree()) if isinstance(node, ast.Name)) & _NAMES

    @property
    def is_difference(self) -> bool:
        return self.expression == DIFFERENCE

    def values(
        self,
        teacher_nll_N: np.ndarray | None,
        reference_nll_N: np.ndarray | None,
        num_scored_N: np.ndarray,
        text_bytes_N: np.ndarray | None = None,
    ) -> np.ndarray:
        """One value a sequence, float64; -inf where nothing was scored, so that such sequences are kept last.

        Args:
            teacher_nll_N, reference_nll_N: sums in nats; None where the expression does not name it.
            num_scored_N: scored tokens.
            text_bytes_N: of UTF-8, for bits a byte.
        """
        if self.reduction == "bits-per-byte":
            assert text_bytes_N is not None
            is_known_N = (num_scored_N > 0) & (text_bytes_N > 0)
            unit_N = np.maximum(text_bytes_N, 1) * math.log(2)
        else:
            is_known_N = num_scored_N > 0
            unit_N = np.maximum(num_scored_N, 1) if self.reduction == "mean" else np.ones(1)
        with np.errstate(all="ignore"):  # what is no number is refused by the caller, with its sequence
            if self.is_difference:
                assert teacher_nll_N is not None
                assert reference_nll_N is not None
                value_N = reference_nll_N.astype(np.float64)
                value_N -= teacher_nll_N
                value_N /= unit_N
            else:
                variables = {"tokens": num_scored_N.astype(np.float64)}
                for name, nll_N in (("teacher", teacher_nll_N), ("reference", reference_nll_N)):
                    if nll_N is not None:
                        variables[name] = nll_N.astype(np.float64) / unit_N
                value_N = np.array(np.broadcast_to(_evaluate(self._tree(), variables), num_scored_N.shape), np.float64)
        value_N[~is_known_N] = -np.inf
        return value_N

    def _tree(self) -> ast.expr:
        try:
            return ast.parse(self.expression, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise InputError(f"--rank-by {self.expression!r} is not an expression, such as '-teacher'") from None

    def _check(self, node: ast.AST) -> None:
        ok = isinstance(node, (ast.expr_context, ast.operator, ast.unaryop)) or (
            (isinstance(node, ast.Name) and node.id in _NAMES)
            or (isinstance(node, ast.Constant) and type(node.value) in (int, float))
            or (isinstance(node, (ast.BinOp, ast.UnaryOp)) and type(node.op) in _OPERATORS)
            or (isinstance(node, ast.Call) and self._is_known_call(node))
        )
        if not ok:
            raise InputError(
                f"--rank-by {self.expression!r}: {ast.unparse(node)!r} is not allowed; "
                f"use {', '.join(sorted(_NAMES))}, numbers, + - * / ( ) and {', '.join(_FUNCTIONS)}"
            )

    @staticmethod
    def _is_known_call(node: ast.Call) -> bool:
        num_arguments = 2 if isinstance(node.func, ast.Name) and node.func.id in ("max", "min") else 1
        is_known = isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS
        return is_known and len(node.args) == num_arguments and not node.keywords


def _evaluate(node: ast.expr, variables: dict[str, np.ndarray]) -> np.ndarray:
    """The value of a checked expression."""
    match node:
        case ast.Name(id=name):
            return variables[name]
        case ast.Constant(value=value):
            return np.float64(value)  # type: ignore[return-value,arg-type]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_evaluate(left, variables), _evaluate(right, variables))
        case ast.UnaryOp(op=op, operand=operand):
            return _OPERATORS[type(op)](_evaluate(operand, variables))
        case ast.Call(func=ast.Name(id=name), args=arguments):
            return _FUNCTIONS[name](*(_evaluate(argument, variables) for argument in arguments))
    raise AssertionError(ast.dump(node))


#: Settings of a store that shape the context in which a token is scored, and the flags that set them.
_CONTEXT_SETTINGS = {"context_tokens": "--seq-length", "overlap_tokens": "--window-overlap"}
#: Share of negative differences from which on teacher and reference were probably exchanged. A teacher that is better
#: than its reference has few; two models that are equally good have half.
SUSPICIOUS_NEGATIVE_FRACTION = 0.9


def refuse_incomparable(corpus: ScoredCorpus) -> None:
    """Check that teacher and reference are two models that were asked the same.

    Raises:
        InputError: both stores are of one model.
        FingerprintMismatchError: they were scored in different contexts.
    """
    if not {TEACHER, REFERENCE} <= corpus.stores.keys():
        return
    teacher, reference = corpus.stores[TEACHER], corpus.stores[REFERENCE]
    if teacher.identity["model"] == reference.identity["model"]:
        raise InputError(
            f"{teacher.directory} and {reference.directory} are scores of one and the same model, so that every "
            "difference is 0: give the scores of the teacher and those of the reference"
        )
    for name, flag in _CONTEXT_SETTINGS.items():
        one, other = (store.identity["settings"].get(name) for store in (teacher, reference))
        if one != other:
            raise FingerprintMismatchError(
                f"{teacher.directory} was scored with {flag} {one}, {reference.directory} with {other}: score both "
                "with the same, or differences are those of the contexts"
            )


def warning_of(summary: dict[str, Any], *, is_difference: bool) -> str | None:
    """What is suspicious about a finished selection; None if nothing is.

    Args:
        summary: what `selection.json` holds.
        is_difference: whether sequences are ranked by the difference of two models.
    """
    if _is_of_one_value(summary):
        return (
            "warning: every sequence has the same value, or none has one, so that the first of the corpus are kept: "
            "check that the two stores are of different models, and --rank-by"
        )
    fraction = summary["negative_fraction"]
    if not is_difference or fraction < SUSPICIOUS_NEGATIVE_FRACTION:
        return None
    return (
        f"warning: the teacher is worse than the reference on {fraction:.1%} of the sequences: check that "
        "--teacher-scores and --reference-scores are not swapped, and that the teacher's checkpoint, tokenizer and "
        "flags are right"
    )


def _is_of_one_value(summary: dict[str, Any]) -> bool:
    """Whether nothing was ranked: the lowest kept value is the mean of the kept and of all."""
    lowest = summary["lowest_kept_value"]
    if lowest is None:
        return bool(summary["num_kept"])
    means = (summary["mean_value"], summary["mean_kept_value"])
    is_mean = all(math.isclose(lowest, mean, rel_tol=1e-9, abs_tol=1e-12) for mean in means)
    return is_mean and summary["num_eligible"] > 1
