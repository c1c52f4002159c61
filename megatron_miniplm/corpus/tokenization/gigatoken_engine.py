"""gigatoken, a BPE encoder some ten to thirty times faster than the reference libraries, kept exact and small.

Exact: `exact_or_none` lets a fast road in only after it has equalled the reference on hard texts when a tokenizer is
loaded. Small: gigatoken's cache keeps every distinct word that it has met, so `GigatokenEngine` makes the engine anew
when the process has grown.
"""

import logging
import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from megatron_miniplm.corpus.tokenization.token_bytes import interleave_ids
from megatron_miniplm.errors import InputError, one_line

logger = logging.getLogger(__name__)

#: How far the process may grow before the engine is made anew. The cache takes half a byte to thirty bytes a character
#: of words that are all distinct, and its table doubles: with this limit a process with a 32k vocabulary, 140 MB when
#: new, peaked at 480 MB for random letters and 530 MB for random Han characters, the worst that was tried. On real
#: text the engine is made anew every few hundred MB, which cannot be seen in the speed.
MAX_CACHE_BYTES = 192 << 20
CALL_CHARACTERS = 1 << 20  # given to the engine at once, which is how far it can grow unseen
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_MAX_CHECKED_PIECES = 1 << 14
_SMALL_BATCH = 32

#: What a fast road must encode as the reference does, besides texts of the tokenizer's own vocabulary.
HARD_TEXTS = (
    "",
    " ",
    "  leading, trailing and   inner runs  \n\n\n\t\t \r\n x\u00a0y\u2003z\u200b ",
    "It's we'll they'VE I'M don't 'tis naïve café cafe\u0301 ﬁne Ａｂｃ ½ Ⅷ ſ İ ß ẞ",
    "0 12 345 6789 12345678901234567890 3.14159 1e-9 0xDEADBEEF ١٢٣ 五 1,000,000",
    "def f(x: int=0) -> str:\n    return f'{x!r:>10}'  # tab:\t\\n\n\n\tif (a!=b)&&c||~d {};\n",
    "Привет мир. Γειά σου Κόσμε. 你好，世界！こんにちは。안녕하세요 नमस्ते สวัสดี שלום العربيّة ትግርኛ ქართული",
    "👩‍👩‍👧‍👦🏳️‍🌈👍🏽🇺🇳 \U0001f9ff\U000e0067 \U0010ffff \ufeff\ufffd\u2028\u2029\u0085\x00\x01\x1f\x7f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!!????----====____....''''\"\"\"\"",
    "<s></s><unk><pad><|endoftext|><|im_start|>[INST] <0x0A> ▁word ĠGPT Ċ",
    "HTTPResponse iPhone XMLHttpRequest2 ǅungla ᾈδης ʰʷ ªº ΑΒΓαβγ ЩЪыь ﷺ ㍿ ⅷ ᏣᎳᎩ \U0001d4d0\U0001d504 हिन्दी ไทย ཀ༌ཁ",
    "\n \n  \n\t\n\r\r\n\n \r x\n  y\n\n  z\t\t\tw  \u3000\u3000v\u2028 u\u00a0\u00a0 \x0b\x0c\x1c\x85 ",
    "https://a.b/c?d=e&f=%20#g \\frac{a}{b}//* ... !?/\n/\n//\n $x_1$ a_b-c+d=e@f.gh ~~~ ``` <<<>>> ©®™€£¥",
    *(" " * length + "x" + "\n" * length + "=" * length + "0" * length for length in range(1, 70)),
)

#: N texts to their ids, flat (T integers), and the number of ids of each (N, int64).
Encode = Callable[[Sequence[str]], tuple[np.ndarray, np.ndarray]]

_PANIC = "PanicException"  # pyo3's, which does not derive from `Exception`


