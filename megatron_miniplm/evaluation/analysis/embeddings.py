"""Sequences as unit vectors. Distances in one embedding say nothing about distances in another.

Axes: S sequences, F features of all of them, D dimensions, B buckets of features.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.hashing import uniforms

#: Tokens and UTF-8 texts of sequences: the `decode_batch` of a tokenizer.
Decode = Callable[[np.ndarray, np.ndarray], list[bytes]]
_TOKEN_STREAM, _PAIR_STREAM = 0x746F6B656E, 0x70616972
_BATCH_SEQUENCES = 16


class Embedding(Protocol):
    """Attributes: description: what the vectors are, for people."""

    description: str

    def embed(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        """Unit vectors of some sequences, (S, D) float32."""
        ...


class HashedNgrams:
    """TF-IDF of tokens and of pairs of neighbours, hashed with random signs into D dimensions. Needs no model.

    A feature counts (1 + ln tf) (1 + ln((1 + M) / (1 + df))), its document frequency df taken from M sequences that are
    given once, so that all data sets are measured with the same rule. Hashing: Weinberger et al. 2009, arXiv 0902.2206.
    Cosines of unrelated sequences scatter by about 1 / sqrt(D) around the truth, without bias.

    Args:
        sequences: M sequences.
        seed: of the hash.
    """

    num_dimensions = 4096
    num_buckets = 1 << 20

    def __init__(self, sequences: Sequence[np.ndarray], *, seed: int) -> None:
        self.description = f"hashed 1- and 2-grams of tokens, TF-IDF, {self.num_dimensions} dimensions, no model"
        self._seed = seed
        frequency_B = np.zeros(self.num_buckets, np.int64)
        for start in range(0, len(sequences), _BATCH_SEQUENCES):
            _, bucket_F, _ = self._features(sequences[start : start + _BATCH_SEQUENCES])
            np.add.at(frequency_B, bucket_F, 1)
        self._idf_B = 1 + np.log((1 + len(sequences)) / (1 + frequency_B))

    def embed(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        rows = []
        for start in range(0, len(sequences), _BATCH_SEQUENCES):
            batch = sequences[start : start + _BATCH_SEQUENCES]
            row_F, bucket_F, count_F = self._features(batch)
            sign_F = np.where(bucket_F >= self.num_buckets // 2, 1, -1)
            value_F = sign_F * (1 + np.log(count_F)) * self._idf_B[bucket_F]
            place_F = row_F * self.num_dimensions + bucket_F % self.num_dimensions
            sums = np.bincount(place_F, value_F, len(batch) * self.num_dimensions)
            rows.append(_unit(sums.reshape(len(batch), self.num_dimensions)))
        return np.concatenate(rows)

    def _features(self, sequences: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Row, bucket and number of occurrences of every feature."""
        row_T = np.repeat(np.arange(len(sequences)), [len(sequence) for sequence in sequences])
        tokens_T = np.concatenate(sequences).astype(np.uint64)
        is_pair_T = row_T[1:] == row_T[:-1]
        pairs = (tokens_T[:-1] << np.uint64(32) | tokens_T[1:])[is_pair_T]
        hashes = np.concatenate(
            [uniforms(tokens_T, self._seed, _TOKEN_STREAM), uniforms(pairs, self._seed, _PAIR_STREAM)]
        )
        keys = np.concatenate([row_T, row_T[1:][is_pair_T]]) * self.num_buckets
        keys += (hashes * self.num_buckets).astype(np.int64)
        keys_F, count_F = np.unique(keys, return_counts=True)
        return keys_F // self.num_buckets, keys_F % self.num_buckets, count_F


class ModelEmbedding:
    """Mean of the last hidden states of a Hugging Face model, an encoder or a causal language model.

    Args:
        directory: with the model and its tokenizer; nothing is downloaded.
        decode: of the data's tokenizer: the model reads text, in its own tokens.
        max_tokens: most tokens of a text that the model reads, if it can read so many.

    Raises:
        InputError: the directory holds no such model, or its tokenizer makes nothing of the text.
    """

    def __init__(self, directory: Path, decode: Decode, *, max_tokens: int) -> None:
        import torch
        from transformers import AutoModel, AutoTokenizer

        if not (directory / "config.json").is_file():
            raise InputError(
                f"{directory} holds no config.json: give --embedding-model a Hugging Face model's directory"
            )
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
            model = AutoModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
        except (OSError, ValueError) as error:
            raise InputError(f"{directory} cannot be loaded as a model with its tokenizer: {error}") from None
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().to(self._device)
        limits = (max_tokens, self._tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", None))
        self._max_tokens = min(limit for limit in limits if limit)
        if self._tokenizer.pad_token is None:  # masked, so any will do
            self._tokenizer.pad_token = self._tokenizer.convert_ids_to_tokens(0)
        self._tokenizer.padding_side = "right"
        self._decode = decode
        self._directory = directory
        self.description = f"mean of the last hidden states of {directory.name}, {self._max_tokens} tokens"

    def embed(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        rows = [
            self._embed_batch(sequences[start : start + _BATCH_SEQUENCES])
            for start in range(0, len(sequences), _BATCH_SEQUENCES)
        ]
        return _unit(np.concatenate(rows))

    def _embed_batch(self, sequences: Sequence[np.ndarray]) -> np.ndarray:
        import torch

        texts = self._decode(np.concatenate(sequences), np.array([len(sequence) for sequence in sequences]))
        inputs = self._tokenizer(
            [text.decode("utf-8", errors="replace") for text in texts],
            padding=True,
            truncation=True,
            max_length=self._max_tokens,
            return_tensors="pt",
        ).to(self._device)
        if inputs["input_ids"].shape[1] == 0:
            raise InputError(
                f"the tokenizer in {self._directory}, as transformers loads it, makes no tokens of {texts[0][:40]!r}: "
                "see that it is the model's own"
            )
        with torch.inference_mode():
            hidden_SLD = self._model(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
            ).last_hidden_state
        mask_SL1 = inputs["attention_mask"].unsqueeze(-1).to(hidden_SLD.dtype)
        mean_SD = (hidden_SLD * mask_SL1).sum(dim=1) / mask_SL1.sum(dim=1).clamp(min=1)
        return np.asarray(mean_SD.cpu().numpy())


def _unit(vectors_SD: np.ndarray) -> np.ndarray:
    """Rows of norm 1; a row of zeros stays one."""
    norms_S = np.linalg.norm(vectors_SD, axis=1, keepdims=True)
    return np.asarray(vectors_SD / np.maximum(norms_S, np.finfo(np.float32).tiny), np.float32)
