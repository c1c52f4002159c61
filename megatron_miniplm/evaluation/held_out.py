"""Held-out loss from finished scores: nats a token, perplexity and bits a byte, by corpus and by domain. No torch.

Axes: N sequences of a corpus, K tokens of one sequence, V ids of the vocabulary.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts.data_args import expand_prefixes
from megatron_miniplm.artifacts.manifest import is_prefix, require_prefix
from megatron_miniplm.artifacts.scores import NOT_SCORED, ScoreStore
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.pieces import NO_DOMAIN

#: Where the bytes of a text were counted, see `describe`.
SCORED_TOKENS, WHOLE_SEQUENCES = "scored tokens", "whole sequences"
_NAMED = re.compile(r"([\w.-]+)=(.+)")


@dataclass(frozen=True, kw_only=True)
class HeldOutCorpus:
    """A column of the table.

    Attributes:
        name: also that of its directory of scores.
        prefixes: one, or those of a directory with a `data_args.txt`.
    """

    name: str
    prefixes: tuple[Path, ...]


@dataclass(frozen=True, kw_only=True)
class Counting:
    """Which predictions of a sequence the scores count.

    Attributes:
        bos_token: what stands before every sequence, so that its first token counts too; None: it does not.
        masked_input: predictions whose input is this token do not count; None: all do.
    """

    bos_token: int | None = None
    masked_input: int | None = None


@dataclass(frozen=True, kw_only=True)
class Texts:
    """What is known of the sequences of a corpus beside their scores.

    Attributes:
        domains: code by name, in the order of names; empty where no sequence has a domain.
        domain_N: code of each sequence's domain, int64.
        text_bytes_N: UTF-8 bytes, int64; None where nothing tells them.
        bytes_of: SCORED_TOKENS or WHOLE_SEQUENCES; None without bytes.
    """

    domains: dict[str, int]
    domain_N: np.ndarray
    text_bytes_N: np.ndarray | None
    bytes_of: str | None


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Loss over some sequences.

    Attributes:
        num_sequences: those with a prediction that counts.
        num_tokens: predictions that count.
        nll_nats: their sum.
        standard_error_nats: of the loss, over sequences drawn independently; None for fewer than two.
        text_bytes: None where they are not known.
    """

    num_sequences: int
    num_tokens: int
    nll_nats: float
    standard_error_nats: float | None
    text_bytes: int | None

    @property
    def nats_per_token(self) -> float | None:
        return self.nll_nats / self.num_tokens if self.num_tokens else None

    @property
    def perplexity(self) -> float | None:
        """None without a token, and where it is beyond the range of a float."""
        if (loss := self.nats_per_token) is None:
            return None
        with np.errstate(over="ignore"):
            value = float(np.exp(loss))
        return value if math.isfinite(value) else None

    @property
    def bits_per_byte(self) -> float | None:
        return self.nll_nats / (math.log(2) * self.text_bytes) if self.text_bytes else None


@dataclass(frozen=True, kw_only=True)
class CorpusLoss:
    """Loss of a whole corpus and, where its sequences have domains, of each; the domains sum to the whole."""

    whole: Loss
    domains: dict[str, Loss] = field(default_factory=dict)


def read_corpora(words: Sequence[str]) -> list[HeldOutCorpus]:
    """Corpora as `--corpus` names them: `PREFIX`, a directory of views, or `NAME=` one of them.

    Raises:
        InputError: a prefix does not exist, or two corpora have one name.
    """
    corpora: list[HeldOutCorpus] = []
    for word in words:
        named = None if is_prefix(Path(word)) or Path(word).is_dir() else _NAMED.fullmatch(word)
        path = named[2] if named else word
        prefixes = tuple(expand_prefixes([path]))
        for prefix in prefixes:
            require_prefix(prefix)
        corpora.append(HeldOutCorpus(name=named[1] if named else Path(path).name, prefixes=prefixes))
    names = [corpus.name for corpus in corpora]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two corpora are called {twice[0]}: name them, as in NAME=PREFIX")
    return corpora


