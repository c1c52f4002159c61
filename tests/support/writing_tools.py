"""The tools that write files: a small input, a command, and what must come out. One row per tool.

Not in it: `evaluate-tasks` (tests/contract/test_evaluate_tasks.py).

Commands run in a directory beside `given/`, which `write_inputs` makes, and write everything below `out/`.
"""

import contextlib
import io
import json
import pickle
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from megatron_runs import directory_bytes, random_sequences, run, write_corpus
from score_stores import write_scores

from megatron_miniplm.artifacts.scores import NOT_SCORED
from megatron_miniplm.cli import main
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.scoring.identity import is_sampled

Contents = dict[str, bytes]

_NULL = "--tokenizer-type NullTokenizer --workers 1"
_CORPORA = "../given/a_text_document ../given/b_text_document"
_SCORES = "--teacher-scores ../given/teacher --reference-scores ../given/reference"
#: Megatron programs read a few sequences only: each start takes seconds.
_MODEL = "--load-hf ../given/model --corpus ../given/few --allow-tokenizer-mismatch --seq-length 64"
_MODEL += " --block-sequences 5 --micro-batch-size 4"


@dataclass(frozen=True, kw_only=True)
class WritingTool:
    """One tool.

    Attributes:
        command: of `miniplm`; it writes everything below `out`.
        other: flags that make other content for the same output; empty where every content may be replaced.
        inspected: a pattern of the artifacts, for `miniplm inspect --check`; None if it writes no artifact.
        contents: what two runs must have alike, from `out`.
        replaces: whether a finished output of other inputs is replaced instead of refused.
        refuses_finished: whether a finished output is refused even if it is that of the same command.
        shares_work: a second run of the command does a part of the work, and at the end waits for the first one's part.
        is_megatron: a start takes seconds, so that fewer are tried.
    """

    command: str
    other: str = ""
    inspected: str | None = None
    contents: Callable[[Path], Contents] = directory_bytes
    replaces: bool = False
    refuses_finished: bool = False
    shares_work: bool = False
    is_megatron: bool = False

    def argv(self, *, other: bool = False) -> list[str]:
        return f"{self.command} {self.other if other else ''}".split()

    def faults(self, directory: Path) -> str:
        """What `miniplm inspect --check` says of the output in a directory; empty if it is intact or no artifact."""
        if self.inspected is None:
            return ""
        stream, faults = io.StringIO(), []
        artifacts = {path.with_suffix("") if path.is_file() else path for path in directory.glob(self.inspected)}
        for artifact in artifacts:
            with contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
                if main(["inspect", "--check", str(artifact)]):
                    faults.append(stream.getvalue())
        return "\n".join(faults) if artifacts else f"{self.inspected} was not written"

    def leftovers(self, directory: Path) -> list[Path]:
        """Hidden files that a finished run has left in or beside `out`."""
        return [path for path in directory.rglob(".*") if path.name != ".metadata"]


def without_save_id(output: Path) -> Contents:
    """A Megatron checkpoint: its tensors and arguments as they are, its index without the random id of the save."""
    contents = directory_bytes(output)
    for name in contents:
        if name.endswith(".metadata"):
            metadata = pickle.loads(contents[name])
            storage = replace(metadata.storage_meta, save_id=None, checkpoint_id=None)
            contents[name] = repr(replace(metadata, storage_meta=storage)).encode()
    return contents


def without_seconds(output: Path) -> Contents:
    """An analysis, without how long it took."""
    contents = directory_bytes(output)
    for name in contents:
        if name.endswith(".json"):
            contents[name] = json.dumps(json.loads(contents[name]) | {"seconds": None}).encode()
    return contents


