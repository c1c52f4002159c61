"""The commands that pages and scripts show: which program, with which words.

Shell is read as far as documentation needs it: quotes, continued lines, comments, `$( )`, operators between commands,
and arrays of flags. What only a run could know (variables, substitutions, placeholders such as `<your flags>`) is kept
as a word that `is_literal` tells from a value.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: Stands for any number of words: `"${flags[@]}"`, `$(cat data_args.txt)`, `<your flags>`, `...`.
ANY_WORDS = "\0any"
#: Stands for a part of a word that only a run knows: `$RUN`, `$((BATCH * 2))`.
UNKNOWN = "\0"
TRAINING = "pretrain_gpt"

FENCE = re.compile(r"^( *)```.*?\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`([^`]+)`")
ARRAY = re.compile(r"\b([A-Za-z_][A-Za-z0-9_.]*)\+?=\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)")
#: Variable of a page that holds the beginning of a command: `SCORE="torchrun ... miniplm score-corpus ..."`.
VARIABLE = re.compile(r"^\s*([A-Z][A-Z_]*)=(.*)$", re.DOTALL)

#: Functions of examples/ that run a program with the flags they are given.
FUNCTIONS = {"train": TRAINING, "score": "score-corpus", "select_by": "difference-sampling"}
#: Arrays of a SLURM configuration whose flags are not those of training; slurm/pipeline.sh explains each.
ARRAYS = {
    "TOKENIZER_TRAINING": "train-tokenizer",
    "PREPROCESSING": "preprocess-data",
    "SPLIT": "split-reference",
    "TEACHER_MODEL": "score-corpus",
    "REFERENCE_MODEL": "score-corpus",
    "SCORING": "score-corpus",
    "SCORING_TEACHER": "score-corpus",
    "SCORING_REFERENCE": "score-corpus",
    "SELECTION": "difference-sampling",
    "EVALUATION": "compare-runs",
    "EVALUATION_LM": "evaluate-lm",
    "EVALUATION_TASKS": "evaluate-tasks",
}
#: Local arrays of slurm/pipeline.sh. All others in slurm/ are for sbatch, srun or a container.
SLURM_ARRAYS = {
    "TOKENIZER_FLAGS": TRAINING,
    "data": TRAINING,
    "more": TRAINING,
    "to": "merge-datasets",
    "model": "evaluate-lm",
    "corpus": "evaluate-lm",
    "runs": "compare-runs",
}
#: Arrays of a cluster's settings, in pages that are not in slurm/: their flags are sbatch's.
CLUSTER_ARRAYS = ("GPU_FLAGS", "SBATCH_FLAGS", "CONTAINER_FLAGS")


@dataclass(frozen=True, kw_only=True)
class Command:
    """One command of a page. `program` is a subcommand of `miniplm`, `pretrain_gpt` or `launch`."""

    page: str
    program: str
    words: tuple[str, ...]


def is_literal(word: str) -> bool:
    """Whether the program would see `word` as it is: no variable, no placeholder (`DIR`, `N`), nothing left out."""
    return UNKNOWN not in word and "..." not in word and re.fullmatch(r"[A-Z][A-Z_0-9]*", word) is None


def commands_of(page: str, text: str) -> list[Command]:
    """Every command that a Markdown page, a shell script or a Python module's docstring shows."""
    commands: list[Command] = []
    variables: dict[str, list[str]] = {}
    for shell in _shell_texts(page, text):
        commands += _array_commands(page, shell)
        for words in _simple_commands(ARRAY.sub(" ", shell)):
            variables |= _assigned(words)
            expanded = [inner for word in words for inner in variables.get(word, [word])]
            command = _command(page, expanded)
            commands += [command] if command else []
    return commands


def _shell_texts(page: str, text: str) -> Iterator[str]:
    if page.endswith(".py"):
        yield "\n".join(line for line in (ast.get_docstring(ast.parse(text)) or "").splitlines())
    elif page.endswith(".md"):
        yield from (fence[1] for fence in FENCE.findall(text))
        yield from (" ".join(code.split()) for code in INLINE_CODE.findall(FENCE.sub("", text)))
    else:
        # Usage in comments is documentation as well.
        yield text
        yield "\n".join(re.findall(r"^# ?(.*)$", text, re.MULTILINE))


def _array_commands(page: str, shell: str) -> Iterator[Command]:
    for name, body in ARRAY.findall(_without_comments(shell)):
        words = _words(body)
        in_slurm = page.startswith("slurm/")
        program = SLURM_ARRAYS.get(name) if in_slurm else ARRAYS.get(name, TRAINING)
        if program and not name.startswith(CLUSTER_ARRAYS) and any(word.startswith("--") for word in words):
            yield Command(page=page, program=program, words=tuple(words))


