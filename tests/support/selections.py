"""Selections made in a line, and ranks that are threads."""

import json
import threading
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from megatron_runs import write_corpus

from megatron_miniplm.artifacts.atomic import write_array
from megatron_miniplm.artifacts.manifest import checksum_of
from megatron_miniplm.artifacts.selected_arrays import CHECKSUM_DTYPE, BlockChecksums
from megatron_miniplm.artifacts.selections import ARRAYS, SELECTION
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.sidecar import SCHEMA, SidecarWriter
from megatron_miniplm.selection.difference import DIFFERENCE, Measure
from megatron_miniplm.selection.ranks import Ranks
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.sampling import difference_sample
from megatron_miniplm.selection.scored_corpus import PREDICTIONS, REFERENCE, TEACHER

#: Of `difference_sample`; other options are of its rule.
_OPTIONS = ("index_only", "seen_by_reference", "reference_data", "ranks")


def sample(
    teacher: Path | None,
    reference: Path | None,
    output: Path,
    *,
    predicted: Path | None = None,
    reduction: str = "mean",
    expression: str = DIFFERENCE,
    **options: Any,
) -> dict[str, Any]:
    """Select, by default half by the difference a token."""
    given = {PREDICTIONS: predicted, TEACHER: teacher, REFERENCE: reference}
    scores = {role: directory for role, directory in given.items() if directory is not None}
    rule = {name: value for name, value in options.items() if name not in _OPTIONS}
    if not {"ratio", "target_tokens", "threshold"} & rule.keys():
        rule["ratio"] = 0.5
    return difference_sample(
        scores,
        output,
        Rule(measure=Measure(expression=expression, reduction=reduction), **rule),
        **{name: value for name, value in options.items() if name in _OPTIONS},
    )


class ThreadRanks:
    """One of several ranks that are threads of this process."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, slots: list[Any]) -> None:
        self.rank = rank
        self.size = size
        self._barrier = barrier
        self._slots = slots

    def sum(self, array: np.ndarray) -> np.ndarray:
        return np.sum(self.gather(array), axis=0)

    def gather(self, value: Any) -> list[Any]:
        self._slots[self.rank] = value
        self._barrier.wait()
        values = list(self._slots)
        self._barrier.wait()
        return values

    def close(self) -> None:
        pass


def on_ranks[Result](body: Callable[[Ranks], Result], num_ranks: int) -> list[Result]:
    """What every rank returns; an error of one ends all."""
    barrier, slots = threading.Barrier(num_ranks), [None] * num_ranks

    def run(rank: int) -> Result:
        try:
            return body(ThreadRanks(rank, num_ranks, barrier, slots))
        except BaseException:
            barrier.abort()
            raise

    with ThreadPoolExecutor(num_ranks) as threads:
        return list(threads.map(run, range(num_ranks)))


def write_sidecar(corpus: IndexedCorpus, domains: Sequence[str | None], text_bytes: Sequence[int]) -> None:
    """A sidecar of one piece per sequence; places in the text are made up."""
    num_sequences = len(corpus)
    columns = {
        "sequence": list(range(num_sequences)),
        "source": ["text.jsonl"] * num_sequences,
        "position": list(range(num_sequences)),
        "piece": [0] * num_sequences,
        "start_byte": [0] * num_sequences,
        "text_bytes": list(text_bytes),
        "num_tokens": corpus.lengths_N.tolist(),
        "crc32": [zlib.crc32(corpus.sequence(sequence)) for sequence in range(num_sequences)],
        "id": [str(sequence) for sequence in range(num_sequences)],
        "domain": list(domains),
    }
    arrays = []
    for field in SCHEMA:
        is_dictionary = pa.types.is_dictionary(field.type)
        array = pa.array(columns[field.name], pa.string() if is_dictionary else field.type)
        arrays.append(array.dictionary_encode() if is_dictionary else array)
    with SidecarWriter(corpus.prefix) as writer:
        writer.append(pa.Table.from_arrays(arrays, schema=SCHEMA))
        writer.close()


def seal(directory: Path) -> None:
    """Make a selection that was written or changed by hand whole again: checksums and manifest of what is there."""
    entries = json.loads((directory / SELECTION).read_text())["prefixes"]
    names = [SELECTION]
    for entry in entries:
        crc32 = {}
        for what in ("indices", "weights", "values"):
            array = np.load(directory / entry[what])
            checksums = BlockChecksums(array.dtype)
            checksums.add(array)
            crc32[what] = checksums.finished()
        checksums_B = np.zeros(len(crc32["indices"]), CHECKSUM_DTYPE)
        for what, found in crc32.items():
            checksums_B[what] = found
        write_array(directory / entry["checksums"], checksums_B)
        names += [entry[what] for what in ARRAYS]
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"] = {name: checksum_of(directory / name) for name in names}
    (directory / "manifest.json").write_text(json.dumps(manifest))


def write_corpora(directory: Path, lengths: list[int], cut: list[int]) -> list[IndexedCorpus]:
    """Sequences of these lengths, in prefixes of `cut` sequences each."""
    bounds = np.cumsum([0, *cut])
    return [
        write_corpus(directory / f"part{part}", [[1] * length for length in lengths[start:stop]])
        for part, (start, stop) in enumerate(pairwise(bounds))
    ]


def kept_sequences(output: Path, cut: list[int]) -> list[int]:
    """Global ids of what a selection from such corpora keeps."""
    starts = np.cumsum([0, *cut])
    arrays = [np.load(path) for path in sorted(output.glob("*.indices.npy"))]
    return [int(index + start) for array, start in zip(arrays, starts, strict=False) for index in array]
