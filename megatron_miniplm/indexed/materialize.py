"""Refined data copied out: one corpus a prefix, for object storage and clusters without symbolic links.

    views, corpora, directories with data_args.txt ──► <output>/<name>.bin/.idx + sidecar + manifest, one each
    index-only selections (through a view that is     <output>/data_args.txt, manifest.json (kind `views`)
    made beside the copy and removed again)

A killed run is continued by the same command: a prefix with a manifest is finished and is not copied again.
"""

import glob
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from megatron_miniplm.artifacts.data_args import DATA_ARGS, expand_prefixes
from megatron_miniplm.artifacts.directories import sole_writer
from megatron_miniplm.artifacts.manifest import (
    ArtifactInput,
    Manifest,
    input_of,
    is_prefix,
    load_manifest,
    manifest_path,
)
from megatron_miniplm.artifacts.selections import SELECTION, SelectedPrefix, Selection
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.existing import existing_corpus
from megatron_miniplm.indexed.layout import refuse_too_many
from megatron_miniplm.indexed.merge import Part, check_alike, copy_parts, inputs_behind, write_blend
from megatron_miniplm.indexed.view import view_name, write_view
from megatron_miniplm.runtime.progress import Progress

_LABEL = "refined"
_REMEDY = "give another --output, or delete it together with its index caches in any --data-cache-path"


def materialize(inputs: Sequence[Path], output_dir: Path) -> Manifest:
    """Copy every prefix that the inputs stand for into a corpus of its own, and name the copies in a blend.

    Args:
        inputs: prefixes of views or corpora; directories that stand for prefixes; index-only selections.
        output_dir: gets the corpora, `data_args.txt` without those that have no token, and a manifest.

    Returns:
        The manifest of the directory.

    Raises:
        MiniPLMError: an input is damaged, inputs do not fit together, or `output_dir` holds something else.
    """
    for path in inputs:
        _require_input(path)
    copies = [copy for path in inputs for copy in _copies_of(path)]
    if not copies:
        raise InputError("there is nothing to copy: the directories given to --input name no prefix")
    for copy in copies[1:]:
        check_alike(copies[0].part, copy.part)
    _refuse_twins(copies, output_dir)
    if is_prefix(output_dir):
        raise InputError(f"{output_dir} is the prefix of a .bin/.idx pair: give another --output")
    with sole_writer(output_dir):
        _refuse_another_output([copy.name for copy in copies], output_dir)
        for copy in copies:
            refuse_too_many(output_dir / copy.name, copy.num_sequences)
        missing = [copy for copy in copies if not copy.exists_in(output_dir)]
        with Progress(sum(copy.num_bytes for copy in missing), "B") as progress:
            for copy in missing:
                copy.write(output_dir, progress.advance)
        return write_blend([output_dir / copy.name for copy in copies], output_dir)


@dataclass(frozen=True, kw_only=True)
class _Copy:
    """A corpus that is to be written, with all sequences of a prefix or with those that a selection keeps.

    Attributes:
        part: the prefix.
        selection: an index-only selection, None where all sequences are copied.
        selected: what it keeps of the prefix.
    """

    part: Part
    selection: Selection | None = None
    selected: SelectedPrefix | None = None

    @cached_property
    def name(self) -> str:
        """Of a selection, the name that the view would have; reads all indices."""
        if self.selected is None:
            return self.part.prefix.name
        return view_name(self.part.corpus, self._sequences_K, label=_LABEL, source_fingerprint=self.part.fingerprint)

    @property
    def num_sequences(self) -> int:
        """Of the copy, repeated ones several times."""
        return len(self.part.corpus) if self.selected is None else len(self._sequences_K)

    @property
    def num_bytes(self) -> int:
        """Of the tokens that are copied."""
        if self.selected is None:
            return self.part.num_bytes
        return self.selected.num_tokens * self.part.corpus.token_dtype.itemsize

    def exists_in(self, directory: Path) -> bool:
        """Whether it is finished.

        Raises:
            InputError: another corpus has its name.
        """
        prefix, part = directory / self.name, self.part
        found = existing_corpus(
            prefix,
            settings=part.settings,
            versions=part.versions,
            inputs=self._inputs(directory),
            output_flag="--output",
        )
        if found is not None:
            self._remove_killed_views(directory)
        return found is not None

    def write(self, directory: Path, advance: Callable[[int], object]) -> None:
        with self._copied_part(directory) as part:
            copy_parts(
                [part],
                directory / self.name,
                settings=part.settings,
                versions=part.versions,
                inputs=self._inputs(directory),
                advance=advance,
            )
        self._remove_killed_views(directory)

    def _remove_killed_views(self, directory: Path) -> None:
        """What killed runs have left; not before the copy is there, because one at a time may write it."""
        for stale in directory.glob(f".{glob.escape(self.name)}.view.*"):
            shutil.rmtree(stale, ignore_errors=True)

    @contextmanager
    def _copied_part(self, directory: Path) -> Iterator[Part]:
        """The prefix of which all is copied: of a selection, a view in a hidden directory that goes afterwards."""
        if self.selected is None:
            yield self.part
            return
        with tempfile.TemporaryDirectory(prefix=f".{self.name}.view.", dir=directory) as hidden:
            view = write_view(
                self.part.corpus,
                self._sequences_K,
                Path(hidden),
                label=_LABEL,
                settings={},
                source_fingerprint=self.part.fingerprint,
            )
            yield Part.open(view)

    @property
    def _sequences_K(self) -> np.ndarray:
        assert self.selected is not None
        return self.selected.indices()

    def _inputs(self, directory: Path) -> tuple[ArtifactInput, ...]:
        """What is copied, and the text and tokenizer behind it."""
        parents = [self.part.input(self.part.kind, directory)]
        if self.selection is not None:
            fingerprint = self.selection.manifest.fingerprint
            parents.append(input_of("selection", self.selection.directory, fingerprint, relative_to=directory))
        return (*parents, *inputs_behind([self.part], directory))


