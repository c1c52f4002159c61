"""Difference sampling on disk: two score stores -> indices, refined views and a blend for Megatron."""

from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.atomic import write_array, write_json
from megatron_miniplm.artifacts.data_args import write_data_args
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, digest_array, digest_values
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import (
    Manifest,
    checksum_of,
    input_of,
    load_manifest,
    refuse_another,
)
from megatron_miniplm.artifacts.scores import NOT_SCORED, PREDICTED_DIFFERENCE, ScoreStore
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus, write_view
from megatron_miniplm.selection.difference import differences
from megatron_miniplm.selection.top import check_ratio, top_sequences, top_tokens

SELECTION = "selection.json"
PREDICTIONS = "predicted differences"


def difference_sample(
    teacher_dir: Path | None,
    reference_dir: Path | None,
    output_dir: Path,
    *,
    predicted_dir: Path | None = None,
    ratio: float,
    ratio_of: str = "sequences",
    reduction: str = "mean",
) -> dict[str, Any]:
    """Keep the sequences that the teacher knows much better than the reference.

    Args:
        teacher_dir, reference_dir: finished score stores of the same corpus; both or none where there is a prediction,
            and then they may be sampled: a difference that is known goes before one that is predicted.
        predicted_dir: finished store of predicted differences, from `fit-proxy`.
        output_dir: gets `selection.json`, `data_args.txt`, and per prefix the indices and a view.
        ratio: share to keep, in (0, 1].
        ratio_of: what the share is of, `sequences` or `tokens` (scored tokens).
        reduction: see `differences`.

    Returns:
        What `selection.json` holds.

    Raises:
        MiniPLMError: the stores are incomplete or of different corpora, a corpus has changed, or `output_dir` holds
            another selection.
    """
    check_ratio(ratio)
    roles = {PREDICTIONS: predicted_dir, "teacher scores": teacher_dir, "reference scores": reference_dir}
    stores = {role: ScoreStore.open(directory) for role, directory in roles.items() if directory is not None}
    fingerprints = {role: store.require_complete().fingerprint for role, store in stores.items()}
    _check_stores(stores)
    corpora = _open_corpora(next(iter(stores.values())))
    settings = {"ratio": ratio, "ratio_of": ratio_of, "score_reduction": reduction}
    fingerprint = digest_values("selection", *fingerprints.values(), settings)
    refuse_another(output_dir, "selection", fingerprint)

    nlls_and_tokens = (_read_differences if predicted_dir is None else _read_predicted)(*stores.values())
    value_N, num_tokens_N = differences(*nlls_and_tokens, reduction), nlls_and_tokens[-1]
    kept_K = _top(value_N, num_tokens_N, ratio, ratio_of)

    prefixes = _write_prefixes(output_dir, corpora, kept_K, {**settings, "selection": fingerprint[:SHORT_HEX]})
    write_data_args(output_dir, [(prefix["num_tokens"], output_dir / prefix["view"]) for prefix in prefixes])
    summary = {**settings, **_statistics(value_N, num_tokens_N, kept_K), "prefixes": prefixes}
    write_json(output_dir / SELECTION, summary)
    own_files = [output_dir / SELECTION, *(output_dir / prefix["indices"] for prefix in prefixes)]
    Manifest(
        kind="selection",
        fingerprint=fingerprint,
        counts={"num_sequences": len(kept_K), "num_tokens": sum(prefix["num_tokens"] for prefix in prefixes)},
        settings=settings,
        inputs=tuple(
            input_of(role, store.directory, fingerprints[role], relative_to=output_dir)
            for role, store in stores.items()
        ),
        files={path.name: checksum_of(path) for path in own_files},
    ).write(output_dir)
    return summary


def _top(value_N: np.ndarray, num_tokens_N: np.ndarray, ratio: float, ratio_of: str) -> np.ndarray:
    if ratio_of == "sequences":
        return top_sequences(value_N, max(1, round(ratio * len(value_N))))
    return top_tokens(value_N, num_tokens_N, ratio * int(num_tokens_N.sum(dtype=np.int64)))


def _check_stores(stores: dict[str, ScoreStore]) -> None:
    """Refuse stores that hold something else than their role says, or that are of different corpora."""
    for role, store in stores.items():
        expected = PREDICTED_DIFFERENCE if role == PREDICTIONS else "NLL"
        if store.quantity != expected:
            raise InputError(
                f"{store.directory} holds {store.quantity}s, expected {expected}s: what fit-proxy writes goes to "
                "--difference-scores, what score-corpus writes to --teacher-scores and --reference-scores"
            )
    first, *others = stores.values()
    for other in others:
        _check_same_corpus(first, other)


def _check_same_corpus(one: ScoreStore, other: ScoreStore) -> None:
    def described(store: ScoreStore) -> str:
        return ", ".join(
            f"{prefix['name']} [{prefix['fingerprint'][:SHORT_HEX]}]" for prefix in store.identity["corpus"]
        )

    if one.identity["corpus"] != other.identity["corpus"]:
        raise FingerprintMismatchError(
            f"{one.directory} holds scores of {described(one)}, but {other.directory} of "
            f"{described(other)}: score the same prefixes, in the same order, with both models"
        )


