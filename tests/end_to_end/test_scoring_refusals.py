"""What scoring refuses: one line that names place and remedy, exit code 2, no block lost, and no rank left behind."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_models import random_model
from megatron_runs import (
    TinyRun,
    directory_bytes,
    error_lines,
    launcher,
    random_sequences,
    run,
    run_real,
    score_command,
    write_corpus,
)
from safetensors.torch import load_file, save_file
from scoring_jobs import Job, block_times, litter
from transformers import AutoModelForCausalLM, LlamaConfig

from megatron_miniplm.artifacts.manifest import load_manifest
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.cli import main
from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import make_encoder

#: A hang shows after so long; a start takes 10 seconds where other tests run beside it.
HANG_SECONDS = 100
BLOCK_SEQUENCES = 1000
#: Lets pass what a run writes beside blocks (identity, claims), but no block of 1000 sequences: 8,144 bytes.
DISK_BYTES = 6144
#: A token that is in one sequence only, the 7th of the third block.
RARE_TOKEN, RARE_SEQUENCE = 99, 2006
LAYOUTS = {
    "one": (1, ()),
    "dp2": (2, ()),
    "tp2": (2, ("--tensor-model-parallel-size", "2")),
    "pp2": (2, ("--pipeline-model-parallel-size", "2")),
}


class Scene:
    """A Hugging Face model in two shards, and a corpus of three blocks of short sequences with its scores.

    Attributes:
        scores: finished; not to be written to.
        first_block: a store with nothing but the first block.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.model = directory / "model"
        random_model("llama").save_pretrained(self.model, max_shard_size="60KB")
        self.prefix = directory / "corpus"
        self.write_corpus(seed=0)
        self.scores = directory / "scores"
        process = run(self.command(self.scores))
        assert process.returncode == 0, process.stderr[-4000:]

    def write_corpus(self, *, seed: int) -> None:
        lengths = np.random.default_rng(seed).integers(2, 12, 2300)
        sequences = [np.minimum(tokens, RARE_TOKEN - 1) for tokens in random_sequences(lengths, seed)]
        sequences[RARE_SEQUENCE][0] = RARE_TOKEN
        write_corpus(self.prefix, sequences)

    def command(self, scores: Path, *flags: str, model: Path | None = None, layout: str = "one") -> list[str]:
        num_processes, layout_flags = LAYOUTS[layout]
        command = score_command(Path(), [self.prefix], scores, *layout_flags, *flags, num_processes=num_processes)
        load = command.index("--load")
        command[load : load + 2] = ["--load-hf", str(model or self.model)]
        for flag, value in (
            ("--seq-length", 64),
            ("--micro-batch-size", 8),
            ("--block-sequences", BLOCK_SEQUENCES),
        ):
            command[command.index(flag) + 1] = str(value)
        for flag in ("--tokenizer-type", "--vocab-size", "--make-vocab-size-divisible-by"):  # the directory knows
            at = command.index(flag)
            del command[at : at + 2]
        return [*command, "--make-vocab-size-divisible-by", "4"]

    def started_store(self, name: str) -> Path:
        """A copy of the finished store that lacks all blocks but the first."""
        directory = self.directory / name
        shutil.copytree(self.scores, directory)
        for path in [directory / "manifest.json", directory / "checksums.npy", *sorted(directory.glob("blocks/*"))[1:]]:
            path.unlink()
        return directory

    def copy_of_model(self, name: str) -> Path:
        return Path(shutil.copytree(self.model, self.directory / name))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("refusals"))


def refused(command: list[str], directory: Path, *, num_ranks: int = 1, largest_file_bytes: int | None = None) -> str:
    """Run a command to its refusal; returns the one line, without `error: `."""
    with Job(command, directory, num_ranks, largest_file_bytes=largest_file_bytes) as job:
        exit_code = job.wait(HANG_SECONDS)
        assert exit_code == (2 if num_ranks == 1 else 1), job.stderr[-3000:]
        assert job.first_failure == 2
        (line,) = error_lines(job.stderr)
    return line.removeprefix("error: ")


def change_tensor(model: Path, name: str, change: Callable[[torch.Tensor], None]) -> None:
    index = json.loads((model / "model.safetensors.index.json").read_text())
    path = model / index["weight_map"][name]
    tensors = load_file(path)
    change(tensors[name])
    save_file(tensors, path, metadata={"format": "pt"})


# ---- before Megatron is imported: no process of its own is needed


