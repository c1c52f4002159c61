"""Thresholds -> files: indices and weights of every prefix, and views of them."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from megatron_miniplm.artifacts.atomic import array_output, write_array
from megatron_miniplm.artifacts.manifest import input_of
from megatron_miniplm.artifacts.selected_arrays import (
    CHECKSUM_DTYPE,
    INDEX_DTYPE,
    VALUE_DTYPE,
    WEIGHT_DTYPE,
    BlockChecksums,
)
from megatron_miniplm.artifacts.selections import ARRAYS, copies_of
from megatron_miniplm.indexed import write_view
from megatron_miniplm.runtime.progress import Progress
from megatron_miniplm.selection.candidates import CandidateReader, Candidates
from megatron_miniplm.selection.ranks import Ranks
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.scored_corpus import (
    CHUNK_SEQUENCES,
    Piece,
    ScoredCorpus,
    map_in_order,
)
from megatron_miniplm.selection.top import Threshold
from megatron_miniplm.selection.weighting import NUM_BINS, Sums, Weighting, bins


@dataclass(kw_only=True)
class Tally:
    """What the sequences of one prefix add up to; `kept` ones are those of the selection.

    Attributes:
        value_sums, kept_value_sums: of finite values, one a piece of the prefix.
        weighted_tokens: sum of weight times tokens of the kept sequences.
        low, high: least and greatest finite value that is kept.
        view: name of the view; None without.
    """

    num_eligible: int = 0
    num_scored: int = 0
    num_negative: int = 0
    num_scored_tokens: int = 0
    num_kept: int = 0
    num_kept_scored: int = 0
    num_kept_scored_tokens: int = 0
    num_kept_tokens: int = 0
    weighted_tokens: float = 0.0
    value_sums: list[float] = field(default_factory=list)
    kept_value_sums: list[float] = field(default_factory=list)
    low: float = math.inf
    high: float = -math.inf
    view: str | None = None

    def add(self, candidates: Candidates, places_K: np.ndarray, length_K: np.ndarray) -> None:
        """Count one piece, of which the sequences at `places_K` are kept."""
        finite_N = np.isfinite(candidates.value_N)
        value_K, finite_K = candidates.value_N[places_K], finite_N[places_K]
        num_scored_N = candidates.scores.num_scored_N
        self.num_eligible += int(np.count_nonzero(candidates.is_eligible_N))
        self.num_scored += int(np.count_nonzero(finite_N))
        self.num_negative += int(np.count_nonzero((candidates.value_N < 0) & finite_N))
        self.num_scored_tokens += int(num_scored_N.sum(dtype=np.int64))
        self.num_kept += len(value_K)
        self.num_kept_scored += int(np.count_nonzero(finite_K))
        self.num_kept_scored_tokens += int(num_scored_N[places_K].sum(dtype=np.int64))
        self.num_kept_tokens += int(length_K.sum(dtype=np.int64))
        self.value_sums.append(float(candidates.value_N.sum(where=finite_N)))
        self.kept_value_sums.append(float(value_K.sum(where=finite_K)))
        self.low = min(self.low, float(value_K.min(where=finite_K, initial=math.inf)))
        self.high = max(self.high, float(value_K.max(where=finite_K, initial=-math.inf)))


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written, of all prefixes and on all ranks."""

    tallies: list[Tally]

    def statistics(self) -> dict[str, Any]:
        """Numbers that tell whether the selection makes sense; values in the unit of the measure."""
        tallies = self.tallies
        num_scored = sum(tally.num_scored for tally in tallies)
        num_kept_scored = sum(tally.num_kept_scored for tally in tallies)
        low = min((tally.low for tally in tallies), default=math.inf)
        return {
            "num_eligible": sum(tally.num_eligible for tally in tallies),
            "num_kept": sum(tally.num_kept for tally in tallies),
            "num_kept_tokens": sum(tally.num_kept_tokens for tally in tallies),
            "num_scored_tokens": sum(tally.num_scored_tokens for tally in tallies),
            "num_kept_scored_tokens": sum(tally.num_kept_scored_tokens for tally in tallies),
            "lowest_kept_value": low if math.isfinite(low) else None,
            "mean_value": math.fsum(chain.from_iterable(tally.value_sums for tally in tallies)) / max(1, num_scored),
            "mean_kept_value": math.fsum(chain.from_iterable(tally.kept_value_sums for tally in tallies))
            / max(1, num_kept_scored),
            "negative_fraction": sum(tally.num_negative for tally in tallies) / max(1, num_scored),
        }

    def entries(self, corpus: ScoredCorpus, output_dir: Path) -> list[dict[str, Any]]:
        """`prefixes` of `selection.json`."""
        return [
            {
                "name": prefix.name,
                "path": input_of("corpus", prefix, fingerprint, relative_to=output_dir).path,
                "fingerprint": fingerprint,
                "num_source_sequences": corpus.starts_P[position + 1] - corpus.starts_P[position],
                "num_sequences": tally.num_kept,
                "num_tokens": tally.num_kept_tokens,
                "weighted_tokens": tally.weighted_tokens,
                **{what: array_name(corpus, position, what) for what in ARRAYS},
                "view": tally.view,
            }
            for position, (prefix, fingerprint, tally) in enumerate(
                zip(corpus.prefixes, corpus.fingerprints, self.tallies, strict=True)
            )
        ]


