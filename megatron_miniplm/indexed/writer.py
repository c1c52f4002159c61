"""A streaming writer whose memory does not grow with the corpus, and whose bytes are Megatron's."""

import os
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX, atomic_output, publish
from megatron_miniplm.artifacts.fingerprint import Fingerprint, hasher
from megatron_miniplm.artifacts.manifest import prefix_manifest_path
from megatron_miniplm.indexed.layout import LENGTH_DTYPE, POINTER_DTYPE, IndexHeader, bin_path, idx_path

_INDEX_CHUNK = 1 << 20  # sequences whose pointers are computed together


class IndexedWriter:
    """Writes `<prefix>.bin/.idx`; nothing is visible under the prefix before `close`.

    One document is one sequence, as in Megatron's `tools/preprocess_data.py`. Use as a context manager: an error in the
    block leaves nothing behind.

    Attributes:
        num_sequences, num_tokens: written so far.
    """

    def __init__(self, prefix: Path, token_dtype: np.dtype) -> None:
        self.prefix = prefix
        self.token_dtype = np.dtype(token_dtype)
        self.num_sequences = 0
        self.num_tokens = 0
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._temporary_bin = prefix.with_name(f".{prefix.name}.bin.{os.getpid()}{TEMPORARY_SUFFIX}")
        self._temporary_lengths = prefix.with_name(f".{prefix.name}.lengths.{os.getpid()}{TEMPORARY_SUFFIX}")
        self._bin: IO[bytes] = open(self._temporary_bin, "wb")  # noqa: SIM115 - closed by `close` or `abandon`
        self._lengths: IO[bytes] = open(self._temporary_lengths, "wb")  # noqa: SIM115
        self._digest = hasher()

    def append(self, tokens_T: np.ndarray, lengths_N: np.ndarray) -> None:
        """Add N sequences whose tokens lie one after the other.

        Args:
            tokens_T: token ids, any integer dtype; they must fit `token_dtype`.
            lengths_N: tokens of each sequence, summing to T.
        """
        data = np.ascontiguousarray(tokens_T, dtype=self.token_dtype).data
        self._bin.write(data)
        self._digest.update(data)
        self._lengths.write(np.ascontiguousarray(lengths_N, dtype=LENGTH_DTYPE).data)
        self.num_sequences += len(lengths_N)
        self.num_tokens += len(tokens_T)

    def close(self) -> dict[str, dict[str, int | Fingerprint]]:
        """Publish the pair, the `.idx` last: a prefix exists once its index does. An older pair is replaced.

        Returns:
            The manifest's `files` entries of both.
        """
        for stream in (self._bin, self._lengths):
            stream.flush()
            os.fsync(stream.fileno())
            stream.close()
        bin_bytes = self._temporary_bin.stat().st_size
        # Where an older pair is replaced, a crash must not leave its index or manifest beside the new data.
        for stale in (prefix_manifest_path(self.prefix), idx_path(self.prefix)):
            stale.unlink(missing_ok=True)
        publish(self._temporary_bin, bin_path(self.prefix))
        index = write_index(
            self.prefix,
            token_dtype=self.token_dtype,
            lengths_N=self._map_lengths(),
            boundaries_D=np.arange(self.num_sequences + 1, dtype=POINTER_DTYPE),
        )
        self._temporary_lengths.unlink()
        return {bin_path(self.prefix).name: {"bytes": bin_bytes, "blake2b": self._digest.hexdigest()}, **index}

    def abandon(self) -> None:
        """Remove everything written so far."""
        self._bin.close()
        self._lengths.close()
        self._temporary_bin.unlink(missing_ok=True)
        self._temporary_lengths.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.abandon()

    def _map_lengths(self) -> np.ndarray:
        if not self.num_sequences:
            return np.zeros(0, LENGTH_DTYPE)
        return np.memmap(self._temporary_lengths, LENGTH_DTYPE, mode="r")


def write_index(
    prefix: Path,
    *,
    token_dtype: np.dtype,
    lengths_N: np.ndarray,
    boundaries_D: np.ndarray,
    pointers_N: np.ndarray | None = None,
) -> dict[str, dict[str, int | Fingerprint]]:
    """Write an `.idx` atomically; without `pointers_N` the sequences lie one after the other.

    Returns:
        The manifest's `files` entry of the index.
    """
    path = idx_path(prefix)
    header = IndexHeader(token_dtype=token_dtype, num_sequences=len(lengths_N), num_boundaries=len(boundaries_D))
    digest = hasher()
    with atomic_output(path) as stream:
        parts = _contiguous_pointers(lengths_N, token_dtype.itemsize) if pointers_N is None else iter((pointers_N,))
        for part in (np.frombuffer(header.pack(), np.uint8), lengths_N.astype(LENGTH_DTYPE, copy=False)):
            _write(stream, digest, part)
        for pointers in parts:
            _write(stream, digest, pointers.astype(POINTER_DTYPE, copy=False))
        _write(stream, digest, boundaries_D.astype(POINTER_DTYPE, copy=False))
    return {path.name: {"bytes": header.size_bytes, "blake2b": digest.hexdigest()}}


def _write(stream: IO[bytes], digest: blake2b, part: np.ndarray) -> None:
    data = np.ascontiguousarray(part).data
    stream.write(data)
    digest.update(data)


def _contiguous_pointers(lengths_N: np.ndarray, itemsize: int) -> Iterator[np.ndarray]:
    """Byte offsets of sequences that lie one after the other, in chunks of 8 MiB."""
    position_bytes = 0
    for start in range(0, len(lengths_N), _INDEX_CHUNK):
        stops = position_bytes + np.cumsum(lengths_N[start : start + _INDEX_CHUNK], dtype=np.int64) * itemsize
        yield np.concatenate(([position_bytes], stops[:-1]))
        position_bytes = int(stops[-1])
