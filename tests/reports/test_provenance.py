"""From a sequence back to its text, through views, compression and chunks."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from megatron_miniplm.cli import main
from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.indexed import IndexedCorpus, write_view
from megatron_miniplm.reports.provenance import passages_of

TEXTS = [f"Sentence one of {number}. Sentence two, with é and 日本. The third." for number in range(30)]


def write_text(path: Path) -> Path:
    columns = {"text": TEXTS, "id": [f"d{number}" for number in range(30)], "domain": ["even", "odd"] * 15}
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.table(columns), path, row_group_size=7)
        return path
    lines = [json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in zip(*columns.values(), strict=True)]
    compression = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
    with pyarrow.output_stream(str(path), compression=compression) as stream:
        stream.write("\n".join(["".join(lines[:10]), "".join(lines[10:])]).encode())  # a blank line in between
    return path


@pytest.fixture(autouse=True)
def work_in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = write_text(tmp_path / "train.jsonl")
    flags = ["--vocab-size", "300", "--type", "bpe", "--output", "bpe"]
    assert main(["train-tokenizer", "--input", str(text), *flags]) == 0


def preprocess(text: Path, *further: str) -> IndexedCorpus:
    flags = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", "bpe", "--append-eod"]
    flags += ["--id-key", "id", "--domain-key", "domain", *further]
    assert main(["preprocess-data", "--input", str(text), "--output-prefix", "data/pile", *flags]) == 0
    return IndexedCorpus.open("data/pile_text_chunk" if "--sequence" in further else "data/pile_text_document")


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"])
def test_a_document_is_found_again_in_any_format(suffix: str) -> None:
    corpus = preprocess(write_text(Path(f"text{suffix}")))
    (passage,) = passages_of(corpus, 17)
    assert (passage.text, passage.id, passage.domain, passage.source) == (TEXTS[17], "d17", "odd", f"text{suffix}")
    assert passage.line == (17 if suffix == ".parquet" else 19)  # lines count from 1, and one is blank


def test_the_passages_of_all_chunks_make_up_the_documents() -> None:
    corpus = preprocess(write_text(Path("text.jsonl")), "--sequence", "chunk", "--chunk-length", "23")
    found: dict[str | None, str] = {}
    for sequence in range(len(corpus)):
        passages = passages_of(corpus, sequence)
        assert len({passage.domain for passage in passages}) == 1
        assert sum(passage.num_tokens for passage in passages) == corpus.lengths_N[sequence]
        for passage in passages:
            assert len(found.get(passage.id, "").encode()) == passage.start_byte
            found[passage.id] = found.get(passage.id, "") + passage.text
    assert found == {f"d{number}": text for number, text in enumerate(TEXTS)}


def test_a_sequence_of_a_view_is_that_of_its_source(capsys: pytest.CaptureFixture[str]) -> None:
    corpus = preprocess(write_text(Path("text.jsonl")))
    view = write_view(corpus, np.array([29, 3]), Path("views"), label="refined", settings={})
    assert [passage.id for passage in passages_of(IndexedCorpus.open(view), 0)] == ["d29"]
    capsys.readouterr()
    assert main(["inspect", str(view), "--sequence", "1", "--json"]) == 0
    (passage,) = json.loads(capsys.readouterr().out)
    assert (passage["text"], passage["line"]) == (TEXTS[3], 4)


def test_what_cannot_be_found_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    text = write_text(Path("text.jsonl"))
    corpus = preprocess(text)
    with pytest.raises(InputError, match=r"has no sequence 30: they count from 0 to 29"):
        passages_of(corpus, 30)
    text.write_bytes(b"x" + text.read_bytes())
    with pytest.raises(
        InputError, match=r"text\.jsonl has no document at \d+: it has changed since it was preprocessed"
    ):
        passages_of(corpus, 5)
    text.unlink()
    assert main(["inspect", "data/pile_text_document", "--sequence", "0"]) == 2
    assert "text.jsonl does not exist" in capsys.readouterr().err
    Path("data/pile_text_document.documents.parquet").unlink()
    with pytest.raises(
        InputError, match="has no sidecar that says where its sequences come from: make it with preproc"
    ):
        passages_of(corpus, 0)


def test_a_sidecar_that_names_another_file_than_the_manifest() -> None:
    corpus = preprocess(write_text(Path("text.jsonl")))
    path = Path("data/pile_text_document.documents.parquet")
    table = pyarrow.parquet.read_table(path)
    index = table.schema.get_field_index("source")
    column = pyarrow.array(["/dev/zero"] * len(table)).dictionary_encode().cast(table.schema.field(index).type)
    changed = table.set_column(index, table.schema.field(index), column).replace_schema_metadata(table.schema.metadata)
    pyarrow.parquet.write_table(changed, path)
    with pytest.raises(CorruptArtifactError, match="names the text /dev/zero, which the manifest beside it does not"):
        passages_of(corpus, 1)


def test_a_text_that_is_no_regular_file_any_more() -> None:
    corpus = preprocess(write_text(Path("text.jsonl")))
    Path("text.jsonl").unlink()
    os.mkfifo("text.jsonl")
    with pytest.raises(InputError, match=r"text\.jsonl is a FIFO"):
        passages_of(corpus, 1)