def refused_at_once(scene: Scene, capsys: pytest.CaptureFixture[str], *flags: str, model: Path | None = None) -> str:
    command = scene.command(scene.scores, *flags, model=model)
    assert main(["score-corpus", *command[2:]]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").rstrip("\n")


@pytest.mark.slow
def test_a_broken_model_directory_is_refused_at_once(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    before = directory_bytes(scene.scores)
    truncated = scene.copy_of_model("truncated")
    shard = sorted(truncated.glob("*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-7])
    message = refused_at_once(scene, capsys, model=truncated)
    assert message.startswith(f"{shard} ")
    assert f"{len(whole) - 7:,}" in message or str(len(whole) - 7) in message
    shard.unlink()
    assert f"{shard.name}" in refused_at_once(scene, capsys, model=truncated)

    message = refused_at_once(scene, capsys, "--num-layers", "3")
    assert "--num-layers" in message
    assert str(scene.model / "config.json") in message
    message = refused_at_once(scene, capsys, "--load", "checkpoint")
    assert message == "--load and --load-hf name two models: give one"
    assert directory_bytes(scene.scores) == before


# ---- the identity of the store


@pytest.mark.slow
def test_a_retrained_model_and_a_changed_corpus(scene: Scene) -> None:
    """Under the same paths; and the store goes on once they are as they were."""
    scores = scene.started_store("identity")
    before, times = directory_bytes(scores), block_times(scores)
    remedy = "give another --scores directory, or delete this one"
    retrained = scene.copy_of_model("retrained")
    change_tensor(retrained, "model.norm.weight", lambda tensor: tensor.mul_(1.001))
    message = refused(scene.command(scores, model=retrained), scores)
    assert message.startswith(f"{scores} holds scores of another model (weights: ")
    assert message.endswith(remedy)

    scene.write_corpus(seed=1)
    message = refused(scene.command(scores), scores)
    assert message.startswith(f"{scores} holds scores of another corpus (fingerprint: ")
    assert message.endswith(remedy)
    assert directory_bytes(scores) == before

    scene.write_corpus(seed=0)
    process = run(scene.command(scores))
    assert process.returncode == 0, process.stderr[-4000:]
    assert directory_bytes(scores) == directory_bytes(scene.scores)
    assert times.items() <= block_times(scores).items()


@pytest.mark.slow
def test_a_retrained_megatron_checkpoint(tiny: TinyRun) -> None:
    """The same `--load`, two iterations on."""
    checkpoint = Path(shutil.copytree(tiny.checkpoint, tiny.directory / "retrained"))
    tracker = checkpoint / "latest_checkpointed_iteration.txt"
    tracker.write_text("2")
    scores = tiny.directory / "scores-of-iteration-2"
    command = score_command(checkpoint, tiny.prefixes, scores, "--use-checkpoint-args")
    assert run(command).returncode == 0
    tracker.write_text("4")
    before = directory_bytes(scores)
    message = refused(command, scores)
    assert message.startswith(f"{scores} holds scores of another model (weights: ")
    assert directory_bytes(scores) == before


# ---- tokenizers


@pytest.mark.slow
def test_a_corpus_of_another_tokenizer(tmp_path: Path, scene: Scene) -> None:
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"Sentence number {n} of äöü, {n * n}."}) + "\n" for n in range(300)))
    for name, size in (("ours", "288"), ("theirs", "296")):
        train = ["train-tokenizer", "--input", str(text), "--type", "bpe", "--output", str(tmp_path / name)]
        assert main([*train, "--vocab-size", size]) == 0
    tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model"]
    preprocess = ["preprocess-data", "--input", str(text), "--output-prefix", str(tmp_path / "corpus")]
    assert main([*preprocess, *tokenizer, str(tmp_path / "ours")]) == 0
    prefix = tmp_path / "corpus_text_document"
    ours = load_manifest(tmp_path / "ours").fingerprint

    model = tmp_path / "model"
    config = LlamaConfig(
        vocab_size=300, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(model)
    scores = tmp_path / "scores"

    def command(*flags: str) -> list[str]:
        command = scene.command(scores, *flags, model=model)
        command[command.index("--corpus") + 1] = str(prefix)
        return command

    def message(place: Path) -> str:
        settings = TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=place)
        theirs = make_encoder(settings, num_threads=1)
        changed_by = getattr(theirs, "changed_by", None)
        cause = f" ({changed_by}, which the model_type in config.json asks for)" if changed_by else ""
        return (
            f"{prefix} was made with tokenizer [{ours[:8]}], but {place} is [{theirs.fingerprint()[:8]}]{cause}: give "
            "--tokenizer-type and --tokenizer-model of the tokenizer that the corpus was made with (miniplm inspect "
            "names it), or --allow-tokenizer-mismatch where both give the same ids"
        )

    theirs_given = [*tokenizer, str(tmp_path / "theirs")]
    assert refused(command(*theirs_given), scores) == message(tmp_path / "theirs")
    for path in (tmp_path / "theirs").glob("tokenizer*"):
        shutil.copy(path, model)
    assert refused(command(), scores) == message(model)
    assert not scores.exists()
    assert run(command(*theirs_given, "--allow-tokenizer-mismatch")).returncode == 0
    ScoreStore.open(scores).require_complete()


