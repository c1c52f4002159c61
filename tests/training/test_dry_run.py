"""`--miniplm-dry-run` on a model whose parameters are counted by hand, and on corpora of known size."""

import re
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import (
    ARCHITECTURE_FLAGS,
    CONTEXT_TOKENS,
    DATA_FLAGS,
    FFN_SIZE,
    HIDDEN_SIZE,
    NUM_GROUPS,
    NUM_HEADS,
    NUM_LAYERS,
    PADDED_VOCAB_SIZE,
    TRAINING_FLAGS,
    error_lines,
    launcher,
    random_sequences,
    run,
    write_corpus,
)
from score_stores import write_scores
from selections import sample

SIZES = {"first": (90, 30), "second": (40, 50)}
"""Prefix -> number of sequences, tokens of each."""


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("corpora")
    for seed, (name, (num_sequences, tokens)) in enumerate(SIZES.items()):
        write_corpus(directory / name, random_sequences([tokens] * num_sequences, seed))
    return directory


def dry_run(directory: Path, *flags: str, num_processes: int = 1) -> tuple[int, str, str]:
    """Exit code, the table (what follows Megatron's own lines), stderr."""
    command = [*launcher(num_processes), "-m", "megatron_miniplm.pretrain_gpt", *ARCHITECTURE_FLAGS, *DATA_FLAGS]
    settings = [*TRAINING_FLAGS, "--train-iters", "25", "--data-cache-path", str(directory / "cache")]
    process = run([*command, *settings, *flags, "--miniplm-dry-run"])
    return process.returncode, "\n" + process.stdout.partition("\nmodel\n")[2], process.stderr


def value(table: str, label: str) -> str:
    found = re.search(rf"\n  {re.escape(label)} {{2,}}(.*)", table)
    assert found is not None, table
    return found[1]


def test_the_table_says_what_training_would_do(corpora: Path) -> None:
    blend = ["--data-path", "0.75", str(corpora / "first"), "0.25", str(corpora / "second")]
    code, table, stderr = dry_run(corpora, *blend)
    assert code == 0, stderr[-4000:]
    head = HIDDEN_SIZE // NUM_HEADS
    layer = 2 * HIDDEN_SIZE**2 + 2 * HIDDEN_SIZE * NUM_GROUPS * head + 3 * HIDDEN_SIZE * FFN_SIZE + 2 * HIDDEN_SIZE
    embedding, rest = PADDED_VOCAB_SIZE * HIDDEN_SIZE, NUM_LAYERS * layer + HIDDEN_SIZE
    assert value(table, "parameters") == f"{embedding + rest:,}"
    assert value(table, "  embedding") == f"{embedding:,}"
    assert value(table, "  non-embedding") == f"{rest:,}"
    assert value(table, "vocabulary").startswith("100 and 28 rows of padding; input and output embeddings tied")
    assert value(table, "batch") == "4 rows of 64 tokens = 256 tokens"
    assert value(table, "steps") == "25"
    assert value(table, "tokens").startswith(f"{25 * 256:,} ")
    assert "(100 needed)" in value(table, "train")
    assert value(table, "valid") == value(table, "test") == "none"
    # 75 of the 100 samples from the first prefix, and what Megatron adds so that no draw of the blend runs short.
    first, second = (re.search(rf"{name}: (.*)", table)[1] for name in SIZES)  # type: ignore[index]
    assert first.startswith("90 sequences, 2,700 tokens, ")
    assert second.startswith("40 sequences, 2,000 tokens, ")
    assert float(first.split()[-2]) == pytest.approx(75 * CONTEXT_TOKENS / 2700, rel=0.03)
    assert float(second.split()[-2]) == pytest.approx(25 * CONTEXT_TOKENS / 2000, rel=0.05)
    assert value(table, "first sample").startswith("tokens (64,), labels (64,), loss_mask (64,)")
    assert sorted(path.name for path in corpora.iterdir()) == ["first.bin", "first.idx", "second.bin", "second.idx"]
    assert value(table, "index caches").endswith(f"removed again; training will write them to {corpora}/cache")
    assert not value(table, "index caches").startswith("0 bytes")


def test_a_selection_counts_what_it_keeps(corpora: Path) -> None:
    corpus = write_corpus(corpora / "pool", random_sequences([20] * 40))
    teacher = write_scores(corpora / "teacher", [corpus], np.zeros(40))
    reference = write_scores(corpora / "reference", [corpus], np.arange(40))
    sample(teacher.directory, reference.directory, corpora / "refined", ratio=0.25, reduction="sum")
    flags = ["--data-path", str(corpora / "pool"), "--miniplm-selection", str(corpora / "refined")]
    code, table, stderr = dry_run(corpora, *flags)
    assert code == 0, stderr[-4000:]
    assert "pool: 10 sequences, 200 tokens, 32 epochs" in table


@pytest.mark.slow
def test_several_processes_are_refused(corpora: Path) -> None:
    code, _, stderr = dry_run(corpora, "--data-path", str(corpora / "first"), num_processes=2)
    assert code != 0
    (line,) = error_lines(stderr.replace("Traceback", ""))  # torchrun's own, of the ranks that ended with 2
    assert "--miniplm-dry-run on 2 processes: start it with plain python" in line


def test_data_that_is_refused_leaves_the_rest_of_the_table(corpora: Path) -> None:
    code, table, stderr = dry_run(corpora, "--data-path", str(corpora / "missing"))
    assert code == 2
    assert value(table, "steps") == "25"
    assert len(error_lines(stderr)) == 1
