"""SentencePiece models, with the ids that `sentencepiece` itself gives, as fast as is exact.

gigatoken encodes BPE models with byte fallback some five times faster, but reads a literal `<s>` in the text as the BOS
token, which sentencepiece never does. It gets the documents without any such string, and sentencepiece the others.
"""

import logging
import re
from collections.abc import Sequence
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from megatron_miniplm.artifacts import Fingerprint, digest_file, digest_values
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.corpus.tokenization.gigatoken_engine import (
    HARD_TEXTS,
    Encode,
    GigatokenEngine,
    exact_or_none,
    routed,
    texts_of_control_strings,
    texts_of_vocabulary,
)
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.corpus.tokenization.token_bytes import ByteTable, flatten_ids, split_ids
from megatron_miniplm.errors import InputError, one_line

logger = logging.getLogger(__name__)

_SPACE = "▁"  # U+2581, which stands for a space in pieces
_BPE = 2  # TrainerSpec.ModelType
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # ModelProto.SentencePiece.Type


class SentencePieceEncoder:
    """A SentencePiece model, encoded by gigatoken where that is exact and by `sentencepiece` elsewhere.

    Megatron's three SentencePiece types are one class, which, without its legacy mode, calls `encode_as_ids`.
    """

    def __init__(self, settings: TokenizerSettings, num_threads: int) -> None:
        import sentencepiece
        from sentencepiece import sentencepiece_model_pb2

        assert settings.tokenizer_model is not None, "checked by make_encoder"
        self._settings = settings
        self._model_path = settings.tokenizer_model
        self._num_threads = num_threads
        try:
            open_regular(self._model_path).close()
            self._processor = sentencepiece.SentencePieceProcessor(model_file=str(self._model_path))
        except (OSError, RuntimeError, InputError) as error:
            raise InputError(
                f"{self._model_path} is not a SentencePiece model ({one_line(error)}): give a .model file"
            ) from None
        model_type: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]  # protobuf makes it
        self._model = model_type.FromString(self._processor.serialized_model_proto())
        self.vocab_size: int = self._processor.get_piece_size()
        eos_id = self._processor.eos_id()
        self.eod_id: int | None = eos_id if eos_id >= 0 else None
        self.versions = {"sentencepiece": version("sentencepiece")}
        self.text_prefix = b" " if self.token_bytes is not None and self._has_dummy_prefix else b""
        self._fast = self._exact_gigatoken()
        if self._fast is not None:
            self.versions["gigatoken"] = version("gigatoken")

    def __reduce__(self) -> tuple[type["SentencePieceEncoder"], tuple[TokenizerSettings, int]]:
        return SentencePieceEncoder, (self._settings, self._num_threads)

    @cached_property
    def token_bytes(self) -> list[bytes] | None:
        return self._decoded_bytes if self._model.trainer_spec.byte_fallback else None

    def fingerprint(self) -> Fingerprint:
        return digest_values("SentencePieceTokenizer", digest_file(self._model_path))

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return self._fast(texts) if self._fast is not None else self._encode_reference(texts)

    def token_stops(self, text: str) -> np.ndarray:
        from sentencepiece import sentencepiece_pb2

        serialized = self._processor.encode(text, out_type="serialized_proto")
        text_type: Any = sentencepiece_pb2.SentencePieceText  # type: ignore[attr-defined]  # protobuf makes it
        pieces = text_type.FromString(serialized).pieces
        return np.fromiter((piece.end for piece in pieces), np.int64, len(pieces))

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([int(token) for token in ids])

    def decode_batch(self, tokens_T: np.ndarray, lengths_N: np.ndarray) -> list[bytes]:
        if self._byte_table is None:
            return [self._processor.decode(ids).encode() for ids in split_ids(tokens_T, lengths_N)]
        texts = self._byte_table.join(tokens_T, lengths_N)
        return [text.removeprefix(b" ") for text in texts] if self._has_dummy_prefix else texts

    def _encode_reference(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return flatten_ids(self._processor.encode(list(texts), out_type=int, num_threads=self._num_threads))

    @property
    def _has_dummy_prefix(self) -> bool:
        return self._model.normalizer_spec.add_dummy_prefix

    @property
    def _is_identity(self) -> bool:
        """Whether the model changes nothing in the text but spaces, which it writes as `▁`."""
        normalizer = self._model.normalizer_spec
        return (
            not normalizer.precompiled_charsmap
            and not self._model.denormalizer_spec.precompiled_charsmap
            and not normalizer.remove_extra_whitespaces
            and normalizer.escape_whitespaces
            and not self._model.trainer_spec.treat_whitespace_as_suffix
        )

    @cached_property
    def _decoded_bytes(self) -> list[bytes] | None:
        """What each id decodes to, except that the dummy prefix stays; None if that depends on its neighbours."""
        if not self._is_identity:
            return None
        unknown = self._model.trainer_spec.unk_surface.encode()
        return [_bytes_of(piece, unknown) for piece in self._model.pieces]

    @cached_property
    def _byte_table(self) -> ByteTable | None:
        return ByteTable(self._decoded_bytes) if self._decoded_bytes is not None else None

    def _exact_gigatoken(self) -> Encode | None:
        """The road by way of gigatoken; None where it would not be exact."""
        normal = [piece for piece in self._model.pieces if piece.type == _NORMAL]
        scores = [piece.score for piece in normal if len(piece.piece) > 1]
        if (
            self._model.trainer_spec.model_type != _BPE
            or not self._is_identity
            or len(set(scores)) < len(scores)  # their order would be gigatoken's own
            or any(piece.type == _UNUSED for piece in self._model.pieces)  # they are merged, and then taken apart
        ):
            logger.info("encoding with the slower sentencepiece: gigatoken is exact for plain BPE models only")
            return None
        special_pieces = [piece.piece for piece in self._model.pieces if piece.type != _NORMAL]
        texts = [
            *HARD_TEXTS,
            *texts_of_control_strings(special_pieces),
            *texts_of_vocabulary([piece.piece.replace(_SPACE, " ") for piece in normal]),
        ]
        return exact_or_none(
            lambda: self._routed(special_pieces), self._encode_reference, texts, library="sentencepiece"
        )

    def _routed(self, special_pieces: Sequence[str]) -> Encode:
        """gigatoken for the texts without a control, unknown, byte or user-defined piece, sentencepiece for others."""
        import gigatoken

        model = self._processor.serialized_model_proto()
        engine = GigatokenEngine(lambda: gigatoken.Tokenizer.from_sentencepiece(model), self._num_threads)
        special = re.compile("|".join(_pattern_of(piece) for piece in special_pieces)).search

        return routed(engine.encode, self._encode_reference, lambda text: special(text) is not None)


def _bytes_of(piece: Any, unknown: bytes) -> bytes:
    """What one piece decodes to."""
    if piece.type == _UNKNOWN:
        return unknown
    if piece.type == _CONTROL:
        return b""
    if piece.type == _BYTE:
        return bytes([int(piece.piece[1:-1], base=16)])  # <0x0A>
    return piece.piece.replace(_SPACE, " ").encode()


def _pattern_of(piece: str) -> str:
    """A regular expression that finds, perhaps among others, every text in which gigatoken could see the piece.

    The dummy prefix can be the first space of a piece.
    """
    text = piece.removeprefix(_SPACE) or piece
    return re.escape(text).replace(_SPACE, f"[ {_SPACE}]")
