"""What a preprocessing benchmark stands on: the text, the tokenizers, and how commands are run and timed on it."""

import json
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
from measurement import Cost, measure

from megatron_miniplm.errors import InputError

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
TRAINING_BYTES = 30_000_000


class _Document(msgspec.Struct):
    text: str


def read_texts(path: Path) -> Iterator[str]:
    """The text of every document of a JSONL file.

    Raises:
        InputError: a line is not JSON with the key text.
    """
    decode = msgspec.json.Decoder(_Document).decode
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield decode(line).text
            except msgspec.DecodeError as error:
                raise InputError(f"{path}, line {number}: {error}: give JSONL with the key text to --input") from None


@dataclass(frozen=True, kw_only=True)
class Text:
    """Input of a command.

    Attributes:
        text_bytes: UTF-8 bytes of the text values: what is encoded.
        jsonl_bytes: of the lines that hold them, uncompressed: what is parsed.
    """

    paths: tuple[Path, ...]
    text_bytes: int
    jsonl_bytes: int

    @classmethod
    def of(cls, path: Path) -> "Text":
        """Reads the file once, which also brings it into the page cache for every command alike."""
        text_bytes = sum(len(text.encode()) for text in read_texts(path))
        return cls(paths=(path,), text_bytes=text_bytes, jsonl_bytes=path.stat().st_size)

    @property
    def path(self) -> Path:
        (path,) = self.paths
        return path

    def head(self, path: Path, num_bytes: int) -> "Text":
        """Write the first lines to `path`, the last one being that in which `num_bytes` are reached."""
        with open(self.path, "rb") as lines, open(path, "wb") as stream:
            while stream.tell() < num_bytes and (line := lines.readline()):
                stream.write(line)
        return Text.of(path)

    def repeated(self, count: int) -> "Text":
        """The same file, given `count` times."""
        return Text(paths=self.paths * count, text_bytes=self.text_bytes * count, jsonl_bytes=self.jsonl_bytes * count)

    def stored_as(self, path: Path) -> "Text":
        """The same documents in another file."""
        return replace(self, paths=(path,))


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A command to time.

    Attributes:
        name: of its output directories.
        label: in tables.
        command: makes its command line from what it reads and the directory that it writes to.
    """

    name: str
    label: str
    command: Callable[[Sequence[Path], Path], list[str]]
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Cost of a command, and that of the same command on next to nothing (None where that was not measured)."""

    cost: Cost
    startup: Cost | None
    output_dir: Path

    @property
    def net_wall_seconds(self) -> float | None:
        """Wall time without start-up; None where there is nothing to take off, or nothing left."""
        if self.startup is None or self.startup.wall_seconds >= self.cost.wall_seconds:
            return None
        return self.cost.wall_seconds - self.startup.wall_seconds

    def columns(self, text: Text) -> dict[str, str]:
        """Cells of a row of a table."""
        net = self.net_wall_seconds
        return {
            "wall s": f"{self.cost.wall_seconds:.2f}",
            "start-up s": "-" if self.startup is None else f"{self.startup.wall_seconds:.2f}",
            "CPU s": f"{self.cost.cpu_seconds:.2f}",
            "peak MB": f"{self.cost.peak_bytes / 1e6:,.0f}",
            "text MB/s": f"{text.text_bytes / self.cost.wall_seconds / 1e6:.1f}",
            "without start-up": "-" if net is None else f"{text.text_bytes / net / 1e6:.1f}",
            "JSONL MB/s": f"{text.jsonl_bytes / self.cost.wall_seconds / 1e6:.1f}",
        }


