"""A streaming writer whose memory does not grow with the corpus, and whose bytes are Megatron's."""

import errno
import fcntl
import glob
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import IO, Self, cast

import numpy as np

from megatron_miniplm.artifacts.atomic import TEMPORARY_SUFFIX, atomic_output, create_over, named_in_errors, publish
from megatron_miniplm.artifacts.fingerprint import Fingerprint, hasher
from megatron_miniplm.artifacts.manifest import PREFIX_MANIFEST_SUFFIX, prefix_manifest_path
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.layout import LENGTH_DTYPE, POINTER_DTYPE, IndexHeader, bin_path, idx_path
from megatron_miniplm.indexed.prefix_files import is_locked_or_left, prefix_lock, remove_caches

_PARTS = ("bin", "lengths", "boundaries")
_INDEX_CHUNK = 1 << 20  # sequences whose pointers are computed together
_THREAD_BYTES = 1 << 20  # of so much the digest takes long enough to be worth a thread


class IndexedWriter:
    """Writes `<prefix>.bin/.idx`; nothing is visible under the prefix before `close`.

    Use as a context manager: an error in the block leaves nothing behind. One process at a time writes a prefix, where
    the file system has locks; what a killed one has left is written over.

    Args:
        companions: suffixes of further files of the prefix that are written atomically in the block.

    Attributes:
        num_documents, num_sequences, num_tokens: written so far.

    Raises:
        InputError: another process is writing this prefix.
    """

    def __init__(self, prefix: Path, token_dtype: np.dtype, companions: Sequence[str] = ()) -> None:
        self.prefix = prefix
        self.token_dtype = np.dtype(token_dtype)
        self.num_documents = self.num_sequences = self.num_tokens = 0
        self._bin_is_published = False
        prefix.parent.mkdir(parents=True, exist_ok=True)
        self._lock = ExitStack()
        self._lock.enter_context(prefix_lock(prefix))
        try:
            self._bin = _open_locked(_temporary(prefix, "bin"), prefix)
        except BaseException:
            self._lock.close()
            raise
        self._lengths = _open(_temporary(prefix, "lengths"), "wb")
        self._boundaries = _open(_temporary(prefix, "boundaries"), "wb")
        for suffix in (".idx", PREFIX_MANIFEST_SUFFIX, *companions):
            for stale in prefix.parent.glob(f".{glob.escape(prefix.name)}{suffix}.*{TEMPORARY_SUFFIX}"):
                stale.unlink(missing_ok=True)
        self._boundaries.write(np.zeros(1, POINTER_DTYPE).data)
        self._digest = hasher()

    @staticmethod
    def was_killed(prefix: Path) -> bool:
        """Whether a process that wrote this prefix ended before the block did, or is still writing."""
        return _temporary(prefix, "lengths").exists()

    @staticmethod
    def remove_leftovers(prefix: Path) -> None:
        """Remove what a process left that was killed after the manifest, unless one still writes."""
        leftovers = [path for part in _PARTS if (path := _temporary(prefix, part)).exists()]
        if leftovers or is_locked_or_left(prefix):
            with suppress(InputError, OSError), prefix_lock(prefix):
                for path in leftovers:
                    path.unlink(missing_ok=True)

    def append(
        self, tokens_T: np.ndarray, lengths_N: np.ndarray, sequences_per_document_D: np.ndarray | None = None
    ) -> None:
        """Add N sequences whose tokens lie one after the other.

        Args:
            tokens_T: token ids, any integer dtype; they must fit `token_dtype`.
            lengths_N: tokens of each sequence, summing to T.
            sequences_per_document_D: how many of the sequences form each document, summing to N; 0 is a document
                without tokens. By default every sequence is a document.
        """
        if sequences_per_document_D is None:
            sequences_per_document_D = np.ones(len(lengths_N), np.int64)
        stops_D = self.num_sequences + np.cumsum(sequences_per_document_D, dtype=POINTER_DTYPE)
        data = np.ascontiguousarray(tokens_T, dtype=self.token_dtype).data
        with named_in_errors(bin_path(self.prefix)):
            with self._digested_meanwhile(data):
                self._bin.write(data)
            self._lengths.write(np.ascontiguousarray(lengths_N, dtype=LENGTH_DTYPE).data)
            self._boundaries.write(stops_D.data)
        self.num_documents += len(sequences_per_document_D)
        self.num_sequences += len(lengths_N)
        self.num_tokens += len(tokens_T)

    def close(self) -> dict[str, dict[str, int | Fingerprint]]:
        """Publish the pair, the `.idx` last: a prefix exists once its index does. An older pair is replaced.

        What is written in the block behind it, such as a manifest, belongs to it: a kill before the end of the block
        can be told from a finished prefix by `was_killed`.

        Returns:
            The manifest's `files` entries of both.
        """
        with named_in_errors(bin_path(self.prefix)):
            self._bin.flush()
            os.fsync(self._bin.fileno())
            for stream in self._streams():
                stream.close()
        bin_bytes = Path(self._bin.name).stat().st_size
        # Where an older pair is replaced, a crash must not leave its index or manifest beside the new data.
        for stale in (prefix_manifest_path(self.prefix), idx_path(self.prefix)):
            stale.unlink(missing_ok=True)
        self._bin_is_published = True
        with named_in_errors(bin_path(self.prefix)):
            publish(Path(self._bin.name), bin_path(self.prefix))
        index = write_index_chunks(
            self.prefix,
            IndexHeader(
                token_dtype=self.token_dtype,
                num_sequences=self.num_sequences,
                num_boundaries=self.num_documents + 1,
            ),
            lengths=_stored(self._lengths, LENGTH_DTYPE),
            pointers=_contiguous_pointers(_stored(self._lengths, LENGTH_DTYPE), self.token_dtype.itemsize),
            boundaries=_stored(self._boundaries, POINTER_DTYPE),
        )
        remove_caches(self.prefix)
        return {bin_path(self.prefix).name: {"bytes": bin_bytes, "blake2b": self._digest.hexdigest()}, **index}

    def abandon(self) -> None:
        """Remove what is not published, and what was published without the manifest that follows it."""
        if self._bin_is_published and not prefix_manifest_path(self.prefix).exists():
            for half in (idx_path(self.prefix), bin_path(self.prefix)):
                half.unlink(missing_ok=True)
        self._remove_temporaries()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._remove_temporaries()
            else:
                self.abandon()
        finally:
            self._lock.close()

    def _remove_temporaries(self) -> None:
        for stream in self._streams():
            with suppress(OSError):  # what a full disk did not take
                stream.close()
            Path(stream.name).unlink(missing_ok=True)

    @contextmanager
    def _digested_meanwhile(self, data: memoryview) -> Iterator[None]:
        """Digest in a thread of the block's duration, which costs 0.1 ms; none is left when processes are forked."""
        if data.nbytes < _THREAD_BYTES:
            self._digest.update(data)
            yield
            return
        thread = threading.Thread(target=self._digest.update, args=(data,))
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def _streams(self) -> tuple[IO[bytes], ...]:
        return self._bin, self._lengths, self._boundaries


