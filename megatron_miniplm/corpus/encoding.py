"""One unit of text to sequences: read, encode, cut. Runs in a worker process or in this one, with equal results."""

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from megatron_miniplm.artifacts import Manifest, atomic_output
from megatron_miniplm.artifacts.manifest import ArtifactInput, checksum_of
from megatron_miniplm.corpus.chunking import gather, pack_documents
from megatron_miniplm.corpus.fields import Fields
from megatron_miniplm.corpus.readers import Rejected, UnitReader
from megatron_miniplm.corpus.sentences import SentenceModel
from megatron_miniplm.corpus.tokenization.settings import TextEncoder
from megatron_miniplm.corpus.units import MAX_LINE_BYTES, Unit
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus, IndexedWriter
from megatron_miniplm.indexed.layout import LENGTH_DTYPE, optimal_dtype
from megatron_miniplm.indexed.pieces import Pieces, crc32_of_runs


@dataclass(frozen=True, kw_only=True)
class ChunkSettings:
    """How documents are packed into sequences.

    Attributes:
        length: most tokens of a sequence.
        sentence_model: where a document may be cut.
    """

    length: int
    sentence_model: SentenceModel


@dataclass(frozen=True, kw_only=True)
class EncodingSettings:
    """What shapes the sequences of a unit.

    Attributes:
        append_eod: whether every document that has tokens ends with the end-of-document token.
        chunks: None for one sequence a document; else `append_eod` must be set.
        max_line_bytes: longer lines are rejected.
    """

    fields: Fields
    append_eod: bool
    chunks: ChunkSettings | None = None
    max_line_bytes: int = MAX_LINE_BYTES


@dataclass(frozen=True, kw_only=True)
class EncodedTexts:
    """The sequences of one unit and key.

    Attributes:
        tokens_T: of all sequences, one after the other, in the corpus's token dtype.
        lengths_N: tokens of each sequence.
        sequences_per_document_D: as `IndexedWriter.append` takes them.
        pieces: what each sequence holds.
        num_documents: of the text, those without tokens included.
    """

    tokens_T: np.ndarray
    lengths_N: np.ndarray
    sequences_per_document_D: np.ndarray
    pieces: Pieces
    num_documents: int
    num_empty_documents: int


@dataclass(frozen=True, kw_only=True)
class EncodedUnit:
    """What a unit has become; `texts` has one entry a key, in the order of the keys."""

    texts: list[EncodedTexts]
    rejected: list[Rejected]
    num_lines: int


