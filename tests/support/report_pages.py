"""A page as a reader finds it: its tables and texts, parsed by the standard library."""

from dataclasses import dataclass, field
from html.parser import HTMLParser

_VOID = frozenset({"meta", "img", "source", "br", "link", "base", "input"})


@dataclass
class Page(HTMLParser):
    """Parses while it is fed.

    Attributes:
        tables: rows of cells by section.
        texts: what stands in `pre`, in order.
        elements: every element's name, and its attributes.
        unclosed: elements that are open at the end.
    """

    source: str
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    words: dict[str, str] = field(default_factory=dict)
    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    unclosed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._section = ""
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.unclosed.append(tag)
        if tag == "section":
            self._section = dict(attrs)["id"] or ""
        elif tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        elif tag in ("td", "th"):
            self.tables[self._section][-1].append("")
        elif tag == "pre":
            self.texts.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed.pop() == tag
        if tag == "section":
            self._section = ""

    def handle_data(self, data: str) -> None:
        self.words[self._section] = self.words.get(self._section, "") + data
        if "td" in self.unclosed or "th" in self.unclosed:
            self.tables[self._section][-1][-1] += data
        if "pre" in self.unclosed:
            self.texts[-1] += data
