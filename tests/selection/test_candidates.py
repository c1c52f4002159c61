"""Domains, bytes of text, and what the reference has seen."""

import json
from pathlib import Path

import numpy as np
import pytest
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import on_ranks, sample, write_sidecar

from megatron_miniplm.artifacts.manifest import ArtifactInput, load_manifest, manifest_path
from megatron_miniplm.errors import InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.selection.split import split_reference

#: Domain, bytes of text and difference of every sequence; all have 3 tokens, 2 of them scored.
WEB = [("en", 10, 0.9), ("en", 20, 0.8), ("de", 5, 0.7), (None, 7, 0.6), ("de", 50, 0.5)]
CODE = [("py", 4, 0.4), ("en", 8, 0.3), ("py", 9, -0.2), ("de", 2, 0.1)]
SEQUENCES = [*WEB, *CODE]


@pytest.fixture
def corpora(tmp_path: Path) -> list[IndexedCorpus]:
    found = []
    for name, rows in (("web", WEB), ("code", CODE)):
        corpus = write_corpus(tmp_path / "data" / name, [[1, 2, 3]] * len(rows))
        write_sidecar(corpus, [row[0] for row in rows], [row[1] for row in rows])
        found.append(corpus)
    return found


def stores_of(directory: Path, corpora: list[IndexedCorpus], difference_N: list[float]) -> tuple[Path, Path]:
    sums = 2 * np.array(difference_N)
    teacher = write_scores(directory / "teacher", corpora, np.ones(len(sums)))
    return teacher.directory, write_scores(directory / "reference", corpora, 1 + sums).directory


@pytest.fixture
def stores(tmp_path: Path, corpora: list[IndexedCorpus]) -> tuple[Path, Path]:
    return stores_of(tmp_path, corpora, [row[2] for row in SEQUENCES])


def kept(output: Path) -> list[int]:
    web, code = (np.load(path) for path in sorted(output.glob("*.indices.npy")))
    return [*web.tolist(), *(code + len(WEB)).tolist()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ratio": 0.5, "per_domain": True}, [0, 2, 3, 5]),  # int(1.5) of en and de, at least 1 of none, 1 of py
        ({"ratio": 0.7, "per_domain": True}, [0, 1, 2, 3, 4, 5]),
        ({"ratio": 0.5, "ratio_of": "tokens", "per_domain": True}, [0, 1, 2, 3, 4, 5]),
        ({"ratio": 1, "keep_domains": ("de",)}, [2, 4, 8]),
        ({"ratio": 0.5, "drop_domains": ("en",)}, [2, 3, 4]),
        ({"ratio": 0.5, "keep_domains": ("en", "de"), "per_domain": True}, [0, 2]),
        ({"ratio": 0.5, "keep_domains": ("en",), "drop_domains": ("de",)}, [0]),
        ({"ratio": 0.4, "reduction": "bits-per-byte"}, [0, 2, 5]),
        ({"target_tokens": 9, "per_domain": True}, [0, 2, 3, 5]),
        ({"threshold": 0.45, "keep_domains": ("de",)}, [2, 4]),
    ],
    ids=str,
)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_what_is_kept(
    stores: tuple[Path, Path], tmp_path: Path, options: dict[str, object], expected: list[int], num_ranks: int
) -> None:
    """Bits a byte: 2 * difference / bytes is .18, .08, .28, .17, .02, .2, .075, -.04 and .1."""
    on_ranks(lambda ranks: sample(*stores, tmp_path / "refined", **{**options, "ranks": ranks}), num_ranks)
    assert kept(tmp_path / "refined") == expected
    assert not list((tmp_path / "refined").glob(".*")), "the scratch directory stays"


def test_thresholds_of_domains(stores: tuple[Path, Path], tmp_path: Path) -> None:
    summary = sample(*stores, tmp_path / "refined", per_domain=True)
    found = {threshold["domain"]: threshold["sequence"] for threshold in summary["thresholds"]}
    assert found == {"": 3, "de": 2, "en": 0, "py": 5}
    assert summary["thresholds"][1]["value"] == pytest.approx(0.7)


