"""Most tests use a tokenizer whose tokens are bytes, so that every count can be checked by eye."""

import itertools
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_miniplm.corpus.chunking import Pieces, TokenStops, gather, pack_documents
from megatron_miniplm.corpus.sentences import Gap, SentenceModel
from megatron_miniplm.corpus.tokenization.settings import TextEncoder

MODEL = SentenceModel(
    abbreviations=frozenset({"dr", "e.g"}), collocations=frozenset(), starters=frozenset(), orthography={}
)
EOD = 256
BYTE_TABLE = np.ones(EOD + 1, np.int32)


def fill_fraction(pieces: Pieces, chunk_length: int) -> float:
    """Share of the sequences' room that holds tokens; 0.0 if there is no sequence."""
    return pieces.num_tokens / max(1, pieces.num_sequences * chunk_length)


def no_exact_road(text: str) -> np.ndarray:
    pytest.fail(f"the table explains {text!r}")


def join(documents: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Flat ids with EODs, and lengths; documents without ids stay so."""
    ended = [[*ids, EOD] if len(ids) else [] for ids in documents]
    return np.array(list(itertools.chain.from_iterable(ended)), np.uint16), np.array(list(map(len, ended)), np.int64)


def pack(
    flat: tuple[np.ndarray, np.ndarray],
    texts: Sequence[str],
    domains: Sequence[str] | None = None,
    *,
    chunk_length: int,
    model: SentenceModel = MODEL,
    table: np.ndarray | None = None,
    prefix_bytes: int = 0,
    token_stops: TokenStops = no_exact_road,
) -> Pieces:
    return pack_documents(
        *flat,
        texts,
        domains,
        chunk_length=chunk_length,
        model=model,
        token_bytes_V=table,
        text_prefix_bytes=prefix_bytes,
        token_stops=token_stops,
    )


def pack_bytes(texts: Sequence[str], chunk_length: int, domains: Sequence[str] | None = None) -> Pieces:
    flat = join([text.encode() for text in texts])
    return pack(flat, texts, domains, chunk_length=chunk_length, table=BYTE_TABLE)


def chunks(texts: Sequence[str], pieces: Pieces) -> list[str]:
    """The text of every sequence, with `|` for an EOD."""
    parts = [""] * pieces.num_sequences
    for row in range(len(pieces)):
        data = texts[pieces.document_P[row]].encode()
        parts[pieces.sequence_P[row]] += data[pieces.start_byte_P[row] : pieces.stop_byte_P[row]].decode()
        if pieces.stop_byte_P[row] == len(data):
            parts[pieces.sequence_P[row]] += "|"
    return parts


def is_character_start(data: bytes, position: int) -> bool:
    return position == len(data) or data[position] & 0xC0 != 0x80


def check(
    pieces: Pieces,
    documents: Sequence[Sequence[int]],
    texts: Sequence[str],
    domains: Sequence[str],
    stops: Sequence[Sequence[int]],
    chunk_length: int,
) -> None:
    """Everything that holds for any input; `stops` are the bytes at which each document's tokens end."""
    tokens_T, lengths_D = join(documents)
    chunk_tokens, lengths_N = gather(tokens_T, lengths_D, pieces)
    assert lengths_N.sum() == len(tokens_T) == pieces.num_tokens
    assert ((lengths_N >= 1) & (lengths_N <= chunk_length)).all()
    assert len(lengths_N) == pieces.num_sequences
    assert (np.diff(pieces.sequence_P, prepend=0) <= 1).all()
    assert (np.diff(pieces.sequence_P, prepend=0) >= 0).all()
    rows = list(zip(*(column.tolist() for column in vars(pieces).values()), strict=True))
    domain_N: dict[int, str] = {}
    for sequence, document, *_ in rows:
        assert domain_N.setdefault(sequence, domains[document]) == domains[document]
    parts_N = np.split(chunk_tokens, np.cumsum(lengths_N))[:-1]
    for name in set(domains):
        own = [part for sequence, part in enumerate(parts_N) if domain_N[sequence] == name]
        ended = join([ids for ids, domain in zip(documents, domains, strict=True) if domain == name])[0]
        assert np.array_equal(np.concatenate([*own, ended[:0]]), ended)
        enough = chunk_length - max(chunk_length // 2, 8) - 4  # a cut is within half a sequence, less what is cut off
        assert all(len(part) >= enough for part in own[:-1])
    for document, (ids, text) in enumerate(zip(documents, texts, strict=True)):
        own_rows = [row for row in rows if row[1] == document]
        assert len(own_rows) > 0 or not ids
        token = byte = 0
        data = text.encode()
        for piece, (_, _, start_token, stop_token, start_byte, stop_byte, number) in enumerate(own_rows):
            assert (start_token, start_byte, number) == (token, byte, piece)
            assert stop_token > start_token
            assert stop_byte >= start_byte
            assert is_character_start(data, stop_byte)
            token, byte = stop_token, stop_byte
            if token <= len(ids) and is_character_start(data, stops[document][token - 1]) and token < len(ids):
                assert byte == stops[document][token - 1]
            if chunk_length > 1:
                assert token != len(ids)
        if ids:
            assert (token, byte) == (len(ids) + 1, len(data))


FRAGMENTS = st.sampled_from(
    [
        "Hello. ",
        "Dr. Wu",
        " ",
        "\n",
        "\n\n",
        "好。",
        "你",
        "👍🏽",
        "e\u0301",
        "é",
        "word ",
        "...",
        "x" * 40,
        '"Yes!" ',
        "\u3000",
        "|",
    ]
)
TEXT = st.lists(FRAGMENTS, max_size=25).map("".join) | st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
DOCUMENTS = st.lists(st.tuples(TEXT, st.sampled_from(["a", "b", "c"])), max_size=8)
LENGTHS = st.integers(1, 6) | st.integers(7, 60)


@settings(deadline=None)
@given(documents=DOCUMENTS, chunk_length=LENGTHS)
def test_nothing_is_lost_with_bytes_as_tokens(documents: list[tuple[str, str]], chunk_length: int) -> None:
    texts, domains = [text for text, _ in documents], [domain for _, domain in documents]
    ids = [list(text.encode()) for text in texts]
    stops = [list(range(1, len(tokens) + 1)) for tokens in ids]
    check(pack_bytes(texts, chunk_length, domains), ids, texts, domains, stops, chunk_length)


@settings(deadline=None)
@given(documents=DOCUMENTS, chunk_length=LENGTHS, data=st.data())
def test_nothing_is_lost_with_any_tokens(
    documents: list[tuple[str, str]], chunk_length: int, data: st.DataObject
) -> None:
    """Tokens of any size, none included, told by the exact road alone; texts that are all dropped have no tokens."""
    texts, domains = [text for text, _ in documents], [domain for _, domain in documents]
    ends = {
        text: sorted(data.draw(st.lists(st.integers(0, len(text.encode())), max_size=40)))
        for text in dict.fromkeys(texts)
    }
    stops = [ends[text] for text in texts]
    ids = [[7] * len(stops_L) for stops_L in stops]
    pieces = pack(
        join(ids), texts, domains, chunk_length=chunk_length, token_stops=lambda text: np.array(ends[text], np.int64)
    )
    check(pieces, ids, texts, domains, stops, chunk_length)


@pytest.fixture(scope="module")
def bpe_table(bpe_dir: Path) -> np.ndarray:
    """Bytes of each id of a byte-level BPE, in whose vocabulary a character stands for a byte."""
    model = json.loads((bpe_dir / "tokenizer.json").read_text())
    table = np.zeros(1 + max(model["model"]["vocab"].values()), np.int32)
    for token, number in model["model"]["vocab"].items():
        table[number] = len(token)
    for token in model["added_tokens"]:
        table[token["id"]] = len(token["content"].encode())
    return table


@settings(deadline=None)
@given(documents=DOCUMENTS, chunk_length=LENGTHS)
def test_nothing_is_lost_with_a_real_tokenizer(
    bpe: TextEncoder, bpe_table: np.ndarray, documents: list[tuple[str, str]], chunk_length: int
) -> None:
    texts, domains = [text for text, _ in documents], [domain for _, domain in documents]
    tokens_T, lengths_D = bpe.encode(texts)
    ids = [part.tolist() for part in np.split(tokens_T, np.cumsum(lengths_D))[:-1]] if texts else []
    stops = [np.cumsum(bpe_table[part]).tolist() for part in ids]
    pieces = pack(join(ids), texts, domains, chunk_length=chunk_length, table=bpe_table)
    check(pieces, ids, texts, domains, stops, chunk_length)
    ends = dict(zip(texts, stops, strict=True))
    exact = pack(
        join(ids), texts, domains, chunk_length=chunk_length, token_stops=lambda text: np.array(ends[text], np.int64)
    )
    for found, expected in zip(vars(exact).values(), vars(pieces).values(), strict=True):
        assert found.dtype == np.int64
        assert np.array_equal(found, expected)


@pytest.mark.parametrize(
    ("chunk_length", "expected"),
    [
        (
            48,
            [
                "Dr. Smith likes small animals, e.g. cats. ",
                'He said to all of them: "I do!" ',
                "Then he left without a single word.|",
            ],
        ),
        (48, ["你好，世界。今天天气很好！", "我们走吧。他没有说话。|"]),
        (
            48,
            ["def first():\n    return compute(1)\n\n\n", "def second():\n    return other(2)\n\n\n", "x = first()\n|"],
        ),
        (64, ["    total = alpha + beta\n    other = alpha - beta\n", "    print(total, other, alpha, beta)\n|"]),
        (16, ["no stop in these", " words at all to", " be found|"]),
        (16, ["👍🏽" + "👍🏽", "👍🏽" + "👍|"]),
        (32, ["Short. Words. Here.  ", "A longer sentence it is.|"]),
    ],
    ids=["english", "chinese", "code", "lines", "no punctuation", "emoji", "spaces"],
)
def test_cuts_by_eye(chunk_length: int, expected: list[str]) -> None:
    text = "".join(expected).removesuffix("|")
    assert chunks([text], pack_bytes([text], chunk_length)) == expected


def test_the_nearest_window_decides_and_in_it_a_sentence_end_comes_before_a_line_end() -> None:
    """Of 64 tokens the windows are 8, 16 and 32 wide."""
    sentence, line = "x" * 45 + ". ", "y" * 13 + "\n"
    text = sentence + line + "z" * 40
    assert chunks([text], pack_bytes([text], 64)) == [sentence + line, "z" * 40 + "|"]
    text = sentence + "y" * 5 + "\n" + "z" * 40
    assert chunks([text], pack_bytes([text], 61)) == [sentence, "y" * 5 + "\n" + "z" * 40 + "|"]
    text = "x" * 20 + ". " + "z" * 60
    assert chunks([text], pack_bytes([text], 64)) == ["x" * 20 + ". " + "z" * 42, "z" * 18 + "|"]


def test_documents_follow_one_another_and_a_document_end_is_as_good_as_a_sentence_end() -> None:
    texts = ["A first one.", "", "B.", "C is longer. It has two of them.", "D a\nwords but no stop at all", "E" * 40]
    pieces = pack_bytes(texts, 32)
    assert chunks(texts, pieces) == [
        "A first one.|B.|C is longer. ",
        "It has two of them.|",  # and not `D a` with it: a line end
        "D a\nwords but no stop at all|",
        "E" * 32,
        "E" * 8 + "|",
    ]
    assert pieces.document_P.tolist() == [0, 2, 3, 3, 4, 5, 5]
    assert pieces.piece_P.tolist() == [0, 0, 0, 1, 0, 0, 1]
    assert pieces.start_token_P.tolist() == [0, 0, 0, 13, 0, 0, 32]
    assert pieces.stop_token_P.tolist() == [13, 3, 13, 33, 29, 32, 41]
    assert pieces.stop_byte_P.tolist() == [12, 2, 13, 32, 28, 32, 40]
    tokens_T, lengths_D = join([text.encode() for text in texts])
    tokens, lengths_N = gather(tokens_T, lengths_D, pieces)
    assert np.array_equal(tokens, tokens_T)
    assert lengths_N.tolist() == [29, 20, 29, 32, 9]
    assert fill_fraction(pieces, 32) == 119 / 160


def test_domains_are_packed_apart_and_numbered_as_they_are_completed() -> None:
    texts = ["a" * 6, "b" * 3, "c" * 2, "a" * 9, "b" * 4, "c"]
    pieces = pack_bytes(texts, 8, ["A", "B", "C", "A", "B", "C"])
    assert chunks(texts, pieces) == ["aaaaaa|", "aaaaaaaa", "bbb|", "a|", "bbbb|", "cc|c|"]
    assert pieces.sequence_P.tolist() == [0, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize(
    ("chunk_length", "expected"),
    [
        (1, [[97], [98], [99], [EOD], [100], [EOD]]),
        (2, [[97, 98], [99, EOD], [100, EOD]]),
        (3, [[97, 98], [99, EOD], [100, EOD]]),
        (4, [[97, 98, 99, EOD], [100, EOD]]),
        (5, [[97, 98, 99, EOD], [100, EOD]]),
        (6, [[97, 98, 99, EOD, 100, EOD]]),
    ],
)
def test_an_eod_stays_with_its_document(chunk_length: int, expected: list[list[int]]) -> None:
    tokens_T, lengths_D = join([b"abc", b"d"])
    tokens, lengths_N = gather(tokens_T, lengths_D, pack_bytes(["abc", "d"], chunk_length))
    assert [part.tolist() for part in np.split(tokens, np.cumsum(lengths_N))[:-1]] == expected


def test_a_character_that_fills_more_than_a_sequence_is_cut_between_its_tokens() -> None:
    pieces = pack_bytes(["é👍x"], 2)
    assert pieces.stop_token_P.tolist() == [2, 4, 6, 8]
    assert pieces.stop_byte_P.tolist() == [2, 2, 6, 7]
    pieces = pack_bytes(["a👍"], 3)
    assert pieces.stop_token_P.tolist() == [1, 4, 6]
    assert pieces.stop_byte_P.tolist() == [1, 1, 5]


@pytest.mark.parametrize("documents", [[], [""], ["", ""]])
def test_no_tokens_give_no_sequences(documents: list[str]) -> None:
    pieces = pack_bytes(documents, 4)
    assert (len(pieces), pieces.num_sequences, pieces.num_tokens) == (0, 0, 0)
    tokens, lengths_N = gather(*join([b""] * len(documents)), pieces)
    assert (len(tokens), len(lengths_N), fill_fraction(pieces, 4)) == (0, 0, 0.0)


def test_the_space_that_sentencepiece_puts_in_front_belongs_to_the_first_token() -> None:
    """`▁One.` has five bytes, four of them of the text."""
    text, table = "One. Two. Three.", np.array([5, 5, 6, 1], np.int32)
    flat = np.array([0, 1, 2, 3, EOD]), np.array([5])
    pieces = pack(flat, [text], chunk_length=2, table=table, prefix_bytes=1)
    assert pieces.stop_token_P.tolist() == [2, 3, 5]
    assert chunks([text], pieces) == ["One. Two.", " Three", ".|"]
    asked = []

    def token_stops(text: str) -> np.ndarray:
        asked.append(text)
        return np.array([4, 9, 15, 16])

    exact = pack(flat, [text], chunk_length=2, table=table + 1, prefix_bytes=1, token_stops=token_stops)
    assert asked == [text]
    assert exact.stop_byte_P.tolist() == pieces.stop_byte_P.tolist()


def test_the_tokens_of_a_document_that_is_not_cut_are_not_looked_at() -> None:
    texts = ["any text", "that is said to be one token"]
    assert pack(join([b"ab", b"c"]), texts, chunk_length=5).stop_byte_P.tolist() == [8, 28]


class CountingModel(SentenceModel):
    """Counts what it is shown."""

    def sentence_ends(self, text: str, start: int, stop: int) -> Iterator[Gap]:
        shown.append(len(text))
        return super().sentence_ends(text, start, stop)


shown: list[int] = []


@pytest.mark.parametrize("unit", ["word ", "字", "A sentence. ", "a line of code()\n"])
def test_a_line_of_three_megabytes_is_read_near_its_cuts_only(unit: str) -> None:
    text = unit * (3_000_000 // len(unit.encode()))
    data = text.encode()
    num_tokens = -(-len(data) // 4)
    flat = np.zeros(num_tokens + 1, np.uint16), np.array([num_tokens + 1])
    shown.clear()
    start = time.process_time()
    pieces = pack(
        flat,
        [text],
        chunk_length=1025,
        model=CountingModel(**MODEL.__getstate__()),
        token_stops=lambda text: np.minimum(np.arange(4, len(data) + 4, 4), len(data)),
    )
    assert time.process_time() - start < 2
    num_cuts = len(pieces) - 1
    assert num_cuts >= num_tokens // 1025
    windows = 3 if unit in ("word ", "字") else 1
    window_bytes = (512 if windows == 3 else 128) * 4
    assert sum(shown) <= num_cuts * (window_bytes + windows * 2 * 130)
    assert len(shown) == num_cuts * windows


def test_with_the_real_tokenizer_english_is_cut_between_sentences(
    bpe: TextEncoder, bpe_dir: Path, bpe_table: np.ndarray
) -> None:
    text = "".join(f"Sentence {number} is about a name, e.g. Dr. Smith. " for number in range(200)).strip()
    tokens_T, _ = flat = join([bpe.encode([text])[0].tolist()])
    pieces = pack(flat, [text], chunk_length=200, table=bpe_table)
    assert len(pieces) > 10
    assert fill_fraction(pieces, 200) > 0.85
    reference = tokenizers.Tokenizer.from_file(str(bpe_dir / "tokenizer.json"))
    for part, start, stop in zip(
        chunks([text], pieces), pieces.start_token_P.tolist(), pieces.stop_token_P.tolist(), strict=True
    ):
        assert part.rstrip("|").endswith("e.g. Dr. Smith.")
        assert part.startswith((" Sentence ", "Sentence 0 "))
        assert reference.decode([token for token in tokens_T[start:stop].tolist() if token != EOD]) == part.rstrip("|")
