"""The texts of examples, from the original files or from the tokens."""

from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

from megatron_miniplm.corpus.tokenization.settings import TextEncoder
from megatron_miniplm.errors import MiniPLMError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.provenance import passages_of
from megatron_miniplm.selection.report.examples import Example
from megatron_miniplm.selection.scored_corpus import ScoredCorpus

MAX_CHARACTERS = 1200
_MAX_DECODED_TOKENS = 2 * MAX_CHARACTERS
_MAX_SHOWN_IDS = 200


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """What is shown of one sequence; everything in it is from the data.

    Attributes:
        example: its numbers.
        prefix: name of its prefix.
        index: of the sequence in the prefix.
        text: at most MAX_CHARACTERS of it.
        is_cut: whether there is more.
        how: where the text comes from, if not from the original file.
        places: `source:line` of its passages.
        domain, id: of its first passage; empty where it has none.
    """

    example: Example
    prefix: str
    index: int
    text: str
    is_cut: bool
    how: str = ""
    places: tuple[str, ...] = ()
    domain: str = ""
    id: str = ""


class ExcerptReader:
    """Finds the texts of sequences.

    Args:
        encoder: decodes tokens where the original text is not to be had; without it token ids are shown.
    """

    def __init__(self, corpus: ScoredCorpus, encoder: TextEncoder | None) -> None:
        self._corpus = corpus
        self._encoder = encoder

    def read(self, example: Example) -> Excerpt:
        """The text of one example. Original files that are gone are no error: it is decoded then."""
        prefix = bisect_right(self._corpus.starts_P, example.sequence, hi=len(self._corpus.corpora)) - 1
        corpus, index = self._corpus.corpora[prefix], example.sequence - self._corpus.starts_P[prefix]
        name = corpus.prefix.name
        try:
            passages = passages_of(corpus, index)
        except MiniPLMError:
            text, is_cut, how = self._of_tokens(corpus, index)
            return Excerpt(example=example, prefix=name, index=index, text=text, is_cut=is_cut, how=how)
        text = "\n\n".join(passage.text for passage in passages)
        first = passages[0] if passages else None
        return Excerpt(
            example=example,
            prefix=name,
            index=index,
            text=text[:MAX_CHARACTERS],
            is_cut=len(text) > MAX_CHARACTERS,
            places=tuple(f"{Path(passage.source)}:{passage.line}" for passage in passages),
            domain=(first.domain or "") if first else "",
            id=(first.id or "") if first else "",
        )

    def _of_tokens(self, corpus: IndexedCorpus, index: int) -> tuple[str, bool, str]:
        """Text, whether it is cut, and what it is."""
        token_T = corpus.sequence(index)
        if self._encoder is None:
            text = " ".join(map(str, token_T[:_MAX_SHOWN_IDS].tolist()))
            return text[:MAX_CHARACTERS], len(token_T) > _MAX_SHOWN_IDS or len(text) > MAX_CHARACTERS, "token ids"
        text = self._encoder.decode(token_T[:_MAX_DECODED_TOKENS].tolist())
        is_cut = len(token_T) > _MAX_DECODED_TOKENS or len(text) > MAX_CHARACTERS
        return text[:MAX_CHARACTERS], is_cut, "decoded from the tokens"
