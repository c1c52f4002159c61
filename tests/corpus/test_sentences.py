import itertools
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from pydoc_data.topics import topics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nltk.tokenize import punkt

from megatron_miniplm.corpus.sentences import (
    TRAINING_CHARACTERS_PER_TEXT,
    Gap,
    SentenceModel,
    _OrthographicContexts,
    line_ends,
)
from megatron_miniplm.errors import InputError

MODEL = SentenceModel(
    abbreviations=frozenset({"dr", "e.g", "p.m", "etc", "co"}),
    collocations=frozenset({("s", "bach"), ("no", "##number##")}),
    starters=frozenset({"the", "however"}),
    orthography={"the": 1 << 1 | 1 << 5, "bach": 1 << 2},  # capital at beginnings, small inside; capital inside
)
CLINIC = (
    "Dr. Jones saw Dr. Miller at the clinic. Then Dr. Brown called. She asked Dr. Smith to come. It was late. "
    "They left with Dr. Adams. The clinic closed early. Nobody stayed there. We saw Dr. White again. "
)


def sentences(text: str, model: SentenceModel = MODEL) -> list[str]:
    """The sentences of a text, with the white space after each."""
    places = [0, *sorted(gap.stop for gap in model.sentence_ends(text, 0, len(text))), len(text)]
    return [text[start:stop] for start, stop in itertools.pairwise(places)]


@pytest.mark.parametrize(
    "expected",
    [
        ["Dr. Smith left. ", "He did not return."],
        ["Some animals, e.g. cats, sleep. ", "Others do not."],
        ["They met at 5 p.m. and left. ", "It rained."],
        ["Bring pens, etc. ", "The rest is here."],  # an abbreviation, then a word that is small elsewhere
        ["The music is by S. Bach. ", "It is old."],
        ['"It works." ', "(He did not believe it.) ", "She did!  ", "Really?! ", "Yes."],
        ['"Why?" she asked. ', "“Because.” ", "‘So?’ ", "«Bon.» ", "*Done.* ", "_End._ ", "Next."],
        ["He paused... and went on. ", "So did she…"],
        ["Chapter 1 . . . . . . 5\n\n", "It starts. ", "Here."],
        ["pi is 3.14 and x.y is foo.bar() here. ", "Done."],
        ["First paragraph without a stop\n\n", "second one\n \n\t\n", "    third one"],
        ["The end.\n\n\n", "\tA beginning."],
        ["One line.\n", "    Another line."],
        ["1. First item.\n", "2. Second item.\n", "a. Third item.\n", "iv. Fourth.\n", "2.1. Fifth."],
        ["你好，世界。", "今天天气很好！", "他说：“走吧。”", "我们走？！", "（是的。）", "好"],
        ["はい。", "「そうです。」 ", "いいえ｡", "終"],
        ["यह एक वाक्य है। ", "यह दूसरा है॥", "अंत"],
        ["هل هذا سؤال؟ ", "یہ جملہ ہے۔ ", "النهاية"],
        ["ይህ ነው። ", "Սա է։ ", "នេះ។", "ဒါ။", "x"],
        ["if ! grep -q x; then y = a ? b : c; z = a ? 1 : 0; fi"],
        ["Bonjour ! ", "Ça va ? ", "Oui."],
        ["no punctuation at all in these words"],
        ["trailing stop. "],
        ["... "],
        [""],
    ],
    ids=lambda expected: expected[0],
)
def test_sentences_by_eye(expected: list[str]) -> None:
    assert sentences("".join(expected)) == expected


def test_gaps_come_from_the_last_to_the_first_and_reach_to_the_beginning_of_the_next_line() -> None:
    text = 'One.  (Two.)\n   "Three."\n \n Four'
    assert list(MODEL.sentence_ends(text, 0, len(text))) == [Gap(24, 27), Gap(12, 13), Gap(4, 6)]
    assert text[6:12] == "(Two.)"
    assert list(line_ends(text, 0, len(text))) == [Gap(24, 27), Gap(12, 13)]
    assert list(line_ends("a \t\n\n  b\nc", 0, 9)) == [Gap(8, 9), Gap(1, 5)]


