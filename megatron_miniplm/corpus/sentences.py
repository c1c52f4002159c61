"""Where a text may be cut: between sentences and paragraphs, failing that between lines.

Sentences end where Punkt says so (Kiss and Strunk 2006, as implemented by NLTK), at the full stops of scripts that have
one of their own, and at blank lines. A text is never read as a whole: callers hand over a few hundred characters near
the place of a cut, and get the places to cut at one by one, from the last to the first.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from megatron_miniplm.artifacts import Fingerprint, digest_values
from megatron_miniplm.artifacts.atomic import write_text
from megatron_miniplm.errors import InputError

TRAINING_CHARACTERS = 1 << 20  # about two and a half seconds
TRAINING_CHARACTERS_PER_TEXT = 1 << 13  # so that one long document is not the whole of what is learnt
CONTEXT_CHARACTERS = 64  # on either side of a stop: the longest word that is shown to Punkt

#: Stops of scripts whose sentences end at them whatever follows (of Unicode's Sentence_Terminal).
_FULL_STOPS = "。｡！？؟۔।॥።፧។៕။։။᠃᠉།༎"
_CLOSERS = r"\"'`*_)\]}”’»›」』）】》〉〕］｝｠〗〙"
# Each pattern starts with one character or set, which `re` searches for without trying the rest, and is possessive, so
# that no run of dots, quotes or white space makes a search quadratic.
_STOP = re.compile(rf"[.!?…](?<![.!?…][.!?…])([.!?…]*+)([{_CLOSERS}]*+)\s++(?=\S)")
_FULL_STOP = re.compile(rf"[{_FULL_STOPS}][{_FULL_STOPS}.!?…]*+[{_CLOSERS}]*+\s*+")
_BLANK_LINE = re.compile(r"\n[^\S\n]*+\n\s*+")
_NEWLINE = re.compile(r"\n\s*+")
_ENUMERATOR = re.compile(r"\d{1,3}(?:\.\d{1,3})*|[^\W\d_]|[ivxIVX]{2,5}")

# The files of a model in NLTK's punkt_tab format, by the field they hold; a line an entry, tabs between its parts.
_FILES = {
    "abbreviations": "abbrev_types.txt",
    "collocations": "collocations.tab",
    "starters": "sent_starters.txt",
    "orthography": "ortho_context.tab",
}


class Gap(NamedTuple):
    """What lies between two sentences or lines: a text may be cut at any of the characters in [start, stop].

    The start follows the stop and the quotes and brackets that close after it; the stop is the next word, or the
    beginning of its line if there is a line between.
    """

    start: int
    stop: int


class _OrthographicContexts(dict[str, int]):
    """Punkt's table of how words are written, without the growth of a defaultdict at each word that is looked up."""

    def __missing__(self, word: str) -> int:
        return 0


