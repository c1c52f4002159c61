"""The drill: every way in which files of a corpus get damaged, found with the file and the sequence."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_miniplm.cli import main
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.layout import HEADER
from megatron_miniplm.reports.inspection import bytes_to_check, find_faults

DOCUMENTS = [f"Document {number} says {number * 7919}." for number in range(40)]
PREFIX = "data/pile_text_document"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two corpora of one tokenizer, in a directory to be copied."""
    directory = tmp_path_factory.mktemp("pristine")
    for name, documents in (("pile", DOCUMENTS), ("other", DOCUMENTS[::-1])):
        lines = [json.dumps({"text": text}) + "\n" for text in documents]
        (directory / f"{name}.jsonl").write_text("".join(lines))
    arguments = ["--vocab-size", "300", "--type", "bpe", "--output", str(directory / "bpe")]
    assert main(["train-tokenizer", "--input", str(directory / "pile.jsonl"), *arguments]) == 0
    for name in ("pile", "other"):
        arguments = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(directory / "bpe")]
        arguments += ["--output-prefix", str(directory / "data" / name), "--append-eod"]
        assert main(["preprocess-data", "--input", str(directory / f"{name}.jsonl"), *arguments]) == 0
    return directory


@pytest.fixture
def corpus(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> IndexedCorpus:
    shutil.copytree(pristine, tmp_path / "run")
    monkeypatch.chdir(tmp_path / "run")
    return IndexedCorpus.open(PREFIX)


def overwrite(path: str, offset: int, data: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(data)


def truncate_data(corpus: IndexedCorpus) -> int:
    os.truncate(f"{PREFIX}.bin", int(corpus.pointers_N[30]) + 2)
    return 30


def truncate_index(corpus: IndexedCorpus) -> int:
    os.truncate(f"{PREFIX}.idx", HEADER.size + 4 * len(corpus) + 8 * 17)
    return 17


def flip_a_bit(corpus: IndexedCorpus) -> int:
    offset = int(corpus.pointers_N[23]) + 4
    overwrite(f"{PREFIX}.bin", offset, bytes([Path(f"{PREFIX}.bin").read_bytes()[offset] ^ 1]))
    return 23


def swap_two_tokens(corpus: IndexedCorpus) -> int:
    tokens = corpus.sequence(11)
    assert tokens[0] != tokens[1]
    overwrite(f"{PREFIX}.bin", int(corpus.pointers_N[11]), tokens[1::-1].tobytes())
    return 11


def swap_data_of_two_corpora(corpus: IndexedCorpus) -> int:
    shutil.copyfile("data/other_text_document.bin", f"{PREFIX}.bin")
    return 0


def swap_two_lengths(corpus: IndexedCorpus) -> int:
    first = next(index for index in range(1, 39) if corpus.lengths_N[index] < corpus.lengths_N[index + 1])
    overwrite(f"{PREFIX}.idx", HEADER.size + 4 * first, corpus.lengths_N[[first + 1, first]].tobytes())
    return first + 1  # which no longer starts where the one before it ends


def declare_a_wider_type(corpus: IndexedCorpus) -> int:
    overwrite(f"{PREFIX}.idx", 17, b"\x04")
    return int((corpus.pointers_N % 4 != 0).argmax())  # the first that int32 cannot have


def declare_a_signed_type(corpus: IndexedCorpus) -> int:
    overwrite(f"{PREFIX}.idx", 17, b"\x03")
    return 0


def point_beyond_the_end(corpus: IndexedCorpus) -> int:
    overwrite(f"{PREFIX}.idx", HEADER.size + 4 * len(corpus) + 8 * 9, struct.pack("<q", 1 << 40))
    return 9


def point_elsewhere(corpus: IndexedCorpus) -> int:
    overwrite(f"{PREFIX}.idx", HEADER.size + 4 * len(corpus) + 8 * 9, struct.pack("<q", 2))
    return 9


def make_a_length_negative(corpus: IndexedCorpus) -> int:
    overwrite(f"{PREFIX}.idx", HEADER.size + 4 * 5, struct.pack("<i", -5))
    return 5


def write_a_token_outside_the_vocabulary(corpus: IndexedCorpus) -> int:
    overwrite(f"{PREFIX}.bin", int(corpus.pointers_N[31]), struct.pack("<H", 60_000))
    return 31


def take_the_sidecar_of_another_corpus(corpus: IndexedCorpus) -> int:
    shutil.copyfile("data/other_text_document.documents.parquet", f"{PREFIX}.documents.parquet")
    return 0


DAMAGES: list[tuple[Callable[[IndexedCorpus], int], str]] = [
    (truncate_data, "pile_text_document.idx: sequence {} has"),
    (truncate_index, "pile_text_document.idx has 330 bytes, its header (40 sequences, 41 document boundaries) asks for "
     "842: the index is cut off at the pointer of sequence {}; copy or make it again"),
    (flip_a_bit, "pile_text_document.bin: sequence {} does not match its checksum in pile_text_document.documents"),
    (swap_two_tokens, "pile_text_document.bin: sequence {} does not match its checksum"),
    (swap_data_of_two_corpora, "pile_text_document.bin: sequence {} does not match its checksum"),
    (swap_two_lengths, "pile_text_document.idx: sequence {} is at byte "),
    (declare_a_wider_type, "pile_text_document.idx: sequence {} has"),
    (declare_a_signed_type, "pile_text_document.idx: the tokens are int16 from sequence {} on, expected uint16"),
    (point_beyond_the_end, "pile_text_document.idx: sequence {} has"),
    (point_elsewhere, "pile_text_document.idx: sequence {} is at byte 2, but the sequence before it does not end"),
    (make_a_length_negative, "pile_text_document.idx: sequence {} has -5 tokens"),
    (write_a_token_outside_the_vocabulary, "pile_text_document.bin: sequence {} has token 60000 at byte"),
    (take_the_sidecar_of_another_corpus, "sequence {} "),
]  # fmt: skip


def test_the_pristine_corpus_is_intact(corpus: IndexedCorpus, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", PREFIX, "--check"]) == 0
    assert capsys.readouterr().out.endswith("ok\n")


def test_progress_counts_what_is_read(corpus: IndexedCorpus) -> None:
    read: list[int] = []
    assert find_faults(Path(PREFIX), read.append) == []
    assert sum(read) == bytes_to_check(Path(PREFIX)) > 2 * corpus.bin_bytes


@pytest.mark.parametrize(("damage", "message"), DAMAGES, ids=[damage.__name__ for damage, _ in DAMAGES])
def test_damage_is_found_with_its_sequence(
    corpus: IndexedCorpus, damage: Callable[[IndexedCorpus], int], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sequence = damage(corpus)
    assert main(["inspect", PREFIX, "--check"]) == 2
    faults = capsys.readouterr().out
    assert "data/" in faults
    assert message.format(sequence) in faults