# ---- a disk that is full, a directory that cannot be written


@pytest.mark.slow
def test_a_directory_that_cannot_be_made(scene: Scene) -> None:
    scores = scene.prefix.with_suffix(".idx") / "scores"  # modes do not stop root, a file does
    assert refused(scene.command(scores), scores) == f"{scores} cannot be used: Not a directory"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["one", "dp2", "tp2"])
def test_a_full_disk(scene: Scene, layout: str) -> None:
    """Played by a limit on the size of files; all ranks leave, also those that wait for the one that writes."""
    scores = scene.started_store(f"full-{layout}")
    times = block_times(scores)
    num_ranks = LAYOUTS[layout][0]
    command = scene.command(scores, layout=layout)
    message = refused(command, scores, num_ranks=num_ranks, largest_file_bytes=DISK_BYTES)
    block = scores / "blocks" / "00000001.npy"
    assert message.removesuffix(" (found by rank 1)") == f"{block} cannot be used: File too large"
    assert times.items() <= block_times(scores).items()
    assert not block.exists()
    assert litter(scores) == []
    if layout == "one":
        process = run(scene.command(scores))
        assert process.returncode == 0, process.stderr[-4000:]
        assert times.items() <= block_times(scores).items()
        assert directory_bytes(scores) == directory_bytes(scene.scores)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dp2", "pp2"])
def test_claims_that_cannot_be_made(scene: Scene, layout: str) -> None:
    """The writer fails before its first order, which the other ranks of its replica wait for."""
    scores = scene.started_store(f"claims-{layout}")
    (scores / "claims").write_text("a file in the way")
    message = refused(scene.command(scores, layout=layout), scores, num_ranks=2)
    assert message.removesuffix(" (found by rank 1)") == f"{scores / 'claims'} cannot be used: File exists"
    assert len(block_times(scores)) == 1


# ---- NaN


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["dp2", "tp2", "pp2"])
def test_nan_in_a_layer(scene: Scene, layout: str) -> None:
    model = scene.copy_of_model(f"nan-{layout}")
    change_tensor(model, "model.layers.1.self_attn.o_proj.weight", lambda tensor: tensor[0, 0].fill_(float("nan")))
    scores = scene.directory / f"scores-nan-{layout}"
    message = refused(scene.command(scores, model=model, layout=layout), scores, num_ranks=2)
    # Of two replicas the second may have the first block.
    sequence = next(n for n in (0, 1000, 2000) if f": sequence {n} got" in message)
    assert message.removesuffix(" (found by rank 1)") == (
        f"{scene.prefix}: sequence {sequence} got a score that is not finite: layers 1 to 1 are finite, the first "
        "output that is not is that of layer 2 of 4; nothing of its block was written. Look at the sequence (miniplm "
        f"inspect PREFIX --sequence {sequence}), at the checkpoint, and at the precision (--bf16 reaches further than "
        "--fp16)"
    )
    assert block_times(scores) == {}
    assert litter(scores) == []


@pytest.mark.slow
def test_nan_in_the_embedding_of_one_token(scene: Scene) -> None:
    """Only the sequence that has it is bad, not those that share its row, and blocks before its are published."""
    model = scene.copy_of_model("nan-embedding")
    change_tensor(model, "model.embed_tokens.weight", lambda tensor: tensor[RARE_TOKEN].fill_(float("nan")))
    scores = scene.directory / "scores-nan-embedding"
    message = refused(scene.command(scores, model=model), scores)
    assert message.startswith(
        f"{scene.prefix}: sequence {RARE_SEQUENCE} got a score that is not finite: the embedding of its tokens is not"
    )
    # Which of the other two blocks came before it is a matter of chance.
    for name in block_times(scores):
        assert name != f"{RARE_SEQUENCE // BLOCK_SEQUENCES:08}.npy"
        # The rest of a block is the digest of its model's identity, which is another.
        found, expected = (np.load(store / "blocks" / name) for store in (scores, scene.scores))
        assert found.tobytes() == expected.tobytes()
    assert litter(scores) == []


# ---- the last word


SLOW_TO_SPEAK = """
import os, sys, time
from megatron_miniplm.runtime.command_line import report
from megatron_miniplm.errors import InputError
error = InputError("said by rank 0")
error.reported_elsewhere = os.environ["RANK"] != "0"
if os.environ["RANK"] == "0":
    time.sleep(1)
sys.exit(report(error))
"""


def test_ranks_that_are_silent_let_rank_zero_speak(tmp_path: Path) -> None:
    """torchrun ends all ranks as soon as one has failed."""
    script = tmp_path / "slow_to_speak.py"
    script.write_text(SLOW_TO_SPEAK)
    process = run_real([*launcher(2), str(script)])
    assert [line for line in process.stderr.splitlines() if line.startswith("error: ")] == ["error: said by rank 0"]
    assert "exitcode  : 2 " in process.stderr
