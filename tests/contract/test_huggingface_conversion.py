"""Models of transformers in real Megatron, in every layout, and back: equal log-probabilities, equal bytes."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import huggingface_models
import numpy as np
import pytest
import torch
from huggingface_models import CONFIGS, CONTEXT_TOKENS, MAX_POSITIONS, OVERLAP_TOKENS, ROW_TOKENS, SCORED_LENGTHS
from megatron_runs import REPOSITORY, error_lines, launcher, run, write_corpus
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

pytestmark = pytest.mark.slow

TOLERANCE = 2e-5  # of a log-probability, float32 on both sides
CONTROL = 1e-2  # what a real difference exceeds
RANKS = REPOSITORY / "tests" / "support" / "huggingface_ranks.py"
CONVERT = REPOSITORY / "tools" / "convert_checkpoint.py"
TP2, PP2 = ["--tensor-model-parallel-size", "2"], ["--pipeline-model-parallel-size", "2"]
#: Name -> flags and models.
LAYOUTS: dict[str, tuple[list[str], tuple[str, ...]]] = {
    "tp1": ([], tuple(CONFIGS)),
    "tp2": (TP2, tuple(CONFIGS)),
    "pp2": (PP2, tuple(CONFIGS)),
    "tp2-pp2": (TP2 + PP2, tuple(CONFIGS)),
    "vpp": ([*PP2, "--num-layers-per-virtual-pipeline-stage", "1"], ("llama-tied", "mixtral")),
    "ep2": (["--expert-model-parallel-size", "2"], ("mixtral",)),
}
CASES = [(name, layout) for layout, (_, names) in LAYOUTS.items() for name in names]
SCORING = {"context_tokens": CONTEXT_TOKENS, "overlap_tokens": OVERLAP_TOKENS, "row_tokens": ROW_TOKENS}
#: A converted checkpoint at other layouts than the one that wrote it.
CONVERTED = {"converted-tp2": TP2, "converted-pp2": PP2}


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What one start of four ranks left.

    Attributes:
        directory: `NAME` as transformers saved it, `NAME.LAYOUT.pt`, `.npz` (scores) and `.hf`; `bfloat16` and its
            `checkpoint`.
        models: of transformers.
        tokens_BS: that all were run on.
    """

    directory: Path
    models: dict[str, PreTrainedModel]
    tokens_BS: torch.Tensor

    def megatron(self, name: str, layout: str) -> dict[str, torch.Tensor]:
        return torch.load(self.directory / f"{name}.{layout}.pt")

    def difference(self, name: str, layout: str, model: PreTrainedModel | None = None) -> float:
        """Largest between Megatron's log-probabilities and a model's, by default those of the same weights."""
        truth = huggingface_models.log_probs(model or self.models[name], self.tokens_BS)
        return float((self.megatron(name, layout)["log_probs"] - truth).abs().max())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """About 60 s on two cores: the models are tiny, what costs is the start and Megatron's process groups."""
    directory = tmp_path_factory.mktemp("huggingface")
    models = huggingface_models.save_all(directory)
    tokens_BS = huggingface_models.token_ids()
    torch.save(tokens_BS, directory / "tokens.pt")
    write_corpus(directory / "corpus", huggingface_models.scored_sequences())
    huggingface_models.random_model("llama").to(torch.bfloat16).save_pretrained(directory / "bfloat16")
    convert("--load-hf", directory / "bfloat16", "--save", directory / "checkpoint")
    jobs = []
    for layout, (flags, names) in LAYOUTS.items():
        for name in names:
            out = f"{directory}/{name}.{layout}"
            jobs.append({"load_hf": str(directory / name), "layout": flags, "log_probs": f"{out}.pt"})
            jobs[-1] |= {"scores": f"{out}.npz", **SCORING}
            if layout != "tp2":
                jobs[-1] |= {"save_hf": f"{out}.hf", "max_shard_bytes": 100_000}
        for converted in (key for key, other in CONVERTED.items() if other == flags):
            out = f"{directory}/llama.{converted}.pt"
            jobs.append({"load": str(directory / "checkpoint"), "layout": flags, "log_probs": out})
    (directory / "jobs.json").write_text(json.dumps(jobs))
    process = run([*launcher(4), str(RANKS), str(directory / "jobs.json")])
    assert process.returncode == 0, process.stderr[-4000:]
    return Runs(directory=directory, models=models, tokens_BS=tokens_BS)


def convert(*flags: str | Path) -> subprocess.CompletedProcess[str]:
    process = run([sys.executable, str(CONVERT), *map(str, flags)])
    assert process.returncode == 0, process.stderr[-4000:]
    return process


def read_tensors(directory: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in directory.glob("*.safetensors") for name, tensor in load_file(path).items()}


