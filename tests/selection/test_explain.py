import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_runs import write_corpus
from score_stores import write_scores
from selections import sample, seal

from megatron_miniplm.artifacts.scores import NOT_SCORED, PREDICTED_DIFFERENCE
from megatron_miniplm.artifacts.selections import Selection, copies_of
from megatron_miniplm.errors import CorruptArtifactError, FingerprintMismatchError, InputError
from megatron_miniplm.hashing import perturbed
from megatron_miniplm.indexed import IndexedCorpus, write_view
from megatron_miniplm.indexed.pieces import Pieces, crc32_of_runs
from megatron_miniplm.indexed.sidecar import SidecarWriter, as_table
from megatron_miniplm.selection import scored_corpus
from megatron_miniplm.selection.explain import Explanation, decide, explain
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.top import Threshold

#: Three prefixes, the second without sequences. One sequence of a token, with nothing to score.
PREFIXES = {
    "web": [[1, 2, 3], [4, 5], [6], [7, 8, 9, 10, 11]],
    "none": [],
    "code": [[20, 21, 22], [30, 31, 32, 33], [40, 41]],
}
NUM_SCORED = [2, 1, 0, 4, 2, 3, 1]
TEACHER_NLL = [2.0, 3.0, 0.0, 4.0, 5.0, 6.0, 1.0]
REFERENCE_NLL = [4.0, 2.5, 0.0, 10.0, 5.0, 7.5, 2.0]
#: (reference - teacher) / tokens.
DIFFERENCE = [1.0, -0.5, -np.inf, 1.5, 0.0, 0.5, 1.0]
TEACHER, REFERENCE, OUTPUT = Path("scores/teacher"), Path("scores/reference"), Path("selection")
ALL = range(7)


@pytest.fixture(autouse=True)
def stores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpora = [write_corpus(Path("data") / name, sequences) for name, sequences in PREFIXES.items()]
    write_scores(TEACHER, corpora, TEACHER_NLL)
    write_scores(REFERENCE, corpora, REFERENCE_NLL)


def explained(ids: Any = ALL, output: Path = OUTPUT, **options: Any) -> list[Explanation]:
    """Select and explain."""
    sample(options.pop("teacher", TEACHER), options.pop("reference", REFERENCE), output, **options)
    return explain(Selection.open(output), list(ids))


def whys(**options: Any) -> list[str]:
    return [f"{'yes' if one.kept else 'no'}: {one.why}" for one in explained(**options)]


def write_sidecar(prefix: Path, domains: list[str | None], text_bytes: list[int]) -> None:
    """A sidecar of a piece a sequence."""
    corpus = IndexedCorpus.open(prefix)
    zeros_P, tokens_T = np.zeros(len(corpus), np.int64), corpus.data.view(corpus.token_dtype)
    pieces = Pieces(
        sequence_P=np.arange(len(corpus)),
        position_P=zeros_P,
        piece_P=zeros_P,
        start_byte_P=zeros_P,
        text_bytes_P=np.array(text_bytes),
        num_tokens_P=corpus.lengths_N,
        crc32_P=crc32_of_runs(tokens_T, corpus.lengths_N),
        ids=None,
        domains=domains,
    )
    with SidecarWriter(prefix) as writer:
        writer.append(as_table(pieces, "../text.jsonl", 0))
        writer.close()


@pytest.fixture
def sidecars() -> None:
    """Domains: a b - a, and b a b."""
    write_sidecar(Path("data/web"), ["a", "b", None, "a"], [10, 4, 0, 8])
    write_sidecar(Path("data/none"), [], [])
    write_sidecar(Path("data/code"), ["b", "a", "b"], [5, 5, 5])


def test_one_sequence_by_hand() -> None:
    (found,) = explained([3], ratio=0.5)
    assert found == Explanation(
        sequence=3,
        prefix="web",
        index=3,
        num_tokens=5,
        num_scored_tokens=4,
        teacher_nll_nats=4.0,
        reference_nll_nats=10.0,
        predicted_difference_nats=None,
        text_bytes=None,
        domain=None,
        value=1.5,
        perturbed_value=None,
        unit="nats a token",
        takes_part=True,
        rank=1,
        num_ranked=7,
        percentile=100.0,
        domain_rank=None,
        num_ranked_in_domain=None,
        kept=True,
        why="its value 1.5 is 0.5 above the threshold 1",
        weight=1.0,
        num_copies=None,
    )


def test_the_order_asked_for_and_the_prefix_and_index_of_each() -> None:
    found = explained([5, 0, 4], ratio=0.5)
    assert [(one.sequence, one.prefix, one.index) for one in found] == [(5, "code", 1), (0, "web", 0), (4, "code", 0)]


