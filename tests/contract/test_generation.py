"""Corpora that real Megatron generates: transformers' tokens, the model's frequencies, the same bytes in any layout."""

import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_models import VOCAB_SIZE, random_model
from huggingface_truth import read_checkpoint, to_huggingface
from megatron.core.datasets.indexed_dataset import IndexedDataset
from megatron_runs import (
    DATA_FLAGS,
    REPOSITORY,
    TinyRun,
    directory_bytes,
    error_lines,
    launcher,
    run,
    train,
    write_corpus,
)
from scoring_jobs import Job
from transformers import PreTrainedModel

from megatron_miniplm.artifacts.manifest import load_manifest
from megatron_miniplm.baselines.generation_parts import parts_directory
from megatron_miniplm.indexed import IndexedCorpus

pytestmark = pytest.mark.slow

GENERATE_CORPUS = REPOSITORY / "tools" / "generate_corpus.py"
PROMPT_TOKENS, NEW_TOKENS = 12, 20
#: Ends some of the greedy continuations; asserted where it matters.
EOD = 55
#: No tokens, shorter than a prompt, just one, longer.
LENGTHS = (0, 1, 5, PROMPT_TOKENS, PROMPT_TOKENS + 1, 40)
STANDARD_DEVIATIONS = 5.0


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of 43 sequences, and room for models and output."""
    directory = tmp_path_factory.mktemp("generation")
    rng = np.random.default_rng(3)
    lengths = [*LENGTHS, *rng.integers(1, 30, 35)]
    sequences = [rng.integers(0, VOCAB_SIZE, length) for length in lengths]
    write_corpus(directory / "corpus", [*sequences, [1, 2, EOD], [EOD, 1, 2]])
    return directory


@pytest.fixture(scope="module")
def model_of(directory: Path) -> Callable[[str], PreTrainedModel]:
    """A model of `huggingface_models.CONFIGS`, saved as `directory/NAME`."""
    models: dict[str, PreTrainedModel] = {}

    def model_of(name: str) -> PreTrainedModel:
        if name not in models:
            models[name] = random_model(name)
            models[name].save_pretrained(directory / name)
        return models[name]

    return model_of


def command(directory: Path, output: str, *flags: str, model: str = "llama", num_processes: int = 1) -> list[str]:
    return [
        *launcher(num_processes),
        *(str(GENERATE_CORPUS), "--load-hf", str(directory / model), "--corpus", str(directory / "corpus")),
        *("--output-prefix", str(directory / output), "--block-sequences", "10", "--micro-batch-size", "4"),
        *("--prompt-tokens", str(PROMPT_TOKENS), "--max-new-tokens", str(NEW_TOKENS), "--eod-token-id", str(EOD)),
        *flags,
    ]


def generated(command: Sequence[str]) -> IndexedCorpus:
    """Run a command; the corpus that it has written."""
    process = run(command)
    assert process.returncode == 0, process.stderr[-4000:]
    prefix = Path(command[command.index("--output-prefix") + 1])
    assert not parts_directory(prefix).exists()
    return IndexedCorpus.open(prefix)


def tokens_of(corpus: IndexedCorpus) -> list[list[int]]:
    return [corpus.sequence(index).tolist() for index in range(len(corpus))]


@torch.no_grad()
def greedy(model: PreTrainedModel, sequence: np.ndarray, eod_id: int | None) -> list[int]:
    """What transformers makes of a sequence."""
    prompt = sequence[:PROMPT_TOKENS].astype(np.int64)
    if eod_id is not None and prompt[-1] == eod_id:
        return prompt.tolist()
    found = model.generate(
        torch.from_numpy(prompt)[None],
        attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
        do_sample=False,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=eod_id,
        pad_token_id=0,
    )
    return found[0].tolist()


@pytest.mark.parametrize(
    ("model", "num_processes", "flags"),
    [
        ("llama", 1, ""),
        ("llama", 2, "--tensor-model-parallel-size 2"),
        ("llama", 2, "--pipeline-model-parallel-size 2"),
        ("qwen2-tied", 4, "--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2"),
        ("mistral-window", 1, "--micro-batch-size 7 --eod-token-id 83"),
        ("mixtral", 1, "--temperature 0.3 --eod-token-id 66"),
    ],
    ids=["tp1", "tp2", "pp2", "tp2-pp2", "window", "experts"],
)
def test_greedy_tokens_are_those_of_transformers(
    directory: Path, model_of: Callable[[str], PreTrainedModel], model: str, num_processes: int, flags: str
) -> None:
    """Token by token, with prompts of many lengths in one batch, and continuations that end early."""
    truth = model_of(model)
    eod_id = int(flags.split()[-1]) if "--eod-token-id" in flags else EOD
    name = f"greedy-{model}-{num_processes}-{len(flags)}"
    found = generated(
        command(directory, name, "--top-k", "1", *flags.split(), model=model, num_processes=num_processes)
    )
    source = IndexedCorpus.open(directory / "corpus")
    sequences = [source.sequence(index) for index in range(len(source)) if source.lengths_N[index]]
    expected = [greedy(truth, sequence, eod_id) for sequence in sequences]
    assert tokens_of(found) == expected
    new = [
        len(tokens) - min(len(sequence), PROMPT_TOKENS) for tokens, sequence in zip(expected, sequences, strict=True)
    ]
    assert eod_id != EOD or 0 in new  # the document was over
    assert NEW_TOKENS in new
    assert any(0 < count < NEW_TOKENS for count in new), "no continuation ends early: choose another token"
    counts = load_manifest(found.prefix).counts
    assert counts["num_skipped_sequences"] == 1
    assert counts["num_new_tokens"] == sum(new)
    assert counts["num_prompt_tokens"] + counts["num_new_tokens"] == counts["num_tokens"] == found.num_tokens
    assert counts["num_ended_sequences"] == sum(tokens[-1] == eod_id for tokens in expected)


def test_a_megatron_checkpoint_and_a_student_of_what_it_wrote(tiny: TinyRun) -> None:
    output = tiny.directory / "generated"
    flags = ["--prompt-tokens", str(PROMPT_TOKENS), "--max-new-tokens", str(NEW_TOKENS), "--top-k", "1"]
    found = generated(
        [
            *(*launcher(1), str(GENERATE_CORPUS), "--load", str(tiny.checkpoint), "--use-checkpoint-args", *DATA_FLAGS),
            *("--corpus", *map(str, tiny.prefixes), "--output-prefix", str(output), *flags),
            *("--num-sequences", "40", "--random-subset"),
        ]
    )
    model = to_huggingface(read_checkpoint(tiny.checkpoint / "iter_0000004"))
    sources = [corpus.sequence(index) for corpus in tiny.corpora for index in range(len(corpus))]
    expected = {tuple(greedy(model, sequence, None)) for sequence in sources if len(sequence)}
    assert {tuple(tokens) for tokens in tokens_of(found)} <= expected
    counts = load_manifest(output).counts
    assert counts["num_sequences"] + counts["num_skipped_sequences"] == 40
    assert found.token_dtype == tiny.corpora[0].token_dtype

    theirs = IndexedDataset(str(output))
    assert [theirs[index].tolist() for index in range(len(theirs))] == tokens_of(found)
    cache = str(tiny.directory / "generated-cache")
    losses = train(tiny.directory, "--data-path", str(output), "--train-iters", "3", "--data-cache-path", cache)
    assert len(losses) == 3
    assert all(np.isfinite(loss) for loss in losses.values())


def test_replicas_write_the_same_bytes(directory: Path, model_of: Callable[[str], PreTrainedModel]) -> None:
    model_of("llama")
    one, two, other_seed = (
        generated(command(directory, f"sampled-{name}", *flags, num_processes=num_processes))
        for name, num_processes, flags in (
            ("dp1", 1, []),
            ("dp2", 2, []),
            ("seed", 1, ["--seed", "7"]),
        )
    )
    assert one.prefix.with_suffix(".bin").read_bytes() == two.prefix.with_suffix(".bin").read_bytes()
    assert one.prefix.with_suffix(".idx").read_bytes() == two.prefix.with_suffix(".idx").read_bytes()
    manifests = [load_manifest(corpus.prefix) for corpus in (one, two)]
    assert manifests[0].counts == manifests[1].counts
    assert manifests[0].fingerprint == manifests[1].fingerprint
    assert tokens_of(one) != tokens_of(other_seed)


def chi_square(counts_V: np.ndarray, probabilities_V: np.ndarray) -> float:
    """Standard deviations of Pearson's statistic above its mean; tokens that are expected less than 5 times are one."""
    expected_V = probabilities_V * counts_V.sum()
    rare_V = expected_V < 5
    expected = np.append(expected_V[~rare_V], expected_V[rare_V].sum())
    counts = np.append(counts_V[~rare_V], counts_V[rare_V].sum())
    expected, counts = expected[expected > 0], counts[expected > 0]
    freedom = len(expected) - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@pytest.mark.parametrize(
    ("flags", "temperature", "top_k", "top_p"),
    [("", 1.0, VOCAB_SIZE, 1.0), ("--temperature 0.7 --top-k 9", 0.7, 9, 1.0), ("--top-p 0.6", 1.0, VOCAB_SIZE, 0.6)],
    ids=["softmax", "temperature and top-k", "top-p"],
)
def test_frequencies_are_the_models(
    directory: Path,
    model_of: Callable[[str], PreTrainedModel],
    flags: str,
    temperature: float,
    top_k: int,
    top_p: float,
) -> None:
    """One token behind one prompt, 6,000 times, against the softmax of transformers; padded columns never."""
    truth = model_of("llama")
    prompt, num_samples = [3, 1, 4, 1, 5], 6000
    source = write_corpus(directory / "one-prompt", [prompt] * num_samples).prefix
    found = generated(
        [
            *command(directory, f"samples-{len(flags)}", *flags.split()),
            *("--corpus", str(source), "--max-new-tokens", "1", "--eod-token-id", "-1"),
            *("--micro-batch-size", "500", "--block-sequences", "2000"),
        ]
    )
    drawn = np.array([tokens[-1] for tokens in tokens_of(found)])
    assert (found.lengths_N == len(prompt) + 1).all()
    assert drawn.max() < VOCAB_SIZE
    with torch.no_grad():
        logits_V = truth(torch.tensor([prompt])).logits[0, -1].double()
    # Megatron's padded rows are zeros, so they would have been drawn if they could.
    assert 27 / (27 + logits_V.exp().sum()) * num_samples > 100

    counts_V = np.bincount(drawn, minlength=VOCAB_SIZE)
    scaled_V = logits_V / temperature
    order_V = scaled_V.argsort(descending=True)
    before_V = scaled_V[order_V].softmax(0).cumsum(0).roll(1)
    before_V[0] = 0
    kept_V = order_V[(before_V <= top_p) & (torch.arange(VOCAB_SIZE) < top_k)]
    allowed_V = torch.full_like(scaled_V, -torch.inf)
    allowed_V[kept_V] = scaled_V[kept_V]
    assert set(drawn.tolist()) <= set(kept_V.tolist())
    assert abs(chi_square(counts_V, allowed_V.softmax(0).numpy())) < STANDARD_DEVIATIONS
    wrong_V = (allowed_V * 1.2).softmax(0).numpy()
    assert chi_square(counts_V, wrong_V) > STANDARD_DEVIATIONS, "the comparison has no teeth"


