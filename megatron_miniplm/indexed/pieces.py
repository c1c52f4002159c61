"""What each sequence holds of which document: the rows of a sidecar as arrays, without the library that writes them."""

import zlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

#: Domain of sequences that have none.
NO_DOMAIN = ""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """P pieces of one source, in the order of their sequences.

    Attributes:
        sequence_P: sequence that holds the piece, counted from the first of the unit.
        position_P: of the piece's document: byte of the uncompressed text at which its line starts, or row.
        piece_P: number of the piece in its document.
        start_byte_P, text_bytes_P: what it has of the document's text in UTF-8.
        num_tokens_P: its tokens in the sequence, with the end-of-document token where it has one.
        crc32_P: checksum of these tokens as they lie in the `.bin`; see `crc32_of_runs`.
        ids, domains: of the piece's document; None if unknown.
    """

    sequence_P: np.ndarray
    position_P: np.ndarray
    piece_P: np.ndarray
    start_byte_P: np.ndarray
    text_bytes_P: np.ndarray
    num_tokens_P: np.ndarray
    crc32_P: np.ndarray
    ids: list[str] | None
    domains: list[str] | None


def crc32_of_runs(tokens_T: np.ndarray, lengths_P: np.ndarray) -> np.ndarray:
    """CRC-32 (zlib's) of the bytes of P runs of tokens that lie one after the other, uint32; about 1 GB/s.

    Args:
        tokens_T: in the dtype of the `.bin`.
    """
    data = memoryview(np.ascontiguousarray(tokens_T).view(np.uint8))
    stops = np.cumsum(lengths_P, dtype=np.int64) * tokens_T.itemsize
    edges = [0, *stops.tolist()]
    sums = (zlib.crc32(data[start:stop]) for start, stop in pairwise(edges))
    return np.fromiter(sums, np.uint32, len(lengths_P))
