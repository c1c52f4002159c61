"""What must leave no trace in a selection: blocks, pieces, prefixes, processes; and the original's own procedure."""

import sys
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import directory_bytes, launcher, run
from score_stores import write_scores
from selections import kept_sequences, sample, write_corpora

from megatron_miniplm.artifacts.manifest import load_manifest
from megatron_miniplm.artifacts.scores import SCORE_DTYPE

REPOSITORY = Path(__file__).parents[2]


def test_the_original_bit_for_bit(tmp_path: Path) -> None:
    """MiniPLM's release: mean NLLs in float32, `torch.sort` of the difference, the first half, `torch.sort` of its
    indices. Its sort leaves the order of ties open, so that ours is one of its results; a stable one has the same."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(4)
    num_sequences = 50_001
    cut = [20_000, 30_001]
    corpora = write_corpora(tmp_path, [5] * num_sequences, cut)
    teacher_mean_N = rng.normal(2.5, 0.5, num_sequences).astype(np.float32).round(4)  # so that there are many ties
    reference_mean_N = (teacher_mean_N + rng.normal(0.25, 0.2, num_sequences).astype(np.float32)).round(4)
    # Sums of 4 tokens instead of 1,024: in either case the mean is exact.
    stores = [
        write_scores(tmp_path / name, corpora, mean_N * np.float32(4), block_sequences=4096)
        for name, mean_N in (("teacher", teacher_mean_N), ("reference", reference_mean_N))
    ]
    read = [store.read_all() for store in stores]
    assert read[0].dtype == SCORE_DTYPE
    means = [torch.from_numpy(scores["nll"] / scores["num_tokens"].astype(np.float32)) for scores in read]
    assert torch.equal(means[0], torch.from_numpy(teacher_mean_N))
    _, order = torch.sort(means[1] - means[0], descending=True, stable=True)
    original = torch.sort(order[: int(0.5 * num_sequences)])[0]
    sample(stores[0].directory, stores[1].directory, tmp_path / "refined", ratio=0.5)
    assert len(set(teacher_mean_N.tolist())) < num_sequences / 2
    assert kept_sequences(tmp_path / "refined", cut) == original.tolist()


@pytest.mark.slow
def test_torchrun_and_one_process_write_the_same_bytes(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    cut = [700, 0, 300, 40]
    corpora = write_corpora(tmp_path / "data", rng.integers(1, 9, 1040).tolist(), cut)
    teacher = write_scores(tmp_path / "teacher", corpora, rng.random(1040) * 9, block_sequences=100)
    reference = write_scores(tmp_path / "reference", corpora, rng.random(1040) * 9, block_sequences=64)
    tool = str(REPOSITORY / "tools" / "difference_sampling.py")
    flags = ["--teacher-scores", str(teacher.directory), "--reference-scores", str(reference.directory)]
    flags += ["--target-tokens", "1500", "--weights", "softmax", "--sampling", "gumbel", "--repeat-by-weight"]
    written = []
    for num_processes in (1, 2, 3):
        output = tmp_path / "outputs" / str(num_processes) / "refined"
        start = [sys.executable] if num_processes == 1 else launcher(num_processes)
        process = run([*start, tool, *flags, "--output", str(output)])
        assert process.returncode == 0, process.stderr[-3000:]
        assert process.stdout.count("train on it with") == 1, "one rank speaks"
        files = directory_bytes(output)
        del files["data_args.txt"]  # absolute paths
        written.append(files)
    assert written[1] == written[0]
    assert written[2] == written[0]
    assert load_manifest(output).counts["num_tokens"] >= 1500
