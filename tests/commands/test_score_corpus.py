"""What `score-corpus` and its relatives refuse before Megatron is imported: a context whose length nobody says."""

from pathlib import Path

import pytest
from megatron_runs import write_corpus
from transformers import LlamaConfig, LlamaForCausalLM

from megatron_miniplm.cli import main


@pytest.fixture(autouse=True)
def inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A corpus, a Megatron checkpoint by its tracker, and a model of Hugging Face that reads 48 tokens."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus", [[1, 2, 3]])
    (tmp_path / "run/iter_0000002").mkdir(parents=True)
    (tmp_path / "run/latest_checkpointed_iteration.txt").write_text("2")
    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(**shape, vocab_size=16, max_position_embeddings=48)).save_pretrained(tmp_path / "hf")


@pytest.mark.parametrize("command", ["score-corpus", "evaluate-lm"])
@pytest.mark.parametrize(
    ("model", "remedy"), [("--load-hf hf", "up to 48 here"), ("--load run", "or add --use-checkpoint-args")]
)
def test_a_missing_context_length_is_named(
    command: str, model: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = f"{command} {model} --micro-batch-size 1 --corpus corpus --scores scores"
    assert main(flags.split()) == 2
    assert capsys.readouterr().err == (
        f"error: --seq-length is missing: give the longest context in tokens, {remedy}\n"
    )
    assert not Path("scores").exists()
