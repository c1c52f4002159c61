"""What `generate-corpus` refuses before Megatron is imported."""

from pathlib import Path

import pytest
from megatron_runs import write_corpus

from megatron_miniplm.cli import main


@pytest.fixture
def required(tmp_path: Path) -> list[str]:
    write_corpus(tmp_path / "corpus", [[1, 2, 3]])
    return [
        *("generate-corpus", "--corpus", str(tmp_path / "corpus"), "--output-prefix", str(tmp_path / "out")),
        *("--prompt-tokens", "2", "--max-new-tokens", "3", "--tensor-model-parallel-size", "2", "--bf16"),
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--temperature 0", "--temperature 0.0 must be above 0: --top-k 1 takes the likeliest token"),
        ("--temperature nan", "--temperature nan must be above 0"),
        ("--top-k -1", "--top-k -1 must not be negative"),
        ("--top-p 1.5", "--top-p 1.5 must lie in [0, 1]"),
        ("--top-p 0.9 --top-k 3", "--top-k and --top-p: Megatron's sampler takes one of them"),
        ("--prompt-tokens 0", "--prompt-tokens 0 must be at least 1"),
        ("--max-new-tokens 0", "--max-new-tokens 0 must be at least 1"),
        ("--num-sequences 0", "--num-sequences 0 must be at least 1"),
        ("--random-subset", "--num-sequences is missing: --random-subset needs it"),
        ("--corpus nowhere", "nowhere.idx does not exist: give the prefix of a .bin/.idx pair"),
        ("", "--load is missing: give the directory of a Megatron checkpoint"),
        ("--load nowhere", "nowhere is not a Megatron checkpoint"),
        ("--load nowhere --load-hf nowhere", "--load and --load-hf name two models: give one"),
    ],
)
def test_refused_in_one_line(
    required: list[str], flags: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main([*required, *flags.split()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert {path.name for path in tmp_path.iterdir()} == {"corpus.bin", "corpus.idx"}


def test_a_missing_flag_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate-corpus", "--load", "nowhere"]) == 2
    assert "the following arguments are required: --corpus" in capsys.readouterr().err