class Bench:
    """Runs the commands of one benchmark on one text, below one directory.

    Args:
        rivals: which commands of others ours is timed against, `recipe` and `tokenizers`.
        with_startup: whether every command also runs on a single document.
    """

    def __init__(
        self,
        text: Text,
        run_dir: Path,
        *,
        vocab_size: int,
        num_workers: int,
        repeats: int,
        recipe_repeats: int,
        rivals: Sequence[str],
        with_startup: bool,
    ) -> None:
        self.text = text
        self.run_dir = run_dir
        self.repeats = repeats
        self.recipe_repeats = recipe_repeats
        self.rivals = tuple(rivals)
        self.one_document = text.head(run_dir / "one_document.jsonl", 1)
        self._vocab_size = vocab_size
        self._num_workers = num_workers
        self._with_startup = with_startup
        self._startups: dict[str, Cost] = {}

    def time(
        self, subject: Subject, inputs: Sequence[Path], *, name: str | None = None, startup: Sequence[Path] = ()
    ) -> Timing:
        """Run a subject as often as it asks for; what its last run wrote stays.

        Args:
            name: of the output directory, by default the subject's.
            startup: inputs for the measurement of start-up, by default a text of one document; made once a subject.
        """
        if self._with_startup and subject.name not in self._startups:
            small = startup or self.one_document.paths
            self._startups[subject.name] = self._cost(subject, small, self.run_dir / f"{subject.name}-startup")
        output_dir = self.run_dir / (name or subject.name)
        cost = self._cost(subject, inputs, output_dir)
        return Timing(cost=cost, startup=self._startups.get(subject.name), output_dir=output_dir)

    def _cost(self, subject: Subject, inputs: Sequence[Path], output_dir: Path) -> Cost:
        runs = []
        for number in range(1, subject.repeats + 1):
            shutil.rmtree(output_dir, ignore_errors=True)
            output_dir.mkdir()
            os.sync()  # what the last command left in the page cache must not be written during this one
            runs.append(measure(subject.command(inputs, output_dir), self.run_dir / "log.txt"))
            logger.info("%s, run %d of %d: %.2f s", output_dir.name, number, subject.repeats, runs[-1].wall_seconds)
        return Cost.typical(runs)

    def preprocess(self, *flags: str) -> Callable[[Sequence[Path], Path], list[str]]:
        """The command line of `miniplm preprocess-data`; writes DIRECTORY/corpus_text_document, or _chunk."""

        def command(inputs: Sequence[Path], directory: Path) -> list[str]:
            argv = ["--input", *map(str, inputs), "--output-prefix", str(directory / "corpus"), "--append-eod"]
            argv += ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(self.tokenizer_dir())]
            return [miniplm(), "preprocess-data", *argv, *flags, *self.workers_flag]

        return command

    def script(self, name: str) -> Callable[[Sequence[Path], Path], list[str]]:
        """The command line of a script of this directory that does the same."""

        def command(inputs: Sequence[Path], directory: Path) -> list[str]:
            (path,) = inputs
            argv = ["--input", str(path), "--output-prefix", str(directory / "corpus"), "--append-eod"]
            argv += ["--tokenizer-model", str(self.tokenizer_dir())]
            return [sys.executable, str(HERE / name), *argv, *self.workers_flag]

        return command

    @property
    def workers_flag(self) -> list[str]:
        return ["--workers", str(self._num_workers)]

    def tokenizer_dir(self) -> Path:
        """A byte-level BPE, trained on the text when it is first asked for."""
        return self._trained(self._vocab_size)

    def second_tokenizer_dir(self) -> Path:
        """One with half the vocabulary."""
        return self._trained(self._vocab_size // 2)

    def _trained(self, vocab_size: int) -> Path:
        directory = self.run_dir / f"bpe-{vocab_size}"
        if not directory.exists():
            argv = ["--input", str(self.text.path), "--type", "bpe", "--vocab-size", str(vocab_size)]
            argv += ["--max-bytes", str(TRAINING_BYTES), "--output", str(directory)]
            self.prepare(f"tokenizer of {vocab_size:,}", [miniplm(), "train-tokenizer", *argv])
        return directory

    def corpus(self, text: Text, name: str) -> Path:
        """Prefix of a document corpus of a text, made when it is first asked for."""
        directory = self.run_dir / name
        prefix = directory / "corpus_text_document"
        if not prefix.with_suffix(".idx").exists():
            directory.mkdir(exist_ok=True)
            self.prepare(name, self.preprocess()(text.paths, directory))
        return prefix

    def prepare(self, name: str, command: list[str]) -> None:
        """Run a command that is not a subject."""
        cost = measure(command, self.run_dir / "log.txt")
        logger.info("%s, prepared in %.1f s", name, cost.wall_seconds)


def miniplm() -> str:
    """Path of the installed command.

    Raises:
        InputError: it is not installed with this Python.
    """
    path = Path(sysconfig.get_path("scripts")) / "miniplm"
    if not path.exists():
        raise InputError(f"{path} does not exist: install this repository there (make install)")
    return str(path)


def difference(one: Path, other: Path) -> str | None:
    """What `cmp` says of two files; None where they have the same bytes."""
    found = subprocess.run(["cmp", str(one), str(other)], capture_output=True, text=True)
    return (found.stdout + found.stderr).strip() if found.returncode else None


def counts(prefix: Path) -> dict[str, int]:
    """The counts that the manifest of a prefix records."""
    manifest = json.loads(prefix.with_name(f"{prefix.name}.manifest.json").read_text(encoding="utf-8"))
    return dict(manifest["counts"])
