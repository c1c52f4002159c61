"""The recipes of the MiniPLM paper: what each would launch, and each as a dry run beside an independent count."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from megatron_runs import REPOSITORY, environment, random_sequences, run, write_corpus

RECIPES = REPOSITORY / "examples" / "paper"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe states.

    Attributes:
        config: the same model for transformers.
        kd_iters: steps of vanilla KD; None where there is none.
    """

    config: transformers.PretrainedConfig
    lr: tuple[str, str]
    iters: int = 100_000
    kd_iters: int | None = None
    warmup: int = 2000
    weight_decay: str = "0.01"
    beta2: str = "0.98"
    million_parameters: int


def qwen(hidden: int, ffn: int, layers: int, heads: int, *, tied: bool = True) -> transformers.PretrainedConfig:
    return transformers.Qwen2Config(
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        vocab_size=151936,
        tie_word_embeddings=tied,
    )


LLAMA = transformers.LlamaConfig(
    hidden_size=768,
    intermediate_size=3072,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_key_value_heads=12,
    vocab_size=128256,
    tie_word_embeddings=True,
)
MAMBA = transformers.Mamba2Config(
    hidden_size=768,
    num_hidden_layers=24,
    state_size=128,
    n_groups=1,
    head_dim=64,
    num_heads=24,
    vocab_size=65024,
    use_bias=False,
    tie_word_embeddings=True,
)
#: Script -> what it states.
STATED = {
    "train_reference_104m.sh": Recipe(
        config=qwen(512, 1408, 8, 8), lr=("6e-4", "6e-5"), iters=9537, million_parameters=104
    ),
    "train_qwen_200m.sh": Recipe(
        config=qwen(768, 2112, 12, 12), lr=("6e-4", "6e-5"), kd_iters=20_000, million_parameters=203
    ),
    "train_qwen_500m.sh": Recipe(
        config=qwen(1024, 2816, 24, 16), lr=("3e-4", "3e-5"), kd_iters=45_000, million_parameters=464
    ),
    "train_qwen_1.2b.sh": Recipe(
        config=qwen(1536, 4224, 24, 16, tied=False),
        lr=("2.5e-4", "2.5e-5"),
        kd_iters=65_000,
        million_parameters=1161,
    ),
    "train_llama3.1_212m.sh": Recipe(config=LLAMA, lr=("6e-4", "6e-5"), million_parameters=212),
    "train_mamba_130m.sh": Recipe(
        config=MAMBA, lr=("2e-3", "1e-5"), warmup=10_000, weight_decay="0.1", beta2="0.95", million_parameters=140
    ),
}
QWEN_STUDENTS = [name for name, recipe in STATED.items() if recipe.kd_iters]
CONVERTED = ["train_llama3.1_212m.sh", "train_mamba_130m.sh"]

Launch = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    """Run a recipe with programs in place of torchrun and python that print their arguments, one a line."""
    for program in ("torchrun", "python"):
        stand_in = tmp_path / "bin" / program
        stand_in.parent.mkdir(exist_ok=True)
        stand_in.write_text(f"#!/bin/sh\nprintf '%s\\n' {program} \"$@\"\n")
        stand_in.chmod(0o755)

    def run_recipe(name: str, *flags: str, **variables: str) -> subprocess.CompletedProcess[str]:
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        settings = {"PATH": path, "DATA_PATH": "corpus", **variables}
        return subprocess.run([RECIPES / name, *flags], capture_output=True, text=True, env=settings, cwd=tmp_path)

    return run_recipe