TOOLS = {
    "preprocess-data": WritingTool(
        command=f"preprocess-data --input ../given/text.jsonl --output-prefix out/c {_NULL} --vocab-size 96 "
        "--on-bad-line skip --json-keys text title",
        other="--vocab-size 97",
        inspected="out",
    ),
    "merge-datasets": WritingTool(
        command=f"merge-datasets --input {_CORPORA} --output-prefix out/c",
        other="--input ../given/b_text_document",
        inspected="out/c.idx",
    ),
    "merge-datasets --as-data-args": WritingTool(
        command=f"merge-datasets --input {_CORPORA} --as-data-args out",
        other="--input ../given/b_text_document",
        inspected="out",
    ),
    "convert-tokenization": WritingTool(
        command=f"convert-tokenization --input {_CORPORA} --output out --vocab-size 200 {_NULL}",
        other="--vocab-size 201",
        inspected="out",
    ),
    "materialize": WritingTool(
        command="materialize --input ../given/selection --output out",
        other=f"--input {_CORPORA}",
        inspected="out",
    ),
    "split-reference": WritingTool(
        command="split-reference --input ../given/a_text_document --output out --reference-fraction 0.3",
        other="--seed 7",
        inspected="out/pool",
    ),
    "train-tokenizer bpe": WritingTool(
        command="train-tokenizer --input ../given/text.jsonl --json-keys title --vocab-size 280 --type bpe "
        "--output out",
        other="--vocab-size 290",
        inspected="out",
    ),
    "train-tokenizer sentencepiece": WritingTool(
        command="train-tokenizer --input ../given/whole.jsonl --vocab-size 270 --type sentencepiece --output out",
        other="--vocab-size 269",
        inspected="out",
    ),
    "difference-sampling": WritingTool(
        command=f"difference-sampling {_SCORES} --ratio 0.6 --weights softmax --output out",
        other="--ratio 0.3",
        inspected="out",
    ),
    "report": WritingTool(
        command="report ../given/selection --examples 2 --output out",
        other="--examples 1",
        replaces=True,
    ),
    "scores --to-parquet": WritingTool(command="scores ../given/teacher --to-parquet out/scores.parquet"),
    "analyze-data": WritingTool(
        command=f"analyze-data --data pool {_CORPORA} --sample 20 --output out --json out/analysis.json",
        other="--sample 30",
        contents=without_seconds,
        replaces=True,
    ),
    "compare-runs": WritingTool(
        command="compare-runs --tokens-per-sample 100 --run slow ../given/slow --run fast ../given/fast "
        "--output out --json out/more.json",
        other="--tokens-per-sample 200",
        replaces=True,
    ),
    "fit-scaling-curve": WritingTool(
        command="fit-scaling-curve --points ../given/points.json --bootstrap 100 --output out --json out/curve.json",
        other="--seed 7",
        replaces=True,
    ),
    "plan": WritingTool(
        command="plan --teacher ../given/model --reference ../given/model --student ../given/model --corpus-tokens 1e9 "
        "--json out/plan.json"
    ),
    "score-corpus": WritingTool(
        command=f"score-corpus {_MODEL} --scores out",
        other="--seq-length 32",
        inspected="out",
        shares_work=True,
        is_megatron=True,
    ),
    "evaluate-lm": WritingTool(
        command=f"evaluate-lm {_MODEL} --scores out/scores --json out/loss.json",
        other="--seq-length 32",
        inspected="out/scores/*/*",
        shares_work=True,
        is_megatron=True,
    ),
    "generate-corpus": WritingTool(
        command=f"generate-corpus {_MODEL} --prompt-tokens 4 --max-new-tokens 3 --output-prefix out/c",
        other="--seed 7",
        inspected="out/c.idx",
        shares_work=True,
        is_megatron=True,
    ),
    "fit-proxy": WritingTool(
        command=f"fit-proxy {_MODEL} --teacher-scores ../given/few-teacher --reference-scores ../given/few-reference "
        "--proxy-steps 2 --proxy-batch-sequences 4 --lr 1e-3 --holdout-fraction 0.2 --save out/proxy "
        "--difference-scores out/predicted",
        other="--lr 2e-3",
        inspected="out/predicted",
        contents=without_save_id,
        shares_work=True,
        is_megatron=True,
    ),
    "convert-checkpoint --save": WritingTool(
        command="convert-checkpoint --load-hf ../given/model --save out/checkpoint",
        contents=without_save_id,
        refuses_finished=True,
        is_megatron=True,
    ),
    "convert-checkpoint --save-hf": WritingTool(
        command="convert-checkpoint --load ../given/checkpoint --save-hf out/model",
        refuses_finished=True,
        is_megatron=True,
    ),
}