def _temporary(prefix: Path, part: str) -> Path:
    return prefix.with_name(f".{prefix.name}.{part}{TEMPORARY_SUFFIX}")


def _open(path: Path, mode: str) -> IO[bytes]:
    """Open a file that outlives the function that opens it; one that is written from its start is a new one."""
    return create_over(path) if mode == "wb" else cast(IO[bytes], path.open(mode))


def _open_locked(path: Path, prefix: Path) -> IO[bytes]:
    """Create an unfinished file and lock it; nobody else may be writing one of this name.

    One that a killed process has left is locked, so that it is known to be left, and replaced: what lies under a name
    that others can guess is never written to.
    """
    with _locked_leftover(path, prefix):
        try:
            stream = create_over(path)
        except FileExistsError:
            raise _in_use(prefix) from None
        try:
            if _lock(stream.fileno()) and _is_still(path, stream.fileno()):
                return stream
        except BaseException:
            stream.close()
            raise
        stream.close()  # somebody took it for a leftover before it was locked
        raise _in_use(prefix)


@contextmanager
def _locked_leftover(path: Path, prefix: Path) -> Iterator[None]:
    """Hold the lock of the file under a name, if there is one and it is no link, until it has been replaced."""
    descriptor = None
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:  # nothing there, a link, or another user's file: replaced, if the directory lets us
        if error.errno not in (errno.ENOENT, errno.ELOOP, errno.EACCES):
            raise
    try:
        if descriptor is not None and not (_lock(descriptor) and _is_still(path, descriptor)):
            raise _in_use(prefix)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file; False where another process has. A file system without locks refuses nobody."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def _is_still(path: Path, descriptor: int) -> bool:
    """Whether an open file has its name, not one that was published or replaced just now."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _in_use(prefix: Path) -> InputError:
    return InputError(f"{prefix} is being written by another process: wait for it, or stop it")


def _stored(stream: IO[bytes], dtype: np.dtype) -> Iterator[np.ndarray]:
    """A finished temporary file, a chunk at a time; read and not mapped, so that its pages are nobody's memory."""
    with open(stream.name, "rb") as finished:
        while len(chunk := np.fromfile(finished, dtype, _INDEX_CHUNK)):
            yield chunk


