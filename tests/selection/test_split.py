from pathlib import Path

import numpy as np
import pytest
from megatron_runs import directory_bytes, write_corpus

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.artifacts.data_args import expand_prefixes
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.selection.split import split_reference

#: Two prefixes, with tokens that name the sequence.
NUM_SEQUENCES = {"web": 70, "code": 31}


@pytest.fixture
def prefixes(tmp_path: Path) -> list[Path]:
    sequences = {"web": [[i, i] for i in range(70)], "code": [[1000 + i] * (i % 4 + 1) for i in range(31)]}
    return [write_corpus(tmp_path / name, sequences[name]).prefix for name in NUM_SEQUENCES]


def first_tokens(directory: Path) -> list[int]:
    """What the views of a part hold, in order; each sequence of the fixture starts with its own token."""
    views = [IndexedCorpus.open(prefix) for prefix in expand_prefixes([directory])]
    return [int(view.sequence(index)[0]) for view in views for index in range(len(view))]


EVERY_TOKEN = [*range(70), *range(1000, 1031)]


@pytest.mark.parametrize(("fraction", "num_reference"), [(0.05, 5), (0.5, 50), (0.99, 100)])
def test_parts_are_disjoint_complete_and_ordered(
    prefixes: list[Path], tmp_path: Path, fraction: float, num_reference: int
) -> None:
    counts = split_reference(prefixes, tmp_path / "split", reference_fraction=fraction, seed=1)
    reference, pool = first_tokens(tmp_path / "split" / "reference"), first_tokens(tmp_path / "split" / "pool")
    assert counts == {"num_reference_sequences": num_reference, "num_pool_sequences": 101 - num_reference}
    assert (len(reference), len(pool)) == tuple(counts.values())
    assert sorted(reference + pool) == EVERY_TOKEN
    assert reference == sorted(reference)
    assert pool == sorted(pool)


def test_the_seed_decides(prefixes: list[Path], tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        split_reference(prefixes, tmp_path / name, reference_fraction=0.3, seed=seed)
    assert first_tokens(tmp_path / "a" / "reference") == first_tokens(tmp_path / "b" / "reference")
    assert first_tokens(tmp_path / "a" / "reference") != first_tokens(tmp_path / "c" / "reference")


def test_the_choice_is_random_not_a_prefix(prefixes: list[Path], tmp_path: Path) -> None:
    split_reference(prefixes, tmp_path / "split", reference_fraction=0.5, seed=1)
    chosen = np.isin(EVERY_TOKEN, first_tokens(tmp_path / "split" / "reference"))
    assert 20 < np.count_nonzero(np.diff(chosen)) < 80  # 50 alternations expected, about 5 standard deviations


def test_data_args_hold_tokens_and_absolute_views(prefixes: list[Path], tmp_path: Path) -> None:
    split_reference(prefixes, tmp_path / "split", reference_fraction=0.3, seed=1)
    for part in ("reference", "pool"):
        words = (tmp_path / "split" / part / "data_args.txt").read_text().split()
        views = [IndexedCorpus.open(prefix) for prefix in words[1::2]]
        assert [int(weight) for weight in words[::2]] == [view.num_tokens for view in views]
        assert all(Path(prefix).is_absolute() for prefix in words[1::2])
        assert all(view.is_view for view in views)


def test_manifests(prefixes: list[Path], tmp_path: Path) -> None:
    split_reference(prefixes, tmp_path / "split", reference_fraction=0.3, seed=1)
    manifest = load_manifest(tmp_path / "split")
    assert (manifest.kind, manifest.settings) == ("split", {"reference_fraction": 0.3, "seed": 1})
    assert [parent.path for parent in manifest.inputs] == ["../web", "../code"]
    pool = load_manifest(tmp_path / "split" / "pool")
    views = [IndexedCorpus.open(prefix) for prefix in expand_prefixes([tmp_path / "split" / "pool"])]
    assert pool.counts == {"num_sequences": 71, "num_tokens": sum(view.num_tokens for view in views)}


def test_the_same_split_again_changes_nothing_and_another_is_refused(prefixes: list[Path], tmp_path: Path) -> None:
    output = tmp_path / "split"
    split_reference(prefixes, output, reference_fraction=0.3, seed=1)
    before = directory_bytes(output)
    split_reference(prefixes, output, reference_fraction=0.3, seed=1)
    assert directory_bytes(output) == before
    with pytest.raises(InputError) as raised:
        split_reference(prefixes, output, reference_fraction=0.3, seed=2)
    assert str(raised.value) == f"{output} holds another split: give another --output, or delete it"
    assert directory_bytes(output) == before


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 2, float("nan")])
def test_a_fraction_outside_its_range(prefixes: list[Path], tmp_path: Path, fraction: float) -> None:
    with pytest.raises(InputError) as raised:
        split_reference(prefixes, tmp_path / "split", reference_fraction=fraction, seed=1)
    assert str(raised.value) == f"--reference-fraction {fraction} must lie in (0, 1)"
    assert not (tmp_path / "split").exists()


@pytest.mark.parametrize("fraction", [0.004, 0.999])
def test_a_fraction_that_leaves_a_part_empty(prefixes: list[Path], tmp_path: Path, fraction: float) -> None:
    with pytest.raises(InputError) as raised:
        split_reference(prefixes, tmp_path / "split", reference_fraction=fraction, seed=1)
    assert str(raised.value) == f"--reference-fraction {fraction} of 101 sequences leaves one part empty"
    assert not (tmp_path / "split").exists()
