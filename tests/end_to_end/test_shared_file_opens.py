"""How often ranks touch the shared file system: a thousand ranks must not do a thousand times what one does at start.

Counted by an audit hook in every process: each `open` of Python and each listing of a directory that concerns the
corpus, the checkpoint or the store. Libraries are not counted; they come from a container or a disk of the node.
"""

import json
from collections import Counter
from pathlib import Path

import pytest
from megatron_runs import (
    SCORE_CORPUS,
    TIMEOUT_SECONDS,
    TinyRun,
    environment,
    random_sequences,
    score_command,
    write_corpus,
)
from rank_server import run_forked

pytestmark = pytest.mark.slow

HOOK = """
import atexit, json, os, runpy, sys
roots, counts = tuple(os.environ["COUNTED_ROOTS"].split(":")), {}
def hook(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.fsdecode(arguments[0])
        if path.startswith(roots):
            counts[path] = counts.get(path, 0) + 1
def write():
    with open(f"{os.environ['COUNTS']}.{os.environ.get('RANK', 'alone')}.json", "w") as stream:
        json.dump(counts, stream)
sys.addaudithook(hook)
atexit.register(write)
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""
NUM_BLOCKS = 24


def touched(tiny: TinyRun, directory: Path, num_ranks: int) -> list[Counter[str]]:
    """What each rank of a scoring job touches, by kind of file."""
    directory.mkdir()
    corpus = write_corpus(directory / "corpus", random_sequences([60] * (NUM_BLOCKS * 10)))
    flags = ["--use-checkpoint-args", "--block-sequences", "10"]
    command = score_command(tiny.checkpoint, [corpus.prefix], directory / "scores", *flags, num_processes=num_ranks)
    program = command.index(str(SCORE_CORPUS))
    command[program:program] = ["-c", HOOK]
    variables = {
        "COUNTED_ROOTS": f"{tiny.checkpoint}:{directory}/corpus:{directory}/scores",
        "COUNTS": f"{directory}/counts",
    }
    done = run_forked(command, environment() | variables, TIMEOUT_SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = ["alone"] if num_ranks == 1 else range(num_ranks)
    return [by_kind(json.loads((directory / f"counts.{rank}.json").read_text()), tiny, directory) for rank in ranks]


def by_kind(counts: dict[str, int], tiny: TinyRun, directory: Path) -> Counter[str]:
    kinds: Counter[str] = Counter()
    roots = {"checkpoint": tiny.checkpoint, "scores": directory / "scores", "corpus": directory / "corpus"}
    for path, count in counts.items():
        kinds[next(kind for kind, root in roots.items() if path.startswith(str(root)))] += count
    return kinds


def test_a_rank_touches_as_much_whatever_their_number(tiny: TinyRun, tmp_path: Path) -> None:
    alone, *_ = touched(tiny, tmp_path / "one", 1)
    together = touched(tiny, tmp_path / "four", 4)
    print("rank", "corpus", "checkpoint", "scores")
    for name, counts in [("alone", alone), *((str(rank), counts) for rank, counts in enumerate(together))]:
        print(name, counts["corpus"], counts["checkpoint"], counts["scores"])
    for counts in together:
        assert counts["corpus"] <= alone["corpus"]
        assert counts["checkpoint"] <= alone["checkpoint"]