def write_index(
    prefix: Path,
    *,
    token_dtype: np.dtype,
    lengths_N: np.ndarray,
    boundaries_D: np.ndarray,
) -> dict[str, dict[str, int | Fingerprint]]:
    """Write the `.idx` of sequences that lie one after the other; see `write_index_chunks`."""
    return write_index_chunks(
        prefix,
        IndexHeader(token_dtype=token_dtype, num_sequences=len(lengths_N), num_boundaries=len(boundaries_D)),
        lengths=chunks_of(lengths_N, _INDEX_CHUNK),
        pointers=_contiguous_pointers(chunks_of(lengths_N, _INDEX_CHUNK), token_dtype.itemsize),
        boundaries=chunks_of(boundaries_D, _INDEX_CHUNK),
    )


def write_index_chunks(
    prefix: Path,
    header: IndexHeader,
    *,
    lengths: Iterable[np.ndarray],
    pointers: Iterable[np.ndarray],
    boundaries: Iterable[np.ndarray],
) -> dict[str, dict[str, int | Fingerprint]]:
    """Write an `.idx` atomically from its three arrays in parts; one part at a time is held, in this order.

    Args:
        lengths, pointers: in all, as many as the header says.
        boundaries: the same.

    Returns:
        The manifest's `files` entry of the index.
    """
    path = idx_path(prefix)
    digest = hasher()
    with atomic_output(path) as stream:
        _write(stream, digest, np.frombuffer(header.pack(), np.uint8))
        for parts, dtype in ((lengths, LENGTH_DTYPE), (pointers, POINTER_DTYPE), (boundaries, POINTER_DTYPE)):
            for part in parts:
                _write(stream, digest, part.astype(dtype, copy=False))
        assert stream.tell() == header.size_bytes, f"{path}: the header does not fit what follows it"
    return {path.name: {"bytes": header.size_bytes, "blake2b": digest.hexdigest()}}


def chunks_of(array_N: np.ndarray, size: int) -> Iterator[np.ndarray]:
    for start in range(0, len(array_N), size):
        yield array_N[start : start + size]


def _write(stream: IO[bytes], digest: blake2b, part: np.ndarray) -> None:
    data = np.ascontiguousarray(part).data
    stream.write(data)
    digest.update(data)


def _contiguous_pointers(lengths: Iterable[np.ndarray], itemsize: int) -> Iterator[np.ndarray]:
    """Byte offsets of sequences that lie one after the other, for the lengths of each chunk."""
    position_bytes = 0
    for lengths_C in lengths:
        stops_C = position_bytes + np.cumsum(lengths_C, dtype=np.int64) * itemsize
        yield np.concatenate(([position_bytes], stops_C[:-1]))
        position_bytes = int(stops_C[-1])