@dataclass(frozen=True, kw_only=True)
class Writer:
    """Writes what the thresholds keep; every method is a collective call, and each rank writes some of the prefixes."""

    corpus: ScoredCorpus
    reader: CandidateReader
    rule: Rule
    thresholds: list[Threshold]
    output_dir: Path
    ranks: Ranks
    _checksums: dict[tuple[int, str], BlockChecksums] = field(default_factory=dict)

    def write_arrays(self) -> Written:
        """Indices, values and weights of every prefix, and their checksums."""
        tallies = {}
        with self._progress("writing indices") as progress:
            for position in self._mine():
                tallies[position] = self._write_indices(position, progress)
        if self.rule.weights != "none":
            self._write_weights(self._fit(self._merge(tallies)), tallies)
        for position in self._mine():
            self._write_checksums(position)
        return Written(tallies=self._merge(tallies))

    def write_views(self, written: Written, scratch: Path, settings: dict[str, Any]) -> None:
        """A view of every prefix; with `repeat`, of every sequence as often as its weight says."""

        def write(position: int) -> str:
            indices_path = self._array_path(position, "indices")
            if self.rule.repeat:
                indices_path = self._repeated(position, scratch)
            sequences_K = np.load(indices_path, mmap_mode="r" if written.tallies[position].num_kept else None)
            corpus = self.corpus.corpus(position)
            return write_view(
                corpus,
                sequences_K,
                self.output_dir,
                label="refined",
                settings=settings,
                source_fingerprint=self.corpus.fingerprints[position],
            ).name

        mine = self._mine()
        names = dict(zip(mine, map_in_order(write, mine), strict=True))
        for found in self.ranks.gather(names):
            for position, name in found.items():
                written.tallies[position].view = name

    def _write_indices(self, position: int, progress: Progress) -> Tally:
        """The indices and values, and the weights where all are 1."""
        tally = Tally()
        with ExitStack() as stack:
            write_indices = stack.enter_context(self._checked_output(position, "indices", INDEX_DTYPE))
            write_values = stack.enter_context(self._checked_output(position, "values", VALUE_DTYPE))
            if self.rule.weights == "none":
                write_weights = stack.enter_context(self._checked_output(position, "weights", WEIGHT_DTYPE))
            for candidates, kept_N in self._kept(position, progress):
                places_K = np.flatnonzero(kept_N)
                tally.add(candidates, places_K, self.corpus.lengths(candidates.piece)[places_K])
                write_indices(places_K + candidates.piece.first)
                write_values(candidates.value_N[places_K])
                if self.rule.weights == "none":
                    write_weights(np.ones(len(places_K), WEIGHT_DTYPE))
        if self.rule.weights == "none":
            tally.weighted_tokens = float(tally.num_kept_tokens)
        return tally

    def _fit(self, tallies: list[Tally]) -> Weighting:
        low, high = (pick(getattr(tally, name) for tally in tallies) for pick, name in ((min, "low"), (max, "high")))
        if not math.isfinite(low):
            low = high = 0.0  # nothing that is kept was scored: all weigh 1
        counts = np.zeros(NUM_BINS, np.int64)
        with self._progress("values of the kept sequences") as progress:
            for value_K in self._kept_values(progress):
                counts += np.bincount(bins(value_K, low, high), minlength=NUM_BINS)
        weighting = Weighting.fitted(self.rule, low, high, self.ranks.sum(counts))

        def sums(weighting: Weighting) -> list[Sums]:
            with self._progress("sum of the weights") as progress:
                parts = [weighting.partial_sums(value_K) for value_K in self._kept_values(progress)]
            return list(chain.from_iterable(self.ranks.gather(parts)))

        return weighting.balanced(sums)

    def _write_weights(self, weighting: Weighting, tallies: dict[int, Tally]) -> None:
        with self._progress("writing weights") as progress:
            for position in self._mine():
                with self._checked_output(position, "weights", WEIGHT_DTYPE) as write:
                    for candidates, kept_N in self._kept(position, progress):
                        weight_K = weighting.weights(candidates.value_N[kept_N])
                        length_K = self.corpus.lengths(candidates.piece)[kept_N]
                        tallies[position].weighted_tokens += float(np.dot(weight_K.astype(np.float64), length_K))
                        write(weight_K)

    def _repeated(self, position: int, scratch: Path) -> Path:
        """The indices, each as often as it is to be read."""
        path = scratch / f"{position:04d}.repeated.npy"
        indices_K, weight_K = (
            np.load(self._array_path(position, name), mmap_mode="r") for name in ("indices", "weights")
        )
        with array_output(path, INDEX_DTYPE) as write:
            for start in range(0, len(indices_K), CHUNK_SEQUENCES):
                part = slice(start, start + CHUNK_SEQUENCES)
                ids_K = indices_K[part] + self.corpus.starts_P[position]
                write(np.repeat(indices_K[part], copies_of(weight_K[part], ids_K, seed=self.rule.seed)))
        return path

    def _kept_values(self, progress: Progress) -> Iterator[np.ndarray]:
        for position in self._mine():
            for candidates, kept_N in self._kept(position, progress):
                yield candidates.value_N[kept_N]

    def _kept(self, position: int, progress: Progress) -> Iterator[tuple[Candidates, np.ndarray]]:
        """The pieces of a prefix, and which of their sequences are kept."""

        def look(piece: Piece) -> tuple[Candidates, np.ndarray]:
            candidates = self.reader.read(piece)
            return candidates, self.reader.kept(candidates, self.thresholds)

        for candidates, kept_N in map_in_order(look, self.corpus.pieces([position])):
            yield candidates, kept_N
            progress.advance(candidates.piece.size)

    def _progress(self, what: str) -> Progress:
        total = sum(piece.size for piece in self.corpus.pieces(self._mine()))
        return Progress(total, " sequences", visible=self.ranks.rank == 0, title=what)

    def _mine(self) -> list[int]:
        return prefixes_of_rank(self.corpus, self.ranks)

    def _merge(self, tallies: dict[int, Tally]) -> list[Tally]:
        merged = {position: tally for found in self.ranks.gather(tallies) for position, tally in found.items()}
        return [merged[position] for position in sorted(merged)]

    @contextmanager
    def _checked_output(self, position: int, what: str, dtype: np.dtype) -> Iterator[Callable[[np.ndarray], None]]:
        """Write one array of a prefix, and take its checksums from memory, on the way to the disk."""
        checksums = self._checksums[position, what] = BlockChecksums(dtype)
        with array_output(self._array_path(position, what), dtype) as write:

            def append(values_K: np.ndarray) -> None:
                checksums.add(values_K)
                write(values_K)

            yield append

    def _write_checksums(self, position: int) -> None:
        found = {what: self._checksums[position, what].finished() for what in CHECKSUM_DTYPE.names or ()}
        checksums_B = np.zeros(len(found["indices"]), CHECKSUM_DTYPE)
        for what, crc32_B in found.items():
            checksums_B[what] = crc32_B
        write_array(self._array_path(position, "checksums"), checksums_B)

    def _array_path(self, position: int, what: str) -> Path:
        return self.output_dir / array_name(self.corpus, position, what)


def prefixes_of_rank(corpus: ScoredCorpus, ranks: Ranks) -> list[int]:
    """The prefixes that a rank writes: the largest first, each to the rank that has least."""
    sizes = [stop - start for start, stop in pairwise(corpus.starts_P)]
    loads, owner = [0] * ranks.size, {}
    for position in sorted(range(len(sizes)), key=lambda position: -sizes[position]):
        owner[position] = loads.index(min(loads))
        loads[owner[position]] += sizes[position] + 1
    return sorted(position for position, rank in owner.items() if rank == ranks.rank)


def array_name(corpus: ScoredCorpus, position: int, what: str) -> str:
    return f"{position:04d}_{corpus.prefixes[position].name}.{what}.npy"