def _require_input(path: Path) -> None:
    if not is_prefix(path) and not path.is_dir():
        raise InputError(
            f"{path} does not exist: give prefixes of .bin/.idx pairs, directories with a {DATA_ARGS}, or selections"
        )


def _copies_of(path: Path) -> list[_Copy]:
    if is_prefix(path) or not (path / SELECTION).exists():
        return [_Copy(part=Part.open(prefix)) for prefix in expand_prefixes([path])]
    selection = Selection.open(path)
    if not selection.is_index_only:  # not by data_args.txt, whose absolute paths are those of before a move
        return [
            _Copy(part=Part.open(prefix.view)) for prefix in selection.prefixes if prefix.view and prefix.num_tokens
        ]
    if selection.manifest.settings.get("repeat"):
        raise InputError(f"{path} repeats sequences, which its indices do not say: select again without --index-only")
    return [_selected_copy(selection, selected) for selected in selection.prefixes]


def _selected_copy(selection: Selection, selected: SelectedPrefix) -> _Copy:
    """The copy of what an index-only selection keeps of one of its prefixes.

    Raises:
        FingerprintMismatchError: the prefix is no longer what was selected from.
    """
    part = Part.open(selected.path)
    selected.refuse_another(selected.path, part.fingerprint)
    return _Copy(part=part, selection=selection, selected=selected)


def _refuse_twins(copies: Sequence[_Copy], output_dir: Path) -> None:
    """Raise InputError where two inputs would be copied to one name."""
    origin: dict[str, Path] = {}
    for copy in copies:
        if (twin := origin.setdefault(copy.name, copy.part.prefix)) is not copy.part.prefix:
            raise InputError(
                f"{twin} and {copy.part.prefix} would both be {output_dir / copy.name}: give each prefix once, and "
                "those of one name to runs with another --output"
            )


def _refuse_another_output(names: Sequence[str], output_dir: Path) -> None:
    """Raise InputError where a directory holds something else than these copies, or a part of them."""
    ours = frozenset(names)
    for prefix in sorted(path.with_suffix("") for path in output_dir.glob("*.idx")):
        if prefix.name not in ours:
            raise InputError(f"{output_dir} holds {prefix.name}, which is none of what is copied: {_REMEDY}")
    if output_dir.is_dir() and manifest_path(output_dir).exists():
        manifest = load_manifest(output_dir)
        if manifest.kind != "views" or [parent.path for parent in manifest.inputs] != list(names):
            raise InputError(f"{output_dir} holds other {manifest.kind}: {_REMEDY}")
    elif (output_dir / DATA_ARGS).exists():
        others = sorted({prefix.name for prefix in expand_prefixes([output_dir])} - set(names))
        if others:
            raise InputError(f"{output_dir / DATA_ARGS} names {others[0]}, which is none of what is copied: {_REMEDY}")
