import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_runs import directory_bytes, write_corpus
from score_stores import write_scores
from selections import sample

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.artifacts.data_args import expand_prefixes
from megatron_miniplm.artifacts.manifest import verify_files
from megatron_miniplm.artifacts.scores import ScoreStore
from megatron_miniplm.artifacts.selections import Selection
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError, MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus

#: Three prefixes, the second without sequences. One sequence of a token, with nothing to score.
PREFIXES = {
    "web": [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10, 11]],
    "none": [],
    "code": [[20, 21, 22], [30, 31, 32, 33], [40, 41]],
}
ALL = [sequence for sequences in PREFIXES.values() for sequence in sequences]
NUM_SCORED = [2, 1, 0, 4, 2, 3, 1]  # 13 tokens
TEACHER = [2.0, 3.0, 0.0, 4.0, 5.0, 6.0, 1.0]
REFERENCE = [4.0, 2.5, 0.0, 10.0, 5.0, 7.5, 2.0]
#: (reference - teacher) / tokens; -inf is the third.
DIFFERENCE = [1.0, -0.5, None, 1.5, 0.0, 0.5, 1.0]


@pytest.fixture
def corpora(tmp_path: Path) -> list[IndexedCorpus]:
    return [write_corpus(tmp_path / "data" / name, sequences) for name, sequences in PREFIXES.items()]


@pytest.fixture
def teacher(tmp_path: Path, corpora: list[IndexedCorpus]) -> Path:
    return write_scores(tmp_path / "scores" / "teacher", corpora, TEACHER).directory


@pytest.fixture
def reference(tmp_path: Path, corpora: list[IndexedCorpus]) -> Path:
    """In blocks of another size than the teacher's: only the sequences must be the same."""
    return write_scores(tmp_path / "scores" / "reference", corpora, REFERENCE, block_sequences=2).directory


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "selection"


def kept_ids(output: Path) -> list[int]:
    """Global ids, from the indices of each prefix."""
    start, ids = 0, []
    for position, (name, sequences) in enumerate(PREFIXES.items()):
        ids += [start + int(index) for index in np.load(output / f"{position:04d}_{name}.indices.npy")]
        start += len(sequences)
    return ids


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"ratio": 0.5}, [0, 3, 6]),  # int(3.5)
        ({"ratio": 0.3}, [0, 3]),  # 0 and 6 are equal, the lower id is kept
        ({"ratio": 1}, [0, 1, 2, 3, 4, 5, 6]),
        ({"ratio": 1e-9}, [3]),
        ({"ratio": 0.6, "reduction": "sum"}, [0, 3, 5, 6]),
        ({"ratio": 0.5, "reduction": "sum"}, [0, 3, 5]),  # differences 2, 6, 1.5 against 1
        ({"ratio": 0.45, "ratio_of": "tokens"}, [0, 3, 6]),  # of 20 tokens: 5 + 3 < 9 <= 5 + 3 + 2
        ({"ratio": 5 / 20, "ratio_of": "tokens"}, [3]),
        ({"ratio": 1, "ratio_of": "tokens"}, [0, 1, 2, 3, 4, 5, 6]),
        ({"target_tokens": 9}, [0, 3, 6]),
        ({"target_tokens": 1000}, [0, 1, 2, 3, 4, 5, 6]),
        ({"threshold": 0.0}, [0, 3, 4, 5, 6]),
        ({"threshold": 1.0}, [0, 3, 6]),
        ({"threshold": 1.01}, [3]),
        ({"threshold": 100.0}, []),
        ({"ratio": 1, "drop_negative": True}, [0, 3, 4, 5, 6]),
        ({"ratio": 0.5, "min_tokens": 3}, [0, 3]),  # int(2.0) of 0, 3, 4 and 5
        ({"ratio": 0.5, "expression": "-teacher"}, [0, 3, 6]),  # NLL a token: 1, 3, -, 1, 2.5, 2, 1
        ({"ratio": 0.5, "expression": "reference"}, [1, 3, 4]),  # 2, 2.5, -, 2.5, 2.5, 2.5, 2
        ({"ratio": 0.5, "expression": "reference - teacher"}, [0, 3, 6]),
        ({"ratio": 0.5, "expression": "exp(reference) / exp(teacher)"}, [0, 3, 6]),
    ],
    ids=str,
)
def test_what_is_kept(
    teacher: Path, reference: Path, output: Path, options: dict[str, Any], expected: list[int]
) -> None:
    summary = sample(teacher, reference, output, **options)
    assert kept_ids(output) == expected
    assert summary["num_kept"] == len(expected)
    views = [IndexedCorpus.open(output / prefix["view"]) for prefix in summary["prefixes"]]
    tokens = [view.sequence(index).tolist() for view in views for index in range(len(view))]
    assert tokens == [ALL[index] for index in expected]


