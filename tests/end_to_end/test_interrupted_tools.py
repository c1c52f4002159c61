"""Tools that write corpora: killed, on a full disk and two at once.

`MINIPLM_CRASH_POINTS=1000 pytest tests/end_to_end/test_interrupted_tools.py` tries every step of every tool, and
many random starts of two at once.
"""

import json
import os
import random
import shutil
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest
from crash_points import Fault, Pause, finish, server, start
from megatron_runs import directory_bytes

from megatron_miniplm.cli import main

NUM_POINTS = int(os.environ.get("MINIPLM_CRASH_POINTS", "2"))
NULL = "--tokenizer-type NullTokenizer --workers 1"
CORPORA = "--input ../given/a_text_document ../given/b_text_document"
#: Run in a directory beside `given`; all write `out` there. With each, flags for the same output from something else.
COMMANDS = {
    "preprocess": (
        f"preprocess-data --input ../given/text.jsonl --output-prefix out/c {NULL} --vocab-size 96 --on-bad-line skip "
        "--json-keys text title",
        "--vocab-size 97",
    ),
    "merge": (f"merge-datasets {CORPORA} --output-prefix out/c", "--input ../given/b_text_document"),
    "blend": (f"merge-datasets {CORPORA} --as-data-args out", "--input ../given/b_text_document"),
    "convert": (f"convert-tokenization {CORPORA} --output out --vocab-size 200 {NULL}", "--vocab-size 201"),
    "materialize": (f"materialize {CORPORA} --output out", "--input ../given/b_text_document"),
    "split": ("split-reference --input ../given/a_text_document --output out --reference-fraction 0.3", "--seed 7"),
    "tokenizer": (
        "train-tokenizer --input ../given/text.jsonl --json-keys title --vocab-size 280 --type bpe --output out",
        "--vocab-size 290",
    ),
}


@pytest.fixture(scope="module")
def context() -> ForkServerContext:
    return server()


@pytest.fixture(scope="module")
def work_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With `given/`: a text, and two corpora of it."""
    directory = tmp_path_factory.mktemp("interrupted")
    (directory / "given").mkdir()
    choose = random.Random(0)
    with open(directory / "given" / "text.jsonl", "w") as stream:
        for _ in range(300):
            text = " ".join(str(choose.randrange(90)) for _ in range(choose.randrange(1, 20)))
            stream.write(json.dumps({"text": text, "title": "1 2", "domain": choose.choice("xy")}) + "\n")
        stream.write('{"title": "no text"}\n')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory / "given")
        domain = {"a": [], "b": ["--domain-key", "domain"]}
        for name in domain:
            flags = ["--input", "text.jsonl", "--output-prefix", name, "--vocab-size", "96", "--on-bad-line", "skip"]
            assert main(["preprocess-data", *flags, *NULL.split(), *domain[name]]) == 0
    return directory


@pytest.fixture(params=COMMANDS)
def tool(request: pytest.FixtureRequest) -> str:
    return str(request.param)


_undisturbed: dict[str, tuple[dict[str, bytes], int]] = {}


@pytest.fixture
def undisturbed(context: ForkServerContext, work_dir: Path, tool: str) -> tuple[dict[str, bytes], int]:
    """What the tool writes, and in how many steps; made once a tool."""
    if tool not in _undisturbed:
        directory = new_directory(work_dir)
        assert finish(start(context, command(tool), directory)) == 0, log_of(directory)
        _undisturbed[tool] = directory_bytes(directory / "out"), int(log_of(directory, "steps"))
    return _undisturbed[tool]


def command(tool: str, *, other: bool = False) -> list[str]:
    flags, further = COMMANDS[tool]
    return [*flags.split(), *(further.split() if other else [])]


def new_directory(work_dir: Path) -> Path:
    """Always of one name: blends hold absolute paths."""
    directory = work_dir / "run"
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    return directory


def points(num_steps: int) -> list[int]:
    """Some of the steps, evenly spaced from the first; all if as many are asked for."""
    return sorted({index * num_steps // NUM_POINTS for index in range(NUM_POINTS)})


def log_of(directory: Path, name: str = "log") -> str:
    return (directory / name).read_text()


@pytest.mark.parametrize("action", ["kill", "fail"])
def test_the_same_command_then_writes_what_it_would_have_written(
    context: ForkServerContext, work_dir: Path, tool: str, undisturbed: tuple[dict[str, bytes], int], action: str
) -> None:
    expected, num_steps = undisturbed
    for step in points(num_steps):
        directory = new_directory(work_dir)
        code = finish(start(context, command(tool), directory, Fault(step=step, action=action)))
        if action == "kill":
            assert code == -9
        elif code != 0:  # the last steps of some need no space
            assert code == 2, log_of(directory)
            assert log_of(directory).rstrip().splitlines()[-1].startswith("error: ")
            assert "Traceback" not in log_of(directory)
        assert finish(start(context, command(tool), directory)) == 0, (step, log_of(directory))
        assert directory_bytes(directory / "out") == expected, step
        assert list((directory / "out").rglob(".*")) == [], step


def test_a_disk_that_fills_up_is_one_line_and_no_obstacle(
    context: ForkServerContext, work_dir: Path, tool: str, undisturbed: tuple[dict[str, bytes], int]
) -> None:
    expected, _ = undisturbed
    largest = max(map(len, expected.values()))
    for max_file_bytes in (10, largest // 2, largest - 1)[:NUM_POINTS]:
        directory = new_directory(work_dir)
        code = finish(start(context, command(tool), directory, Fault(max_file_bytes=max_file_bytes)))
        assert code in (2, 0), log_of(directory)
        if code == 2:
            assert log_of(directory).rstrip().splitlines()[-1].startswith("error: "), log_of(directory)
        assert finish(start(context, command(tool), directory)) == 0, log_of(directory)
        assert directory_bytes(directory / "out") == expected
        assert list((directory / "out").rglob(".*")) == []


@pytest.mark.parametrize("other", [False, True], ids=["equal", "other"])
def test_who_comes_while_another_writes_is_refused(
    context: ForkServerContext, work_dir: Path, tool: str, undisturbed: tuple[dict[str, bytes], int], other: bool
) -> None:
    expected, num_steps = undisturbed
    for step in points(num_steps):
        directory = new_directory(work_dir)
        pause = Pause(reached=context.Event(), resume=context.Event())
        first = start(context, command(tool), directory, Fault(step=step, action="wait"), pause)
        assert pause.reached.wait(120)
        late = finish(start(context, command(tool, other=other), directory, log="late"))
        pause.resume.set()
        assert finish(first) == 0, log_of(directory)
        said = log_of(directory, "late")
        if "is being written by another process: wait for it, or stop it" in said:
            assert late == 2, said
        else:  # the first had finished, but for the removal of its temporary files, or one of its prefixes
            assert step > 0, said
            assert "other inputs" in said if other else late == 0, said
        assert directory_bytes(directory / "out") == expected
        assert list((directory / "out").rglob(".*")) == []


def test_two_that_start_at_any_time_give_one_result(
    context: ForkServerContext, work_dir: Path, tool: str, undisturbed: tuple[dict[str, bytes], int]
) -> None:
    expected, _ = undisturbed
    choose = random.Random(tool)
    for _ in range(max(1, NUM_POINTS // 3)):
        directory = new_directory(work_dir)
        first = start(context, command(tool), directory)
        time.sleep(choose.uniform(0, 0.1))
        second = start(context, command(tool), directory, log="late")
        codes = {finish(first), finish(second)}
        assert codes <= {0, 2}
        assert 0 in codes
        assert directory_bytes(directory / "out") == expected