def test_reasons_of_the_top_half() -> None:
    assert whys(ratio=0.5) == [
        "yes: its value is equal to the threshold 1, with a lower id than the last kept, 6",
        "no: its value -0.5 is 1.5 below the threshold 1",
        "no: nothing of it was scored, which ranks it last, below the threshold 1",
        "yes: its value 1.5 is 0.5 above the threshold 1",
        "no: its value 0 is 1 below the threshold 1",
        "no: its value 0.5 is 0.5 below the threshold 1",
        "yes: its value is equal to the threshold 1: it is the last kept",
    ]
    ranks = [(one.rank, one.percentile) for one in explain(Selection.open(OUTPUT), list(ALL))]
    assert ranks == [(place, pytest.approx(100 * (7 - place) / 6)) for place in (2, 6, 7, 1, 5, 4, 3)]


@pytest.mark.parametrize(
    ("options", "sequence", "expected"),
    [
        ({"ratio": 0.3}, 6, "no: its value is equal to the threshold 1, but its id is above that of the last kept, 0"),
        ({"threshold": 1.0}, 6, "yes: its value is equal to the threshold 1"),
        ({"threshold": 1.0}, 3, "yes: its value 1.5 is 0.5 above the threshold 1"),
        ({"threshold": 1.0}, 5, "no: its value 0.5 is 0.5 below the threshold 1"),
        ({"target_tokens": 1000}, 2, "yes: all that takes part is kept"),
        ({"target_tokens": 1000, "drop_negative": True}, 0, "yes: all that takes part is kept"),
        ({"ratio": 1}, 2, "yes: its value is equal to the threshold -inf: it is the last kept"),
        ({"ratio": 1}, 3, "yes: its value 1.5 is above the threshold -inf, that of sequences with nothing to rank by"),
        (
            {"ratio": 1, "drop_negative": True},
            1,
            "no: its difference -0.5 is negative: --drop-negative drops what would be kept otherwise",
        ),
        (
            {"ratio": 1, "drop_negative": True},
            2,
            "no: nothing of it was scored: --drop-negative drops what would be kept otherwise",
        ),
        ({"ratio": 0.5, "drop_negative": True}, 1, "no: its value -0.5 is 1.5 below the threshold 1"),
        ({"min_tokens": 3}, 6, "no: it does not take part: it has 2 tokens, below --min-tokens 3"),
        (
            {"expression": "log(reference - 2)"},
            0,
            "no: its value is -inf, which ranks it last, below the threshold -0.693147",
        ),
    ],
    ids=str,
)
def test_a_reason(options: dict[str, Any], sequence: int, expected: str) -> None:
    assert whys(**options)[sequence] == expected


def test_what_does_not_take_part_has_no_rank_and_counts_for_none() -> None:
    found = explained(min_tokens=3)  # 0, 3, 4 and 5 do
    assert [one.takes_part for one in found] == [True, False, False, True, True, True, False]
    assert [one.rank for one in found] == [2, None, None, 1, 4, 3, None]
    assert [one.num_ranked for one in found] == [4] * 7
    assert found[6].percentile is None


def test_seen_by_the_reference() -> None:
    view = write_view(IndexedCorpus.open("data/web"), np.array([1, 3]), Path("seen"), label="reference", settings={})
    found = explained(seen_by_reference="exclude", reference_data=[view], min_tokens=3)
    assert found[3].why == "it does not take part: the reference model was trained on it (--seen-by-reference exclude)"
    assert found[1].why == (
        "it does not take part: it has 2 tokens, below --min-tokens 3, and the reference model was trained on it "
        "(--seen-by-reference exclude)"
    )
    assert [one.rank for one in found] == [1, None, None, None, 3, 2, None]


@pytest.mark.parametrize("seen_by_reference", ["allow", "error"])
def test_seen_data_that_nothing_was_excluded_by_may_have_gone(seen_by_reference: str) -> None:
    seen = write_corpus(Path("seen"), [[1, 2, 3]])
    sample(TEACHER, REFERENCE, OUTPUT, seen_by_reference=seen_by_reference, reference_data=[seen.prefix])
    Path("seen.idx").unlink()
    (found,) = explain(Selection.open(OUTPUT), [3])
    assert (found.rank, found.num_ranked) == (1, 7)


