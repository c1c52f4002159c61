"""Held-out loss, perplexity and bits a byte of real models, against transformers and Megatron's own validation."""

import json
import math
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_models import CONTEXT_TOKENS as LONG_CONTEXT_TOKENS
from huggingface_models import nll_sums
from huggingface_truth import nll_sum, read_checkpoint, to_huggingface
from megatron_runs import (
    ARCHITECTURE_FLAGS,
    CONTEXT_TOKENS,
    DATA_FLAGS,
    REPOSITORY,
    VOCAB_SIZE,
    TinyRun,
    dataset_config,
    error_lines,
    launcher,
    random_sequences,
    run,
    write_corpus,
)
from scoring_jobs import Job, block_times
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import run_tool
from megatron_miniplm.corpus.tokenizer_training import TrainingSettings, train_tokenizer
from megatron_miniplm.indexed import IndexedCorpus

pytestmark = pytest.mark.slow

TOLERANCE_NATS = 2e-5  # a token; float32 against float64, or sums in another order
#: By domain. The first is longer than three windows; a character of several bytes may be cut into tokens.
DOCUMENTS = {
    "prose": [
        topics["assignment"][:4000],
        topics["del"],
        topics["integers"],
        "Zoë's naïve café costs 5 € – 日本語 too.",
    ],
    "code": ["def f(x):\n    return x + 1\n", "for i in range(10):\n\tprint(i, end=' ')\n" * 9],
}


def command(flags: Sequence[str | Path], num_processes: int = 1) -> list[str]:
    tool = [*launcher(num_processes), str(REPOSITORY / "tools/evaluate_lm.py"), "--micro-batch-size", "4"]
    return [*tool, *map(str, flags)]