def test_selection_json_by_hand(teacher: Path, reference: Path, output: Path) -> None:
    summary = sample(teacher, reference, output, ratio=0.5)
    assert summary == json.loads((output / "selection.json").read_text())
    prefixes = summary.pop("prefixes")
    assert summary == {
        "format_version": 3,
        "ratio": 0.5,
        "ratio_of": "sequences",
        "sampling": "top",
        "per_domain": False,
        "keep_domains": [],
        "drop_domains": [],
        "min_tokens": 0,
        "drop_negative": False,
        "weights": "none",
        "repeat": False,
        "from_scores": "reference - teacher",
        "score_reduction": "mean",
        "index_only": False,
        "seen_by_reference": "error",
        "num_eligible": 7,
        "num_kept": 3,
        "num_kept_tokens": 10,
        "num_scored_tokens": 13,
        "num_kept_scored_tokens": 7,
        "lowest_kept_value": 1.0,
        "mean_value": pytest.approx(3.5 / 6),
        "mean_kept_value": pytest.approx(3.5 / 3),
        "negative_fraction": pytest.approx(1 / 6),
        "num_sequences": 7,
        "num_seen_by_reference": 0,
        "thresholds": [{"domain": None, "value": 1.0, "key": "bff0000000000000", "sequence": 6}],
    }
    assert [(prefix["name"], prefix["num_sequences"], prefix["num_tokens"]) for prefix in prefixes] == [
        ("web", 2, 8),
        ("none", 0, 0),
        ("code", 1, 2),
    ]


def test_sequences_without_a_score_do_not_spoil_the_statistics(teacher: Path, reference: Path, output: Path) -> None:
    summary = sample(teacher, reference, output, ratio=1)
    assert summary["lowest_kept_value"] == -0.5
    assert summary["mean_kept_value"] == summary["mean_value"] == pytest.approx(3.5 / 6)
    assert summary["thresholds"][0]["value"] is None, "-inf is not JSON"


def test_data_args_and_views(teacher: Path, reference: Path, output: Path) -> None:
    sample(teacher, reference, output, ratio=0.5)
    web, code = (next(output.glob(f"{name}_refined-*.idx")).with_suffix("") for name in ("web", "code"))
    assert (output / "data_args.txt").read_text() == f"8 {web}\n2 {code}\n"
    assert expand_prefixes([output]) == [web, code]
    assert IndexedCorpus.open(web).is_view
    assert load_manifest(web).settings["score_reduction"] == "mean"


def test_manifest_and_lineage(teacher: Path, reference: Path, output: Path) -> None:
    sample(teacher, reference, output, ratio=0.5)
    manifest = load_manifest(output)
    assert (manifest.kind, manifest.counts) == ("selection", {"num_sequences": 3, "num_tokens": 10})
    assert manifest.settings["score_reduction"] == "mean"
    assert verify_files(output, manifest) == []
    parents = {parent.role: parent for parent in manifest.inputs}
    assert parents["teacher scores"].path == "../scores/teacher"
    assert parents["reference scores"].fingerprint == load_manifest(reference).fingerprint


def test_the_same_command_writes_the_same_bytes(teacher: Path, reference: Path, output: Path) -> None:
    sample(teacher, reference, output, ratio=0.5)
    before = directory_bytes(output)
    sample(teacher, reference, output, ratio=0.5)
    assert directory_bytes(output) == before


def refusal(kind: type[MiniPLMError], *arguments: Any, ratio: float = 0.5, **options: Any) -> str:
    with pytest.raises(kind) as raised:
        sample(*arguments, ratio=ratio, **options)
    return str(raised.value)