def test_seen_data_that_has_changed() -> None:
    seen = write_corpus(Path("seen"), [[1, 2, 3]])
    sample(TEACHER, REFERENCE, OUTPUT, seen_by_reference="exclude", reference_data=[seen.prefix])
    write_corpus(Path("seen"), [[1, 2, 3, 4]])
    with pytest.raises(
        FingerprintMismatchError, match=r"selection was made from seen by the reference \[.*seen is now"
    ):
        explain(Selection.open(OUTPUT), [0])


@pytest.mark.usefixtures("sidecars")
def test_domains_that_are_dropped() -> None:
    found = explained(drop_domains=("b",))
    assert found[1].why == "it does not take part: its domain 'b' is dropped (--drop-domain)"
    assert [one.domain for one in found] == ["a", "b", "", "a", "b", "a", "b"]
    assert [one.rank for one in found] == [2, None, 4, 1, None, 3, None]
    assert found[0].domain_rank is None, "domains are not ranked apart"
    others = explained(output=Path("kept"), keep_domains=("b",), ratio=1)
    assert others[2].why == "it does not take part: its domain '' is dropped (--keep-domain b)"
    assert [one.kept for one in others] == [False, True, False, False, True, False, True]


@pytest.mark.usefixtures("sidecars")
def test_every_domain_has_its_ranks_and_its_threshold() -> None:
    found = explained(per_domain=True, ratio=0.67)  # int(2.01) of a: 0 3 5, of b: 1 4 6; 1 of the rest: 2
    assert [one.domain_rank for one in found] == [2, 3, 1, 1, 2, 3, 1]
    assert [one.num_ranked_in_domain for one in found] == [3, 3, 1, 3, 3, 3, 3]
    assert [one.rank for one in found] == [2, 6, 7, 1, 5, 4, 3]
    assert [one.kept for one in found] == [True, False, True, True, True, False, True]
    assert found[5].why == "its value 0.5 is 0.5 below the threshold 1 of domain 'a'"
    assert found[1].why == "its value -0.5 is 0.5 below the threshold 0 of domain 'b'"
    assert found[2].why == "its value is equal to the threshold -inf of domain '': it is the last kept"


@pytest.mark.usefixtures("sidecars")
def test_what_takes_no_part_has_no_rank_in_its_domain() -> None:
    found = explained(per_domain=True, min_tokens=3)
    assert [one.domain_rank for one in found] == [2, None, None, 1, 1, 3, None]
    assert [one.num_ranked_in_domain for one in found] == [3, 1, 0, 3, 1, 3, 1]


@pytest.mark.usefixtures("sidecars")
def test_thresholds_of_other_domains() -> None:
    sample(TEACHER, REFERENCE, OUTPUT, per_domain=True)
    write_sidecar(Path("data/code"), ["b", "a", "c"], [5, 5, 5])
    with pytest.raises(
        CorruptArtifactError, match=r"has thresholds of \['', 'a', 'b'\], the sidecars have \['', 'a', 'b', 'c'\]"
    ):
        explain(Selection.open(OUTPUT), [0])


@pytest.mark.usefixtures("sidecars")
def test_bits_a_byte() -> None:
    found = explained(reduction="bits-per-byte", ratio=0.5)
    assert found[3].text_bytes == 8
    assert found[3].value == pytest.approx(6 / 8 / np.log(2))
    assert found[3].unit == "bits a byte"
    write_sidecar(Path("data/code"), ["b", "a", "b"], [5, 0, 5])
    others = explained(output=Path("other"), reduction="bits-per-byte", ratio=0.5)
    assert others[5].why.startswith("it has no bytes of text, which ranks it last, below the threshold ")
    assert others[5].value is None


def test_a_sample() -> None:
    found = explained(sampling="gumbel", temperature=0.7, seed=5, ratio=0.5)
    noisy_N = perturbed(np.array(DIFFERENCE), np.arange(7), temperature=0.7, seed=5)
    best = np.lexsort((np.arange(7), -noisy_N)).tolist()
    assert [one.rank for one in found] == [best.index(one.sequence) + 1 for one in found]
    assert [one.sequence for one in found if one.kept] == sorted(best[:3])
    limit = noisy_N[best[2]]
    assert found[best[0]].perturbed_value == noisy_N[best[0]]
    assert found[best[0]].value == DIFFERENCE[best[0]]
    assert found[best[0]].why == (
        f"its perturbed value {noisy_N[best[0]]:.6g} is {noisy_N[best[0]] - limit:.6g} above the threshold {limit:.6g}"
    )
    assert found[best[4]].why == (
        f"not in the sample: its perturbed value {noisy_N[best[4]]:.6g} is {limit - noisy_N[best[4]]:.6g} below the "
        f"threshold {limit:.6g}"
    )
    assert (
        found[2].why
        == f"not in the sample: nothing of it was scored, which ranks it last, below the threshold {limit:.6g}"
    )