def flags_of(process: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Flag -> its value, the list of its values, or True; `launcher` is the program."""
    assert process.returncode == 0, process.stderr
    program, *words = process.stdout.splitlines()
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for word in words:
        if word.startswith("--"):
            current = found[word.removeprefix("--")] = []
        else:
            current.append(word)
    values = {name: True if not words else words[0] if len(words) == 1 else words for name, words in found.items()}
    return {"launcher": program, **values}


def test_every_recipe_is_stated_here() -> None:
    assert {path.name for path in RECIPES.glob("train_*.sh")} == set(STATED)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.sh")), ids=lambda path: path.name)
def test_scripts_are_sound(path: Path) -> None:
    subprocess.run(["bash", "-n", str(path)], check=True)
    if shutil.which("shellcheck"):
        found = subprocess.run(["shellcheck", "-x", "-e", "SC1091", str(path)], capture_output=True, text=True)
        assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("name", STATED)
def test_a_recipe_launches_what_it_states(launch: Launch, name: str) -> None:
    recipe = STATED[name]
    flags = flags_of(launch(name))
    assert flags["launcher"] == "torchrun"
    assert (flags["nproc-per-node"], flags["nnodes"]) == ("8", "1")
    assert (flags["global-batch-size"], flags["seq-length"]) == ("512", "1024")
    assert 512 % (8 * int(flags["micro-batch-size"])) == 0
    assert int(flags["train-iters"]) == recipe.iters
    assert (flags["lr"], flags["min-lr"], flags["lr-decay-style"]) == (*recipe.lr, "cosine")
    assert int(flags["lr-warmup-iters"]) == recipe.warmup
    assert (flags["weight-decay"], flags["adam-beta2"]) == (recipe.weight_decay, recipe.beta2)
    assert (flags["adam-beta1"], flags["adam-eps"], flags["clip-grad"]) == ("0.9", "1e-6", "1.0")
    assert flags["data-path"] == "corpus"
    assert flags["tokenizer-type"] == "HuggingFaceTokenizer"
    assert not {"miniplm-selection", "miniplm-kd-teacher", "miniplm-dry-run"} & set(flags)
    assert flags["save"] == flags["load"] == f"runs/paper/{name.removesuffix('.sh')}/checkpoint"


@pytest.mark.parametrize("name", QWEN_STUDENTS)
def test_the_baselines_are_switches(launch: Launch, name: str) -> None:
    refined = flags_of(launch(name, SELECTION="a b"))
    assert refined["miniplm-selection"] == ["a", "b"]
    assert int(refined["train-iters"]) == STATED[name].iters
    distilled = flags_of(launch(name, KD_TEACHER="teacher"))
    assert (distilled["miniplm-kd-teacher"], distilled["miniplm-kd-alpha"]) == ("teacher", "0.5")
    assert "miniplm-selection" not in distilled
    assert int(distilled["train-iters"]) == STATED[name].kd_iters
    both = flags_of(launch(name, KD_TEACHER="teacher", SELECTION="a", TRAIN_ITERS="7"))
    assert (both["miniplm-kd-teacher"], both["miniplm-selection"], both["train-iters"]) == ("teacher", "a", "7")


def test_the_layout_and_the_data_follow_the_environment(launch: Launch, tmp_path: Path) -> None:
    (tmp_path / "data_args.txt").write_text("0.25 a\n0.75 b\n")
    flags = flags_of(
        launch(
            *("train_qwen_200m.sh", "--exit-interval", "20"),
            **{"TP": "2", "GPUS_PER_NODE": "4", "NUM_NODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "host"},
            **{"DATA_ARGS_PATH": "data_args.txt", "VALID_DATA_PATH": "held out", "CHECKPOINT_DIR": "kept"},
        )
    )
    assert (flags["nproc-per-node"], flags["nnodes"], flags["node-rank"]) == ("4", "2", "1")
    assert (flags["master-addr"], flags["tensor-model-parallel-size"]) == ("host", "2")
    assert flags["sequence-parallel"] is True
    assert flags["make-vocab-size-divisible-by"] == str(151936 // 2)
    assert (flags["train-data-path"], flags["valid-data-path"]) == (["0.25", "a", "0.75", "b"], ["held", "out"])
    assert (flags["save"], flags["exit-interval"]) == ("kept", "20")


@pytest.mark.parametrize("name", CONVERTED)
def test_a_student_with_another_tokenizer_refuses_the_teachers_selection(launch: Launch, name: str) -> None:
    for variables in ({"SELECTION": "a"}, {"KD_TEACHER": "t"}):
        process = launch(name, **variables)
        assert process.returncode == 2
        assert "convert the refined corpus first" in process.stderr


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"DATA_PATH": ""}, "set DATA_PATH"),
        ({"GPUS_PER_NODE": "7"}, "take 56 rows at a time, of which GLOBAL_BATCH_SIZE (512) is no multiple"),
        ({"DRY_RUN": "1", "TP": "2"}, "a dry run is one process"),
    ],
)
def test_what_cannot_be_launched_is_said(launch: Launch, variables: dict[str, str], message: str) -> None:
    process = launch("train_qwen_200m.sh", **variables)
    assert process.returncode == 2
    assert message in process.stderr


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 sequences of random tokens, a hundredth of which is enough to validate on."""
    prefix = tmp_path_factory.mktemp("corpus") / "tiny"
    write_corpus(prefix, random_sequences(np.random.default_rng(1).integers(100, 3000, 300)))
    return prefix


def count(config: transformers.PretrainedConfig) -> tuple[int, int]:
    """All parameters, and those that are not embeddings, as transformers builds the model."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    total = sum(parameter.numel() for parameter in model.parameters())
    return total, total - config.vocab_size * config.hidden_size * (1 if config.tie_word_embeddings else 2)


@pytest.mark.parametrize("name", STATED)
def test_the_size_that_a_recipe_states_is_right(name: str) -> None:
    recipe = STATED[name]
    total, non_embedding = count(recipe.config)
    assert round(total / 1e6) == recipe.million_parameters
    header = (RECIPES / name).read_text(encoding="utf-8")
    assert f"{total:,}" in header
    assert f"{non_embedding:,}" in header
    page = (REPOSITORY / "docs" / "recipes.md").read_text(encoding="utf-8")
    assert f"{total:,}" in page


@pytest.mark.slow
@pytest.mark.parametrize("name", STATED)
def test_a_dry_run_counts_the_model_and_builds_the_data(launch: Launch, name: str, corpus: Path) -> None:
    """The script's own command line, in a forked process."""
    recipe = STATED[name]
    variables = {"DRY_RUN": "1", "DATA_PATH": str(corpus), "DATA_CACHE_PATH": str(corpus.parent / "cache")}
    given = launch(name, **variables, TOKENIZER_TYPE="NullTokenizer", TRAIN_ITERS="2", EVAL_ITERS="1")
    program, *words = given.stdout.splitlines()
    assert program == "python", given.stderr
    process = run([sys.executable, *words])
    assert process.returncode == 0, process.stderr[-4000:]
    table = process.stdout.partition("\nmodel\n")[2]
    total, non_embedding = count(recipe.config)
    if recipe.config is MAMBA:
        assert re.search(r"parameters +not counted: the model was not built\n +transformer_engine is missing: ", table)
        assert "mamba_ssm is missing: pip install" in table
    else:
        assert re.search(rf"\n  parameters +{total:,}\n", table)
        assert re.search(rf"\n    non-embedding +{non_embedding:,}\n", table)
    assert f"{recipe.config.vocab_size:,} and 0 rows of padding" in table
    assert "512 rows of 1,024 tokens = 524,288 tokens" in table
    assert "(1,024 needed)" in table
    assert re.search(r"\n  first sample +tokens \(1024,\)", table)


@pytest.mark.slow
def test_a_recipe_trains(corpus: Path, tmp_path: Path) -> None:
    """All flags of a real launch, on a model small enough for this machine."""
    variables = {
        **environment(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **{"GPUS_PER_NODE": "1", "MASTER_PORT": str(20000 + os.getpid() % 10000), "DATA_PATH": str(corpus)},
        **{"DATA_CACHE_PATH": str(tmp_path / "cache"), "TOKENIZER_TYPE": "NullTokenizer", "VOCAB_SIZE": "1024"},
        **{"SEQ_LENGTH": "64", "MICRO_BATCH_SIZE": "2", "GLOBAL_BATCH_SIZE": "4", "TRAIN_ITERS": "2"},
        **{"LR_WARMUP_ITERS": "1", "EVAL_ITERS": "1", "CHECKPOINT_DIR": str(tmp_path / "checkpoint")},
        "TENSORBOARD_DIR": str(tmp_path / "tensorboard"),
    }
    sizes = {"num-layers": 2, "hidden-size": 32, "ffn-hidden-size": 64, "num-attention-heads": 4, "log-interval": 1}
    shape = [f"--{name}={value}" for name, value in sizes.items()]
    process = subprocess.run(
        [RECIPES / "train_qwen_200m.sh", *shape], capture_output=True, text=True, env=variables, timeout=240
    )
    assert process.returncode == 0, process.stderr[-4000:]
    assert re.search(r"iteration +2/ +2 .* lm loss: [\d.]+E", process.stdout)
    assert (tmp_path / "checkpoint" / "iter_0000002").is_dir()
    assert any((tmp_path / "tensorboard").iterdir())