class GigatokenEngine:
    """A gigatoken tokenizer of bounded size.

    Args:
        make: makes a fresh `gigatoken.Tokenizer`; called now, and again whenever the old one has grown.
        num_threads: 1 encodes on the calling thread; more use all threads of gigatoken's pool, except in the worker
            processes of multiprocessing.
    """

    def __init__(self, make: Callable[[], Any], num_threads: int) -> None:
        self._make = make
        self._parallel = False if num_threads == 1 else None
        self._renew()

    def encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids (uint32) of N texts, and the number of each."""
        parts = [self._encode_call(part) for part in _calls(texts)]
        if len(parts) == 1:
            return parts[0]
        tokens = [tokens_T for tokens_T, _ in parts]
        lengths = [lengths_N for _, lengths_N in parts]
        return np.concatenate([np.empty(0, np.uint32), *tokens]), np.concatenate([np.empty(0, np.int64), *lengths])

    def _encode_call(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if _resident_bytes() - self._resident_bytes_when_new > MAX_CACHE_BYTES:
            self._renew()
        if len(texts) <= _SMALL_BATCH:  # awkward's arrays take 0.2 ms a batch, which many small files would pay each
            ids = [self._engine.encode(text) for text in texts]
            return np.concatenate([np.empty(0, np.uint32), *ids]), np.fromiter(map(len, ids), np.int64, len(ids))
        # awkward's layout: N + 1 offsets into flat ids.
        layout: Any = self._engine.encode_batch(list(texts), parallel=self._parallel).layout
        offsets = np.asarray(layout.offsets.data)
        return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

    def _renew(self) -> None:
        self._engine: Any = None  # freed before its successor is made
        self._engine = self._make()
        self._resident_bytes_when_new = _resident_bytes()


def exact_or_none(
    make_fast: Callable[[], Encode], reference: Encode, texts: Sequence[str], *, library: str
) -> Encode | None:
    """The fast road, or None, with a line in the log, where it cannot be made or differs from the reference.

    Args:
        texts: both encode these.
        library: the reference's name, for the log.
    """
    expected_T, expected_lengths_N = reference(texts)
    try:
        fast = make_fast()
        found_T, found_lengths_N = fast(texts)
        small = [fast(texts[start : start + _SMALL_BATCH]) for start in range(0, len(texts), _SMALL_BATCH)]
    except BaseException as error:  # gigatoken raises many kinds for what it does not support
        if not is_rust_error(error):
            raise
        logger.info("encoding with the slower %s: gigatoken does not support this one (%s)", library, error)
        return None
    small_T, small_lengths_N = (np.concatenate(arrays) for arrays in zip(*small, strict=True))
    if all(
        np.array_equal(expected_T, tokens_T) and np.array_equal(expected_lengths_N, lengths_N)
        for tokens_T, lengths_N in ((found_T, found_lengths_N), (small_T, small_lengths_N))
    ):
        return fast
    logger.info("encoding with the slower %s: gigatoken gives other ids for this one", library)
    return None


def routed(fast: Encode, reference: Encode, needs_reference: Callable[[str], bool]) -> Encode:
    """The fast encoder, except for the texts that only the reference encodes exactly."""

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        is_for_reference = [needs_reference(text) for text in texts]
        if not any(is_for_reference):
            return fast(texts)
        return interleave_ids(
            np.array(is_for_reference),
            fast([text for text, found in zip(texts, is_for_reference, strict=True) if not found]),
            reference([text for text, found in zip(texts, is_for_reference, strict=True) if found]),
        )

    return encode


def texts_of_control_strings(control_strings: Sequence[str]) -> list[str]:
    """Texts with every control string of a tokenizer: within words, between kinds of white space, and side by side."""
    return [
        " ".join(control_strings),
        "".join(control_strings),
        *(f"a{string}b {string}  {string}\n" for string in control_strings),
        *(f"{string}{string}_{string}1\u3000{string}\t{string.upper()}e\u0301{string}." for string in control_strings),
    ]


def texts_of_vocabulary(pieces: Sequence[str]) -> list[str]:
    """Texts in which a tokenizer's pieces meet: in their order and shuffled; at most 16,384, always the same."""
    stride = -(-len(pieces) // _MAX_CHECKED_PIECES)
    taken = list(pieces[:: max(1, stride)])
    shuffled = random.Random(0).sample(taken, len(taken))
    return ["".join(order[start : start + 64]) for order in (taken, shuffled) for start in range(0, len(order), 64)]


def _calls(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive runs of the texts, each of `CALL_CHARACTERS` and what is left of its last text."""
    start = num_characters = 0
    for stop, text in enumerate(texts, start=1):
        num_characters += len(text)
        if num_characters >= CALL_CHARACTERS:
            yield texts[start:stop]
            start, num_characters = stop, 0
    if start < len(texts):
        yield texts[start:]


def _resident_bytes() -> int:
    """Memory of this process; 0 where the system does not tell (not Linux), so that engines there live on."""
    try:
        with open("/proc/self/statm", "rb") as stream:
            return int(stream.read().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def is_rust_error(error: BaseException) -> bool:
    """Whether a call into Rust failed: bare exceptions, and panics."""
    return isinstance(error, Exception) or type(error).__name__ == _PANIC


@contextmanager
def named_in_rust_errors(place: str) -> Iterator[None]:
    """Around code of ours that calls the tokenizers library: its errors and panics, and no others, name the files.

    Args:
        place: the files that were given.

    Raises:
        InputError: the library failed.
    """
    try:
        yield
    except BaseException as error:
        if type(error) is not Exception and type(error).__name__ != _PANIC:
            raise
        raise InputError(
            f"{place}: the tokenizers library failed on a text ({one_line(error)}): check the merges and added tokens "
            "of tokenizer.json, or use another version of the library"
        ) from None
