import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given
from hypothesis import strategies as st
from rank_files import ranked_bytes, write_ranks

from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.tokenization.tiktoken_encoder import PATTERNS, REQUIRED_SPECIAL_TOKENS
from megatron_miniplm.corpus.tokenization.tokenizers import make_encoder
from megatron_miniplm.errors import InputError

NUM_SPECIAL_TOKENS = 20
TEXTS = st.lists(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.lists(st.sampled_from(["<s>", "</s>", "<SPECIAL_12>", "<SPEC", " ", "  ", "\n", "aB", "1", "é", "👍🏽"])).map(
        "".join
    )
)


@pytest.fixture(scope="module")
def tokens(bpe: TextEncoder) -> list[bytes]:
    assert bpe.token_bytes is not None
    return ranked_bytes(bpe.token_bytes)


@pytest.fixture(scope="module")
def ranks_path(tokens: list[bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_ranks(tmp_path_factory.mktemp("tiktoken") / "ranks.json", tokens)


@pytest.fixture(scope="module")
def settings(ranks_path: Path, tokens: list[bytes]) -> Callable[..., TokenizerSettings]:
    defaults = {
        "tokenizer_type": "TikTokenizer",
        "tokenizer_model": ranks_path,
        "vocab_size": len(tokens) + NUM_SPECIAL_TOKENS,
        "tiktoken_num_special_tokens": NUM_SPECIAL_TOKENS,
    }
    return lambda **changes: TokenizerSettings(**{**defaults, **changes})


@pytest.fixture(scope="module")
def encoders(settings: Callable) -> dict[tuple[str, bool], TextEncoder]:
    """By pattern and `split_special_tokens`."""
    return {
        (pattern, split): make_encoder(settings(tiktoken_pattern=pattern, split_special_tokens=split), 2)
        for pattern in PATTERNS
        for split in (False, True)
    }


@pytest.mark.parametrize("pattern", PATTERNS)
@given(texts=TEXTS)
def test_ids_are_tiktokens_and_nothing_is_lost(
    encode_each: Callable, encoders: dict, tokens: list[bytes], pattern: str, texts: list[str]
) -> None:
    special = [*REQUIRED_SPECIAL_TOKENS, *(f"<SPECIAL_{index}>" for index in range(7, NUM_SPECIAL_TOKENS))]
    reference = tiktoken.Encoding(
        "reference",
        pat_str=PATTERNS[pattern],
        mergeable_ranks={token: NUM_SPECIAL_TOKENS + rank for rank, token in enumerate(tokens)},
        special_tokens={token: index for index, token in enumerate(special)},
    )
    whole, split = encoders[pattern, False], encoders[pattern, True]
    assert ("gigatoken" in whole.versions) == ("gigatoken" in split.versions) == (pattern == "v2")
    ids = encode_each(whole, texts)
    assert ids == [reference.encode(text, allowed_special="all") for text in texts]
    assert encode_each(split, texts) == [reference.encode_ordinary(text) for text in texts]
    assert [whole.decode(part) for part in ids] == texts
    for encoder in (whole, split):
        assert encoder.decode_batch(*encoder.encode(texts)) == [text.encode() for text in texts]


def test_a_special_token_in_the_text_is_one_id_unless_split(encode_each: Callable, encoders: dict) -> None:
    text = "a</s>b<SPECIAL_12>"
    whole, split = encode_each(encoders["v2", False], [text])[0], encode_each(encoders["v2", True], [text])[0]
    assert [token for token in whole if token < NUM_SPECIAL_TOKENS] == [2, 12]
    assert min(split) >= NUM_SPECIAL_TOKENS


def test_properties(encoders: dict, tokens: list[bytes]) -> None:
    encoder = encoders["v2", False]
    assert (encoder.vocab_size, encoder.eod_id) == (len(tokens) + NUM_SPECIAL_TOKENS, 2)
    assert encoder.token_bytes is not None
    assert encoder.token_bytes[:8] == [*(token.encode() for token in REQUIRED_SPECIAL_TOKENS), b"<SPECIAL_7>"]
    assert encoder.token_bytes[NUM_SPECIAL_TOKENS:] == tokens
    assert encoders["v1", False].versions.keys() == {"tiktoken"}


def test_what_shapes_the_ids_shapes_the_fingerprint(encoders: dict, settings: Callable, tmp_path: Path) -> None:
    found = {encoder.fingerprint() for encoder in encoders.values()}
    assert len(found) == 4
    special = ("<s>", *(token for token in REQUIRED_SPECIAL_TOKENS if token != "<s>"))
    found.add(make_encoder(settings(special_tokens=special), 1).fingerprint())
    assert len(found) == 5
    copy = tmp_path / "copy.json"
    copy.write_bytes(settings().tokenizer_model.read_bytes())
    assert make_encoder(settings(tokenizer_model=copy), 1).fingerprint() == encoders["v2", False].fingerprint()


def test_special_tokens_that_begin_alike_are_left_to_tiktoken(
    encode_each: Callable, settings: Callable, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        encoder = make_encoder(settings(special_tokens=(*REQUIRED_SPECIAL_TOKENS, "<s>x")), 1)
    assert "special tokens that begin alike" in caplog.text
    assert encoder.versions.keys() == {"tiktoken"}
    assert len(encode_each(encoder, ["<s>x"])[0]) <= 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"special_tokens": ("<s>",)}, "lack <unk>, </s>, <mask>, <pad>, <cls>, <sep>: add them"),
        ({"special_tokens": (*REQUIRED_SPECIAL_TOKENS, "<s>")}, "has a token twice"),
        ({"special_tokens": (*REQUIRED_SPECIAL_TOKENS, "<SPECIAL_9>")}, "has a token twice"),
        ({"tiktoken_num_special_tokens": 6}, "6 must hold the 7 special tokens and leave room"),
        ({"tiktoken_num_special_tokens": 620}, "leave room in a vocabulary of"),
        ({"vocab_size": None}, r"too few for a vocabulary of 131072 with 20 special tokens: give --vocab-size \d+"),
        ({"tiktoken_pattern": "v3"}, "--tiktoken-pattern v3 is neither v1 nor v2: choose one"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: Callable, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_encoder(settings(**changes), 1)


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '[{"rank": 0}]', '[{"rank": 0, "token_bytes": "?"}]', "[]"])
def test_what_is_no_rank_file_is_refused(settings: Callable, tmp_path: Path, content: str) -> None:
    (tmp_path / "ranks.json").write_text(content)
    with pytest.raises(InputError, match=r"ranks\.json (is not a rank file|does not rank the 256 bytes first)"):
        make_encoder(settings(tokenizer_model=tmp_path / "ranks.json"), 1)


def test_ranks_out_of_order_or_given_twice_are_refused(settings: Callable, tokens: list[bytes], tmp_path: Path) -> None:
    path = write_ranks(tmp_path / "ranks.json", [*tokens[:-1], tokens[300]])
    with pytest.raises(InputError, match="ranks some token twice"):
        make_encoder(settings(tokenizer_model=path), 1)
    entries = json.loads(path.read_text())
    entries[-1]["rank"] = 7
    path.write_text(json.dumps(entries))
    with pytest.raises(InputError, match="does not rank the 256 bytes first and the others after them, in order"):
        make_encoder(settings(tokenizer_model=path), 1)