def test_white_space_at_the_end_is_between_nothing() -> None:
    for text in ("One.\n", "One.\n\n", "One. ", "好。", "好。\n"):
        assert list(MODEL.sentence_ends(text, 0, len(text))) == []
        assert list(line_ends(text, 0, len(text))) == []


def test_only_the_given_part_is_searched_and_the_words_around_it_are_seen() -> None:
    text = "One. See Dr. Smith. Two."
    assert list(MODEL.sentence_ends(text, 11, 20)) == [Gap(19, 20)]
    assert list(MODEL.sentence_ends(text, 11, 19)) == [Gap(19, 20)]
    assert list(MODEL.sentence_ends(text, 11, 18)) == []
    assert list(MODEL.sentence_ends(text, 4, 19)) == [Gap(19, 20), Gap(4, 5)]
    assert list(MODEL.sentence_ends(text, 5, 19)) == [Gap(19, 20)]
    assert list(line_ends("a\nb\nc\nd", 2, 3)) == [Gap(3, 4)]


WORDS = st.sampled_from(["", "dr", "Dr", "e.g", "s", "S", "no", "No", "word", "WORD", "3", "1.5", "x-dr", "(dr", "né"])
STOPS = st.sampled_from([".", "...", "..", "!", "?", "?!", "!!", "!."])
NEXT_WORDS = st.sampled_from(["The", "the", "bach", "Bach", "Smith", "5", '"Yes', "(no", ",", "However", "é", "你"])


@settings(deadline=None)
@given(word=WORDS | st.text(st.characters(categories=["L"]), min_size=1, max_size=9), stops=STOPS, following=NEXT_WORDS)
def test_a_stop_after_a_word_is_judged_as_punkt_does(word: str, stops: str, following: str) -> None:
    parameters = punkt.PunktParameters()
    parameters.abbrev_types = set(MODEL.abbreviations)
    parameters.collocations = set(MODEL.collocations)
    parameters.sent_starters = set(MODEL.starters)
    parameters.ortho_context.update(MODEL.orthography)
    text = f"{word}{stops} {following}"
    expected = punkt.PunktSentenceTokenizer(parameters).text_contains_sentbreak(text)
    if not word and (following[0].islower() or not following[0].isalpha()):
        expected = False  # `if ! test`
    before = "so "  # not at the start of a line, where `3.` is the number of an item
    found = list(MODEL.sentence_ends(before + text, 0, len(before + text)))
    assert (Gap(len(before + word + stops), len(before + word + stops) + 1) in found) == expected


def test_abbreviations_are_learnt_from_text_alone() -> None:
    model = SentenceModel.train([CLINIC] * 20)
    assert "dr" in model.abbreviations
    assert "clinic" not in model.abbreviations
    assert sentences("We met Dr. Jones. Then we left. ", model) == ["We met Dr. Jones. ", "Then we left. "]


def test_training_reads_only_the_beginnings_of_as_many_texts_as_it_needs() -> None:
    def texts() -> Iterator[str]:
        yield CLINIC * 20
        yield "begin " * TRAINING_CHARACTERS_PER_TEXT + "secret. Begin."
        pytest.fail("a text was drawn that is not needed")

    model = SentenceModel.train(texts(), max_characters=len(CLINIC) * 20 + 100)
    assert "begin" in model.orthography
    assert "secret" not in model.orthography
    assert SentenceModel.train([]).fingerprint() == SentenceModel.train([""]).fingerprint()


def test_using_a_model_changes_neither_it_nor_its_size() -> None:
    """NLTK's own table of words is a defaultdict, which keeps every word that is looked up."""
    model = SentenceModel.train([CLINIC] * 20)
    before = model.fingerprint()
    contexts = _OrthographicContexts(model.orthography)
    assert contexts["unheardof"] == 0
    assert contexts == model.orthography
    sentences("Dr. Unheardof came. Dr. Neverseen... Went? ", model)
    assert model.fingerprint() == before


def test_training_does_not_depend_on_the_hash_seed() -> None:
    """A process with another seed, and without torch, trains the model that this one does."""
    program = (
        "from pydoc_data.topics import topics; from megatron_miniplm.corpus.sentences import SentenceModel; import sys;"
        "print(SentenceModel.train(sorted(topics.values()), 60_000).fingerprint(), 'torch' in sys.modules)"
    )
    other_seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    printed = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": other_seed},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed == f"{SentenceModel.train(sorted(topics.values()), 60_000).fingerprint()} False\n"


