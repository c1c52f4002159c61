"""Commands in pages, scripts and docstrings exist, and take the flags and values that they are shown with."""

import re
from pathlib import Path

import pytest
from command_parsers import TRAINING_PROGRAMS, complaints, parser_of
from documented_commands import Command, commands_of, pages, prose_flags

from megatron_miniplm.commands import COMMANDS
from megatron_miniplm.runtime.command_line import accept_other_spellings

REPOSITORY = Path(__file__).parents[1]
PAGES = pages(REPOSITORY)
#: Flags of sbatch and srun, and of pytest, that pages mention.
SLURM_FLAGS = frozenset({"--array", "--gpus-per-node", "--nodes", "--ntasks-per-node", "--requeue", "--signal"})
PYTEST_FLAGS = frozenset({"--costs", "--write-costs", "--slowest", "--lf"})
#: Looked for before a program's parser is built.
EARLY_FLAGS = frozenset({"--version", "--help-megatron"})


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def wrong_in(commands: list[Command]) -> list[str]:
    known = set(COMMANDS) | TRAINING_PROGRAMS
    return [f"there is no miniplm {command.program}" for command in commands if command.program not in known] + [
        complaint
        for command in commands
        if command.program in known
        for complaint in complaints(command.program, command.words)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_documented_commands_take_the_flags_that_they_are_shown_with(page: str) -> None:
    assert wrong_in(commands_of(page, text_of(page))) == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.endswith(".md")])
def test_flags_that_are_named_in_running_text_exist(page: str) -> None:
    programs = {*COMMANDS, *TRAINING_PROGRAMS}
    parsers = [parser_of(program) for program in programs]
    for parser in parsers:
        accept_other_spellings(parser)
    known = {flag for parser in parsers for flag in parser._option_string_actions}
    benchmarks = " ".join(path.read_text(encoding="utf-8") for path in (REPOSITORY / "benchmarks").glob("*.py"))
    known.update(re.findall(r'"(--[a-z-]+)"', benchmarks))
    assert prose_flags(text_of(page)) - SLURM_FLAGS - PYTEST_FLAGS - EARLY_FLAGS - known == set()


def fenced(shell: str) -> str:
    return f"Text.\n\n```sh\n{shell}\n```\n"


@pytest.mark.parametrize(
    ("page", "text", "expected"),
    [
        ("a.md", fenced("miniplm score-corpus --seq-len 8"), "score-corpus has no --seq-len"),
        ("a.md", fenced("miniplm score-corpus --bf16 \\\n  --score D  # --x"), "score-corpus has no --score"),
        ("a.md", fenced("miniplm scores DIR --verfy"), "scores has no --verfy"),
        ("a.md", fenced("miniplm score --verify"), "there is no miniplm score"),
        ("a.md", fenced("torchrun -m megatron_miniplm.launch x.py <flags> --selection a"), "launch has no --selection"),
        ("a.md", fenced('RUN="miniplm fit-proxy --lr 1e-4"\n$RUN --steps 2'), "fit-proxy has no --steps"),
        ("a.md", fenced("miniplm report a | tee b; tools/generate_corpus.py --tokens 3"), "corpus has no --tokens"),
        ("a.md", "Use `miniplm evaluate-lm\n--jsn FILE` here.", "evaluate-lm has no --jsn"),
        ("a.md", fenced("miniplm convert-checkpoint --load-hf A [--safe B]"), "convert-checkpoint has no --safe"),
        ("a.md", fenced("miniplm inspect-batch --iteration last"), "invalid int value"),
        ("a.md", fenced("miniplm score-corpus --seq-length 8 9"), "unrecognized arguments"),
        ("a.md", fenced("miniplm score-corpus --bf16 yes"), "unrecognized arguments"),
        ("a.md", fenced("python -m megatron_miniplm.pretrain_gpt --lr-decay-style cos"), "invalid choice"),
        ("a.md", fenced("miniplm difference-sampling --output=a --ratio=half"), "invalid"),
        ("a.conf", "SCORING=(--bf16\n  --block-sequence 8) # --no\n", "score-corpus has no --block-sequence"),
        ("a.conf", 'STUDENT_a=("${x[@]}" --train-iter 8)', "pretrain_gpt has no --train-iter"),
        ("examples/a.sh", 'queue train a 1 "$seed" "$DATA" "${b[@]}" --num-layer 2', "pretrain_gpt has no --num-layer"),
        ("examples/a.sh", "score a --tp 2 &", "score-corpus has no --tp"),
        ("slurm/a.sh", 'tool report "$RUN_DIR" --out x', "report has no --out"),
        ("a.py", '"""A.\n\n    miniplm evaluate-tasks --task x\n"""', "evaluate-tasks has no --task"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_found(page: str, text: str, expected: str) -> None:
    found = wrong_in(commands_of(page, text))
    assert len(found) == 1
    assert expected in found[0]


def test_what_only_a_run_knows_is_no_complaint() -> None:
    shell = """
miniplm score-corpus <your flags> --seq-length N --micro-batch-size "$SIZE" --tensor-model-parallel-size $((2 * 4)) \\
    --corpus $(cat data_args.txt) "${more[@]}" --scores DIR ... > scores.log   # --what
"""
    (command,) = commands_of("a.md", fenced(shell))
    assert [word for word in command.words if word.startswith("--")] == [
        "--seq-length", "--micro-batch-size", "--tensor-model-parallel-size", "--corpus", "--scores",
    ]  # fmt: skip
    assert wrong_in([command]) == []


def test_a_wrong_flag_in_running_text_is_found() -> None:
    assert prose_flags("`--no-such-flag` and `--bf16 X`, `other --flag`") == {"--no-such-flag", "--bf16"}


def test_every_command_is_documented() -> None:
    documents = [page for page in PAGES if page.endswith(".md") or page.startswith("examples/")]
    shown = {command.program for page in documents for command in commands_of(page, text_of(page))}
    assert shown >= set(COMMANDS)


def test_every_tool_script_names_its_command() -> None:
    scripts = {path.stem for path in (REPOSITORY / "tools").glob("*.py")}
    expected = {module for module, _ in COMMANDS.values()} - {"inspect", "completion"} | {"inspect_artifact"}
    assert scripts == expected
    for path in (REPOSITORY / "tools").glob("*.py"):
        name = re.search(r'run_tool\("([a-z-]+)"\)', path.read_text(encoding="utf-8"))
        assert name is not None
        assert COMMANDS[name[1]][0] in (path.stem, path.stem.removesuffix("_artifact"))