class UnitEncoder:
    """Reads and encodes units; can be sent to another process."""

    def __init__(self, settings: EncodingSettings, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self._settings = settings
        self._reader = UnitReader(settings.fields, settings.max_line_bytes)
        self._token_bytes_V = _sizes(self.encoder) if settings.chunks is not None else None

    def __reduce__(self) -> tuple[type["UnitEncoder"], tuple[EncodingSettings, TextEncoder]]:
        return UnitEncoder, (self._settings, self.encoder)

    def encode(self, unit: Unit) -> EncodedUnit:
        """Raises InputError for what no policy on bad lines covers, such as ids that do not fit the vocabulary."""
        documents = self._reader.read(unit)
        positions_D = np.array(documents.positions, np.int64)
        texts = [
            self._encode_texts(texts, positions_D, documents.ids, documents.domains)
            for texts in documents.texts.values()
        ]
        return EncodedUnit(texts=texts, rejected=documents.rejected, num_lines=documents.num_lines)

    def _encode_texts(
        self, texts: list[str], positions_D: np.ndarray, ids: list[str] | None, domains: list[str] | None
    ) -> EncodedTexts:
        tokens_T, lengths_D = self.encoder.encode(texts)
        tokens_T = as_token_dtype(tokens_T, self.encoder)
        if self._settings.append_eod:
            tokens_T, lengths_D = append_eod(tokens_T, lengths_D, self.encoder.eod_id)
        if self._settings.chunks is None:
            return _one_sequence_a_document(texts, tokens_T, lengths_D, positions_D, ids, domains)
        return self._chunks(self._settings.chunks, texts, tokens_T, lengths_D, positions_D, ids, domains)

    def _chunks(
        self,
        chunks: ChunkSettings,
        texts: list[str],
        tokens_T: np.ndarray,
        lengths_D: np.ndarray,
        positions_D: np.ndarray,
        ids: list[str] | None,
        domains: list[str] | None,
    ) -> EncodedTexts:
        found = pack_documents(
            tokens_T,
            lengths_D,
            texts,
            domains,
            chunk_length=chunks.length,
            model=chunks.sentence_model,
            token_bytes_V=self._token_bytes_V,
            text_prefix_bytes=len(self.encoder.text_prefix),
            token_stops=self.encoder.token_stops,
        )
        chunk_tokens_T, lengths_N = gather(tokens_T, lengths_D, found)
        pieces = Pieces(
            sequence_P=found.sequence_P,
            position_P=positions_D[found.document_P],
            piece_P=found.piece_P,
            start_byte_P=found.start_byte_P,
            text_bytes_P=found.stop_byte_P - found.start_byte_P,
            num_tokens_P=(num_tokens_P := found.stop_token_P - found.start_token_P),
            crc32_P=crc32_of_runs(chunk_tokens_T, num_tokens_P),
            ids=_take(ids, found.document_P),
            domains=_take(domains, found.document_P),
        )
        return EncodedTexts(
            tokens_T=chunk_tokens_T,
            lengths_N=lengths_N.astype(LENGTH_DTYPE),
            sequences_per_document_D=np.ones(len(lengths_N), np.int64),
            pieces=pieces,
            num_documents=len(texts),
            num_empty_documents=int((lengths_D == 0).sum()),
        )


def append_eod(tokens_T: np.ndarray, lengths_D: np.ndarray, eod_id: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Give every document that has tokens one more, as Megatron does; returns the new tokens and lengths."""
    return insert_eod(tokens_T, lengths_D, lengths_D > 0, eod_id)


def insert_eod(
    tokens_T: np.ndarray, lengths_P: np.ndarray, has_eod_P: np.ndarray, eod_id: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Put an end-of-document token behind some of P runs of tokens; returns the new tokens and lengths."""
    if not has_eod_P.any():
        return tokens_T, lengths_P
    assert eod_id is not None, "checked before anything is encoded"
    return np.insert(tokens_T, np.cumsum(lengths_P)[has_eod_P], eod_id), lengths_P + has_eod_P


def as_token_dtype(tokens_T: np.ndarray, encoder: TextEncoder) -> np.ndarray:
    """Ids in the dtype that Megatron picks for the vocabulary.

    Raises:
        InputError: an id does not fit.
    """
    dtype = optimal_dtype(encoder.vocab_size)
    if tokens_T.max(initial=0) > np.iinfo(dtype).max:
        raise InputError(
            f"the tokenizer gave id {tokens_T.max()}, but says that it has {encoder.vocab_size} tokens, for which "
            f"Megatron stores {dtype}: renumber its vocabulary without gaps"
        )
    return tokens_T.astype(dtype, copy=False)


def utf8_sizes(texts: list[str]) -> np.ndarray:
    """Size of each text in UTF-8, int64."""
    sizes = (len(text) if text.isascii() else len(text.encode("utf-8")) for text in texts)
    return np.fromiter(sizes, np.int64, len(texts))


def _one_sequence_a_document(
    texts: list[str],
    tokens_T: np.ndarray,
    lengths_D: np.ndarray,
    positions_D: np.ndarray,
    ids: list[str] | None,
    domains: list[str] | None,
) -> EncodedTexts:
    """Megatron's sequences: one for each document that has tokens."""
    has_tokens_D = lengths_D > 0
    documents_N = np.flatnonzero(has_tokens_D)
    lengths_N = lengths_D[documents_N].astype(LENGTH_DTYPE)
    zeros_N = np.zeros(len(documents_N), np.int64)
    pieces = Pieces(
        sequence_P=np.arange(len(documents_N)),
        position_P=positions_D[documents_N],
        piece_P=zeros_N,
        start_byte_P=zeros_N,
        text_bytes_P=utf8_sizes(texts)[documents_N],
        num_tokens_P=lengths_N,
        crc32_P=crc32_of_runs(tokens_T, lengths_N),
        ids=_take(ids, documents_N),
        domains=_take(domains, documents_N),
    )
    return EncodedTexts(
        tokens_T=tokens_T,
        lengths_N=lengths_N,
        sequences_per_document_D=has_tokens_D.astype(np.int64),
        pieces=pieces,
        num_documents=len(texts),
        num_empty_documents=len(texts) - len(documents_N),
    )


def _take(labels: list[str] | None, documents_P: np.ndarray) -> list[str] | None:
    return None if labels is None else [labels[document] for document in documents_P.tolist()]


def _sizes(encoder: TextEncoder) -> np.ndarray | None:
    """Bytes of text that each id stands for, int32."""
    table = encoder.token_bytes
    return None if table is None else np.fromiter(map(len, table), np.int32, len(table))


REJECTED_SUFFIX = ".rejected.jsonl"


class KeyOutput:
    """The `.bin/.idx`, sidecar and list of rejected lines of one prefix; nothing is visible before `publish`.

    Args:
        stack: ends the writing.
        lists_rejected: whether there is a list of rejected lines.

    Attributes:
        num_documents, num_rejected: so far.
    """

    def __init__(self, stack: ExitStack, prefix: Path, token_dtype: np.dtype, lists_rejected: bool) -> None:
        from megatron_miniplm.indexed.sidecar import SidecarWriter, as_table  # pyarrow starts threads: see `workers`

        self._as_table = as_table
        self.writer = stack.enter_context(IndexedWriter(prefix, token_dtype, companions=(REJECTED_SUFFIX,)))
        self.sidecar = stack.enter_context(SidecarWriter(prefix))
        self.num_rejected = 0
        self._rejected_path = prefix.with_name(prefix.name + REJECTED_SUFFIX) if lists_rejected else None
        self.num_documents = self._text_bytes = self._num_empty = 0

    def open_rejected(self, stack: ExitStack) -> IO[bytes] | None:
        return stack.enter_context(atomic_output(self._rejected_path)) if self._rejected_path else None

    def append(self, texts: EncodedTexts, source: str) -> None:
        self.sidecar.append(self._as_table(texts.pieces, source, self.writer.num_sequences))
        self.writer.append(texts.tokens_T, texts.lengths_N, texts.sequences_per_document_D)
        self._text_bytes += int(texts.pieces.text_bytes_P.sum())
        self.num_documents += texts.num_documents
        self._num_empty += texts.num_empty_documents

    def publish(
        self, settings: dict[str, object], versions: dict[str, str], inputs: tuple[ArtifactInput, ...]
    ) -> Manifest:
        """Make the files visible, the manifest last."""
        prefix = self.writer.prefix
        counts = {
            "num_sequences": self.writer.num_sequences,
            "num_documents": self.num_documents,
            "num_empty_documents": self._num_empty,
            "num_tokens": self.writer.num_tokens,
            "text_bytes": self._text_bytes,
        }
        files = self.sidecar.close()
        if self._rejected_path is not None:
            counts["num_rejected_lines"] = self.num_rejected
            files[self._rejected_path.name] = checksum_of(self._rejected_path)
        files = {**self.writer.close(), **files}
        manifest = Manifest(
            kind="corpus",
            fingerprint=IndexedCorpus.open(prefix).fingerprint(),
            counts=counts,
            settings=settings,
            versions=versions,
            inputs=inputs,
            files=files,
        )
        manifest.write(prefix)
        return manifest