def _open_corpora(store: ScoreStore) -> list[IndexedCorpus]:
    """The corpora that a store was computed on, where its manifest says they lie.

    Raises:
        FingerprintMismatchError: one of them is no longer what was scored.
    """
    corpora = []
    for parent in load_manifest(store.directory).inputs:
        if parent.role != "corpus":
            continue
        corpus = IndexedCorpus.open(parent_path(store.directory, parent))
        if (found := corpus.fingerprint()) != parent.fingerprint:
            raise FingerprintMismatchError(
                f"{store.directory} was computed on {corpus.prefix.name} [{parent.fingerprint[:SHORT_HEX]}], but "
                f"{corpus.prefix} is now [{found[:SHORT_HEX]}]: score it again, or bring the old corpus back"
            )
        corpora.append(corpus)
    return corpora


def _read_differences(teacher: ScoreStore, reference: ScoreStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """NLL sums of the teacher and of the reference, and numbers of tokens; both must have scored every sequence."""
    ours, theirs = teacher.read_all(), reference.read_all()
    for store, scores in ((teacher, ours), (reference, theirs)):
        if num_left_out := int((scores["num_tokens"] == NOT_SCORED).sum()):
            raise InputError(
                f"{store.directory} holds scores of a random part of the corpus ({num_left_out:,} of {len(scores):,} "
                "sequences were left out): score all of it, or let miniplm fit-proxy predict the difference of the "
                "rest and give --difference-scores"
            )
    _check_same_counts(teacher, ours, reference, theirs, np.full(len(ours), True))
    if not ours["num_tokens"].any():
        raise InputError(f"{teacher.directory} has no scored tokens: the corpus has no sequence of two tokens or more")
    return ours["nll"], theirs["nll"], ours["num_tokens"]


def _read_predicted(predicted: ScoreStore, *known: ScoreStore) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same, with 0 for the teacher and the predicted difference for the reference.

    Where teacher and reference are given and have scored a sequence, their own NLLs stand.
    """
    scores = predicted.read_all()
    teacher_nll_N, reference_nll_N = np.zeros(len(scores), np.float32), scores["nll"]
    if known:
        teacher, reference = known
        ours, theirs = teacher.read_all(), reference.read_all()
        known_N = (ours["num_tokens"] != NOT_SCORED) & (theirs["num_tokens"] != NOT_SCORED)
        _check_same_counts(teacher, ours, reference, theirs, known_N)
        _check_same_counts(teacher, ours, predicted, scores, known_N)
        teacher_nll_N = np.where(known_N, ours["nll"], teacher_nll_N)
        reference_nll_N = np.where(known_N, theirs["nll"], reference_nll_N)
    return teacher_nll_N, reference_nll_N, scores["num_tokens"]


def _check_same_counts(
    one: ScoreStore, ours: np.ndarray, other: ScoreStore, theirs: np.ndarray, compared_N: np.ndarray
) -> None:
    differs_N = compared_N & (ours["num_tokens"] != theirs["num_tokens"])
    if differs_N.any():
        first = int(np.argmax(differs_N))
        raise FingerprintMismatchError(
            f"sequence {first} has {ours['num_tokens'][first]} scored tokens in {one.directory} and "
            f"{theirs['num_tokens'][first]} in {other.directory}: score both with the same settings"
        )


def _write_prefixes(
    output_dir: Path, corpora: list[IndexedCorpus], kept_K: np.ndarray, settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """Per prefix: the kept sequences' indices and a view of them."""
    prefixes, start = [], 0
    for position, corpus in enumerate(corpora):
        lo, hi = np.searchsorted(kept_K, (start, start + len(corpus)))
        indices_K = kept_K[lo:hi] - start
        indices_path = output_dir / f"{position:04d}_{corpus.prefix.name}.indices.npy"
        write_array(indices_path, indices_K)
        view = write_view(corpus, indices_K, output_dir, label="refined", settings=settings)
        prefixes.append(
            {
                "name": corpus.prefix.name,
                "num_sequences": len(indices_K),
                "num_tokens": int(corpus.lengths_N[indices_K].sum(dtype=np.int64)),
                "indices": indices_path.name,
                "indices_digest": digest_array(indices_K),
                "view": view.name,
            }
        )
        start += len(corpus)
    return prefixes


def _statistics(value_N: np.ndarray, num_tokens_N: np.ndarray, kept_K: np.ndarray) -> dict[str, Any]:
    """Numbers that tell whether the selection makes sense; differences in the unit of the reduction."""
    scored_N = num_tokens_N > 0
    kept_scored_K = kept_K[scored_N[kept_K]]
    return {
        "num_sequences": len(value_N),
        "num_kept": len(kept_K),
        "num_scored_tokens": int(num_tokens_N.sum(dtype=np.int64)),
        "num_kept_scored_tokens": int(num_tokens_N[kept_K].sum(dtype=np.int64)),
        "threshold": float(threshold) if np.isfinite(threshold := value_N[kept_K].min()) else None,
        "mean_difference": float(value_N[scored_N].mean()),
        "mean_kept_difference": float(value_N[kept_scored_K].mean()),
        "negative_fraction": float((value_N[scored_N] < 0).mean()),
    }
