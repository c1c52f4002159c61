"""Each template with hostile values; test_report.py has whole pages."""

import base64
import hashlib
import html
import re
from typing import Any

import pytest
from report_pages import Page
from reported_corpora import ATTACKS, Scored

from megatron_miniplm.reports.plots import Plot
from megatron_miniplm.reports.report import Cell, Table, count, decimal, share, template, write_report
from megatron_miniplm.selection.difference import Measure
from megatron_miniplm.selection.rule import Rule

HOSTILE = [*ATTACKS, "a\0b\x1b[31m\x7f\rc", "\ud800"]
MACROS: Any = template("macros.html").module


@pytest.mark.parametrize("attack", HOSTILE)
def test_what_comes_from_the_data_stays_text(attack: str) -> None:
    table = Table(columns=[attack], rows=[[attack], [Cell(attack, 1)]], last=[attack], is_sortable=True)
    source = f'<section id="a">{MACROS.table(table)}</section>'
    page = Page(source)
    assert {tag for tag, _ in page.elements} == {
        *("section", "div", "table", "thead", "tbody", "tfoot", "tr", "th", "td", "button", "bdi")
    }
    assert page.unclosed == []
    if attack in ATTACKS:
        assert page.tables["a"] == [[attack]] * 4
    assert not {"\0", "\x1b", "\x7f", "\r"} & set(source)
    source.encode()  # lone surrogates are gone


def test_control_characters_are_shown() -> None:
    assert str(MACROS.name("a\0b\x1bc\x7f\rd\ud800\t")) == "<bdi>a\u2400b\u241bc\u2421d\ufffd\t</bdi>"


@pytest.mark.parametrize("attack", HOSTILE)
def test_attributes_are_escaped(attack: str) -> None:
    page = Page(f"<section id='a'>{MACROS.picture(Plot(name='a', title=attack, light=b'', dark=b''))}</section>")
    (attributes,) = (attributes for tag, attributes in page.elements if tag == "img")
    assert attributes.keys() == {"alt", "src"}
    assert attributes["src"] == "data:image/png;base64,"
    if attack in ATTACKS:
        assert attributes["alt"] == attack


def test_the_title_of_a_page_is_escaped(scored: Scored) -> None:
    selection = scored.select('"><script>x<script>', ratio=0.5)
    write_report(selection, scored.directory / "report")
    page = Page((scored.directory / "report" / "report.html").read_text())
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert page.words[""].count('Report of "><script>x<script>') == 2


def test_the_policy_allows_the_one_script_by_its_hash(scored: Scored) -> None:
    write_report(scored.select(ratio=0.5), scored.directory / "report")
    source = (scored.directory / "report" / "report.html").read_text()
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', source)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; ")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "addEventListener" in script
    assert "<!--" not in script


def test_long_names_are_cut_in_the_middle() -> None:
    assert str(MACROS.name("a" * 300 + "b" * 300)) == f"<bdi>{'a' * 100}…{'b' * 100}</bdi>"
    assert str(MACROS.name("<" * 300)) == f"<bdi>{'&lt;' * 100}…{'&lt;' * 100}</bdi>"


def test_cells() -> None:
    assert count(1234567) == Cell("1,234,567", 1234567)
    assert share(1, 3).text == "33.3%"
    assert share(0, 0).text == ""
    assert decimal(-1.5).text == "\N{MINUS SIGN}1.5000"
    assert decimal(None).text == "none"


DOMAINS = tuple(f"<{number}>" for number in range(12))


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            Rule(target_tokens=12345, weights="rank", repeat=True),
            "Kept are 12,345 tokens with the greatest reference − teacher, in nats a token. Weights are rank, "
            "at most 10, and views repeat sequences by weight.",
        ),
        (
            Rule(target_tokens=12345, per_domain=True),
            "Kept are 12,345 tokens, shared among the domains with the greatest reference − teacher, in nats a token.",
        ),
        (
            Rule(ratio=0.125, ratio_of="tokens", keep_domains=DOMAINS),
            "Kept are the 12.5 % of the tokens with the greatest reference − teacher, in nats a token. "
            "Only these domains take part: <0>, <1>, <2>, <3>, <4>, <5>, <6>, <7>, <8>, <9> and 2 more.",
        ),
        (
            Rule(
                threshold=-0.5,
                measure=Measure(reduction="sum"),
                drop_domains=("a&b",),
                min_tokens=1000,
                drop_negative=True,
                weights="softmax",
                weight_temperature=0.5,
                weight_cap=3.5,
            ),
            "Kept is every sequence with a reference − teacher of at least -0.5 nats. Sequences of fewer than 1,000 "
            "tokens take no part; these domains take no part: a&b; negative differences are dropped, whatever the "
            "ratio. Weights are softmax of temperature 0.5, at most 3.5.",
        ),
        (
            Rule(ratio=0.5, sampling="gumbel", temperature=0.2, seed=7, measure=Measure(expression="-teacher")),
            "Kept are the 50 % of the sequences, sampled in proportion to exp((-teacher) / 0.2) with seed 7, "
            "in nats a token.",
        ),
    ],
    ids=["weights", "domains", "kept domains", "dropped domains", "sample"],
)
def test_a_rule_in_words(rule: Rule, words: str) -> None:
    unit = {"mean": "nats a token", "sum": "nats"}[rule.measure.reduction]
    markup = str(MACROS.in_words(rule, unit))
    assert html.unescape(markup) == words
    assert "<" not in markup
