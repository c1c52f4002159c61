"""What must leave no trace in a selection: blocks, pieces, prefixes, processes; and the original's own procedure."""

import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron_runs import directory_bytes, launcher, run, write_corpus
from score_stores import write_scores
from selections import sample

from megatron_miniplm.artifacts.manifest import load_manifest
from megatron_miniplm.artifacts.scores import SCORE_DTYPE
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.selection import scored_corpus

REPOSITORY = Path(__file__).parents[2]


def write_corpora(directory: Path, lengths: list[int], cut: list[int]) -> list[IndexedCorpus]:
    bounds = np.cumsum([0, *cut])
    return [
        write_corpus(directory / f"part{part}", [[1] * length for length in lengths[start:stop]])
        for part, (start, stop) in enumerate(pairwise(bounds))
    ]


def kept(output: Path, cut: list[int]) -> list[int]:
    starts = np.cumsum([0, *cut])
    arrays = [np.load(path) for path in sorted(output.glob("*.indices.npy"))]
    return [int(index + start) for array, start in zip(arrays, starts, strict=False) for index in array]


@given(
    differences=st.lists(st.sampled_from([-1.0, 0.0, 0.5, 0.75]), min_size=2, max_size=30),
    ratio=st.floats(1e-6, 1),
    data=st.data(),
)
def test_cuts_into_blocks_pieces_and_prefixes(
    tmp_path_factory: pytest.TempPathFactory, differences: list[float], ratio: float, data: st.DataObject
) -> None:
    """Against a plain full sort, with many ties."""
    directory = tmp_path_factory.mktemp("cut")
    num_sequences = len(differences)
    first = data.draw(st.integers(0, num_sequences))
    cut = [first, 0, num_sequences - first]
    corpora = write_corpora(directory, [2] * num_sequences, cut)
    blocks = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 40)))
    teacher = write_scores(directory / "teacher", corpora, np.ones(num_sequences), block_sequences=blocks[0])
    reference = write_scores(directory / "reference", corpora, 1 + np.array(differences), block_sequences=blocks[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scored_corpus, "CHUNK_SEQUENCES", data.draw(st.integers(1, 40)))
        sample(teacher.directory, reference.directory, directory / "refined", ratio=ratio, index_only=True)
    order = sorted(range(num_sequences), key=lambda index: (-differences[index], index))
    assert kept(directory / "refined", cut) == sorted(order[: max(1, int(ratio * num_sequences))])


def test_the_order_of_prefixes_changes_nothing_but_ids(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    parts = {"web": rng.random(50), "code": rng.random(31), "books": rng.random(20)}
    corpora = {name: write_corpus(tmp_path / name, [[1, 2]] * len(nll_N)) for name, nll_N in parts.items()}
    found = []
    for names in (["web", "code", "books"], ["books", "web", "code"]):
        directory = tmp_path / names[0] / "scores"
        nll_N = np.concatenate([parts[name] for name in names])
        ordered = [corpora[name] for name in names]
        teacher = write_scores(directory / "teacher", ordered, np.zeros(101))
        reference = write_scores(directory / "reference", ordered, nll_N)
        sample(teacher.directory, reference.directory, directory / "refined")
        found.append({name: np.load(next((directory / "refined").glob(f"*_{name}.indices.npy"))) for name in names})
    assert all(np.array_equal(found[0][name], found[1][name]) for name in parts)


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
    assert kept(tmp_path / "refined", cut) == original.tolist()


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
