"""The page, against numbers that are computed without the code under test."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from megatron_runs import write_corpus
from report_pages import Page
from reported_corpora import ATTACKS, HOSTILE_SOURCE, Scored
from score_stores import write_scores

from megatron_miniplm.artifacts.scores import PREDICTED_DIFFERENCE
from megatron_miniplm.cli import main
from megatron_miniplm.errors import FingerprintMismatchError, InputError
from megatron_miniplm.indexed import IndexedCorpus, write_view
from megatron_miniplm.reports.origins import MAX_CHARACTERS, Excerpt
from megatron_miniplm.reports.provenance import passages_of
from megatron_miniplm.reports.report import MAX_EXAMPLES, MAX_ROWS, template, write_report
from megatron_miniplm.reports.tally import Example
from megatron_miniplm.selection.difference import Measure
from megatron_miniplm.selection.rule import Rule
from megatron_miniplm.selection.sampling import difference_sample
from megatron_miniplm.selection.scored_corpus import PREDICTIONS, REFERENCE, TEACHER

PNG = b"\x89PNG\r\n\x1a\n"


def page_of(selection: Path, **options: Any) -> Page:
    write_report(selection, selection.parent / "report", **options)
    return Page((selection.parent / "report" / "report.html").read_text(encoding="utf-8"))


def numbers(cells: list[str]) -> list[float]:
    """Counts and shares; `1,234` and `5.6%`."""
    cleaned = [cell.replace(",", "").replace("\N{MINUS SIGN}", "-") for cell in cells]
    return [float(cell.rstrip("%")) / (100 if cell.endswith("%") else 1) for cell in cleaned]


def expected_counts(scored: Scored, kept_N: np.ndarray, is_in_N: np.ndarray) -> list[Any]:
    sequences, kept = is_in_N.sum(), (is_in_N & kept_N).sum()
    tokens, kept_tokens = scored.length_N[is_in_N].sum(), scored.length_N[is_in_N & kept_N].sum()
    share = [part / whole for part, whole in ((kept, sequences), (kept_tokens, tokens))]
    return [
        *(sequences, kept, pytest.approx(share[0], abs=6e-4)),
        *(tokens, kept_tokens, pytest.approx(share[1], abs=6e-4)),
    ]


def test_tables_by_prefix_and_length(scored: Scored) -> None:
    selection = scored.select(ratio=0.5)
    page, kept_N, value_N = page_of(selection), scored.kept(selection), scored.difference_N
    _, web, none, books = page.tables["prefixes"]
    known_N = np.isfinite(value_N)
    for row, prefix in ((web, 0), (books, 2)):
        is_in_N = scored.prefix_N == prefix
        means = [value_N[is_in_N & known_N].mean(), value_N[is_in_N & known_N & kept_N].mean()]
        expected = [*expected_counts(scored, kept_N, is_in_N), *(pytest.approx(mean, abs=6e-5) for mean in means)]
        assert numbers(row[1:]) == expected
    assert none == ["none", "0", "0", "", "0", "0", "", "none", "none"]
    for low, *row in page.tables["lengths"][1:]:
        lowest, highest = (re.findall(r"[\d,]+", low) * 2)[:2]
        is_in_N = (scored.length_N >= int(lowest.replace(",", ""))) & (scored.length_N <= int(highest.replace(",", "")))
        if lowest != "0":
            assert numbers(row) == expected_counts(scored, kept_N, is_in_N)


def test_the_head(scored: Scored) -> None:
    selection = scored.select(ratio=0.5)
    words, kept_N, value_N = page_of(selection).words[""], scored.kept(selection), scored.difference_N
    known_N = np.isfinite(value_N)
    assert "the 50 % of the sequences with the greatest reference \N{MINUS SIGN} teacher, in nats a token" in words
    assert f"{kept_N.sum():,}sequences kept, 50.0% of {len(kept_N):,}" in words
    assert f"{scored.length_N[kept_N].sum():,}tokens kept" in words
    assert f"{value_N[kept_N].min():.4f}threshold" in words
    assert f"{value_N[known_N].mean():.4f} of all, {value_N[kept_N & known_N].mean():.4f} of the kept" in words
    assert f"{(value_N[known_N] < 0).mean():.1%}negative differences (the paper: 6.3%)" in words


def test_other_ratios(scored: Scored) -> None:
    page = page_of(scored.select(ratio=0.5))
    value_S = np.sort(scored.difference_N)[::-1]
    (width,) = (float(found) for found in re.findall(r"65,536 bins of (\S+) nats a token", page.words["what-if"]))
    for ratio, threshold, kept, _, mean, negative in map(numbers, page.tables["what-if"][1:]):
        num_kept = int(ratio * len(value_S))
        assert kept == num_kept
        assert threshold == pytest.approx(value_S[num_kept - 1], abs=1.1 * width + 6e-5)
        assert mean == pytest.approx(value_S[:num_kept].mean(), abs=1.1 * width + 6e-5)
        assert negative == pytest.approx((value_S[:num_kept] < 0).mean(), abs=2e-3)


def test_overlaps(scored: Scored) -> None:
    one, other = scored.select(ratio=0.5), scored.select("other", ratio=0.3)
    page = page_of(one, compared=[other])
    _, sequences, tokens = page.tables["overlap"]
    num_other, num_one = scored.kept(other).sum(), scored.kept(one).sum()
    assert numbers(sequences[2:]) == [
        *(num_other, num_other, pytest.approx(num_other / num_one, abs=6e-4), 1),
        pytest.approx(num_other / num_one, abs=6e-4),
    ]
    assert numbers(tokens[2:4]) == [scored.length_N[scored.kept(other)].sum()] * 2


def test_another_corpus_is_not_compared(scored: Scored, tmp_path: Path) -> None:
    one = scored.select(ratio=0.5)
    corpus = write_corpus(tmp_path / "other" / "web", [[1, 2, 3], [4, 5]])
    scores = {
        role: write_scores(tmp_path / "other" / role.split()[0], [corpus], nll).directory
        for role, nll in ((TEACHER, [1, 2]), (REFERENCE, [3, 4]))
    }
    other = scored.select("elsewhere", scores, ratio=0.5)
    with pytest.raises(InputError, match=r"elsewhere of web \[\w{8}\]: compare selections of the same prefixes"):
        write_report(one, tmp_path / "report", compared=[other])
    assert not (tmp_path / "report").exists()


def test_domains_and_sources_of_a_crawl(crawl: Scored) -> None:
    selection = crawl.select(ratio=0.5)
    page, kept_N = page_of(selection), crawl.kept(selection)
    rows = {row[0]: row[1:] for row in page.tables["domains"][1:]}
    number_N = np.append(np.tile(np.arange(60), 2), np.full(30, -1))
    for attack in range(len(ATTACKS)):
        is_in_N = (number_N % len(ATTACKS) == attack) & (number_N % 3 != 0) & (number_N >= 0)
        assert numbers(rows.pop(ATTACKS[attack])) == expected_counts(crawl, kept_N, is_in_N)
    is_in_N = (number_N % 3 == 0) & (crawl.prefix_N == 1)
    assert numbers(rows.pop("domain 1")) == expected_counts(crawl, kept_N, is_in_N)
    assert list(rows) == ["domain 0"]
    sources = {Path(row[0]).name: row[1:] for row in page.tables["sources"][1:]}
    assert sources.keys() == {HOSTILE_SOURCE, "plain.jsonl"}
    assert numbers(sources[HOSTILE_SOURCE]) == expected_counts(crawl, kept_N, crawl.prefix_N == 0)
    assert "not counted here: bare" in page.words["sources"]


def test_domains_of_a_view(crawl: Scored, tmp_path: Path) -> None:
    """Sequences of a view are some of those that the sidecar describes."""
    places_K = np.arange(1, 60, 4)
    view = IndexedCorpus.open(write_view(crawl.corpora[0], places_K, tmp_path / "views", label="part", settings={}))
    nll_K = crawl.teacher_N[places_K]
    scores = {
        role: write_scores(tmp_path / role.split()[0], [view], (nll_K * factor).tolist()).directory
        for role, factor in ((TEACHER, 1), (REFERENCE, 1 + places_K % 7))
    }
    scored = Scored(
        directory=tmp_path,
        corpora=[view],
        teacher_N=nll_K,
        reference_N=nll_K * (1 + places_K % 7),
        length_N=view.lengths_N,
    )
    selection = scored.select("selection", scores, ratio=0.5)
    page, kept_N = page_of(selection), scored.kept(selection)
    (source,) = page.tables["sources"][1:]
    assert numbers(source[1:]) == expected_counts(scored, kept_N, np.ones(len(kept_N), bool))
    rows = {row[0]: row[1:] for row in page.tables["domains"][1:]}
    assert numbers(rows["domain 0"]) == expected_counts(scored, kept_N, places_K % 3 == 0)


def test_chunks_that_hold_several_documents(crawl: Scored, tmp_path: Path) -> None:
    """A chunk counts once in each source, its tokens in the source of their document."""
    flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(crawl.directory / "bpe")]
    flags += [
        "--append-eod",
        "--id-key",
        "id",
        "--domain-key",
        "domain",
        "--sequence",
        "chunk",
        "--chunk-length",
        "256",
    ]
    sources = []
    for number in range(2):
        sources.append(tmp_path / f"{number}.jsonl")
        lines = [{"text": f"document {line}", "id": line, "domain": f"domain {number}"} for line in range(100)]
        sources[-1].write_text("".join(json.dumps(line) + "\n" for line in lines))
    prefix = str(tmp_path / "chunks")
    assert main(["preprocess-data", "--input", *map(str, sources), "--output-prefix", prefix, *flags]) == 0
    corpus = IndexedCorpus.open(f"{prefix}_text_chunk")
    nll_N = np.random.default_rng(0).normal(size=len(corpus))
    scores = {
        TEACHER: write_scores(tmp_path / "teacher", [corpus], np.zeros(len(corpus)).tolist()).directory,
        REFERENCE: write_scores(tmp_path / "reference", [corpus], nll_N.tolist()).directory,
    }
    scored = Scored(directory=tmp_path, corpora=[corpus], teacher_N=nll_N, reference_N=nll_N, length_N=corpus.lengths_N)
    selection = scored.select("selection", scores, ratio=0.5)
    page, kept_N = page_of(selection), scored.kept(selection)
    tokens = np.zeros((2, len(corpus)), np.int64)
    for sequence in range(len(corpus)):
        for passage in passages_of(corpus, sequence):
            tokens[int(Path(passage.source).stem), sequence] += passage.num_tokens
    for section in ("sources", "domains"):
        rows = sorted(page.tables[section][1:], key=lambda row: row[0])
        for row, tokens_N in zip(rows, tokens, strict=True):
            counts = numbers(row[1:])
            assert counts[:2] == [(tokens_N > 0).sum(), (kept_N & (tokens_N > 0)).sum()]
            assert counts[3:5] == [tokens_N.sum(), tokens_N[kept_N].sum()]
    assert (tokens > 0).all(axis=0).sum() <= 1
    assert len(corpus) < 50


def test_hostile_text_stays_text(crawl: Scored) -> None:
    page = page_of(crawl.select(ratio=0.5), num_examples=30)
    shown = "\n".join(page.texts)
    for attack in ATTACKS:
        assert attack in shown
    assert page.unclosed == []
    names = {tag for tag, _ in page.elements}
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not names & {"svg", "base", "link", "iframe", "object", "form"}
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on")]
        if tag == "img":
            assert str(attributes["src"]).startswith("data:image/png;base64,")
        if tag == "a":
            assert str(attributes["href"]).startswith("#")
        if tag == "meta":
            assert attributes.get("http-equiv") in (None, "Content-Security-Policy")
    # every http address that stands in the page is text
    assert not re.search(r"(?:src|href|srcset|url)\W{1,3}https?:", page.source)


def test_what_a_card_says(crawl: Scored) -> None:
    words = page_of(crawl.select(ratio=0.5)).words["examples"]
    assert re.search(r"sequence \d+ of first_text_document · domain .* · id .* · .*&lt;\.jsonl:\d+", words)


def test_texts_are_decoded_where_there_is_no_sidecar(crawl: Scored) -> None:
    selection = crawl.select(ratio=1.0, name="all")
    page = page_of(selection, num_examples=50)
    assert "bare · token ids" in page.words["examples"]
    flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(crawl.directory / "bpe")]
    output = crawl.directory / "decoded"
    assert main(["report", str(selection), "--output", str(output), "--examples", "50", *flags]) == 0
    assert "bare</bdi> · decoded from the tokens" in (output / "report.html").read_text()


def test_original_texts_that_are_gone(crawl: Scored, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = crawl.select(ratio=0.5)
    source = crawl.directory / "plain.jsonl"
    hidden = source.rename(source.with_suffix(".hidden"))
    try:
        assert "second_text_document · token ids" in page_of(selection).words["examples"]
    finally:
        hidden.rename(source)


@pytest.mark.parametrize(
    ("settings", "plots"),
    [
        ({"measure": Measure(reduction="sum"), "ratio": 0.5, "ratio_of": "tokens"}, 4),
        ({"measure": Measure(reduction="bits-per-byte"), "threshold": 0.1}, 4),
        ({"measure": Measure(expression="-teacher"), "ratio": 0.5, "weights": "softmax"}, 2),
        ({"measure": Measure(expression="reference / (1 + tokens)"), "target_tokens": 900}, 2),
        ({"ratio": 0.5, "per_domain": True}, 4),
        ({"ratio": 0.5, "drop_domains": ("domain 0",), "min_tokens": 10, "drop_negative": True}, 4),
        ({"ratio": 0.5, "sampling": "gumbel"}, 4),
    ],
    ids=str,
)
def test_selections_of_every_kind(
    crawl: Scored, tmp_path: Path, request: pytest.FixtureRequest, settings: dict[str, Any], plots: int
) -> None:
    measure = settings.get("measure", Measure())
    roles = {TEACHER: "teacher", REFERENCE: "reference"}
    scores = {role: path for role, path in crawl.scores.items() if roles[role] in measure.names}
    # bits a byte and domains are known of what has a sidecar
    if measure.reduction == "bits-per-byte" or settings.keys() & {"per_domain", "drop_domains"}:
        corpora, num_sequences = crawl.corpora[:2], len(crawl.length_N) - 30
        for role, nll_N in ((TEACHER, crawl.teacher_N), (REFERENCE, crawl.reference_N)):
            store = write_scores(tmp_path / roles[role], corpora, nll_N[:num_sequences].tolist())
            scores[role] = store.directory
    selection = crawl.select(f"kind{abs(hash(str(settings)))}", scores, **settings)
    write_report(selection, tmp_path / "report")
    page = Page((tmp_path / "report" / "report.html").read_text())
    pictures = sorted(path.name for path in (tmp_path / "report").glob("*"))
    assert len(pictures) == plots + 1
    assert sum(tag == "img" for tag, _ in page.elements) == plots
    for path in (tmp_path / "report").glob("*.png"):
        assert path.read_bytes().startswith(PNG)
    if settings.get("per_domain"):
        assert page.tables["domains"][0][-1] == "threshold"


def test_predicted_differences(tmp_path: Path, scored: Scored) -> None:
    predicted = write_scores(
        tmp_path / "predicted",
        scored.corpora,
        (scored.reference_N - scored.teacher_N).tolist(),
        settings={"quantity": PREDICTED_DIFFERENCE},
    )
    selection = scored.select("predicted_selection", {PREDICTIONS: predicted.directory}, ratio=0.5)
    page = page_of(selection)
    assert sum(tag == "img" for tag, _ in page.elements) == 1
    assert "teacher" not in page.words["examples"]


def test_nothing_is_kept(scored: Scored) -> None:
    page = page_of(scored.select(threshold=1e6))
    assert [row[2] for row in page.tables["prefixes"]] == ["kept", "0", "0", "0"]
    assert "Most gainedKept, with the greatest difference.None." in page.words["examples"]


def test_the_same_command_writes_the_same_bytes(scored: Scored, tmp_path: Path) -> None:
    selection = scored.select(ratio=0.5)
    for name in ("one", "two", "two"):
        write_report(selection, tmp_path / name)
    found = [{path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("one", "two")]
    assert found[0] == found[1]
    assert found[0].keys() == {"report.html", "values.png", "teacher_nll.png", "reference_nll.png", "joint.png"}


def test_many_prefixes_share_a_line(tmp_path: Path) -> None:
    corpora = [write_corpus(tmp_path / "data" / f"p{number}", [[1, 2, 3]]) for number in range(205)]
    nll = np.random.default_rng(0).normal(size=205)
    scores = {
        TEACHER: write_scores(tmp_path / "teacher", corpora, np.zeros(205).tolist()).directory,
        REFERENCE: write_scores(tmp_path / "reference", corpora, nll.tolist()).directory,
    }
    scored = Scored(directory=tmp_path, corpora=corpora, teacher_N=nll, reference_N=nll, length_N=np.full(205, 3))
    page = page_of(scored.select("selection", scores, ratio=0.5))
    assert len(page.tables["prefixes"]) == 202
    assert page.tables["prefixes"][-1][:2] == ["5 more", "5"]


def test_scores_that_have_changed(scored: Scored) -> None:
    selection = scored.select(ratio=0.5)
    for path in (scored.directory / "teacher").rglob("*"):
        if path.is_file():
            path.unlink()
    write_scores(scored.directory / "teacher", scored.corpora, (scored.teacher_N * 2).tolist(), block_sequences=64)
    with pytest.raises(FingerprintMismatchError, match=r"was made from teacher scores \[\w{8}\], but .*teacher is now"):
        page_of(selection)


def test_what_cannot_be_reported(scored: Scored, tmp_path: Path) -> None:
    selection = scored.select(ratio=0.5)
    with pytest.raises(InputError, match=r"--examples 51 must lie between 0 and 50"):
        page_of(selection, num_examples=51)
    with pytest.raises(InputError, match=r"holds an artifact with a manifest: give the report another --output"):
        write_report(selection, selection)
    (scored.directory / "teacher").rename(scored.directory / "moved")
    with pytest.raises(InputError, match=r"teacher, the teacher scores of .*, is not there: bring the directory back"):
        page_of(selection)


def test_a_page_of_the_worst_data_is_not_too_large() -> None:
    hostile = '"' * 5000
    example = Example(sequence=0, value=1.0, teacher=1.0, reference=2.0, num_tokens=9, is_kept=True)
    excerpt = Excerpt(
        example=example,
        prefix=hostile,
        index=0,
        text=hostile[:MAX_CHARACTERS],
        is_cut=True,
        places=(hostile,) * 9,
        domain=hostile,
        id=hostile,
    )
    rows_bytes, plots_bytes = 3 * MAX_ROWS * 2000, 600_000
    card = str(template("macros.html").module.card(excerpt, "difference"))
    assert 4 * MAX_EXAMPLES * len(card.encode()) + rows_bytes + plots_bytes < 5_000_000


def test_what_the_reference_has_seen_takes_no_part(scored: Scored, tmp_path: Path) -> None:
    web = scored.corpora[0]
    seen_K = np.flatnonzero(web.lengths_N > 0)[:500]
    seen = write_view(web, seen_K, tmp_path / "seen", label="seen", settings={})
    selection = tmp_path / "selection"
    rule = Rule(ratio=0.5)
    difference_sample(scored.scores, selection, rule, seen_by_reference="exclude", reference_data=[seen])
    tally = write_report(selection, tmp_path / "report")
    assert tally.num_eligible == len(scored.length_N) - 500
    assert tally.prefixes.kept_sequences.sum() == tally.num_eligible // 2
    dropped = [one.sequence for one in tally.examples["just dropped"]]
    assert not set(dropped) & set(seen_K.tolist())