def evaluate(flags: Sequence[str | Path], json_path: Path, num_processes: int = 1) -> dict[str, Any]:
    process = run(command([*flags, "--json", json_path], num_processes))
    assert process.returncode == 0, process.stderr[-4000:]
    assert "held-out loss, nats a token" in process.stdout
    return json.loads(json_path.read_text())


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A random model with a byte-level BPE tokenizer in one Hugging Face directory, and a corpus of `DOCUMENTS`."""

    directory: Path
    model: LlamaForCausalLM
    prefix: Path


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> TextModel:
    root = tmp_path_factory.mktemp("text")
    lines = [json.dumps({"text": text, "of": name}) for name, texts in DOCUMENTS.items() for text in texts]
    (root / "text.jsonl").write_text("\n".join(lines) + "\n")
    settings = TrainingSettings(algorithm="bpe", vocab_size=400, json_keys=("text",), max_bytes=None)
    train_tokenizer([root / "text.jsonl"], root / "model", settings)
    tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(root / "model")]
    paths = ["--input", str(root / "text.jsonl"), "--output-prefix", str(root / "held")]
    assert run_tool("preprocess-data", [*paths, *tokenizer, "--append-eod", "--domain-key", "of"]) == 0
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=Tokenizer.from_file(str(root / "model/tokenizer.json")).get_vocab_size(),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LONG_CONTEXT_TOKENS,
        initializer_range=0.3,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(root / "model")
    return TextModel(directory=root / "model", model=model, prefix=root / "held_text_document")


def test_loss_perplexity_and_bits_a_byte_of_text(text_model: TextModel, tmp_path: Path) -> None:
    """TP2. Ids and bytes come from the `tokenizers` library and the text itself."""
    flags = ["--load-hf", text_model.directory, "--tensor-model-parallel-size", "2", "--scores", tmp_path]
    flags += ["--seq-length", str(LONG_CONTEXT_TOKENS), "--corpus", f"held={text_model.prefix}"]
    values = evaluate(flags, tmp_path / "new/held.json", num_processes=2)
    (found,) = values["checkpoints"]
    assert (found["checkpoint"], values["corpora"]["held"]["bytes_of"]) == ("model", "scored tokens")
    held = found["corpora"]["held"]

    tokenizer = Tokenizer.from_file(str(text_model.directory / "tokenizer.json"))
    eod = tokenizer.token_to_id("<|endoftext|>")
    sums = {}
    for name, texts in DOCUMENTS.items():
        sequences = [[*tokenizer.encode(text).ids, eod] for text in texts]
        sums[name] = (
            sum(nll_sums(text_model.model, sequences)),
            sum(len(sequence) - 1 for sequence in sequences),
            sum(
                len(text.encode()) - len(tokenizer.decode(ids[:1])) for text, ids in zip(texts, sequences, strict=True)
            ),
        )
    assert max(len(sequence) for sequence in sequences) < LONG_CONTEXT_TOKENS
    assert len(tokenizer.encode(DOCUMENTS["prose"][0]).ids) > 3 * LONG_CONTEXT_TOKENS
    sums["whole"] = tuple(map(sum, zip(*sums.values(), strict=True)))
    for name, (nll, num_tokens, num_bytes) in sums.items():
        part = held if name == "whole" else held["domains"][name]
        assert (part["num_tokens"], part["text_bytes"]) == (num_tokens, num_bytes)
        assert part["loss_nats_per_token"] == pytest.approx(nll / num_tokens, abs=TOLERANCE_NATS)
        assert part["perplexity"] == pytest.approx(math.exp(nll / num_tokens), rel=1e-4)
        assert part["bits_per_byte"] == pytest.approx(nll / num_bytes / math.log(2), rel=1e-5)
    assert held["domains"].keys() == DOCUMENTS.keys()


def tiny_flags(tiny: TinyRun, scores: Path, *corpora: Path) -> list[str | Path]:
    model = ["--load", tiny.checkpoint, "--use-checkpoint-args", *DATA_FLAGS]
    return [*model, "--scores", scores, "--corpus", *corpora, "--block-sequences", "50"]


def test_a_killed_run_over_checkpoints_goes_on_in_another_layout(tiny: TinyRun, tmp_path: Path) -> None:
    """Told to stop between two checkpoints, killed in the second; then PP2, where both corpora share a loaded model."""
    second = tiny.prefixes[2]
    large = write_corpus(tmp_path / "large", random_sequences([100] * 800)).prefix
    flags = [*tiny_flags(tiny, tmp_path / "scores", large, second), "--checkpoint-iterations", "all"]
    finished, begun = tmp_path / "scores/iter_0000002", tmp_path / "scores/iter_0000004/large"
    with Job(command(flags), begun) as job:
        job.wait_for((finished / "second/manifest.json").exists)
        job.send(signal.SIGTERM)
        assert job.wait() == 75, "the signal was lost"
        assert error_lines(job.stderr) == [
            "error: told to stop; all finished blocks are kept, the same command continues"
        ]
    with Job(command(flags), begun) as job:
        job.wait_for(lambda: len(block_times(begun)) >= 2)
        job.send(signal.SIGKILL)
        job.wait()
    before = {name: block_times(finished / name) for name in ("large", "second")}
    partly = block_times(begun)
    assert len(partly) < 16 == len(before["large"])

    pipeline = ["--pipeline-model-parallel-size", "2"]
    values = evaluate([*flags, *pipeline], tmp_path / "losses.json", num_processes=2)
    assert {name: block_times(finished / name) for name in before} == before, "a finished checkpoint was scored again"
    assert partly.items() <= block_times(begun).items()
    assert [row["iteration"] for row in values["checkpoints"]] == [2, 4]
    assert not values["corpora"]["second"]["trained_on"]
    assert [row["trained_tokens"] for row in values["checkpoints"]] == [2 * 4 * CONTEXT_TOKENS, 4 * 4 * CONTEXT_TOKENS]
    corpus = IndexedCorpus.open(second)
    for row in values["checkpoints"]:
        model = to_huggingface(read_checkpoint(tiny.checkpoint / row["checkpoint"]))
        truth = [nll_sum(model, corpus.sequence(index)) for index in range(len(corpus))]
        num_tokens = int(np.maximum(corpus.lengths_N - 1, 0).sum())
        found = row["corpora"]["second"]
        assert (found["num_tokens"], row["corpora"]["large"]["num_tokens"]) == (num_tokens, 99 * 800)
        assert found["loss_nats_per_token"] == pytest.approx(sum(truth) / num_tokens, abs=TOLERANCE_NATS)
        store = ScoreStore.open(tmp_path / "scores" / row["checkpoint"] / "second")
        each = store.read_all()
        assert np.abs(each["nll"] - truth).max() < TOLERANCE_NATS * CONTEXT_TOKENS


def test_how_megatron_s_validation_loss_differs(tiny: TinyRun, tmp_path: Path) -> None:
    """It reads sequences one behind the other, cut into rows, and rows that pad the vocabulary take part.

    Both numbers are computed with transformers: ours sequence by sequence, Megatron's row by row.
    """
    second = tiny.prefixes[2]
    ours = evaluate(tiny_flags(tiny, tmp_path / "scores", second), tmp_path / "ours.json")["checkpoints"][0]
    program = [sys.executable, "-m", "megatron_miniplm.pretrain_gpt", *ARCHITECTURE_FLAGS, *DATA_FLAGS]
    flags = [
        *("--train-iters", "4", "--skip-train", "--lr", "1e-2", "--micro-batch-size", "1", "--global-batch-size", "1"),
        *("--full-validation", "--eval-iters", "1", "--multiple-validation-sets", "--validation-set-names", "second"),
    ]
    data = ["--train-data-path", tiny.prefixes[0], "--valid-data-path", second, "--data-cache-path", tmp_path / "cache"]
    process = run([*program, *flags, "--load", str(tiny.checkpoint), *map(str, data)])
    assert process.returncode == 0, process.stderr[-4000:]
    line = next(line for line in process.stdout.splitlines() if "validation-second loss at iteration 4" in line)
    theirs = float(line.split("lm loss value: ")[1].split()[0])

    weights = read_checkpoint(tiny.checkpoint / "iter_0000004")
    model = to_huggingface(weights)
    corpus = IndexedCorpus.open(second)
    by_sequence = sum(nll_sum(model, corpus.sequence(index)) for index in range(len(corpus)))
    assert ours["corpora"]["second"]["loss_nats_per_token"] == pytest.approx(
        by_sequence / np.maximum(corpus.lengths_N - 1, 0).sum(), abs=TOLERANCE_NATS
    )
    by_row = mean_of_rows(model, weights["embedding.word_embeddings.weight"], validation_rows(second, tmp_path))
    assert theirs == pytest.approx(by_row, abs=TOLERANCE_NATS)
    assert abs(theirs - ours["corpora"]["second"]["loss_nats_per_token"]) > 0.05, "the comparison has no teeth"


def validation_rows(prefix: Path, cache: Path) -> np.ndarray:
    """All whole rows of one epoch, (rows, context + 1), with sequences in the order in which Megatron shuffles them."""
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset

    config = dataset_config(prefix, cache / "rows")
    (dataset, _, _) = BlendedMegatronDatasetBuilder(GPTDataset, [None, 0, 0], lambda: True, config).build()
    corpus = IndexedCorpus.open(prefix)
    stream = np.concatenate([corpus.sequence(index) for index in dataset.document_index]).astype(np.int64)
    num_rows = (len(stream) - 1) // CONTEXT_TOKENS
    return np.stack([stream[row * CONTEXT_TOKENS : (row + 1) * CONTEXT_TOKENS + 1] for row in range(num_rows)])


@torch.no_grad()
def mean_of_rows(model: LlamaForCausalLM, padded_embedding_VH: torch.Tensor, rows_RS: np.ndarray) -> float:
    """Mean NLL of all tokens but the first of each row, over the padded vocabulary."""
    tokens_RS = torch.from_numpy(rows_RS)
    hidden_RSH = model.model(tokens_RS[:, :-1]).last_hidden_state
    logits_RSV = hidden_RSH @ padded_embedding_VH.double().T
    assert logits_RSV.shape[-1] > VOCAB_SIZE
    return float(torch.nn.functional.cross_entropy(logits_RSV.flatten(0, 1), tokens_RS[:, 1:].flatten()))


@pytest.mark.parametrize("case", ["no sequences", "another tokenizer"])
def test_what_cannot_be_evaluated_is_one_line(tiny: TinyRun, text_model: TextModel, tmp_path: Path, case: str) -> None:
    scores = tmp_path / "scores"
    flags = tiny_flags(tiny, scores, tiny.prefixes[1])
    message = "the corpus empty has no sequences: leave it out"
    if case == "another tokenizer":
        settings = TrainingSettings(algorithm="bpe", vocab_size=300, json_keys=("text",), max_bytes=None)
        train_tokenizer([text_model.prefix.with_name("text.jsonl")], tmp_path / "other", settings)
        tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", tmp_path / "other"]
        flags = ["--load-hf", text_model.directory, *tokenizer, "--seq-length", str(LONG_CONTEXT_TOKENS)]
        flags += ["--corpus", text_model.prefix, "--scores", scores]
        message = "held_text_document was made with tokenizer ["
    process = run(command(flags))
    assert process.returncode == 2, process.stderr[-2000:]
    (line,) = error_lines(process.stderr)
    assert message in line
    assert not list(tmp_path.rglob("*.npy"))