def assert_same_tensors(directory: Path, other: Path) -> None:
    tensors, others = read_tensors(directory), read_tensors(other)
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == others[name].dtype, name
        assert torch.equal(tensor, others[name]), name


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_log_probs_are_those_of_transformers(runs: Runs, name: str, layout: str) -> None:
    assert runs.difference(name, layout) < TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_scores_in_packed_rows_are_those_of_one_by_one(runs: Runs, name: str) -> None:
    """Every layout; rows of 1,024 with windows of sequences of 0 tokens to three contexts, against transformers."""
    truth = np.array(huggingface_models.nll_sums(runs.models[name], huggingface_models.scored_sequences()))
    num_tokens = np.maximum(np.array(SCORED_LENGTHS) - 1, 0)
    differences = {}
    for layout in (layout for layout, (_, names) in LAYOUTS.items() if name in names):
        scores = np.load(runs.directory / f"{name}.{layout}.npz")
        assert scores["num_tokens_N"].tolist() == num_tokens.tolist()
        assert scores["num_rows"] < sum(length > 1 for length in SCORED_LENGTHS) / 2, "rows must hold several"
        differences[layout] = float(np.max(np.abs(scores["nll_N"] - truth) / np.maximum(num_tokens, 1)))
    print(name, {layout: f"{difference:.1e}" for layout, difference in differences.items()})
    assert max(differences.values()) < TOLERANCE


@pytest.mark.parametrize("name", CONFIGS)
def test_wrong_models_are_told_apart(runs: Runs, name: str) -> None:
    """The comparison has teeth: for gate and up swapped, and for another rotary base."""
    swapped = huggingface_models.random_model(name)
    with torch.no_grad():
        for layer in swapped.model.layers:
            if name == "mixtral":
                both = layer.mlp.experts.gate_up_proj
                both.copy_(torch.cat(both.chunk(2, dim=1)[::-1], dim=1))
            else:
                gate, up = layer.mlp.gate_proj.weight, layer.mlp.up_proj.weight
                kept = gate.clone()
                gate.copy_(up)
                up.copy_(kept)
    assert runs.difference(name, "tp1", swapped) > CONTROL
    turned = huggingface_models.random_model(name)
    turned.model.rotary_emb.inv_freq *= 2
    assert runs.difference(name, "tp1", turned) > CONTROL


def test_frequencies_of_llama_3(runs: Runs) -> None:
    """Short sequences hardly see the low frequencies, so these are compared themselves."""
    expected = runs.models["llama-3"].model.rotary_emb.inv_freq
    unscaled = runs.models["llama-3"].config.rope_parameters["rope_theta"] ** (-torch.arange(0, 16, 2) / 16)
    ratio = unscaled / expected
    assert {1.0, 32.0} < {round(float(value), 3) for value in ratio}, "all three ranges of the formula"
    assert torch.allclose(runs.megatron("llama-3", "tp1")["inv_freq"], expected, rtol=1e-6)


@pytest.mark.parametrize("layout", [layout for layout in LAYOUTS if layout != "tp2"])
def test_every_layout_writes_the_same_tensors_back(runs: Runs, layout: str) -> None:
    for name in LAYOUTS[layout][1]:
        assert_same_tensors(runs.directory / name, runs.directory / f"{name}.{layout}.hf")


@pytest.mark.parametrize("name", CONFIGS)
def test_transformers_reads_what_we_write(runs: Runs, name: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        runs.directory / f"{name}.tp2-pp2.hf", attn_implementation="eager", dtype="auto"
    )
    expected = huggingface_models.log_probs(runs.models[name], runs.tokens_BS)
    assert torch.equal(huggingface_models.log_probs(model.eval(), runs.tokens_BS), expected)
    assert model.config.max_position_embeddings == MAX_POSITIONS


@pytest.mark.parametrize("layout", CONVERTED)
def test_a_converted_checkpoint_loads_at_any_layout(runs: Runs, layout: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(
        runs.directory / "bfloat16", attn_implementation="eager", dtype=torch.float32
    )
    assert runs.difference("llama", layout, model.eval()) < TOLERANCE


def test_there_and_back_by_the_command(runs: Runs) -> None:
    back = runs.directory / "back"
    convert("--load", runs.directory / "checkpoint", "--save-hf", back, "--hf-family", "mistral")
    assert_same_tensors(runs.directory / "bfloat16", back)
    config = json.loads((back / "config.json").read_text())
    assert (config["model_type"], config["torch_dtype"]) == ("mistral", "bfloat16")


def test_a_tied_model_with_another_output_layer_is_refused(runs: Runs, tmp_path: Path) -> None:
    source = runs.directory / "llama-tied"
    tensors = read_tensors(source)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] + 1
    (tmp_path / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    process = run([sys.executable, str(CONVERT), "--load-hf", str(tmp_path), "--save", str(tmp_path / "checkpoint")])
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert "lm_head.weight differs from model.embed_tokens.weight, but tie_word_embeddings is true" in line
