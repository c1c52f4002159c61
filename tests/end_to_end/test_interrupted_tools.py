"""Every tool that writes: killed, on a full disk, and two at once. `make chaos` does it many times.

`MINIPLM_CRASHES=20` gives the number of kills and of full disks per tool, `MINIPLM_RACES=50` that of pairs.
"""

import os
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from crash_points import Fault, RunningTool
from writing_tools import TOOLS, Contents, WritingTool, new_directory, write_inputs, write_models

CRASHES = os.environ.get("MINIPLM_CRASHES")
RACES = os.environ.get("MINIPLM_RACES")
#: So many times the usual, a run takes that does not wait for another.
PATIENCE = 3
#: What refuses a second writer, and what a finished output that cannot be replaced is refused with.
IN_USE = re.compile(r"error: (\S+) (is being written by another process|was made by another process meanwhile)")
IS_THERE = re.compile(
    r"error: (\S+) .*(made from other|other inputs|holds something else|another|exists already|already)"
)


@dataclass(frozen=True, kw_only=True)
class Undisturbed:
    """What one run writes that nothing happens to, in how many steps, and how long that takes."""

    contents: Contents
    num_steps: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Scene:
    """One tool, and a place to run it."""

    name: str
    tool: WritingTool
    work_dir: Path
    undisturbed: Undisturbed

    def choices(self, test: str) -> random.Random:
        """The same in every run of the tests."""
        return random.Random(f"{self.name} {test}")

    def num_tries(self, asked: str | None, default: int) -> int:
        """Few in the suite, and fewer of what takes long."""
        return int(asked) if asked else (1 if self.tool.is_megatron else default)

    def require_finished(self, directory: Path, what: str) -> None:
        """Run the command where another has ended somehow: the output is then that of an undisturbed run."""
        tool = RunningTool.run(self.tool.argv(), directory)
        if not (self.tool.refuses_finished and tool.code == 2 and IS_THERE.search(tool.printed)):
            assert tool.code == 0, f"{what}: {tool.printed[-3000:]}"
        self.require_whole(directory, what)

    def require_whole(self, directory: Path, what: str) -> None:
        assert self.tool.contents(directory / "out") == self.undisturbed.contents, what
        assert self.tool.leftovers(directory) == [], what
        assert self.tool.faults(directory) == "", what


_undisturbed: dict[str, Undisturbed] = {}


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("interrupted")
    write_inputs(directory)
    write_models(directory)
    return directory


@pytest.fixture(params=[pytest.param(n, marks=[pytest.mark.slow] * TOOLS[n].is_megatron) for n in TOOLS])
def scene(request: pytest.FixtureRequest, work_dir: Path) -> Scene:
    name, tool = request.param, TOOLS[request.param]
    if name not in _undisturbed:
        directory = new_directory(work_dir)
        started = time.monotonic()
        run = RunningTool.run(tool.argv(), directory)
        seconds = time.monotonic() - started
        assert run.code == 0, run.printed[-3000:]
        assert tool.faults(directory) == ""
        contents = tool.contents(directory / "out")
        _undisturbed[name] = Undisturbed(contents=contents, num_steps=run.num_steps, seconds=seconds)
    return Scene(name=name, tool=tool, work_dir=work_dir, undisturbed=_undisturbed[name])


