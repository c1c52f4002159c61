"""Of which checkpoints the held-out loss is wanted, and what is said of it. Imports no torch."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_miniplm.errors import InputError
from megatron_miniplm.evaluation.held_out import CorpusLoss, Loss
from megatron_miniplm.runtime.text_table import aligned

LATEST, ALL = "latest", "all"
_ITERATION = re.compile(r"iter_(\d{7,})")


def choose_iterations(load: Path, latest: Path, wanted: Sequence[str], every_nth: int = 1) -> list[int | None]:
    """Iterations in ascending order; None stands for a checkpoint without a number (`release`).

    Args:
        load: directory of the run.
        latest: directory of the checkpoint that its tracker names. Later ones are left out: they may be half written.
        wanted: LATEST, ALL, or numbers.
        every_nth: of those, keep every n-th, counted back from the last.

    Raises:
        InputError: an iteration that is not there, or a word that is none.
    """
    number = _ITERATION.fullmatch(latest.name)
    if number is None:
        if list(wanted) not in ([LATEST], [ALL]):
            raise InputError(f"{latest} is the only checkpoint that {load} names, and has no number: give latest")
        return [None]
    found = (_ITERATION.fullmatch(path.name) for path in load.iterdir() if path.is_dir())
    saved = sorted(int(match[1]) for match in found if match and 0 < int(match[1]) <= int(number[1]))
    chosen: list[int | None]
    if list(wanted) == [LATEST]:
        chosen = [int(number[1])]
    elif list(wanted) == [ALL]:
        chosen = [*saved]
    else:
        chosen = [*sorted({_iteration(word) for word in wanted})]
        if missing := [iteration for iteration in chosen if iteration not in saved]:
            raise InputError(f"{load} has no iteration {missing[0]}: it has {', '.join(map(str, saved))}")
    return chosen[::-1][::every_nth][::-1]


def _iteration(word: str) -> int:
    if not word.isdecimal():
        raise InputError(f"--checkpoint-iterations {word}: expected {LATEST}, {ALL}, or iterations")
    return int(word)


_COLUMNS = ("sequences", "tokens", "loss", "std. error", "perplexity", "bits a byte")
_WIDTH = max(map(len, _COLUMNS))


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row of the table.

    Attributes:
        checkpoint: `iter_0000500`, `release`, or the name of a Hugging Face directory.
        iteration: None where it has none.
        trained_tokens: that the model had read when it was saved; None where the checkpoint does not say.
        losses: by name of the corpus.
    """

    checkpoint: str
    iteration: int | None
    trained_tokens: int | None
    losses: dict[str, CorpusLoss]


def table(rows: Sequence[Measured]) -> list[str]:
    """Loss of every checkpoint on every corpus, then all numbers of the last checkpoint, by domain."""
    names = list(rows[0].losses)
    cells = [[row.checkpoint, *(_with_error(row.losses[name].whole) for name in names)] for row in rows]
    title = "held-out loss, nats a token (standard error over sequences)"
    return [title, "", *aligned([["checkpoint", *names], *cells]), "", *_details(rows[-1])]


def as_json(row: Measured) -> dict[str, Any]:
    return {
        "checkpoint": row.checkpoint,
        "iteration": row.iteration,
        "trained_tokens": row.trained_tokens,
        "corpora": {
            name: {
                **_loss_as_json(loss.whole),
                "domains": {domain: _loss_as_json(part) for domain, part in loss.domains.items()},
            }
            for name, loss in row.losses.items()
        },
    }


def _details(row: Measured) -> list[str]:
    """A line a corpus, and a line a domain where there are several."""
    labelled: list[tuple[str, Loss]] = []
    for name, corpus in row.losses.items():
        labelled.append((name, corpus.whole))
        if len(corpus.domains) > 1:
            labelled += ((f"  {domain or '(none)'}", part) for domain, part in corpus.domains.items())
    cells = [[row.checkpoint, *(column.rjust(_WIDTH) for column in _COLUMNS)]]
    for label, loss in labelled:
        numbers = (
            f"{loss.num_sequences:,}",
            f"{loss.num_tokens:,}",
            _number(loss.nats_per_token),
            _number(loss.standard_error_nats),
            _number(loss.perplexity, decimals=2),
            _number(loss.bits_per_byte),
        )
        cells.append([label, *numbers])
    return aligned(cells)


def _loss_as_json(loss: Loss) -> dict[str, Any]:
    return {
        "num_sequences": loss.num_sequences,
        "num_tokens": loss.num_tokens,
        "text_bytes": loss.text_bytes,
        "nll_nats": loss.nll_nats,
        "loss_nats_per_token": loss.nats_per_token,
        "standard_error_nats_per_token": loss.standard_error_nats,
        "perplexity": loss.perplexity,
        "bits_per_byte": loss.bits_per_byte,
    }


def _with_error(loss: Loss) -> str:
    error = loss.standard_error_nats
    return _number(loss.nats_per_token) + ("" if error is None else f" ({error:.4f})")


def _number(value: float | None, decimals: int = 4) -> str:
    return "-" if value is None else f"{value:,.{decimals}f}"
