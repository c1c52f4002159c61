"""Held-out losses of checkpoints, for people and for scripts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_miniplm.evaluation.held_out import CorpusLoss, Loss
from megatron_miniplm.runtime.text_table import aligned

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
