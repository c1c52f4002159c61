"""HTML, with everything from the data escaped.

Texts, ids, domains and paths are whatever the crawl has brought: they go through `text` or `attribute`, never into a
script or a style. The policy in the head lets one script run, by its hash, and loads nothing from anywhere.
"""

import base64
import hashlib
import html
from collections.abc import Sequence
from dataclasses import dataclass

#: Longer names are cut in the middle.
_MAX_NAME_CHARACTERS = 200
#: Control characters are shown as pictures of them: in a page they are errors, or hide what stands there.
_VISIBLE = {code: 0x2400 + code for code in range(32) if code not in (9, 10, 13)} | {13: None, 127: 0x2421}
_VISIBLE |= dict.fromkeys(range(0xD800, 0xE000), 0xFFFD)


def text(value: object) -> str:
    """Anything as text of a page, quotes escaped too."""
    return html.escape(str(value).translate(_VISIBLE), quote=True)


attribute = text  # between double quotes


def name(value: str) -> str:
    """A name from the data: on one line, cut if it is long, whole when pointed at, and set apart from what is around.

    `bdi` keeps its direction of writing to itself.
    """
    if len(value) <= _MAX_NAME_CHARACTERS:
        return f"<bdi>{text(value)}</bdi>"
    half = _MAX_NAME_CHARACTERS // 2
    return f"<bdi>{text(value[:half])}…{text(value[-half:])}</bdi>"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell of a table.

    Attributes:
        markup: HTML, escaped.
        number: by which it sorts; None sorts by its text.
    """

    markup: str
    number: float | None = None


def count(value: int) -> Cell:
    return Cell(markup=f"{value:,}", number=int(value))


def share(part: float, whole: float) -> Cell:
    """A percentage; empty of nothing."""
    return Cell(markup=f"{part / whole:.1%}" if whole else "", number=float(part / whole) if whole else -1)


def decimal(value: float | None, digits: int = 4) -> Cell:
    if value is None:
        return Cell(markup="none", number=float("-inf"))
    return Cell(markup=f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}"), number=float(value))


def words(value: str) -> Cell:
    return Cell(markup=name(value))


def table(
    columns: Sequence[str], rows: Sequence[Sequence[Cell]], *, sortable: bool = False, last: Sequence[Cell] = ()
) -> str:
    """A table that scrolls; numbers are aligned to the right.

    Args:
        columns: headings.
        sortable: by a click on a heading.
        last: a row that stays at the end.
    """
    first_row = rows[0] if rows else last
    is_number = [cell.number is not None for cell in first_row] or [False] * len(columns)
    heads = []
    for column, numeric in zip(columns, is_number, strict=True):
        inner = f'<button type="button">{text(column)}</button>' if sortable else text(column)
        heads.append(f'<th scope="col"{_class("number", numeric)}>{inner}</th>')
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    foot = f"<tfoot><tr>{''.join(map(_cell, last))}</tr></tfoot>" if last else ""
    return (
        f'<div class="scroll" tabindex="0"><table{_class("sortable", sortable)}>'
        f"<thead><tr>{''.join(heads)}</tr></thead>"
        f"<tbody>\n{body}\n</tbody>{foot}</table></div>"
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values one below the other; the values are HTML."""
    return "<dl>" + "".join(f"<dt>{text(key)}</dt><dd>{value}</dd>" for key, value in pairs) + "</dl>"


def picture(title: str, light: bytes, dark: bytes, caption: str = "") -> str:
    """A PNG for light pages, and one for dark pages."""
    below = f"<figcaption>{text(caption)}</figcaption>" if caption else ""
    return (
        f'<figure><picture><source media="(prefers-color-scheme: dark)" srcset="{_data_uri(dark)}">'
        f'<img alt="{attribute(title)}" src="{_data_uri(light)}"></picture>{below}</figure>'
    )


def page(title: str, sections: Sequence[tuple[str, str, str]], head: str) -> str:
    """The whole document.

    Args:
        sections: anchor, heading and HTML of each.
        head: HTML before the table of contents.
    """
    links = "".join(f'<li><a href="#{attribute(anchor)}">{text(heading)}</a></li>' for anchor, heading, _ in sections)
    body = "\n".join(
        f'<section id="{attribute(anchor)}"><h2>{text(heading)}</h2>\n{markup}\n</section>'
        for anchor, heading, markup in sections
    )
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<nav aria-label="Contents"><ul>{links}</ul></nav>
<main>
<h1>{text(title)}</h1>
{head}
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _cell(cell: Cell) -> str:
    if cell.number is None:
        return f"<td>{cell.markup}</td>"
    return f'<td class="number" data-number="{cell.number!r}">{cell.markup}</td>'


