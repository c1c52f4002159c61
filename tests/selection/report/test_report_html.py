import base64
import hashlib
import re

import pytest
from pages import Page
from reported_corpora import ATTACKS

from megatron_miniplm.selection.report import html


@pytest.mark.parametrize("attack", [*ATTACKS, "a\0b\x1b[31m\x7f\rc", "\ud800"])
def test_what_comes_from_the_data_stays_text(attack: str) -> None:
    shown = html.text(attack)
    assert not set("<>\"'") & set(shown)
    page = Page(html.page("t", [("a", "A", f"<pre>{shown}</pre>{html.name(attack)}")], ""))
    assert {tag for tag, _ in page.elements} <= {
        *("html", "head", "meta", "title", "style", "body", "nav", "ul", "li", "a", "main", "h1", "h2", "section"),
        *("pre", "bdi", "script"),
    }
    assert page.unclosed == []
    if attack in ATTACKS:
        assert page.texts == [attack]
    page.source.encode()  # lone surrogates are gone


def test_titles_and_attributes_are_escaped() -> None:
    page = Page(html.page('"><script>x</script>', [('"x', "<b>", "")], "") + html.picture('"><b>', b"", b""))
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert ("img", {"alt": '"><b>', "src": "data:image/png;base64,"}) in page.elements


def test_the_policy_allows_the_one_script_by_its_hash() -> None:
    source = html.page("t", [], "")
    (script,) = re.findall(r"<script>(.*?)</script>", source, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', source)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline'; ")
    assert f"script-src 'sha256-{digest}'" in policy
    assert "</script" not in script
    assert "<!--" not in script


def test_long_names_are_cut_in_the_middle() -> None:
    assert html.name("a" * 300 + "b" * 300) == f"<bdi>{'a' * 100}…{'b' * 100}</bdi>"
    assert html.name("<" * 300) == f"<bdi>{'&lt;' * 100}…{'&lt;' * 100}</bdi>"


def test_cells() -> None:
    assert html.count(1234567) == html.Cell(markup="1,234,567", number=1234567)
    assert html.share(1, 3).markup == "33.3%"
    assert html.share(0, 0).markup == ""
    assert html.decimal(-1.5).markup == "\N{MINUS SIGN}1.5000"
    assert html.decimal(None).markup == "none"
