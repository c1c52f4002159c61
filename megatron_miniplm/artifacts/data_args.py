"""`data_args.txt`: the blend that Megatron's `--data-args-path` reads, and our list of a directory's prefixes.

One line a prefix, `<weight> <prefix>`; the weight is the number of tokens, so that a blend draws each prefix in
proportion. Paths are absolute, because Megatron resolves them against the working directory of the training job.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from megatron_miniplm.artifacts.atomic import write_text
from megatron_miniplm.artifacts.manifest import is_prefix, manifest_path
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.errors import CorruptArtifactError, InputError

DATA_ARGS = "data_args.txt"
_WEIGHT = re.compile(r"[0-9]+(\.[0-9]*)?|\.[0-9]+")


def write_data_args(directory: Path, weighted_prefixes: Sequence[tuple[int, Path]]) -> Path:
    """Write the blend of a directory's prefixes; one without tokens is left out, Megatron refuses a weight of 0."""
    path = directory / DATA_ARGS
    require_readable(*(prefix for _, prefix in weighted_prefixes))
    # `absolute`, not `resolve`: a user's symlinked data directory stays what the user called it.
    lines = [f"{num_tokens} {prefix.absolute()}\n" for num_tokens, prefix in weighted_prefixes if num_tokens > 0]
    write_text(path, "".join(lines))
    return path


def require_readable(*paths: Path) -> None:
    """Raise `InputError` for a path that Megatron could not read in a `data_args.txt`: it splits the file at blanks."""
    for path in paths:
        if any(character.isspace() for character in str(path.absolute())):
            raise InputError(
                f"{str(path.absolute())!r} contains a blank, tab or line break, at which Megatron splits {DATA_ARGS}: "
                "choose a path without one"
            )
        try:
            str(path.absolute()).encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(f"{str(path.absolute())!r} is not UTF-8, as {DATA_ARGS} must be: rename it") from None


def expand_prefixes(paths: Sequence[str | Path]) -> list[Path]:
    """Prefixes as given; a directory with a `data_args.txt` stands for the prefixes in it.

    A prefix that moved with its directory is found there, although the `data_args.txt` still has its old path.

    Raises:
        InputError: a directory has no `data_args.txt`, or a prefix stands twice.
        CorruptArtifactError: a `data_args.txt` is not a list of weights and prefixes.
    """
    prefixes: list[Path] = []
    for path in map(Path, paths):
        prefixes += [path] if is_prefix(path) or not path.is_dir() else _prefixes_of_directory(path)
    first: dict[str, Path] = {}
    for prefix in prefixes:  # of the index: views of one corpus share their data
        twin = first.setdefault(os.path.realpath(f"{prefix}.idx"), prefix)
        if twin is not prefix:
            other = "" if twin == prefix else f" (as {twin}, too)"
            raise InputError(f"{prefix} stands twice in the corpus{other}: give each prefix once")
    return prefixes


def prefixes_of(inputs: Sequence[Path], *, without: Path | None = None) -> list[Path]:
    """Inputs with each directory without a `data_args.txt` replaced by the prefixes in it, by name.

    A prefix may be given as its `.idx`, so that a glob can name some.

    Args:
        without: in a directory, this prefix is left out: the output of an earlier run.
    """
    left_out = without.absolute() if without is not None else None
    prefixes: list[Path] = []
    for given in inputs:
        path = given.with_suffix("") if given.suffix == ".idx" else given
        if is_prefix(path) or not path.is_dir() or (path / DATA_ARGS).exists():
            prefixes.append(path)
        else:
            found = sorted(index.with_suffix("") for index in path.glob("*.idx"))
            prefixes += [prefix for prefix in found if prefix.absolute() != left_out]
    return prefixes


def _prefixes_of_directory(directory: Path) -> list[Path]:
    path = directory / DATA_ARGS
    if not path.exists():
        raise InputError(f"{directory} is a directory without {DATA_ARGS}: give prefixes, or a split or selection")
    return [_moved_prefix(directory, prefix) or prefix for prefix in _read_prefixes(path)]


def _read_prefixes(path: Path) -> list[Path]:
    try:
        with open_regular(path) as stream:
            words = stream.read().decode("utf-8").split()
    except UnicodeDecodeError as error:
        raise CorruptArtifactError(f"{path} is not UTF-8 (byte {error.start}): make the directory again") from None
    if len(words) % 2 or not all(_WEIGHT.fullmatch(weight) for weight in words[::2]):
        raise CorruptArtifactError(f"{path} must hold pairs of a weight and a prefix: make the directory again")
    if any("\0" in prefix for prefix in words[1::2]):
        raise CorruptArtifactError(f"{path} names a prefix with a zero byte: make the directory again")
    if not all(Path(prefix).name for prefix in words[1::2]):
        raise CorruptArtifactError(f"{path} names a directory for a prefix: make the directory again")
    return [Path(prefix) for prefix in words[1::2]]


def require_listed_prefixes(data_args: Path) -> None:
    """Refuse a `data_args.txt` of ours that names a prefix that is not there: it was moved, or its corpus was.

    Raises:
        InputError: names the first such prefix, and how to write a new list.
        CorruptArtifactError: the file is not a list of weights and prefixes.
    """
    if not manifest_path(data_args.parent).exists():
        return  # a user's own list
    for prefix in _read_prefixes(data_args):
        if not is_prefix(prefix):
            inputs = data_args.parent if _moved_prefix(data_args.parent, prefix) else "PREFIX ..."
            raise InputError(
                f"{data_args} names {prefix}, which does not exist. If it was moved, write a new list: miniplm "
                f"merge-datasets --input {inputs} --as-data-args NEW_DIRECTORY"
            )


def _moved_prefix(directory: Path, prefix: Path) -> Path | None:
    """The prefix of this name in the directory, if there is none at its own path."""
    here = directory / prefix.name
    return here if not is_prefix(prefix) and is_prefix(here) else None
