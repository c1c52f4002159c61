"""The page in a real browser: attacks stay text, headings sort, plots are seen."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from reported_corpora import ATTACKS, Scored
from webdriver import Browser, needs_browser, started_browser

from megatron_miniplm.reports.report import write_report

pytestmark = needs_browser


@pytest.fixture(scope="module")
def page(crawl: Scored) -> Path:
    write_report(crawl.select("in_browser", ratio=0.5), crawl.directory / "in_browser_report", num_examples=30)
    return crawl.directory / "in_browser_report" / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with started_browser(tmp_path_factory.mktemp("browser")) as browser:
        yield browser


def column(browser: Browser, section: str, place: int) -> list[str]:
    cells = f"document.querySelectorAll('#{section} tbody td:nth-child({place})')"
    return browser.run(f"return Array.from({cells}, cell => cell.textContent)")


def test_attacks_do_not_run(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("return [document.title, typeof window.owned]") == ["Report of in_browser", "undefined"]
    texts = "\n".join(browser.run("return Array.from(document.querySelectorAll('pre'), one => one.textContent)"))
    names = column(browser, "domains", 1)
    for attack in ATTACKS:
        assert attack in texts
        assert attack in names
    for selector, expected in (("script", 1), ("svg, base, iframe, [onerror], [onload]", 0), ("meta[http-equiv]", 1)):
        assert browser.run(f"return document.querySelectorAll('{selector}').length") == expected


def test_what_is_injected_all_the_same_is_stopped_by_the_policy(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run(
        "const script = document.createElement('script'); script.textContent = 'window.owned = 9';"
        "document.body.append(script); document.body.insertAdjacentHTML('beforeend',"
        '\'<img src="data:image/png;base64,x" onerror="window.owned = 10"><b onclick="window.owned = 11">b</b>\');'
        "document.body.lastElementChild.click()"
    )
    assert browser.run("return typeof window.owned") == "undefined"


def test_a_click_on_a_heading_sorts(browser: Browser, page: Path) -> None:
    browser.open(page)
    for section in ("domains", "sources"):
        tokens = f"#{section} th:nth-child(5) button"
        before = column(browser, section, 5)
        numbers = [int(cell.replace(",", "")) for cell in before]
        for expected in (sorted(numbers, reverse=True), sorted(numbers)):
            browser.click(tokens)
            assert [int(cell.replace(",", "")) for cell in column(browser, section, 5)] == expected
        browser.click(f"#{section} th:nth-child(1) button")
        names = column(browser, section, 1)
        assert browser.run(f"return {names!r}.toSorted((a, b) => a.localeCompare(b))") == names
        assert sorted(column(browser, section, 5)) == sorted(before)
        assert browser.run(f"return document.querySelectorAll('#{section} th[aria-sort]').length") == 1


def test_the_plots_are_seen(browser: Browser, page: Path, tmp_path: Path) -> None:
    import matplotlib.image

    browser.open(page)
    widths = browser.run("return Array.from(document.images, one => one.complete && one.naturalWidth)")
    assert len(widths) == 4
    assert min(widths) > 500
    browser.screenshot(tmp_path / "page.png")
    picture = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    box = browser.run(
        "const box = document.images[0].getBoundingClientRect(); return [box.x, box.y, box.right, box.bottom]"
    )
    left, top, right, bottom = (int(edge) for edge in box)
    plot = picture[top:bottom, left:right].reshape(-1, 3)
    assert len(np.unique(plot, axis=0)) > 50
    # the bars of what is kept
    assert (np.abs(plot - np.array([0x1F, 0x6F, 0xEB]) / 255).max(axis=1) < 0.05).mean() > 0.005


def test_nothing_is_loaded_from_elsewhere(browser: Browser, page: Path) -> None:
    browser.open(page)
    names = browser.run("return performance.getEntriesByType('resource').map(one => one.name)")
    assert [name for name in names if not name.startswith("data:")] == []