def test_weights_and_copies() -> None:
    found = explained(ratio=0.9, weights="softmax", repeat=True, weight_cap=2.0)
    selection = Selection.open(OUTPUT)
    weights_K = np.concatenate([prefix.weights() for prefix in selection.prefixes])
    kept = [one for one in found if one.kept]
    assert [one.weight for one in kept] == weights_K.tolist()
    assert len(set(weights_K.tolist())) > 2
    ids_K = np.array([one.sequence for one in kept])
    assert [one.num_copies for one in kept] == copies_of(weights_K, ids_K, seed=1).tolist()
    views = [IndexedCorpus.open(prefix.view) for prefix in selection.prefixes if prefix.view]
    sequences = [view.sequence(index).tolist() for view in views for index in range(len(view))]
    all_sequences = [sequence for sequences in PREFIXES.values() for sequence in sequences]
    assert [one.num_copies for one in kept] == [sequences.count(all_sequences[one.sequence]) for one in kept]
    assert [(one.weight, one.num_copies) for one in found if not one.kept] == [(None, None)]


def test_weights_that_nothing_is_repeated_by() -> None:
    found = explained(ratio=1, weights="linear", index_only=True)
    assert found[3].weight is not None
    assert found[3].weight > 1
    assert found[3].num_copies is None