def test_domains_of_a_view_are_those_of_its_source(corpora: list[IndexedCorpus], tmp_path: Path) -> None:
    """A pool: sequences 4, 2 and 0 of web."""
    from megatron_miniplm.indexed import write_view

    pool = IndexedCorpus.open(write_view(corpora[0], np.array([4, 2, 0]), tmp_path / "pool", label="pool", settings={}))
    stores = stores_of(tmp_path / "scores", [pool], [0.1, 0.2, 0.3])
    sample(*stores, tmp_path / "refined", ratio=1, keep_domains=("de",))
    assert np.load(next((tmp_path / "refined").glob("*.indices.npy"))).tolist() == [0, 1]
    sample(*stores, tmp_path / "bytes", ratio=0.4, reduction="bits-per-byte")
    assert np.load(next((tmp_path / "bytes").glob("*.indices.npy"))).tolist() == [1], "0.2 / 5 is the greatest"


def test_a_domain_that_does_not_occur(stores: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no sequence has the domain 'fr': the corpus has 'de', 'en', 'py'"):
        sample(*stores, tmp_path / "refined", drop_domains=("fr",))
    assert not (tmp_path / "refined").exists()


def test_a_corpus_without_a_sidecar(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "plain", [[1, 2]] * 4)
    stores = stores_of(tmp_path, [corpus], [0.1, 0.2, 0.3, 0.4])
    with pytest.raises(InputError, match=r"plain has no sidecar, .* preprocess-data"):
        sample(*stores, tmp_path / "refined", per_domain=True)


@pytest.fixture
def split(corpora: list[IndexedCorpus], tmp_path: Path) -> Path:
    """Some sequences of both corpora are the reference's."""
    split_reference([corpus.prefix for corpus in corpora], tmp_path / "split", reference_fraction=0.4, seed=1)
    return tmp_path / "split"


def seen_ids(split: Path, corpora: list[IndexedCorpus]) -> list[int]:
    ids = []
    for start, corpus in ((0, corpora[0]), (len(WEB), corpora[1])):
        view = IndexedCorpus.open(next((split / "reference").glob(f"{corpus.prefix.name}_*.idx")).with_suffix(""))
        ids += (np.searchsorted(corpus.pointers_N, view.pointers_N) + start).tolist()
    return ids


def reference_views(split: Path) -> list[Path]:
    return sorted(path.with_suffix("") for path in (split / "reference").glob("*.idx"))


def test_what_the_reference_has_seen(
    stores: tuple[Path, Path], split: Path, corpora: list[IndexedCorpus], tmp_path: Path
) -> None:
    seen = seen_ids(split, corpora)
    assert len(seen) == 4
    data = {"reference_data": reference_views(split)}
    with pytest.raises(InputError, match="4 of 9 scored sequences were training data of the reference model"):
        sample(*stores, tmp_path / "refined", ratio=1, **data)
    assert not (tmp_path / "refined").exists()
    summary = sample(*stores, tmp_path / "excluded", ratio=1, seen_by_reference="exclude", **data)
    assert kept(tmp_path / "excluded") == sorted(set(range(9)) - set(seen))
    assert (summary["num_eligible"], summary["num_seen_by_reference"]) == (5, 4)
    sample(*stores, tmp_path / "allowed", ratio=1, seen_by_reference="allow", **data)
    assert kept(tmp_path / "allowed") == list(range(9))


def test_scores_say_what_the_reference_was_trained_on(stores: tuple[Path, Path], split: Path, tmp_path: Path) -> None:
    """Of the pool nothing was seen, of the whole corpus a part."""
    reference = stores[1]
    values = json.loads(manifest_path(reference).read_text())
    for view in reference_views(split):
        fingerprint = IndexedCorpus.open(view).fingerprint()
        parent = ArtifactInput(role="training data", path=f"../{view.relative_to(tmp_path)}", fingerprint=fingerprint)
        values["inputs"].append(vars(parent))
    manifest_path(reference).write_text(json.dumps(values))
    with pytest.raises(InputError, match="4 of 9 scored sequences were training data"):
        sample(*stores, tmp_path / "refined", ratio=1)
    sample(*stores, tmp_path / "refined", ratio=1, seen_by_reference="exclude")
    assert len(kept(tmp_path / "refined")) == 5
    roles = [parent.role for parent in load_manifest(tmp_path / "refined").inputs]
    assert roles.count("seen by the reference") == 2

    pool = [IndexedCorpus.open(path.with_suffix("")) for path in sorted((split / "pool").glob("*.idx"))]
    others = stores_of(tmp_path / "pool_scores", pool, [0.1] * 5)
    data = {"reference_data": reference_views(split)}
    summary = sample(*others, tmp_path / "of_pool", ratio=1, **data)
    assert (summary["num_kept"], summary["num_seen_by_reference"]) == (5, 0)
