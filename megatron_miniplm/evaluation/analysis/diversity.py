"""How varied a sample is: its vocabulary, and how far its sequences are from one another in an embedding.

Numbers of more tokens are other numbers (Heaps' law), and distances in one embedding say nothing about another's.

Axes: S sequences, F features of all of them, D dimensions, B buckets of features, V distinct tokens.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from megatron_miniplm.errors import InputError
from megatron_miniplm.runtime.hashing import uniforms

#: What is added to a kernel matrix, so that copies do not make its determinant zero; two copies among orthogonal
#: embeddings cost -ln(2 RIDGE) = 3.9 nats.
RIDGE = 0.01
#: Share of the tokens that `covering` counts.
COVERED_SHARE = 0.9
#: Tokens and UTF-8 texts of sequences: the `decode_batch` of a tokenizer.
Decode = Callable[[np.ndarray, np.ndarray], list[bytes]]
_TOKEN_STREAM, _PAIR_STREAM = 0x746F6B656E, 0x70616972
_BATCH_SEQUENCES = 16


def mean_cosine_distance(unit_SD: np.ndarray) -> float:
    """Mean over all pairs of different sequences of 1 - cosine; 0 where all point alike, 1 where all are orthogonal.

    In time that grows with S only: the sum over all pairs is the squared norm of the sum.

    Args:
        unit_SD: at least two rows of norm 1.
    """
    num_sequences = len(unit_SD)
    unit_SD = unit_SD.astype(np.float64)
    off_diagonal = float(np.square(unit_SD.sum(axis=0)).sum() - np.square(unit_SD).sum())
    return 1 - off_diagonal / (num_sequences * (num_sequences - 1))


def log_determinant_distance(unit_SD: np.ndarray) -> float:
    """Log-determinant distance to a most diverse set of as many sequences, in nats a sequence; 0 is most diverse.

    (ln det K_max - ln det K) / S after Wang et al. 2024 (arXiv 2402.02318), with the kernel of cosines
    K = (1 - RIDGE) X X^T + RIDGE I. Its diagonal is 1, so that ln det K <= 0 (Hadamard), with equality for orthogonal
    embeddings alone: those are the most diverse set, and ln det K_max = 0. With S > D they cannot be reached.
    """
    num_sequences = len(unit_SD)
    unit_SD = unit_SD.astype(np.float64)
    kernel_SS = (1 - RIDGE) * (unit_SD @ unit_SD.T)
    np.fill_diagonal(kernel_SS, 1.0)
    _, log_determinant = np.linalg.slogdet(kernel_SS)
    return max(0.0, -float(log_determinant) / num_sequences)  # rounding


def mean_and_error(values: list[float]) -> tuple[float, float]:
    """Mean of independent measurements, and its standard error."""
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return mean, math.sqrt(squares / (len(values) - 1) / len(values))


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """Of some tokens.

    Attributes:
        distinct: different tokens.
        entropy_bits: of the distribution of tokens as counted, which is below that of the whole data.
        covering: the fewest different tokens that make up COVERED_SHARE of all.
        distinct_2: different pairs of neighbours in a sequence, a pair (Li et al. 2016, arXiv 1510.03055). Their
            distinct-1 is `distinct` a token.
    """

    distinct: int
    entropy_bits: float
    covering: int
    distinct_2: float


def measure_vocabulary(sequences: Sequence[np.ndarray], num_tokens: int) -> Vocabulary:
    """Of the first `num_tokens` tokens of some sequences.

    Args:
        num_tokens: at least 1, at most what the sequences have.
    """
    tokens_T = np.concatenate(sequences)[:num_tokens].astype(np.int64)
    assert len(tokens_T) == num_tokens
    counts_V = np.sort(np.unique(tokens_T, return_counts=True)[1])[::-1]
    share_V = counts_V / num_tokens
    ends_T = np.cumsum([len(sequence) for sequence in sequences]) - 1
    is_pair_T = np.ones(num_tokens - 1, bool)
    is_pair_T[ends_T[ends_T < num_tokens - 1]] = False
    pairs = (tokens_T[:-1] << 32 | tokens_T[1:])[is_pair_T]
    return Vocabulary(
        distinct=len(counts_V),
        entropy_bits=float(-(share_V @ np.log2(share_V))) + 0.0,  # no -0.0
        covering=int(np.searchsorted(np.cumsum(counts_V), COVERED_SHARE * num_tokens)) + 1,
        distinct_2=len(np.unique(pairs)) / max(1, len(pairs)),
    )


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