def write_inputs(directory: Path) -> None:
    """Everything that the commands read, in `given/`."""
    given = directory / "given"
    given.mkdir()
    choose = random.Random(0)
    with open(given / "text.jsonl", "w") as stream:
        for _ in range(300):
            text = " ".join(str(choose.randrange(90)) for _ in range(choose.randrange(1, 20)))
            stream.write(json.dumps({"text": text, "title": "1 2", "domain": choose.choice("xy")}) + "\n")
        stream.write('{"title": "no text"}\n')
    lines = (given / "text.jsonl").read_text().splitlines(keepends=True)
    (given / "whole.jsonl").write_text("".join(lines[:-1]))
    with contextlib.chdir(given):
        for name, flags in (("a", []), ("b", ["--domain-key", "domain"])):
            flags = [*flags, *_NULL.split(), "--vocab-size", "96", "--on-bad-line", "skip"]
            assert main(["preprocess-data", "--input", "text.jsonl", "--output-prefix", name, *flags]) == 0
        corpora = [IndexedCorpus.open(Path(f"{name}_text_document")) for name in "ab"]
        nll = np.random.default_rng(1)
        for name in ("teacher", "reference"):
            write_scores(Path(name), corpora, nll.random(sum(map(len, corpora))) * 9, block_sequences=100)
        scores = ["--teacher-scores", "teacher", "--reference-scores", "reference"]
        assert main(["difference-sampling", *scores, "--ratio", "0.5", "--output", "selection"]) == 0
        points = [{"compute_flops": 10.0**power, "loss": 3 + 1e7 * 10 ** (-0.4 * power)} for power in range(18, 24)]
        Path("points.json").write_text(json.dumps({"conventional": points}))


def write_models(directory: Path) -> None:
    """Logs of runs, a model of both kinds, and a few sequences for it; by programs, so that torch is imported once."""
    given = directory / "given"
    few = write_corpus(given / "few", random_sequences([5, 0, 9, 4, 30, 70, 12, 8, 3, 2, 20, 11, 6]))
    known = is_sampled(range(len(few)), fraction=0.5, seed=0)  # 6 that have a token to predict; 2 are held out
    counts = np.where(known, np.maximum(few.lengths_N - 1, 0), NOT_SCORED)
    nll = np.where(known, np.random.default_rng(2).random((2, len(few))) * 9, 0)
    for name, values in zip(("few-teacher", "few-reference"), nll, strict=True):
        sampled = {"sample_fraction": 0.5, "sample_seed": 0}
        write_scores(given / name, [few], values, counts, block_sequences=5, settings=sampled)
    _run(str(Path(__file__)), str(given))
    convert = ("-m", "megatron_miniplm.__main__", "convert-checkpoint")
    _run(*convert, "--load-hf", f"{given}/model", "--save", f"{given}/checkpoint")


def _run(*command: str) -> None:
    process = run([sys.executable, *command])
    assert process.returncode == 0, process.stderr[-4000:]


def _write_with_torch(given: Path) -> None:
    from huggingface_models import random_model
    from torch.utils.tensorboard import SummaryWriter

    random_model("qwen2-tied").save_pretrained(given / "model")
    for name, losses in (("slow", [4.0, 3.0]), ("fast", [3.0, 2.0])):
        with SummaryWriter(str(given / name)) as writer:
            for step, loss in enumerate(losses, start=1):
                writer.add_scalar("lm loss validation-heldout vs samples", loss, step * 10)


def new_directory(directory: Path) -> Path:
    """An empty directory to run in, always of one name: some outputs hold absolute paths."""
    run_directory = directory / "run"
    shutil.rmtree(run_directory, ignore_errors=True)
    run_directory.mkdir()
    return run_directory


if __name__ == "__main__":
    _write_with_torch(Path(sys.argv[1]))