@dataclass(frozen=True, kw_only=True)
class SentenceModel:
    """What Punkt has learnt of a language, and its decisions. Words are in lower case.

    Attributes:
        abbreviations: without their last dot.
        collocations: pairs with a dot between that does not end a sentence.
        starters: words that often start a sentence.
        orthography: for each word, bits that say in which places it was met in which case.
    """

    abbreviations: frozenset[str]
    collocations: frozenset[tuple[str, str]]
    starters: frozenset[str]
    orthography: dict[str, int]

    @classmethod
    def train(cls, texts: Iterable[str], max_characters: int = TRAINING_CHARACTERS) -> "SentenceModel":
        """Learn from the beginnings of texts, in their order, until `max_characters` have been read.

        Unsupervised and deterministic. No text is drawn once there are enough characters.
        """
        from nltk.tokenize.punkt import PunktTrainer  # half a second: not at the top

        samples: list[str] = []
        missing = max_characters
        for text in texts:
            samples.append(text[: min(missing, TRAINING_CHARACTERS_PER_TEXT)])
            missing -= len(samples[-1])
            if missing <= 0:
                break
        trainer = PunktTrainer()
        trainer.train("\n\n".join(samples), finalize=False)
        parameters = trainer.get_params()
        return cls(
            abbreviations=frozenset(filter(_is_storable, parameters.abbrev_types)),
            collocations=frozenset(pair for pair in parameters.collocations if all(map(_is_storable, pair))),
            starters=frozenset(filter(_is_storable, parameters.sent_starters)),
            orthography={word: bits for word, bits in parameters.ortho_context.items() if _is_storable(word)},
        )

    @classmethod
    def load(cls, directory: Path) -> "SentenceModel":
        """Read a model in NLTK's punkt_tab format.

        The files are read here and not by `nltk.tokenize.punkt.load_punkt_params`, which refuses (`nltk.pathsec`)
        directories outside NLTK's own data folders.

        Raises:
            InputError: the directory does not hold such a model.
        """
        rows = {field: _read_rows(directory / name) for field, name in _FILES.items()}
        try:
            return cls(
                abbreviations=frozenset(word for (word,) in rows["abbreviations"]),
                collocations=frozenset((first, second) for first, second in rows["collocations"]),
                starters=frozenset(word for (word,) in rows["starters"]),
                orthography={word: int(bits) for word, bits in rows["orthography"]},
            )
        except ValueError as error:
            raise InputError(
                f"{directory} is not a sentence model: expected words, pairs of words, and words with a number, "
                f"separated by tabs, in {', '.join(_FILES.values())}; found another line ({error}): {_REMEDY}"
            ) from None

    def save(self, directory: Path) -> None:
        """Write the model in NLTK's punkt_tab format; equal models give equal bytes."""
        for field, table in zip(_FILES, self._tables(), strict=True):
            write_text(directory / _FILES[field], "".join("\t".join(row) + "\n" for row in table))

    def fingerprint(self) -> Fingerprint:
        return digest_values("punkt", *self._tables())

    def _tables(self) -> list[list[tuple[str, ...]]]:
        """The rows of each file, in the order of `_FILES`, sorted."""
        return [
            sorted((word,) for word in self.abbreviations),
            sorted(self.collocations),
            sorted((word,) for word in self.starters),
            sorted((word, str(bits)) for word, bits in self.orthography.items()),
        ]

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # without what is derived from them

    @cached_property
    def _contains_end(self) -> Callable[[str], bool]:
        """Punkt's judgement, remembered: a list of initials or a table asks for the same few again and again."""
        from nltk.tokenize.punkt import PunktParameters, PunktSentenceTokenizer

        parameters = PunktParameters()
        parameters.abbrev_types = set(self.abbreviations)
        parameters.collocations = set(self.collocations)
        parameters.sent_starters = set(self.starters)
        parameters.ortho_context = _OrthographicContexts(self.orthography)
        return lru_cache(maxsize=1 << 14)(PunktSentenceTokenizer(parameters).text_contains_sentbreak)

    @cached_property
    def _doubtful_words(self) -> frozenset[str]:
        """Words after which a dot may not end a sentence."""
        return self.abbreviations.union(first for first, _ in self.collocations)

    def sentence_ends(self, text: str, start: int, stop: int) -> Iterator[Gap]:
        """Places between sentences or paragraphs, from the last to the first; linear in the text.

        Args:
            text: what is to be searched, with up to `CONTEXT_CHARACTERS` more on either side if there are any: Punkt
                needs the word before a stop and the word after it.
            start, stop: the part of the text to search.

        Yields:
            Gaps that have a place to cut in (start, stop], and something other than white space behind them.
        """
        patterns = (_STOP, _BLANK_LINE) if text.isascii() else (_STOP, _FULL_STOP, _BLANK_LINE)
        found = {match.end(): match for pattern in patterns for match in pattern.finditer(text)}
        for match, gap in _gaps_between(text, [found[end] for end in sorted(found)], start, stop):
            if match.re is not _STOP or self._ends_sentence(text, match):
                yield gap

    def _ends_sentence(self, text: str, match: re.Match[str]) -> bool:
        """Whether a stop with white space and a word behind it is the end of a sentence."""
        word_start = max(0, match.start() - CONTEXT_CHARACTERS)
        before = text[word_start : match.start()]
        word = "" if not before or before[-1].isspace() else before.rsplit(None, 1)[-1]
        following = text[match.end() : match.end() + CONTEXT_CHARACTERS].split(None, 1)[0]
        stops = text[match.start() : match.end(1)]
        # What Punkt does not look at: `"Why?" she asked`, `if ! test`, `a ? 1 : 0`, `. . . 5`, `1. First item`.
        is_closed, initial = match.end(2) > match.end(1), following[0]
        if ((is_closed or not word) and initial.islower()) or (not word and not initial.isalpha()):
            return False
        if "!" in stops or "?" in stops:
            return True
        if _ENUMERATOR.fullmatch(word) and text[: match.start()].rpartition("\n")[2].strip() == word:
            return False
        if stops == "." and len(word) > 1 and word.isalpha() and word.lower() not in self._doubtful_words:
            return True  # as Punkt decides from this word alone, a hundred times faster
        return self._contains_end(f"{word}{stops.replace('…', '...')} {following}")


def line_ends(text: str, start: int, stop: int) -> Iterator[Gap]:
    """Places between lines, as `SentenceModel.sentence_ends` gives those between sentences."""
    for _, gap in _gaps_between(text, list(_NEWLINE.finditer(text)), start, stop):
        yield gap


def _gaps_between(
    text: str, matches: list[re.Match[str]], start: int, stop: int
) -> Iterator[tuple[re.Match[str], Gap]]:
    """The gaps at the ends of ascending matches, from the last to the first, less those out of reach."""
    for match in reversed(matches):
        if match.start() <= stop and match.end() < len(text):
            gap = _gap_at_end(text, match)
            if gap.stop <= start:
                return
            if gap.start <= stop:
                yield match, gap


def _gap_at_end(text: str, match: re.Match[str]) -> Gap:
    """The white space at the end of a match, with what there is of it before the match."""
    start, stop = match.span()
    newline = text.rfind("\n", start, stop)
    start += len(match[0].rstrip())
    while start > 0 and text[start - 1].isspace():
        start -= 1
    return Gap(start, newline + 1 if newline >= 0 else stop)


def _is_storable(word: str) -> bool:
    """Whether a line of a file can hold a word; Punkt takes dots with white space between for one (`. . .`)."""
    return not any(separator in word for separator in "\t\n\r")


_REMEDY = (
    "give a directory in NLTK's punkt_tab format, such as tokenizers/punkt_tab/english of nltk_data, or let a model be "
    "trained on the text"
)


def _read_rows(path: Path) -> list[list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        reason = error.strerror or str(error)
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    else:
        return [line.split("\t") for line in lines if line]
    raise InputError(f"{path.parent} is not a sentence model: {path.name} cannot be read ({reason}): {_REMEDY}")
