"""Several prefixes as one: copied into one corpus, or named in one `data_args.txt`.

The `.bin` and `.idx` are those of Megatron's `tools/merge_datasets.py`, except that it cannot merge views. All shards
of one corpus become the corpus that an unsharded run writes, whatever the order in which they are given.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import islice
from operator import and_
from pathlib import Path
from typing import Any, Self

from megatron_miniplm.artifacts.data_args import DATA_ARGS, expand_prefixes, require_readable, write_data_args
from megatron_miniplm.artifacts.directories import sole_writer
from megatron_miniplm.artifacts.fingerprint import SHORT_HEX, Fingerprint, digest_values
from megatron_miniplm.artifacts.lineage import parent_path
from megatron_miniplm.artifacts.manifest import (
    ArtifactInput,
    Manifest,
    input_of,
    is_prefix,
    load_manifest,
    manifest_path,
    prefix_manifest_path,
    refuse_another,
)
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError
from megatron_miniplm.indexed.copying import copy_pieces, copy_sequences
from megatron_miniplm.indexed.existing import existing_corpus
from megatron_miniplm.indexed.layout import idx_path, refuse_too_many
from megatron_miniplm.indexed.prefix_files import prefix_lock
from megatron_miniplm.indexed.reader import IndexedCorpus, fingerprint_of
from megatron_miniplm.indexed.sidecar import Sidecar, SidecarWriter, sidecar_path
from megatron_miniplm.indexed.view import data_prefix
from megatron_miniplm.indexed.writer import IndexedWriter
from megatron_miniplm.runtime.progress import Progress

logger = logging.getLogger(__name__)

#: Settings that only a shard has; `num_shards` tells one.
SHARD_SETTINGS = ("shard_index", "num_shards", "sharded_inputs")
#: Settings that must be equal where both are known.
_SHAPE_SETTINGS = ("vocab_size", "eod_id", "sequence", "chunk_length", "append_eod")


def merge_prefixes(prefixes: Sequence[Path], output_prefix: Path) -> Manifest:
    """Copy corpora and views, one after the other, into one corpus.

    The sidecar is written if all of them have one. Memory does not grow with the tokens.

    Raises:
        InputError: the prefixes do not fit together, shards are missing or repeated, or something else lies under
            `output_prefix`.
    """
    parts = _open_parts(prefixes)
    refuse_too_many(output_prefix, sum(len(part.corpus) for part in parts))
    settings, versions = _agreed(part.settings for part in parts), _agreed(part.versions for part in parts)
    directory = output_prefix.parent
    inputs = (*(part.input("corpus", directory) for part in parts), *inputs_behind(parts, directory))

    def existing() -> Manifest | None:
        return existing_corpus(
            output_prefix, settings=settings, versions=versions, inputs=inputs, output_flag="--output-prefix"
        )

    if (found := existing()) is not None:
        return found
    with prefix_lock(output_prefix):
        if (found := existing()) is not None:  # another process was first
            return found
        with Progress(sum(part.num_bytes for part in parts), "B") as progress:
            return copy_parts(
                parts, output_prefix, settings=settings, versions=versions, inputs=inputs, advance=progress.advance
            )


def copy_parts(
    parts: "Sequence[Part]",
    output_prefix: Path,
    *,
    settings: dict[str, Any],
    versions: dict[str, str],
    inputs: tuple[ArtifactInput, ...],
    advance: Callable[[int], object],
) -> Manifest:
    """Write the corpus of some parts, with the sidecar if all have one, and the manifest that is given.

    Args:
        advance: called with every number of bytes of tokens written.
    """
    with IndexedWriter(output_prefix, parts[0].corpus.token_dtype) as writer:
        sidecar_files = _copy(parts, writer, advance)
        files = {**writer.close(), **sidecar_files}
        manifest = Manifest(
            kind="corpus",
            files=files,
            fingerprint=fingerprint_of(output_prefix, files[idx_path(output_prefix).name]["blake2b"]),
            counts=_total_counts(parts),
            settings=settings,
            versions=versions,
            inputs=inputs,
        )
        manifest.write(output_prefix)
    return manifest


def blend_prefixes(prefixes: Sequence[Path], output_dir: Path) -> Manifest:
    """Name corpora and views in `output_dir/data_args.txt`: the directory then stands for all, and nothing is copied.

    Raises:
        InputError: the prefixes do not fit together, shards are missing, `output_dir` holds another list, or another
            process is writing it.
    """
    require_readable(output_dir, *prefixes)
    if is_prefix(output_dir):
        raise InputError(f"{output_dir} is the prefix of a .bin/.idx pair: give another --as-data-args")
    with sole_writer(output_dir):
        return write_blend(prefixes, output_dir)


def write_blend(prefixes: Sequence[Path], output_dir: Path) -> Manifest:
    """`blend_prefixes`, where the caller is the sole writer of the directory."""
    parts = _open_parts(prefixes)
    manifest = Manifest(
        kind="views",
        fingerprint=digest_values("views", [part.fingerprint for part in parts]),
        counts={
            "num_sequences": sum(len(part.corpus) for part in parts),
            "num_tokens": sum(part.corpus.num_tokens for part in parts),
        },
        inputs=tuple(part.input(part.kind, output_dir) for part in parts),
    )
    weighted = [(part.corpus.num_tokens, part.prefix) for part in parts]
    refuse_another(output_dir, "list of prefixes", manifest.fingerprint)
    if (output_dir / DATA_ARGS).exists() and not manifest_path(output_dir).exists():
        found, wanted = expand_prefixes([output_dir]), [prefix.absolute() for weight, prefix in weighted if weight]
        if found != wanted:  # not what a killed run has left
            raise InputError(f"{output_dir / DATA_ARGS} is another list: choose another --as-data-args, or delete it")
    write_data_args(output_dir, weighted)
    manifest.write(output_dir)
    return manifest


@dataclass(frozen=True, kw_only=True)
class Part:
    """A prefix that is copied, or named in a blend.

    Attributes:
        manifest: its own; None if it has none.
        origin: the manifest of the corpus that holds its tokens, which is its own unless it is a view.
    """

    corpus: IndexedCorpus
    fingerprint: Fingerprint
    manifest: Manifest | None
    origin: Manifest | None

    @classmethod
    def open(cls, prefix: Path) -> Self:
        corpus = IndexedCorpus.open(prefix)
        manifest = _manifest_or_none(prefix)
        return cls(
            corpus=corpus,
            fingerprint=corpus.verified_fingerprint(),
            manifest=manifest,
            origin=_manifest_or_none(data_prefix(prefix)) if corpus.is_view else manifest,
        )

    @property
    def prefix(self) -> Path:
        return self.corpus.prefix

    @property
    def kind(self) -> str:
        return "view" if self.corpus.is_view else "corpus"

    @property
    def num_bytes(self) -> int:
        """Of its tokens."""
        return self.corpus.num_tokens * self.corpus.token_dtype.itemsize

    @property
    def shard_index(self) -> int | None:
        """None if it is no shard."""
        return self.manifest.settings.get("shard_index") if self.manifest is not None else None

    @property
    def settings(self) -> dict[str, Any]:
        """What shaped the tokens."""
        settings = self.origin.settings if self.origin is not None else {}
        return {name: value for name, value in settings.items() if name not in SHARD_SETTINGS}

    @property
    def versions(self) -> dict[str, str]:
        return self.origin.versions if self.origin is not None else {}

    @property
    def counts(self) -> dict[str, int]:
        if self.manifest is not None:
            return self.manifest.counts
        return {
            "num_sequences": len(self.corpus),
            "num_documents": self.corpus.num_documents,
            "num_tokens": self.corpus.num_tokens,
        }

    @property
    def tokenizer(self) -> Fingerprint | None:
        """None if no manifest says."""
        parents = self.origin.inputs if self.origin is not None else ()
        return next((parent.fingerprint for parent in parents if parent.role == "tokenizer"), None)

    def input(self, role: str, directory: Path) -> ArtifactInput:
        return input_of(role, self.prefix, self.fingerprint, relative_to=directory)

    def origin_inputs(self, role: str, directory: Path) -> Iterator[ArtifactInput]:
        """The parents of the corpus that holds the tokens, as seen from another directory."""
        for parent in self.origin.inputs if self.origin is not None else ():
            if parent.role == role:
                path = parent_path(data_prefix(self.prefix), parent)
                yield input_of(role, path, parent.fingerprint, relative_to=directory)


def inputs_behind(parts: Sequence[Part], directory: Path) -> tuple[ArtifactInput, ...]:
    """The text and tokenizer behind the parts: what they were made from may be deleted, as shards are."""
    behind = [
        found for role in ("text", "tokenizer") for part in parts for found in part.origin_inputs(role, directory)
    ]
    return tuple(dict.fromkeys(behind))


def _manifest_or_none(prefix: Path) -> Manifest | None:
    return load_manifest(prefix) if prefix_manifest_path(prefix).exists() else None


def _open_parts(prefixes: Sequence[Path]) -> list[Part]:
    """The parts in the order in which they are merged.

    Raises:
        InputError: they do not fit together.
    """
    parts = [Part.open(prefix) for prefix in prefixes]
    if not parts:
        raise InputError("there is no prefix to merge: give prefixes, or a directory that holds some, to --input")
    for part in parts[1:]:
        check_alike(parts[0], part)
    return _in_order_of_shards(parts) if any(part.shard_index is not None for part in parts) else parts


def check_alike(first: Part, other: Part) -> None:
    """Raise FingerprintMismatchError where the two cannot be told apart in one corpus, though they must be."""
    differences: list[tuple[str, Any, Any]] = [("token dtype", first.corpus.token_dtype, other.corpus.token_dtype)]
    if None not in (first.tokenizer, other.tokenizer):
        differences += [("tokenizer", str(first.tokenizer)[:SHORT_HEX], str(other.tokenizer)[:SHORT_HEX])]
    known = first.settings.keys() & other.settings.keys()
    differences += [(name, first.settings[name], other.settings[name]) for name in _SHAPE_SETTINGS if name in known]
    for name, one, another in differences:
        if one != another:
            raise FingerprintMismatchError(
                f"{first.prefix} has {name} {one}, {other.prefix} has {another}: they cannot be one corpus; preprocess "
                "both in the same way"
            )


def _in_order_of_shards(parts: list[Part]) -> list[Part]:
    """All shards of one corpus, by index."""
    prefix_of: dict[int, Path] = {}
    identities = []
    for part in parts:
        if part.shard_index is None or part.manifest is None:
            sharded = next(part.prefix for part in parts if part.shard_index is not None)
            raise InputError(f"{part.prefix} is no shard, but {sharded} is: merge the shards first, alone")
        identities.append({name: value for name, value in part.manifest.settings.items() if name != "shard_index"})
        if identities[-1] != identities[0]:
            raise InputError(
                f"{part.prefix} is a shard of another corpus than {parts[0].prefix}: merge those of one run and key"
            )
        if (twin := prefix_of.setdefault(part.shard_index, part.prefix)) != part.prefix:
            raise InputError(f"{twin} and {part.prefix} are both shard {part.shard_index}: give one of them")
    num_shards = identities[0].get("num_shards")
    if type(num_shards) is not int or not all(0 <= index < num_shards for index in prefix_of):
        raise CorruptArtifactError(f"{parts[0].prefix}: the manifest gives no number of shards: preprocess again")
    missing = list(islice((index for index in range(num_shards) if index not in prefix_of), 10))
    if missing:
        num_missing, first = num_shards - len(prefix_of), ", ".join(map(str, missing))
        raise InputError(
            f"{num_missing} of {num_shards} shards are missing ({first}): give them too, or make them with "
            "preprocess-data --shard-index"
        )
    return sorted(parts, key=lambda part: part.shard_index or 0)


def _agreed(values: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """What all say, in the order of the first."""
    first, *others = values
    return {
        name: value for name, value in first.items() if all(name in other and other[name] == value for other in others)
    }


def _total_counts(parts: Sequence[Part]) -> dict[str, int]:
    """The sums of what all of them count."""
    known = reduce(and_, (part.counts.keys() for part in parts))
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part.counts)
    return {name: total[name] for name in parts[0].counts if name in known}


def _copy(parts: Sequence[Part], writer: IndexedWriter, advance: Callable[[int], object]) -> dict[str, Any]:
    """Copy all tokens, and the sidecars if all have one; returns the `files` entry of the sidecar."""
    sidecars = [Sidecar.of(part.corpus) for part in parts]
    sidecar_path(writer.prefix).unlink(missing_ok=True)  # of a killed run
    if None in sidecars:
        logger.info("no sidecar is written: %s has none", parts[sidecars.index(None)].prefix)
        for part in parts:
            copy_sequences(part.corpus, writer, advance)
        return {}
    with SidecarWriter(writer.prefix) as pieces:
        for part, sidecar in zip(parts, sidecars, strict=True):
            assert sidecar is not None
            copy_pieces(
                part.corpus,
                sidecar,
                pieces,
                first_sequence=writer.num_sequences,
                directory=writer.prefix.parent,
            )
            copy_sequences(part.corpus, writer, advance)
        return pieces.close()