def test_scores_of_different_corpora(teacher: Path, tmp_path: Path, corpora: list[IndexedCorpus], output: Path) -> None:
    web, _, code = corpora
    swapped = write_scores(tmp_path / "scores" / "swapped", [code, web], [*REFERENCE[4:], *REFERENCE[:4]]).directory
    message = refusal(FingerprintMismatchError, teacher, swapped, output)
    names = {corpus.prefix.name: f"{corpus.prefix.name} [{corpus.fingerprint()[:8]}]" for corpus in corpora}
    assert message == (
        f"{teacher} holds scores of {names['web']}, {names['none']}, {names['code']}, but {swapped} of "
        f"{names['code']}, {names['web']}: score the same prefixes, in the same order, with both models"
    )
    assert not output.exists()


def test_a_corpus_that_has_changed(teacher: Path, reference: Path, corpora: list[IndexedCorpus], output: Path) -> None:
    old = corpora[2]
    new = write_corpus(old.prefix, [[20, 21, 22], [30, 31, 32, 34], [40, 41]])
    assert refusal(FingerprintMismatchError, teacher, reference, output) == (
        f"{teacher} was computed on code [{ScoreStore.open(teacher).identity['corpus'][2]['fingerprint'][:8]}], but "
        f"{new.prefix} is now [{new.fingerprint()[:8]}]: score it again, or bring the old corpus back"
    )
    assert not output.exists()


def test_a_corpus_that_has_gone(teacher: Path, reference: Path, corpora: list[IndexedCorpus], output: Path) -> None:
    prefix = corpora[0].prefix
    prefix.with_suffix(".bin").unlink()
    assert refusal(InputError, teacher, reference, output).startswith(f"{prefix}.bin does not exist: ")


def test_incomplete_scores(teacher: Path, reference: Path, output: Path) -> None:
    ScoreStore.open(reference).block_path(3).unlink()
    assert refusal(InputError, teacher, reference, output) == (
        f"{reference} is incomplete: 1 of 4 blocks are missing (first: 3): run the same scoring command again"
    )


def test_no_scores(teacher: Path, output: Path) -> None:
    assert refusal(InputError, teacher, teacher.parent, output) == (
        f"{teacher.parent} is not a directory of scores: it has no identity.json"
    )


def test_differing_numbers_of_tokens(teacher: Path, tmp_path: Path, corpora: list[IndexedCorpus], output: Path) -> None:
    other = write_scores(tmp_path / "scores" / "other", corpora, REFERENCE, [*NUM_SCORED[:5], 2, 1]).directory
    assert refusal(FingerprintMismatchError, teacher, other, output) == (
        f"sequence 5 has 3 scored tokens in {teacher} and 2 in {other}: score both with the same settings"
    )


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5])
def test_a_ratio_outside_its_range(teacher: Path, reference: Path, output: Path, ratio: float) -> None:
    assert refusal(InputError, teacher, reference, output, ratio=ratio) == f"--ratio {ratio} must lie in (0, 1]"


def test_an_output_with_another_selection(teacher: Path, reference: Path, output: Path) -> None:
    sample(teacher, reference, output, ratio=0.5)
    before = directory_bytes(output)
    assert refusal(InputError, teacher, reference, output, ratio=0.25) == (
        f"{output} holds another selection: give another --output, or delete it"
    )
    assert directory_bytes(output) == before


@pytest.mark.parametrize("ratio_of", ["sequences", "tokens"])
def test_a_corpus_with_nothing_to_score(tmp_path: Path, output: Path, ratio_of: str) -> None:
    corpus = write_corpus(tmp_path / "single", [[1], [2]])
    stores = [write_scores(tmp_path / name, [corpus], [0.0, 0.0]).directory for name in ("teacher", "reference")]
    assert "has no scored tokens" in refusal(InputError, *stores, output, ratio_of=ratio_of)
    assert not output.exists()


@pytest.mark.parametrize("target", [{"ratio": 0.5}, {"threshold": -5.0}], ids=str)
def test_a_value_that_is_no_number(teacher: Path, reference: Path, output: Path, target: dict[str, float]) -> None:
    """log(-0.5) of the second sequence."""
    with pytest.raises(InputError, match=r"^sequence 1 has no number to be ranked by \(NaN\): change the expression"):
        sample(teacher, reference, output, expression="log(reference - teacher)", **target)


def test_a_selection_of_another_format(teacher: Path, reference: Path, output: Path) -> None:
    sample(teacher, reference, output)
    summary = json.loads((output / "selection.json").read_text())
    (output / "selection.json").write_text(json.dumps({**summary, "format_version": 0}))
    with pytest.raises(CorruptArtifactError, match=r"selection\.json has format version 0, this release reads 3"):
        Selection.open(output)