def _class(value: str, wanted: bool) -> str:
    return f' class="{value}"' if wanted else ""


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


STYLE = """
:root { --ground: #ffffff; --panel: #f6f8fa; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --accent: #0969da;
  --kept: #1a7f37; --dropped: #9a6700; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #0d1117; --panel: #161b22; --ink: #d1d7de; --soft: #8b949e; --line: #30363d; --accent: #58a6ff;
    --kept: #3fb950; --dropped: #d29922; }
}
* { box-sizing: border-box; }
html { scroll-padding-top: 3.2rem; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 1.2rem 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .8rem; padding-bottom: .3rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.6rem 0 .2rem; }
p { max-width: 46rem; margin: .4rem 0 .8rem; }
.soft, figcaption { color: var(--soft); font-size: .9rem; }
a { color: var(--accent); text-decoration: none; }
a:hover { text-decoration: underline; }
nav { position: sticky; top: 0; z-index: 2; background: var(--ground); border-bottom: 1px solid var(--line); }
nav ul { display: flex; gap: 1.3rem; overflow-x: auto; max-width: 76rem; margin: 0 auto; padding: .6rem 1.5rem;
  list-style: none; white-space: nowrap; font-size: .9rem; }
.lead { font-size: 1.1rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: .8rem; margin: 1.2rem 0; }
.numbers div { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.numbers b { display: block; font-size: 1.45rem; font-weight: 600; line-height: 1.25;
  font-variant-numeric: tabular-nums; }
.numbers span { color: var(--soft); font-size: .85rem; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .25rem 1.2rem; margin: .8rem 0;
  font-size: .92rem; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.scroll { overflow: auto; max-height: 32rem; border: 1px solid var(--line); border-radius: .5rem; margin: .6rem 0; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .8rem; text-align: left; border-bottom: 1px solid var(--line); vertical-align: top; }
td { overflow-wrap: anywhere; }
td:first-child:not(.number) { min-width: 13rem; }
tbody tr:last-child td { border-bottom: 0; }
tfoot td { border-top: 1px solid var(--line); border-bottom: 0; color: var(--soft); }
th { position: sticky; top: 0; background: var(--panel); font-weight: 600; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
th button { all: unset; cursor: pointer; }
th button:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
th button::after { content: "\\2195"; color: var(--soft); opacity: .45; margin-left: .35em; }
th[aria-sort="ascending"] button::after { content: "\\2191"; opacity: 1; }
th[aria-sort="descending"] button::after { content: "\\2193"; opacity: 1; }
tbody tr:hover { background: var(--panel); }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 1rem; }
figure { margin: 0; }
figure img { display: block; width: 100%; height: auto; border: 1px solid var(--line); border-radius: .5rem; }
figcaption { margin: .3rem .1rem 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 0 1.4rem;
  align-items: start; }
.pair > div { min-width: 0; }
article { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem; margin: .8rem 0;
  padding: .7rem .9rem; }
article header { display: flex; flex-wrap: wrap; gap: .1rem 1.1rem; font-size: .85rem; color: var(--soft);
  font-variant-numeric: tabular-nums; }
article header b { color: var(--ink); font-weight: 600; }
article .place { font-size: .82rem; color: var(--soft); overflow-wrap: anywhere; }
article pre { margin: .5rem 0 0; max-height: 15rem; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  unicode-bidi: isolate; font: .88rem/1.5 inherit; font-family: inherit; }
.kept { color: var(--kept); } .dropped { color: var(--dropped); }
@media print { nav { display: none; } .scroll, article pre { max-height: none; } article { break-inside: avoid; } }
"""

SCRIPT = """
"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = Array.from(table.tHead.rows[0].cells);
  heads.forEach((head, column) => head.querySelector("button").addEventListener("click", () => {
    const before = head.getAttribute("aria-sort");
    const numeric = head.classList.contains("number");
    const descending = before ? before === "ascending" : numeric;
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const number = (row) => Number(row.cells[column].dataset.number.replace("inf", "Infinity"));
    const compare = numeric
      ? (one, other) => number(one) - number(other) || 0
      : (one, other) => one.cells[column].textContent.localeCompare(other.cells[column].textContent);
    const rows = Array.from(table.tBodies[0].rows).sort((one, other) => compare(one, other) * (descending ? -1 : 1));
    table.tBodies[0].append(...rows);
  }));
}
"""
