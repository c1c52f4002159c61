"""Blocks, pieces and prefixes, which must leave no trace in a selection."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import kept_sequences, sample, write_corpora

from megatron_miniplm.selection import scored_corpus


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
    assert kept_sequences(directory / "refined", cut) == sorted(order[: max(1, int(ratio * num_sequences))])


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