def describe(corpus: HeldOutCorpus, counting: Counting, token_bytes_V: np.ndarray | None) -> Texts:
    """Domains from the sidecars, bytes from the tokens that are scored or else from the sidecars.

    Args:
        counting: the rules of the scores.
        token_bytes_V: UTF-8 bytes of text that each id stands for; None where the tokenizer does not tell. Then the
            sidecars do, but of whole sequences: the text of an unscored first token is counted too.

    Raises:
        CorruptArtifactError: a sidecar is of another corpus.
    """
    codes: dict[str, int] = {}
    domains, whole_bytes, scored_bytes = [], [], []
    for prefix in corpus.prefixes:
        sequences = IndexedCorpus.open(prefix)
        names, domain_N, bytes_N = _of_sidecar(sequences)
        domains.append(np.array([codes.setdefault(name, len(codes)) for name in names])[domain_N])
        whole_bytes.append(bytes_N)
        if token_bytes_V is not None:
            scored_bytes.append(_scored_bytes(sequences, counting, token_bytes_V))
    text_bytes_N, bytes_of = None, None
    if token_bytes_V is not None:
        text_bytes_N, bytes_of = np.concatenate(scored_bytes), SCORED_TOKENS
    elif len(known := [bytes_N for bytes_N in whole_bytes if bytes_N is not None]) == len(whole_bytes):
        text_bytes_N, bytes_of = np.concatenate(known), WHOLE_SEQUENCES
    domain_N = np.concatenate(domains)
    present = {name: code for name, code in sorted(codes.items()) if (domain_N == code).any()}
    return Texts(
        domains={} if present.keys() <= {NO_DOMAIN} else present,
        domain_N=domain_N,
        text_bytes_N=text_bytes_N,
        bytes_of=bytes_of,
    )


def scored_targets(token_K: np.ndarray, counting: Counting) -> np.ndarray:
    """The tokens of a sequence whose prediction counts, in order."""
    if counting.bos_token is not None and len(token_K):
        token_K = np.concatenate(([counting.bos_token], token_K))
    target_K = token_K[1:]
    return target_K if counting.masked_input is None else target_K[token_K[:-1] != counting.masked_input]


def corpus_loss(store: ScoreStore, texts: Texts) -> CorpusLoss:
    """Loss of a finished store.

    Raises:
        InputError: the store is incomplete.
        FingerprintMismatchError: the texts are of another corpus.
        CorruptArtifactError: a block is damaged.
    """
    store.require_complete()
    scores = store.read_all()
    if len(scores) != len(texts.domain_N):
        raise FingerprintMismatchError(
            f"{store.directory} holds scores of {len(scores)} sequences, the corpus has {len(texts.domain_N)}: "
            "evaluate again"
        )
    whole = loss_of(scores, texts.text_bytes_N)
    domains = {}
    for name, code in texts.domains.items():
        inside_N = texts.domain_N == code
        bytes_N = None if texts.text_bytes_N is None else texts.text_bytes_N[inside_N]
        domains[name] = loss_of(scores[inside_N], bytes_N)
    return CorpusLoss(whole=whole, domains=domains)


def loss_of(scores_N: np.ndarray, text_bytes_N: np.ndarray | None) -> Loss:
    """Loss over some sequences.

    The standard error is that of a ratio of two sums over sequences (Cochran, Sampling Techniques, section 6.3).

    Args:
        scores_N: of SCORE_DTYPE.
        text_bytes_N: of the same sequences, int64.
    """
    has_tokens_N = scores_N["num_tokens"] > 0
    assert not (scores_N["num_tokens"] == NOT_SCORED).any()  # no sample is scored here
    nll_N = scores_N["nll"][has_tokens_N].astype(np.float64)
    num_tokens_N = scores_N["num_tokens"][has_tokens_N].astype(np.int64)
    num_sequences, num_tokens, nll = len(nll_N), int(num_tokens_N.sum()), float(nll_N.sum())
    standard_error = None
    if num_sequences > 1:
        residual_N = nll_N - nll / num_tokens * num_tokens_N
        variance = num_sequences / (num_sequences - 1) * float(np.square(residual_N).sum())
        standard_error = math.sqrt(variance) / num_tokens
    return Loss(
        num_sequences=num_sequences,
        num_tokens=num_tokens,
        nll_nats=nll,
        standard_error_nats=standard_error,
        text_bytes=None if text_bytes_N is None else int(text_bytes_N[has_tokens_N].sum()),
    )


def _scored_bytes(sequences: IndexedCorpus, counting: Counting, token_bytes_V: np.ndarray) -> np.ndarray:
    targets = (scored_targets(sequences.sequence(index), counting) for index in range(len(sequences)))
    return np.fromiter((token_bytes_V[target_K].sum() for target_K in targets), np.int64, len(sequences))


def _of_sidecar(sequences: IndexedCorpus) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Names of domains, the code of each sequence's, and its bytes; no domain and no bytes without a sidecar."""
    from megatron_miniplm.indexed.sidecar import Sidecar, fill_domains_and_bytes
    from megatron_miniplm.indexed.view import data_prefix, source_sequences

    sidecar = Sidecar.of(sequences)
    if sidecar is None:
        return [NO_DOMAIN], np.zeros(len(sequences), np.int64), None
    source = IndexedCorpus.open(data_prefix(sequences.prefix)) if sequences.is_view else sequences
    domain_N, bytes_N = np.zeros(len(source), np.uint16), np.zeros(len(source), np.int64)
    names = fill_domains_and_bytes(sidecar, source, domain_N, bytes_N)
    place_N = source_sequences(sequences)
    return names, domain_N[place_N], bytes_N[place_N]