def test_killed_then_stopped_then_finished(directory: Path, model_of: Callable[[str], PreTrainedModel]) -> None:
    model_of("llama")
    rng = np.random.default_rng(5)
    num_blocks = 16  # of 10 sequences
    source = write_corpus(directory / "long", [rng.integers(0, VOCAB_SIZE, 20) for _ in range(10 * num_blocks)]).prefix
    flags = ["--corpus", str(source), "--max-new-tokens", "40", "--eod-token-id", "-1"]
    disturbed, undisturbed = (
        command(directory, f"recovery/{name}/out", *flags) for name in ("disturbed", "undisturbed")
    )
    parts = parts_directory(directory / "recovery" / "disturbed" / "out")

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in parts.glob("*.part")}

    survived: list[dict[str, int]] = [{}]
    for number, exit_code in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 75)):
        with Job(disturbed, parts) as job:
            enough = len(survived[-1]) + 2
            job.wait_for(lambda enough=enough: len(times()) >= enough)  # type: ignore[misc]
            job.send(number)
            assert job.wait() == exit_code, job.stderr[-3000:]
        survived.append(times())
        assert survived[-2].items() <= survived[-1].items(), "a finished block was written again"
        assert len(survived[-2]) < len(survived[-1]) < num_blocks
    assert not parts.with_suffix(".bin").exists()

    damaged = parts / min(survived[-1])
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-9])
    process = run(disturbed)
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert f"{damaged} is damaged" in line
    damaged.unlink()  # as the message says

    process = run([*disturbed, "--seed", "7"])
    assert process.returncode == 2
    (line,) = error_lines(process.stderr)
    assert "holds parts of another settings (seed: 1234 there, 7 here)" in line

    untouched = {name: time for name, time in survived[-1].items() if name != damaged.name}
    with Job(disturbed, parts) as job:
        job.wait_for(lambda: len(times()) > len(survived[-1]))
        assert untouched.items() <= times().items()
        assert job.wait() == 0, job.stderr[-3000:]
    generated(undisturbed)
    files = directory_bytes(directory / "recovery" / "disturbed")
    assert files == directory_bytes(directory / "recovery" / "undisturbed")
    assert sorted(files) == ["out.bin", "out.idx", "out.manifest.json"]

    again = run(disturbed)
    assert again.returncode == 0
    assert "is complete already, from the same inputs and settings: nothing to do" in again.stderr


def test_what_does_not_fit_is_one_line(directory: Path, model_of: Callable[[str], PreTrainedModel]) -> None:
    model_of("llama")
    foreign = write_corpus(directory / "foreign", [[1, 2], [3, VOCAB_SIZE]]).prefix
    refused = {
        "prompt and continuation have up to 257 tokens, the model's context has 256: lower --prompt": [
            *("--prompt-tokens", "200", "--max-new-tokens", "57")
        ],
        f"{foreign}: sequence 1 holds token {VOCAB_SIZE}": ["--corpus", str(foreign)],
        "out.bin exists without out.manifest.json, so it is another tool's": [
            "--output-prefix",
            str(directory / "out"),
        ],
    }
    (directory / "out.bin").write_bytes(b"")
    for message, flags in refused.items():
        process = run(command(directory, "refused", *flags))
        assert process.returncode == 2, process.stderr[-3000:]
        (line,) = error_lines(process.stderr)
        assert message in line
        assert not list(directory.glob("refused*"))
    process = run(command(directory, "refused", "--context-parallel-size", "2", num_processes=2))
    assert "--context-parallel-size 2: Megatron's inference engine cannot use it here" in process.stderr
