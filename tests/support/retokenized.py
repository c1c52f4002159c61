"""Corpora that are built from texts, converted to another tokenizer, and read back."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

from megatron_miniplm.artifacts import load_manifest
from megatron_miniplm.artifacts.manifest import verify_files
from megatron_miniplm.corpus.build import BuildSettings, build_corpus
from megatron_miniplm.corpus.retokenization.convert import ConversionSettings, convert_prefixes
from megatron_miniplm.corpus.tokenization.settings import TextEncoder, TokenizerSettings
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.sidecar import Sidecar, sidecar_path
from megatron_miniplm.reports.inspection import find_faults

WORDS = ["one", "two,", "three.", "Four", "five!", "naïve", "👍🏽", "три", "слова\n\nA", "line\tand", "", "", "spaces."]
NUM_DOCUMENTS = 60


def write_texts(directory: Path, kind: str, texts: Sequence[str]) -> list[Path]:
    """Two files of a kind; the second has the last third."""
    directory.mkdir(parents=True, exist_ok=True)
    edge = 2 * len(texts) // 3
    paths = []
    for name, part in (("a", texts[:edge]), ("b", texts[edge:])):
        path = directory / f"{name}.{kind}"
        lines = "".join(json.dumps({"text": text, "id": number}) + "\n" for number, text in enumerate(part))
        if kind == "parquet":
            table = pa.table({"text": part, "id": list(range(len(part)))})
            pq.write_table(table, path, row_group_size=4)
        elif kind == "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        elif kind == "jsonl.zst":
            path.write_bytes(pa.Codec("zstd").compress(lines.encode(), asbytes=True))
        else:
            path.write_text(lines)
        paths.append(path)
    return paths


def build(
    directory: Path,
    texts: Sequence[str],
    tokenizer: TokenizerSettings,
    *,
    kind: str = "jsonl",
    append_eod: bool = True,
    chunk_length: int | None = None,
) -> Path:
    """The prefix of a corpus in `directory/teacher`."""
    settings = BuildSettings(
        inputs=tuple(write_texts(directory, kind, texts)),
        output_prefix=directory / "teacher" / "corpus",
        json_keys=("text",),
        tokenizer=tokenizer,
        append_eod=append_eod,
        id_key="id",
        chunk_length=chunk_length,
    )
    ((prefix, _),) = build_corpus(settings, num_workers=1).items()
    return prefix


def convert(prefix: Path, output_dir: Path, settings: ConversionSettings, num_workers: int = 1) -> Path:
    ((output, manifest),) = convert_prefixes([prefix], output_dir, settings, num_workers=num_workers).items()
    assert manifest == load_manifest(output)
    assert verify_files(output, manifest) == []
    assert find_faults(output) == []
    return output


def sequences_of(prefix: Path) -> list[list[int]]:
    corpus = IndexedCorpus.open(prefix)
    return [corpus.sequence(index).tolist() for index in range(len(corpus))]


def ids_of(encoder: TextEncoder, text: str) -> list[int]:
    return encoder.encode([text])[0].tolist()


def expected_sequences(prefix: Path, texts: Sequence[str], encoder: TextEncoder) -> list[list[int]]:
    """Every sequence of a corpus in another tokenizer, from the texts of its pieces."""
    edge = 2 * len(texts) // 3
    parts = {"a": texts[:edge], "b": texts[edge:]}
    sequences: dict[int, list[int]] = {}
    for table in Sidecar(sidecar_path(prefix)).tables():
        for row in table.to_pylist():
            data = parts[Path(row["source"]).name[0]][int(row["id"])].encode()
            start, stop = row["start_byte"], row["start_byte"] + row["text_bytes"]
            ids = ids_of(encoder, data[start:stop].decode())
            sequences.setdefault(row["sequence"], []).extend(ids + [encoder.eod_id] * (stop == len(data)))
    return [sequences[index] for index in range(len(sequences))]


def word_tokenizer(directory: Path) -> TokenizerSettings:
    """Knows no end of document, and has no token for white space."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0, "a": 1, "b": 2}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    directory.mkdir()
    tokenizer.save(str(directory / "tokenizer.json"))
    return TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=directory)