@pytest.fixture
def outcomes(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Iterator[Counter[str]]:
    """How tries have ended; printed where many were asked for."""
    counts: Counter[str] = Counter()
    yield counts
    if CRASHES or RACES:
        with capsys.disabled():
            print(f"\n{request.node.name}: {dict(counts)}")


def test_a_killed_run_is_finished_by_the_same_command(scene: Scene, outcomes: Counter[str]) -> None:
    """Kills before a step of the file system, and at any time, in turn."""
    choose = scene.choices("kill")
    for number in range(scene.num_tries(CRASHES, 2)):
        directory = new_directory(scene.work_dir)
        if number % 2:
            at = choose.randrange(scene.undisturbed.num_steps)
            killed = RunningTool.run(scene.tool.argv(), directory, Fault(step=at)).code == -9
            what = f"killed before step {at}"
            assert killed or scene.tool.is_megatron, what  # whose threads do not always take the same steps
        else:
            seconds = choose.uniform(0, scene.undisturbed.seconds)
            killed = RunningTool(scene.tool.argv(), directory).kill_after(seconds)
            what = f"killed after {seconds:.3f} s"
        outcomes["killed" if killed else "had finished"] += 1
        scene.require_finished(directory, what)
        outcomes["then finished"] += 1


def test_a_full_disk_is_one_line_and_no_obstacle(scene: Scene, outcomes: Counter[str]) -> None:
    """Calls that fail with ENOSPC from some step on, files that cannot grow, and small file systems, in turn."""
    choose = scene.choices("full disk")
    largest = max(map(len, scene.undisturbed.contents.values()))
    total = sum(map(len, scene.undisturbed.contents.values()))
    for number in range(scene.num_tries(CRASHES, 2)):
        directory = new_directory(scene.work_dir)
        kind = number % (3 if can_mount(directory) else 2)
        if kind == 0:
            max_file_bytes = choose.randrange(largest)
            what = f"no file beyond {max_file_bytes} bytes"
            tool = RunningTool.run(scene.tool.argv(), directory, Fault(max_file_bytes=max_file_bytes))
            scene_outcome = require_one_line(tool, what)
            scene.require_finished(directory, what)
        elif kind == 1:
            at = choose.randrange(scene.undisturbed.num_steps)
            what = f"no space from step {at} on"
            tool = RunningTool.run(scene.tool.argv(), directory, Fault(step=at, action="fail"))
            scene_outcome = require_one_line(tool, what)
            scene.require_finished(directory, what)
        else:
            num_bytes = choose.randrange(4096, total + 40_000)
            what = f"a file system of {num_bytes} bytes"
            with small_file_system(directory, num_bytes) as grow:
                tool = RunningTool.run(scene.tool.argv(), directory)
                scene_outcome = require_one_line(tool, what)
                grow()
                scene.require_finished(directory, what)
        outcomes[scene_outcome] += 1
        outcomes["then finished"] += 1


def require_one_line(tool: RunningTool, what: str) -> str:
    assert tool.code in (0, 2), f"{what}: {tool.printed[-3000:]}"
    assert "Traceback" not in tool.printed, f"{what}: {tool.printed[-3000:]}"
    if tool.code == 0:
        return "had space"
    assert tool.printed.rstrip().splitlines()[-1].startswith("error: "), f"{what}: {tool.printed[-3000:]}"
    return "refused in one line"


def test_two_at_once_give_one_result(scene: Scene, outcomes: Counter[str]) -> None:
    choose = scene.choices("race")
    for _ in range(scene.num_tries(RACES, 2)):
        directory = new_directory(scene.work_dir)
        first = RunningTool(scene.tool.argv(), directory)
        seconds = choose.uniform(0, scene.undisturbed.seconds)
        what = f"the second started {seconds:.3f} s after the first"
        first.wait(seconds)
        second = RunningTool(scene.tool.argv(), directory, log="late")
        codes = [first.finish(), second.finish()]
        assert 0 in codes, f"{what}: {first.printed[-2000:]} {second.printed[-2000:]}"
        for tool, code in zip((first, second), codes, strict=True):
            if code == 0:
                continue
            found = IN_USE.search(tool.printed)
            if not found and scene.tool.refuses_finished:
                found = IS_THERE.search(tool.printed)
            assert code == 2, f"{what}: {tool.printed[-3000:]}"
            assert found, f"{what}: {tool.printed[-3000:]}"
            assert found.group(1).startswith("out"), f"{what}: {tool.printed[-3000:]}"
        outcomes["equal" if codes == [0, 0] else "one refused"] += 1
        scene.require_whole(directory, what)
        outcomes["intact"] += 1


@pytest.mark.parametrize("other", [False, True], ids=["equal", "other"])
def test_who_comes_while_another_writes_is_refused(scene: Scene, other: bool, outcomes: Counter[str]) -> None:
    """The first is stopped before some step, and goes on once the second has given up."""
    tool = scene.tool
    if tool.is_megatron and not RACES:
        pytest.skip("make chaos")
    if other and not tool.other:
        pytest.skip("any content may be replaced")
    choose = scene.choices(f"pause {other}")
    for _ in range(scene.num_tries(CRASHES, 1)):
        directory = new_directory(scene.work_dir)
        step = choose.randrange(scene.undisturbed.num_steps)
        what = f"stopped before step {step}"
        first = RunningTool(tool.argv(), directory, Fault(step=step, action="wait"))
        assert first.wait_for_pause() or tool.is_megatron, f"{what}: {first.printed}"
        late = RunningTool(tool.argv(other=other), directory, log="late")
        if tool.shares_work:
            late.wait(PATIENCE * scene.undisturbed.seconds)  # then it may be waiting for a part of the first
        else:
            late.finish()
        first.resume()
        late.finish()
        if tool.refuses_finished and late.code == 0 and first.finish() == 2:  # the late one was faster
            assert IN_USE.search(first.printed), f"{what}: {first.printed[-3000:]}"
            first, late = late, first
        assert first.finish() == 0, f"{what}: {first.printed[-3000:]}"
        if IN_USE.search(late.printed):
            assert late.code == 2
            outcomes["refused"] += 1
        elif other and not tool.replaces:  # the first had finished, but for its temporary files, or has begun a store
            assert late.code == 2, f"{what}: {late.printed[-3000:]}"
            assert IS_THERE.search(late.printed), f"{what}: {late.printed[-3000:]}"
            outcomes["other content refused"] += 1
        elif tool.refuses_finished and late.code == 2:
            assert IS_THERE.search(late.printed), f"{what}: {late.printed[-3000:]}"
            outcomes["refused"] += 1
        else:
            assert late.code == 0, f"{what}: {late.printed[-3000:]}"
            outcomes["equal"] += 1
        if not (other and tool.replaces):
            scene.require_whole(directory, what)


@pytest.mark.slow
def test_a_generation_that_another_run_has_finished_meanwhile(work_dir: Path) -> None:
    """The first is stopped when all parts are there; the second puts them together and removes them."""
    argv, directory = TOOLS["generate-corpus"].argv(), new_directory(work_dir)
    parts = directory / "out" / "c.parts"
    first = RunningTool(argv, directory, Fault(step=14, action="wait"))  # the last part has its name
    assert first.wait_for_pause()
    assert len(list(parts.glob("0*"))) == 3
    late = RunningTool.run(argv, directory, log="late")
    assert late.code == 0, late.printed[-3000:]
    assert not parts.exists()
    first.resume()
    assert first.finish() == 0, first.printed[-3000:]


@cache
def can_mount(directory: Path) -> bool:
    """Whether this user may mount file systems: root outside most containers."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", str(directory)], capture_output=True).returncode == 0
    if mounted:
        subprocess.run(["umount", str(directory)], check=True)
    return mounted


@contextmanager
def small_file_system(directory: Path, num_bytes: int) -> Iterator[Callable[[], None]]:
    """Make a directory a file system of so many bytes; yields what gives it room."""

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(directory)], check=True)

    mount(f"size={num_bytes}")
    try:
        yield lambda: mount("remount,size=64m")
    finally:
        subprocess.run(["umount", str(directory)], check=True)
