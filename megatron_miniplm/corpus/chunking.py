"""Documents to sequences of bounded length that begin and end between sentences: the MiniPLM paper's recipe.

Documents of one domain follow one another; the one that does not fit is cut, and its remainder begins the next
sequence. Nothing is dropped and nothing is padded. A cut looks back from the limit over an eighth, a quarter and half
of a sequence. In the first of these windows that has either, it takes the last sentence end, failing that the last line
end; the end of a document counts as the end of a sentence. Where there is none, the cut is at the limit. Only these
windows are ever read as text.

Axes: T tokens, D documents, V ids of the vocabulary, P pieces of documents, N sequences (chunks), L tokens of one
document without its EOD.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np

from megatron_miniplm.corpus.sentences import CONTEXT_CHARACTERS, Gap, SentenceModel, line_ends

_MIN_WINDOW_TOKENS = 8  # also of sequences that have fewer in half
_CONTEXT_BYTES = 2 * CONTEXT_CHARACTERS  # around a window, so that Punkt sees the words beside a stop whole

TokenStops = Callable[[str], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """P runs of tokens, each of one document, in the order in which they make up the sequences.

    All arrays are int64.

    Attributes:
        sequence_P: the sequence that a piece belongs to, ascending from 0 without a gap.
        document_P: position of its document among those that were packed.
        start_token_P, stop_token_P: tokens of the document, its EOD included.
        start_byte_P, stop_byte_P: the UTF-8 bytes of the document's text that they stand for, whole characters.
        piece_P: 0 for the first piece of a document, 1 for the next one, ...
    """

    sequence_P: np.ndarray
    document_P: np.ndarray
    start_token_P: np.ndarray
    stop_token_P: np.ndarray
    start_byte_P: np.ndarray
    stop_byte_P: np.ndarray
    piece_P: np.ndarray

    def __len__(self) -> int:
        return len(self.sequence_P)

    @property
    def num_sequences(self) -> int:
        return int(self.sequence_P[-1]) + 1 if len(self) else 0

    @property
    def num_tokens(self) -> int:
        return int((self.stop_token_P - self.start_token_P).sum())


def pack_documents(
    tokens_T: np.ndarray,
    lengths_D: np.ndarray,
    texts: Sequence[str],
    domains: Sequence[str] | None,
    *,
    chunk_length: int,
    model: SentenceModel,
    token_bytes_V: np.ndarray | None,
    text_prefix_bytes: int,
    token_stops: TokenStops,
) -> Pieces:
    """Pack documents into sequences.

    Every token is in exactly one piece; those of one domain stay in their order. Sequences are numbered as they are
    completed; the unfinished ones come last, in the order in which their domains first appeared.

    A cut lies on a boundary between tokens and between characters, and never right before an EOD unless
    `chunk_length` is 1. Where the tokens of a whole sequence end within one character, as byte-level tokens can, the
    sequence ends there all the same, and the character counts among the bytes of the next piece.

    Args:
        tokens_T: ids of all documents, each with its EOD.
        lengths_D: tokens of each document, EOD included; 0 for one without tokens, which gets no piece.
        texts: D texts, without lone surrogates.
        domains: D names; None if all documents are of one domain.
        chunk_length: most tokens of a sequence, at least 1.
        model: finds the ends of sentences.
        token_bytes_V: bytes of text that each id stands for, if that depends on nothing else.
        text_prefix_bytes: bytes that the tokenizer puts before each text (SentencePiece's space).
        token_stops: gives the byte offset at which each token of a text ends (without an EOD), however slowly: for
            documents whose size is not what `token_bytes_V` says.
    """
    assert chunk_length >= 1
    splitter = _Splitter(chunk_length, model)
    packing = _Packing(chunk_length)
    first_token = 0
    names = domains if domains is not None else [""] * len(texts)
    for document, (length, text, name) in enumerate(zip(lengths_D.tolist(), texts, names, strict=True)):
        if length == 0:
            continue
        start_token = start_byte = piece = 0
        if length > (room := packing.room(name)):
            data = text.encode("utf-8")
            size_bytes = len(data)
            content_L = tokens_T[first_token : first_token + length - 1]
            stops_L = _stops_by_table(content_L, size_bytes, token_bytes_V, text_prefix_bytes)
            if stops_L is None:
                stops_L = np.maximum.accumulate(np.clip(token_stops(text), 0, size_bytes))
                assert len(stops_L) == len(content_L), "the exact road must see the tokens that were given"
            for stop_token, stop_byte in splitter.cuts(data, stops_L, room):
                if stop_token > start_token:
                    packing.add(name, (document, start_token, stop_token, start_byte, stop_byte, piece))
                    start_token, start_byte, piece = stop_token, stop_byte, piece + 1
                packing.complete(name)
        else:
            size_bytes = len(text) if text.isascii() else len(text.encode("utf-8"))
        packing.add(name, (document, start_token, length, start_byte, size_bytes, piece))
        first_token += length
    return packing.finish()


def gather(tokens_T: np.ndarray, lengths_D: np.ndarray, pieces: Pieces) -> tuple[np.ndarray, np.ndarray]:
    """The tokens of all sequences, one after the other, and the length of each (int64)."""
    if len(pieces) == 0:
        return tokens_T[:0], np.empty(0, np.int64)
    first_token_D = np.cumsum(lengths_D) - lengths_D
    first_token_P = first_token_D[pieces.document_P]
    starts = (first_token_P + pieces.start_token_P).tolist()
    stops = (first_token_P + pieces.stop_token_P).tolist()
    tokens = np.concatenate([tokens_T[start:stop] for start, stop in zip(starts, stops, strict=True)])
    first_piece_N = np.flatnonzero(np.diff(pieces.sequence_P, prepend=-1))
    return tokens, np.add.reduceat(pieces.stop_token_P - pieces.start_token_P, first_piece_N)


class _Packing:
    """The sequences of all domains; a row has the columns of `Pieces`, in their order, first without the sequence."""

    def __init__(self, chunk_length: int) -> None:
        self._chunk_length = chunk_length
        self._rows: list[tuple[int, ...]] = []
        self._num_complete = 0
        # Of the open sequences, by domain; dicts keep the order of first appearance.
        self._open_rows: dict[str, list[tuple[int, ...]]] = {}
        self._open_room: dict[str, int] = {}

    def room(self, domain: str) -> int:
        """Tokens that the domain's open sequence still takes, at least 1."""
        return self._open_room.get(domain, self._chunk_length)

    def add(self, domain: str, row: tuple[int, int, int, int, int, int]) -> None:
        _, start_token, stop_token, *_ = row
        self._open_rows.setdefault(domain, []).append(row)
        self._open_room[domain] = room = self.room(domain) - (stop_token - start_token)
        if room == 0:
            self.complete(domain)

    def complete(self, domain: str) -> None:
        """Close the domain's open sequence, if it holds anything."""
        if rows := self._open_rows.get(domain):
            self._rows.extend([(self._num_complete, *row) for row in rows])
            self._num_complete += 1
            self._open_rows[domain] = []
            self._open_room[domain] = self._chunk_length

    def finish(self) -> Pieces:
        for domain in self._open_rows:
            self.complete(domain)
        columns = np.ascontiguousarray(np.array(self._rows, dtype=np.int64).reshape(-1, 7).T)
        return Pieces(**{field.name: column for field, column in zip(fields(Pieces), columns, strict=True)})


def _stops_by_table(
    content_L: np.ndarray, size_bytes: int, token_bytes_V: np.ndarray | None, text_prefix_bytes: int
) -> np.ndarray | None:
    """The byte at which each of one or more tokens ends; None if there is no table or it does not explain the text."""
    if token_bytes_V is None:
        return None
    stops_L = np.cumsum(token_bytes_V[content_L], dtype=np.int64)
    stops_L -= text_prefix_bytes
    return np.maximum(stops_L, 0, out=stops_L) if stops_L[-1] == size_bytes else None


class _Splitter:
    """Cuts documents; a place of a cut is (tokens before it, bytes before it)."""

    def __init__(self, chunk_length: int, model: SentenceModel) -> None:
        self._chunk_length = chunk_length
        self._model = model
        self._windows = [max(chunk_length // part, _MIN_WINDOW_TOKENS) for part in (8, 4, 2)]

    def cuts(self, data: bytes, stops_L: np.ndarray, room: int) -> Iterator[tuple[int, int]]:
        """The cuts of one document, in order.

        Args:
            data: its text in UTF-8.
            stops_L: the byte at which each token ends, ascending.
            room: tokens that the open sequence still takes. If it has documents already, the first cut may be at
                token 0: the document begins in the next sequence.
        """
        length = len(stops_L) + 1
        start, first = 0, 0 if room < self._chunk_length else 1
        while length - start > room:
            limit = start + room
            if limit == length - 1 and limit > first:
                limit -= 1  # keep the EOD with the token before it
            start, start_byte = self._cut(data, stops_L, first, limit)
            yield start, start_byte
            room, first = self._chunk_length, start + 1

    def _cut(self, data: bytes, stops_L: np.ndarray, first: int, limit: int) -> tuple[int, int]:
        """The best cut at a token in [first, limit]; `first` is 0 only if a document ends there."""
        high = limit
        for window in self._windows:
            low = max(limit - window, first - 1, 0)
            cut = self._break_between(data, stops_L, low, high, is_document_end=first == low == 0)
            if cut is not None:
                return cut, _byte_before(stops_L, cut)
            high = low
        for cut in range(limit, first - 1, -1):
            if _is_character_start(data, _byte_before(stops_L, cut)):
                return cut, _byte_before(stops_L, cut)
        return limit, _character_start(data, _byte_before(stops_L, limit))

    def _break_between(
        self, data: bytes, stops_L: np.ndarray, low: int, high: int, *, is_document_end: bool
    ) -> int | None:
        """The best token in (low, high] to cut at, or `low` itself if a document ends there; None if there is none."""
        stops = stops_L[low:high].tolist()
        if stops:
            window = _Window(data, _byte_before(stops_L, low), stops[-1])
            for gap in self._model.sentence_ends(window.text, window.start, window.stop):
                if (cut := window.token_in(gap, stops)) is not None:
                    return low + cut
        if is_document_end:
            return low
        if stops:
            for gap in line_ends(window.text, window.start, window.stop):
                if (cut := window.token_in(gap, stops)) is not None:
                    return low + cut
        return None


class _Window:
    """A part of a document as text, with some context around it.

    Attributes:
        start, stop: the characters that are not context.
    """

    def __init__(self, data: bytes, start_byte: int, stop_byte: int) -> None:
        first_byte = _character_start(data, max(start_byte - _CONTEXT_BYTES, 0))
        last_byte = _character_start(data, stop_byte + _CONTEXT_BYTES)
        self._data = data
        self._first_byte = first_byte
        self.text = data[first_byte:last_byte].decode("utf-8")
        self._is_ascii = self.text.isascii()
        if self._is_ascii:
            self.start, self.stop = start_byte - first_byte, stop_byte - first_byte
        else:  # a character that the window has only in part is not counted
            self.start = len(data[first_byte:start_byte].decode("utf-8", "ignore"))
            self.stop = len(data[first_byte:stop_byte].decode("utf-8", "ignore"))

    def token_in(self, gap: Gap, stops: list[int]) -> int | None:
        """How many tokens of the window end by the last boundary of tokens and characters that lies in a gap."""
        start_byte, stop_byte = self._byte(gap.start), self._byte(gap.stop)
        num_tokens = bisect_right(stops, stop_byte)
        while num_tokens > 0 and stops[num_tokens - 1] >= start_byte:
            if _is_character_start(self._data, stops[num_tokens - 1]):
                return num_tokens
            num_tokens -= 1
        return None

    def _byte(self, position: int) -> int:
        return self._first_byte + (position if self._is_ascii else len(self.text[:position].encode("utf-8")))


def _byte_before(stops_L: np.ndarray, token: int) -> int:
    return int(stops_L[token - 1]) if token else 0


def _is_character_start(data: bytes, position: int) -> bool:
    return position >= len(data) or data[position] & 0xC0 != 0x80


def _character_start(data: bytes, position: int) -> int:
    """The first byte of the character that a byte belongs to; the end of the data from there on."""
    position = min(position, len(data))
    while not _is_character_start(data, position):
        position -= 1
    return position
