"""Data sets of any make under one numbering that does not depend on the order of their prefixes."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from megatron_miniplm.artifacts.data_args import expand_prefixes
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, hasher
from megatron_miniplm.artifacts.manifest import is_prefix
from megatron_miniplm.artifacts.selections import SELECTION, Selection
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed.merge import Part

CHUNK_SEQUENCES = 1 << 19
_FORGET_SEQUENCES = 1 << 14
_KEY_SEQUENCES, _KEY_TOKENS = 64, 64


@dataclass(frozen=True, kw_only=True)
class Member:
    """Sequences of one prefix.

    Attributes:
        part: the prefix.
        indices: which of its sequences, int64, mapped read-only; None for all.
    """

    part: Part
    indices: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.part.corpus if self.indices is None else self.indices)

    def lengths(self) -> Iterator[np.ndarray]:
        """Tokens of every sequence, int32, in chunks."""
        corpus = self.part.corpus
        for start in range(0, len(self), CHUNK_SEQUENCES):
            chosen = slice(start, start + CHUNK_SEQUENCES)
            yield corpus.lengths_N[chosen if self.indices is None else self.indices[chosen]].copy()
            corpus.forget_pages()

    def sequence(self, index: int) -> np.ndarray:
        return self.part.corpus.sequence(index if self.indices is None else int(self.indices[index]))

    def content_key(self) -> str:
        """Equal for a view, an index-only selection and a copy of the same sequences; reads the lengths."""
        digest = hasher()
        for lengths in self.lengths():
            digest.update(lengths.data)
        for index in np.linspace(0, len(self) - 1, min(len(self), _KEY_SEQUENCES)).astype(int).tolist():
            digest.update(self.sequence(index)[:_KEY_TOKENS].tobytes())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """What a model would be trained on.

    Attributes:
        name: as the user calls it.
        members: ordered by content, so that the order in which prefixes are given changes nothing.
    """

    name: str
    members: tuple[Member, ...]

    @classmethod
    def open(cls, name: str, paths: Sequence[Path]) -> Self:
        """Open prefixes, directories that stand for prefixes, and selections.

        Raises:
            MiniPLMError: a path is none of these, stands twice, or is damaged.
        """
        members = [member for path in paths for member in _members_of(path)]
        expand_prefixes([member.part.prefix for member in members])  # refuses one that stands twice
        if not any(map(len, members)):
            raise InputError(f"{name} has no sequences: there is nothing to analyse")
        return cls(name=name, members=tuple(sorted(members, key=Member.content_key)))

    def __len__(self) -> int:
        return sum(map(len, self.members))

    @cached_property
    def num_tokens(self) -> int:
        return sum(int(lengths.sum(dtype=np.int64)) for lengths in self.lengths())

    def lengths(self) -> Iterator[np.ndarray]:
        for member in self.members:
            yield from member.lengths()

    def sequences(self) -> Iterator[np.ndarray]:
        """Tokens of every sequence; the pages that were read are given back now and then."""
        for member in self.members:
            for index in range(len(member)):
                yield member.sequence(index)
                if index % _FORGET_SEQUENCES == 0:
                    member.part.corpus.forget_pages()

    def sample(self, num_sequences: int, *, seed: int, max_tokens: int) -> list[np.ndarray]:
        """Sequences drawn at random, each alike, in random order.

        Args:
            num_sequences: to be drawn without replacement; of fewer, all. Those without tokens are left out.
            max_tokens: of each, its first ones.
        """
        random = np.random.default_rng(seed)
        drawn_S = random.choice(len(self), min(num_sequences, len(self)), replace=False)
        stops = np.cumsum([len(member) for member in self.members])
        tokens_of: dict[int, np.ndarray] = {}
        for drawn in np.sort(drawn_S).tolist():  # in the order in which they lie on disk
            place = int(np.searchsorted(stops, drawn, side="right"))
            member = self.members[place]
            tokens_of[drawn] = member.sequence(drawn - int(stops[place]) + len(member))[:max_tokens].copy()
        for member in self.members:
            member.part.corpus.forget_pages()
        return [tokens_of[drawn] for drawn in drawn_S.tolist() if len(tokens_of[drawn])]


def check_tokenizers(datasets: Sequence[Dataset]) -> None:
    """Raise FingerprintMismatchError where tokens are of different tokenizers, as far as manifests tell."""
    parts = [member.part for dataset in datasets for member in dataset.members]
    known: dict[str, tuple[Any, Part]] = {}
    for part in parts:
        found = {
            "token dtype": str(part.corpus.token_dtype),
            "tokenizer": part.tokenizer and part.tokenizer[:SHORT_HEX],
            "vocabulary size": part.settings.get("vocab_size"),
        }
        for name, value in found.items():
            expected, first = known.setdefault(name, (value, part)) if value is not None else (None, part)
            if value != expected:
                raise FingerprintMismatchError(
                    f"{first.prefix} has {name} {expected}, {part.prefix} has {value}: tokens of different tokenizers "
                    "cannot be compared; convert one of them (convert-tokenization)"
                )


def _members_of(path: Path) -> list[Member]:
    if not is_prefix(path) and (path / SELECTION).exists() and (selection := Selection.open(path)).is_index_only:
        if selection.manifest.settings.get("repeat"):
            raise InputError(
                f"{path} repeats sequences, which its indices do not say: select again without --index-only"
            )
        members = []
        for selected in selection.prefixes:
            part = Part.open(selected.path)
            selected.refuse_another(selected.path, part.fingerprint)
            members.append(Member(part=part, indices=selected.indices()))
        return members
    return [Member(part=Part.open(prefix)) for prefix in expand_prefixes([path])]
