"""Commands that write a directory: killed, on a full disk, and two at once."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from forked import DONE, FULL, KILLED, REFUSED, Forked, num_tries
from megatron_runs import directory_bytes, write_corpus
from score_stores import write_scores
from selections import sample, write_sidecar

from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed.materialize import materialize
from megatron_miniplm.indexed.merge import blend_prefixes
from megatron_miniplm.reports.report import write_report
from megatron_miniplm.selection.split import split_reference

NUM_SEQUENCES = 30
VERBS = ("selection", "split", "materialize", "report", "blend")


@dataclass(frozen=True, kw_only=True)
class Scene:
    """Two corpora with scores, a selection of them, and where outputs go."""

    directory: Path

    def command(self, verb: str, *, other: bool = False) -> Callable[[], object]:
        """A command that writes `output`; the other one of its kind writes something else."""
        directory, output = self.directory, self.output
        selection = directory / ("other" if other else "selection")
        if verb == "selection":
            scores = directory / "teacher", directory / "reference"
            return lambda: sample(*scores, output, ratio=0.3 if other else 0.6, weights="softmax")
        if verb == "split":
            prefixes = [directory / "web", directory / "code"]
            return lambda: split_reference(prefixes, output, reference_fraction=0.3, seed=int(other))
        if verb == "materialize":
            return lambda: materialize([selection], output)
        if verb == "blend":
            return lambda: blend_prefixes([directory / "web", *([] if other else [directory / "code"])], output)
        return lambda: write_report(selection, output, num_examples=2)

    @property
    def output(self) -> Path:
        """Always the same: blends hold absolute paths."""
        return self.directory / "output"

    def bytes_of(self, command: Callable[[], object]) -> dict[str, bytes]:
        """What a command writes when nothing happens."""
        shutil.rmtree(self.output, ignore_errors=True)
        command()
        found = directory_bytes(self.output)
        shutil.rmtree(self.output)
        return found


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    directory = tmp_path_factory.mktemp("recovery")
    random = np.random.default_rng(1)
    corpora = [
        write_corpus(directory / name, [[k % 50] * int(random.integers(1, 9)) for k in range(NUM_SEQUENCES)])
        for name in ("web", "code")
    ]
    for corpus in corpora:
        write_sidecar(corpus, ["a", "b", None] * (NUM_SEQUENCES // 3), [3] * NUM_SEQUENCES)
    for name in ("teacher", "reference"):
        write_scores(directory / name, corpora, random.random(2 * NUM_SEQUENCES) * 9)
    sample(directory / "teacher", directory / "reference", directory / "selection", ratio=0.6)
    sample(directory / "teacher", directory / "reference", directory / "other", ratio=0.3, index_only=True)
    return Scene(directory=directory)


@pytest.mark.parametrize("action", ["kill", "full"])
@pytest.mark.parametrize("verb", VERBS)
def test_the_same_command_finishes_what_another_has_begun(scene: Scene, verb: str, action: str) -> None:
    """To the bytes of an undisturbed run, with nothing left over."""
    command = scene.command(verb)
    expected = scene.bytes_of(command)
    tries = np.unique(np.linspace(0, _num_syncs(command) - 1, num_tries(4)).astype(int))
    shutil.rmtree(scene.output)
    for at in tries.tolist():
        outcome = Forked(command, at=at, action=action).outcome()
        assert outcome == (KILLED if action == "kill" else FULL), f"at fsync {at}"
        command()
        assert directory_bytes(scene.output) == expected, f"at fsync {at}"
        shutil.rmtree(scene.output)


def _num_syncs(command: Callable[[], object]) -> int:
    """How often a command syncs; leaves its output."""
    count, sync = 0, os.fsync

    def counting(descriptor: int) -> None:
        nonlocal count
        count += 1
        sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", counting)
        command()
    return count


@pytest.mark.parametrize("other", [False, True], ids=["the same", "another"])
@pytest.mark.parametrize("verb", VERBS)
def test_a_second_writer_is_refused_while_the_first_writes(scene: Scene, verb: str, other: bool) -> None:
    """The first is stopped at some place, up to the last file but one, and goes on when the second has given up."""
    first, second = scene.command(verb), scene.command(verb, other=other)
    expected = scene.bytes_of(first)
    tries = np.unique(np.linspace(0, _num_syncs(first) - 2, num_tries(2)).astype(int))
    shutil.rmtree(scene.output)
    for at in tries.tolist():
        running = Forked(first, at=at)
        assert running.is_paused()
        with pytest.raises(InputError, match="is being written by another process"):
            second()
        running.resume()
        assert running.outcome() == DONE
        assert directory_bytes(scene.output) == expected, f"at fsync {at}"
        shutil.rmtree(scene.output)


@pytest.mark.parametrize("verb", VERBS)
def test_two_that_start_at_once(scene: Scene, verb: str) -> None:
    """Whoever says that it is done has its bytes there, unless the other came later and may replace them."""
    commands = [scene.command(verb), scene.command(verb, other=True)]
    expected = [scene.bytes_of(command) for command in commands]
    for _ in range(num_tries(1)):
        running = [Forked(command) for command in commands]
        outcomes = [each.outcome() for each in running]
        assert set(outcomes) <= {DONE, REFUSED}
        assert DONE in outcomes
        found = directory_bytes(scene.output)
        assert found in [bytes_ for bytes_, outcome in zip(expected, outcomes, strict=True) if outcome == DONE]
        shutil.rmtree(scene.output)