def _without_comments(shell: str) -> str:
    return re.sub(r"(?m)(^|\s)#.*$", "", shell)


def _simple_commands(shell: str) -> Iterator[list[str]]:
    """The words of every simple command, line by line; a line that is no shell (output that is shown) is left out."""
    for line in re.sub(r"\\\n\s*", " ", shell).splitlines():
        try:
            words = _words(line)
        except ValueError:
            assert not re.search(r"miniplm [a-z-]+ .*--", line), f"cannot be read as shell: {line}"
            continue
        command: list[str] = []
        for word in [*words, ";"]:
            if word and set(word) <= set(";|&<>()"):
                yield command
                command = []
            else:
                command.append(word)


def _words(shell: str) -> list[str]:
    """Split as bash does, with what only a run knows replaced."""
    shell = re.sub(r"<[a-zA-Z][^<>|&;\n]*>", f" {ANY_WORDS} ", shell)
    shell = re.sub(r"\$\(\((?:[^()]|\([^()]*\))*\)\)", UNKNOWN, shell)
    shell = re.sub(r"\$\((?:[^()]|\([^()]*\))*\)", ANY_WORDS, shell)
    shell = re.sub(r"\$\{[^{}]*\[@\][^{}]*\}", ANY_WORDS, shell)
    shell = re.sub(r"\$(\{[^{}]*\}|\w+|[@*#?!])", _variable, shell)
    lexer = shlex.shlex(shell, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return [ANY_WORDS if word in ("...", "…") else _without_brackets(word) for word in lexer]


def _without_brackets(word: str) -> str:
    """`[--flag VALUE]` of a usage line, as if the flag were given."""
    return word.strip("[]") if word.startswith("[--") or word.endswith("]") else word


def _variable(match: re.Match[str]) -> str:
    name = match[1].strip("{}")
    return ANY_WORDS if name in "@*" else f"{UNKNOWN}{name if name.isidentifier() else ''}{UNKNOWN}"


def _assigned(words: list[str]) -> dict[str, list[str]]:
    """The variable that a line sets to several words, by the word that stands for it later."""
    match = VARIABLE.match(words[0]) if len(words) == 1 else None
    held = _words(match[2]) if match else []
    return {f"{UNKNOWN}{match[1]}{UNKNOWN}": held} if match and len(held) > 1 else {}


def _command(page: str, words: list[str]) -> Command | None:
    """The program that `words` start, if it is one of ours."""
    for place, word in enumerate(words):
        following = tuple(words[place + 1 :])
        names_command = bool(following) and re.fullmatch(r"[a-z]+(-[a-z]+)*", following[0]) is not None
        if names_command and (word == "miniplm" or (word == "tool" and page.startswith("slurm/"))):
            return Command(page=page, program=following[0], words=following[1:])
        if script := re.fullmatch(r"(?:\./)?tools/([a-z_]+)\.py", word):
            name = script[1].replace("_", "-").replace("inspect-artifact", "inspect")
            return Command(page=page, program=name, words=following)
        if module := re.fullmatch(r"megatron_miniplm\.(pretrain_gpt|launch)", word):
            return Command(page=page, program=module[1], words=following[1:] if module[1] == "launch" else following)
        if word in FUNCTIONS and page.startswith("examples/") and set(words[:place]) <= {"queue"}:
            return Command(page=page, program=FUNCTIONS[word], words=_flags(following))
    return None


def _flags(words: tuple[str, ...]) -> tuple[str, ...]:
    """From the first flag on; before it are arguments of the function."""
    return next((words[place:] for place, word in enumerate(words) if word.startswith("--")), ())


def prose_flags(text: str) -> set[str]:
    """Flags that a Markdown page names by themselves (`--flag`, `--flag VALUE`) in running text and tables."""
    spans = INLINE_CODE.findall(FENCE.sub("", text))
    return {match[0] for span in spans if (match := re.match(r"--[a-z][\w-]*", span))}


def pages(repository: Path) -> list[str]:
    """Every file of the repository that shows commands to a reader."""
    patterns = ("*.md", "docs/*.md", "docs/*.conf", "examples/**/*.md", "examples/**/*.sh", "examples/**/*.conf")
    more = ("slurm/*.sh", "slurm/*.sbatch", "tools/*.py", "megatron_miniplm/*.py", "megatron_miniplm/commands/*.py")
    found = {path for pattern in (*patterns, *more) for path in repository.glob(pattern)}
    return sorted(path.relative_to(repository).as_posix() for path in found)