def test_a_saved_model_is_the_same_and_is_one_of_nltk(tmp_path: Path) -> None:
    model = SentenceModel.train([CLINIC, ". .\t. and Dr. Ünsal. " * 3] * 20)
    model.save(tmp_path / "model")
    assert SentenceModel.load(tmp_path / "model") == model
    assert SentenceModel.load(tmp_path / "model").fingerprint() == model.fingerprint()

    class Folder:  # what nltk.data.find gives, less the check of the path
        def join(self, name: str) -> Path:
            return tmp_path / "model" / name

        def __str__(self) -> str:  # what NLTK before 3.10 uses
            return str(tmp_path / "model")

    parameters = punkt.load_punkt_params(Folder())
    assert parameters.abbrev_types == model.abbreviations
    assert set(parameters.collocations) == model.collocations  # a list before NLTK 3.10
    assert parameters.sent_starters == model.starters
    assert parameters.ortho_context == model.orthography


def test_the_fingerprint_is_of_the_parameters(tmp_path: Path) -> None:
    MODEL.save(tmp_path)
    assert (tmp_path / "abbrev_types.txt").read_text() == "co\ndr\ne.g\netc\np.m\n"
    assert (tmp_path / "collocations.tab").read_text() == "no\t##number##\ns\tbach\n"
    assert (tmp_path / "sent_starters.txt").read_text() == "however\nthe\n"
    assert (tmp_path / "ortho_context.tab").read_text() == "bach\t4\nthe\t34\n"
    (tmp_path / "abbrev_types.txt").write_text("dr\r\n")  # another one, with the line ends of Windows
    assert SentenceModel.load(tmp_path).abbreviations == {"dr"}
    assert SentenceModel.load(tmp_path).fingerprint() != MODEL.fingerprint()


def test_a_model_can_be_sent_to_another_process() -> None:
    assert sentences("Dr. Smith left. ") == ["Dr. Smith left. "]
    copy = pickle.loads(pickle.dumps(MODEL))
    assert copy == MODEL
    assert len(pickle.dumps(MODEL)) < 1000  # nothing that is derived goes along
    assert sentences("Dr. Smith left. ", copy) == ["Dr. Smith left. "]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("abbrev_types.txt", None, "abbrev_types.txt cannot be read (No such file or directory)"),
        ("collocations.tab", b"one\ttwo\n\xff\n", "collocations.tab cannot be read (byte 8 is not UTF-8)"),
        ("collocations.tab", b"one\n", "found another line (not enough values to unpack (expected 2, got 1))"),
        ("abbrev_types.txt", b"one\ttwo\n", "found another line (too many values to unpack (expected 1"),
        ("ortho_context.tab", b"one\ttwo\n", "found another line (invalid literal for int() with base 10: 'two')"),
    ],
)
def test_what_is_not_a_model_is_refused(tmp_path: Path, name: str, content: bytes | None, found: str) -> None:
    MODEL.save(tmp_path)
    if content is None:
        (tmp_path / name).unlink()
    else:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError) as error:
        SentenceModel.load(tmp_path)
    assert str(error.value).startswith(f"{tmp_path} is not a sentence model: ")
    assert found in str(error.value)
    assert str(error.value).endswith(
        ": give a directory in NLTK's punkt_tab format, such as tokenizers/punkt_tab/english of nltk_data, or let a "
        "model be trained on the text"
    )


@pytest.mark.parametrize(
    "text",
    [
        "." * 100_000 + "x",
        " " * 100_000 + "x",
        ".)" * 50_000,
        "\n " * 50_000,
        '"' * 100_000,
        ". ." * 30_000,
        "a" * 100_000,
    ],
    ids=["dots", "spaces", "brackets", "lines", "quotes", "ellipses", "letters"],
)
def test_searching_a_run_of_one_kind_takes_linear_time(text: str) -> None:
    start = time.process_time()
    for _ in zip(range(10), MODEL.sentence_ends(text, 0, len(text)), strict=False):
        pass
    for _ in zip(range(10), line_ends(text, 0, len(text)), strict=False):
        pass
    assert time.process_time() - start < 2
