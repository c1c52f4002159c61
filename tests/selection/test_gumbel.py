from itertools import pairwise
from pathlib import Path

import numpy as np
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import on_ranks, sample

from megatron_miniplm.selection.ranks import Ranks


def test_the_noise_of_a_sequence_is_its_own(tmp_path: Path) -> None:
    """Prefixes, blocks, pieces and ranks leave no trace: only the order of the sequences counts."""
    rng = np.random.default_rng(1)
    sequences = [[1, 2, 3]] * 300
    nll_N = rng.random(300).astype(np.float32)
    found = []
    for cut, blocks, num_ranks in (([300], 3, 1), ([100, 0, 200], 7, 1), ([100, 0, 200], 64, 2), ([50] * 6, 5, 3)):
        directory = tmp_path / f"{len(found)}"
        bounds = np.cumsum([0, *cut])
        corpora = [
            write_corpus(directory / f"part{part}", sequences[start:stop])
            for part, (start, stop) in enumerate(pairwise(bounds))
        ]
        teacher = write_scores(directory / "teacher", corpora, np.zeros(300), block_sequences=blocks)
        reference = write_scores(directory / "reference", corpora, nll_N, block_sequences=4)

        def select(ranks: Ranks, stores=(teacher, reference), output=directory / "refined") -> None:  # type: ignore[no-untyped-def]
            options = {"sampling": "gumbel", "temperature": 0.2, "seed": 11, "ranks": ranks}
            sample(stores[0].directory, stores[1].directory, output, **options)

        on_ranks(select, num_ranks)
        indices = [np.load(path) for path in sorted((directory / "refined").glob("*.indices.npy"))]
        found.append(np.concatenate([ids_K + start for ids_K, start in zip(indices, bounds, strict=False)]).tolist())
    assert len(found[0]) == 150
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0] != np.sort(np.argsort(-nll_N, kind="stable")[:150]).tolist(), "a sample, not the top set"
