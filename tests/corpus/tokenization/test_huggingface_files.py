"""The fast encoder against HuggingFace tokenizers, for every combination of an added token's flags."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from megatron_miniplm.corpus.tokenization.huggingface_files import needs_reference
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import make_encoder
from megatron_miniplm.errors import InputError

FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
COMBINATIONS = [dict(zip(FLAGS, values, strict=True)) for values in itertools.product((False, True), repeat=4)]
#: A control string, a piece of the vocabulary, a letter that normalization makes, one with white space at its ends.
CONTENTS = ("<Tool>", "tion", "\u00e9", " sp ")
NORMALIZERS = (None, {"type": "NFC"}, {"type": "Sequence", "normalizers": [{"type": "NFD"}, {"type": "Lowercase"}]})
AROUND = (
    " ",
    "  ",
    "\n",
    "\t",
    "\u00a0",
    "\u3000",
    "a",
    "x1",
    "_",
    "-",
    ".",
    "0",
    "e\u0301",
    "\u0301",
    "你",
    "'s",
    "<|endoftext|>",
)


def adversarial_texts(contents: list[str]) -> list[str]:
    """Every content between every pair of neighbours, and random sequences of all."""
    choose = random.Random(0)
    atoms = [*contents, *(content.upper() for content in contents), *(content[:-1] for content in contents), *AROUND]
    pairs = [before + content + behind for content in contents for before in AROUND for behind in ("", *AROUND)][::2]
    return pairs + ["".join(choose.choices(atoms, k=choose.randint(1, 9))) for _ in range(150)]


def with_added(
    bpe_dir: Path, directory: Path, added: list[tokenizers.AddedToken], *, special: bool, normalizer: Any = None
) -> tokenizers.Tokenizer:
    """A tokenizer.json with further added tokens."""
    config = json.loads((bpe_dir / "tokenizer.json").read_text())
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**config, "normalizer": normalizer}))
    (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    return tokenizer


def load(directory: Path, *, split: bool = False) -> TextEncoder:
    settings = TokenizerSettings(
        tokenizer_type="HuggingFaceTokenizer", tokenizer_model=directory, split_special_tokens=split
    )
    return make_encoder(settings, 1)


@pytest.mark.parametrize("normalizer", NORMALIZERS, ids=["none", "nfc", "nfd-lowercase"])
@pytest.mark.parametrize("content", CONTENTS)
def test_every_flag_of_an_added_token_is_exact(
    encode_each: Callable, bpe_dir: Path, tmp_path: Path, content: str, normalizer: Any
) -> None:
    texts = adversarial_texts([content])
    for number, (flags, special) in enumerate(itertools.product(COMBINATIONS, (False, True))):
        added = [tokenizers.AddedToken(content, **flags)]
        reference = with_added(bpe_dir, tmp_path / str(number), added, special=special, normalizer=normalizer)
        encoder = load(tmp_path / str(number))
        expected = [encoding.ids for encoding in reference.encode_batch(texts)]
        found = encode_each(encoder, texts)
        assert found == expected, (
            flags,
            special,
            next(t for t, e, f in zip(texts, expected, found, strict=True) if e != f),
        )


@pytest.mark.parametrize("split", [False, True])
def test_added_tokens_of_all_kinds_that_overlap_are_exact(
    encode_each: Callable, bpe_dir: Path, tmp_path: Path, split: bool
) -> None:
    choose = random.Random(1)
    for number in range(20):
        contents = sorted({"".join(choose.choices("ab<e", k=choose.randint(1, 4))) for _ in range(5)})
        added = [tokenizers.AddedToken(content, **choose.choice(COMBINATIONS)) for content in contents]
        directory = tmp_path / str(number)
        reference = with_added(bpe_dir, directory, added[:3], special=False, normalizer=choose.choice(NORMALIZERS))
        reference.add_special_tokens(added[3:])
        reference.save(str(directory / "tokenizer.json"))
        reference.encode_special_tokens = split
        texts = adversarial_texts(contents)[::7] + ["".join(choose.choices("ab<e n", k=10)) for _ in range(100)]
        expected = [encoding.ids for encoding in reference.encode_batch(texts)]
        assert encode_each(load(directory, split=split), texts) == expected


@pytest.mark.parametrize("flags", COMBINATIONS)
def test_texts_without_the_token_stay_fast(bpe_dir: Path, tmp_path: Path, flags: dict[str, bool]) -> None:
    reference = with_added(bpe_dir, tmp_path, [tokenizers.AddedToken("<Tool>", **flags)], special=True)
    assert "gigatoken" in load(tmp_path).versions
    steps = json.loads(reference.to_str())
    needs = needs_reference(steps, str, split_special_tokens=False)
    assert needs is None or (needs("a <Tool> b") and not needs("a <tool> b"))


def test_runs_of_spaces_as_gpt_neox_has_them_stay_fast(encode_each: Callable, bpe_dir: Path, tmp_path: Path) -> None:
    added = [tokenizers.AddedToken(" " * length, normalized=True) for length in range(2, 25)]
    reference = with_added(bpe_dir, tmp_path, added, special=False, normalizer={"type": "NFC"})
    assert needs_reference(json.loads(reference.to_str()), str, split_special_tokens=False) is None
    texts = adversarial_texts(["  ", "   "])
    assert encode_each(load(tmp_path), texts) == [encoding.ids for encoding in reference.encode_batch(texts)]


@pytest.mark.parametrize(
    "change",
    [
        {"model": {"end_of_word_suffix": "</w>"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
    ],
)
def test_what_gigatoken_leaves_out_is_left_to_the_reference(
    encode_each: Callable, bpe_dir: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    config = json.loads((bpe_dir / "tokenizer.json").read_text())
    change = {"model": config["model"] | change["model"]} if "model" in change else change
    (tmp_path / "tokenizer.json").write_text(json.dumps(config | change))
    encoder, reference = load(tmp_path), tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    texts = ["a.\n.a'sthe", "hello world, the notation"]
    assert encode_each(encoder, texts) == [encoding.ids for encoding in reference.encode_batch(texts)]
    assert "gigatoken" not in encoder.versions


def test_dropout_is_refused(bpe_dir: Path, tmp_path: Path) -> None:
    config = json.loads((bpe_dir / "tokenizer.json").read_text())
    config["model"]["dropout"] = 0.1
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"sets BPE dropout 0\.1, which gives the same text other ids each time"):
        load(tmp_path)


def test_a_panic_of_the_rust_library_is_one_line(bpe_dir: Path, tmp_path: Path) -> None:
    config = json.loads((bpe_dir / "tokenizer.json").read_text())
    config["model"]["continuing_subword_prefix"] = "##"  # which the merges of this vocabulary do not have
    (tmp_path / "tokenizer.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=r"tokenizer\.json is not a tokenizer \(.*\): save it again"):
        load(tmp_path)