@pytest.mark.parametrize("seed", range(3))
def test_ranks_are_those_of_a_sort(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """Many pieces, and many equal values."""
    monkeypatch.setattr(scored_corpus, "CHUNK_SEQUENCES", 7)
    rng = np.random.default_rng(seed)
    sizes = {"p": 40, "q": 0, "r": 23}
    corpora = [write_corpus(Path("many") / name, [[1, 2]] * size) for name, size in sizes.items()]
    difference_N = rng.choice([-1.0, -0.0, 0.0, 0.25, 2.0], 63)
    write_scores(Path("t"), corpora, np.zeros(63).tolist())
    write_scores(Path("r"), corpora, difference_N.tolist())
    found = explained(range(63), Path("out"), teacher=Path("t"), reference=Path("r"), ratio=float(rng.uniform(0.1, 1)))
    best = sorted(range(63), key=lambda sequence: (-difference_N[sequence], sequence))
    assert [one.rank for one in found] == [best.index(sequence) + 1 for sequence in range(63)]
    prefixes = Selection.open(Path("out")).prefixes
    kept = np.concatenate([prefix.indices() + prefix.start for prefix in prefixes])
    assert [one.sequence for one in found if one.kept] == kept.tolist()
    assert {one.sequence for one in found if one.kept} == set(best[: len(kept)])


def test_predicted_and_known_differences() -> None:
    corpora = [IndexedCorpus.open(Path("data") / name) for name in PREFIXES]
    partly = [NOT_SCORED if sequence < 4 else count for sequence, count in enumerate(NUM_SCORED)]
    sampled = {"sample_fraction": 0.5, "sample_seed": 0}
    write_scores(Path("half"), corpora, [0, 0, 0, 0, *TEACHER_NLL[4:]], partly, settings=sampled)
    write_scores(Path("predicted"), corpora, [9.0] * 7, NUM_SCORED, settings={"quantity": PREDICTED_DIFFERENCE})
    found = explained(teacher=Path("half"), predicted=Path("predicted"), ratio=0.5)
    sums = [(one.teacher_nll_nats, one.reference_nll_nats, one.predicted_difference_nats) for one in found]
    assert sums[0] == (None, None, 9.0)
    assert sums[5] == (6.0, 7.5, None)
    assert [found[0].value, found[5].value] == [4.5, 0.5]
    (alone,) = explained([5], Path("alone"), teacher=None, reference=None, predicted=Path("predicted"), ratio=0.5)
    assert (alone.teacher_nll_nats, alone.reference_nll_nats, alone.predicted_difference_nats) == (None, None, 9.0)


def test_a_model_that_the_expression_does_not_name() -> None:
    (found,) = explained([5], reference=None, expression="-teacher")
    assert (found.teacher_nll_nats, found.reference_nll_nats, found.value) == (6.0, None, -2.0)


def test_a_domain_for_which_nothing_is_left() -> None:
    """Sequences without tokens, of which no share of --target-tokens is."""
    rule = Rule(target_tokens=10, per_domain=True)
    nothing = Threshold.of_nothing()
    kept, why = decide(rule, nothing, sequence=1, value=-np.inf, order=-np.inf, domain="a", lacks="nothing of it")
    assert (kept, why) == (False, "the target leaves nothing for domain 'a', which has no tokens")


def tampered(indices: list[int]) -> str:
    """The message for other indices of the first prefix, of which 0 and 3 are kept."""
    sample(TEACHER, REFERENCE, OUTPUT)
    np.save(OUTPUT / "0000_web.indices.npy", np.array(indices, "<i8"))
    seal(OUTPUT)
    with pytest.raises(CorruptArtifactError) as caught:
        explain(Selection.open(OUTPUT), [5])
    return str(caught.value)


@pytest.mark.parametrize(
    ("indices", "which"),
    [
        ([1, 3], "no sequence 0"),
        ([0, 2], "sequence 2"),
        ([3, 0], "sequences out of order"),
        ([0, 4], "no sequence 3"),
        ([-1, 3], "sequence -1"),
    ],
)
def test_indices_that_are_not_those_of_the_scores(indices: list[int], which: str) -> None:
    assert tampered(indices) == (
        f"selection/0000_web.indices.npy has {which}, which is not what the scores and thresholds of the selection "
        "give: the selection on disk does not match its scores; make it again"
    )


def test_an_index_beyond_the_prefix_that_is_counted() -> None:
    sample(TEACHER, REFERENCE, OUTPUT)
    summary = json.loads((OUTPUT / "selection.json").read_text())
    summary["num_kept"] += 3 - summary["prefixes"][0]["num_sequences"]
    summary["prefixes"][0]["num_sequences"] = 3
    (OUTPUT / "selection.json").write_text(json.dumps(summary))
    for name, array in (
        ("indices", np.array([0, 3, 4], "<i8")),
        ("weights", np.ones(3, "<f4")),
        ("values", np.zeros(3)),
    ):
        np.save(OUTPUT / f"0000_web.{name}.npy", array)
    seal(OUTPUT)
    with pytest.raises(CorruptArtifactError, match=r"0000_web.indices.npy has sequence 4, which is not what"):
        explain(Selection.open(OUTPUT), [5])


def test_too_many_indices() -> None:
    assert "152 bytes, expected 2 values of int64 in 144 bytes" in tampered([0, 1, 3])


def test_another_threshold_than_that_of_the_indices() -> None:
    sample(TEACHER, REFERENCE, OUTPUT)
    summary = json.loads((OUTPUT / "selection.json").read_text())
    summary["thresholds"][0]["sequence"] = 5
    (OUTPUT / "selection.json").write_text(json.dumps(summary))
    seal(OUTPUT)
    with pytest.raises(
        CorruptArtifactError, match=r"0002_code.indices.npy has sequence 2, which is not what the scores"
    ):
        explain(Selection.open(OUTPUT), [0])


@pytest.mark.parametrize("name", ["thresholds", "from_scores", "seen_by_reference"])
def test_a_summary_that_lacks_something(name: str) -> None:
    sample(TEACHER, REFERENCE, OUTPUT)
    summary = json.loads((OUTPUT / "selection.json").read_text())
    del summary[name]
    (OUTPUT / "selection.json").write_text(json.dumps(summary))
    seal(OUTPUT)
    with pytest.raises(CorruptArtifactError, match=f"selection.json is damaged .*{name}"):
        explain(Selection.open(OUTPUT), [0])


def test_scores_that_have_gone() -> None:
    sample(TEACHER, REFERENCE, OUTPUT)
    REFERENCE.rename("elsewhere")
    with pytest.raises(InputError) as caught:
        explain(Selection.open(OUTPUT), [0])
    assert str(caught.value) == (
        "scores/reference, the reference scores of selection, is not there: bring the directory back"
    )


def test_scores_that_have_changed() -> None:
    sample(TEACHER, REFERENCE, OUTPUT)
    shutil.rmtree(REFERENCE)
    corpora = [IndexedCorpus.open(Path("data") / name) for name in PREFIXES]
    write_scores(REFERENCE, corpora, [9.0, *REFERENCE_NLL[1:]])
    with pytest.raises(FingerprintMismatchError, match=rf"was made from reference scores \[.*{REFERENCE} is now \["):
        explain(Selection.open(OUTPUT), [0])


def test_a_manifest_that_names_no_scores() -> None:
    sample(TEACHER, REFERENCE, OUTPUT)
    manifest = json.loads((OUTPUT / "manifest.json").read_text())
    manifest["inputs"] = []
    (OUTPUT / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CorruptArtifactError, match="selection names no scores in its manifest"):
        explain(Selection.open(OUTPUT), [0])
