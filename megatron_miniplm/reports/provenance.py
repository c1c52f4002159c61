"""From a sequence of any corpus or view back to the text that it came from."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_miniplm.artifacts.lineage import parent_path, relative_to_cwd
from megatron_miniplm.artifacts.manifest import load_manifest, manifest_path
from megatron_miniplm.artifacts.reading import open_regular
from megatron_miniplm.corpus.readers import read_document
from megatron_miniplm.errors import CorruptArtifactError, InputError
from megatron_miniplm.indexed import IndexedCorpus
from megatron_miniplm.indexed.sidecar import Sidecar
from megatron_miniplm.indexed.view import data_prefix, source_sequence

if TYPE_CHECKING:
    from megatron_miniplm.corpus.tokenization.settings import TextEncoder


@dataclass(frozen=True, kw_only=True)
class Passage:
    """What a sequence has of one document.

    Attributes:
        source: the text file, relative to the working directory where it lies below it.
        line: of the file, from 1; of a Parquet file the row, from 0.
        position: byte of the uncompressed text at which the line starts, or the row.
        id, domain: None where the corpus was made without.
        piece: number of this passage in its document, from 0.
        start_byte: where it starts in the document's text in UTF-8.
        num_tokens: in the sequence, with an end-of-document token.
        text: of the passage.
    """

    source: str
    line: int
    position: int
    id: str | None
    domain: str | None
    piece: int
    start_byte: int
    num_tokens: int
    text: str


def decoded_text(
    corpus: IndexedCorpus, sequence: int, decoder: "TextEncoder", max_characters: int | None = None
) -> str:
    """The text of a sequence by its tokens alone; of a long one the first characters, where a limit is given."""
    token_T = corpus.sequence(sequence)
    shown_T = token_T if max_characters is None else token_T[: 2 * max_characters]
    return decoder.decode(shown_T.tolist())[:max_characters]


def passages_of(corpus: IndexedCorpus, sequence: int) -> list[Passage]:
    """The passages that make up a sequence, in order, their texts read from the original files.

    Raises:
        InputError: there is no such sequence or no sidecar, or an original file is gone or has changed.
        CorruptArtifactError: the sidecar names another file than the manifest.
    """
    if not 0 <= sequence < len(corpus):
        raise InputError(f"{corpus.prefix} has no sequence {sequence}: they count from 0 to {len(corpus) - 1}")
    sidecar = Sidecar.of(corpus)
    data = data_prefix(corpus.prefix)
    if sidecar is None or not manifest_path(data).exists():
        raise InputError(f"{data} has no sidecar that says where its sequences come from: make it with preprocess-data")
    manifest = load_manifest(data)
    json_key = manifest.settings.get("json_key")
    if json_key is None:
        raise InputError(f"{manifest_path(data)} does not say which JSON key the text had: preprocess the text again")
    texts = {parent_path(data, parent).absolute() for parent in manifest.inputs if parent.role == "text"}
    return [_passage(sidecar, row, json_key, texts) for row in sidecar.pieces_of(source_sequence(corpus, sequence))]


def _passage(sidecar: Sidecar, row: dict[str, Any], json_key: str, texts: set[Path]) -> Passage:
    path = sidecar.source_path(row["source"])
    if path.absolute() not in texts:
        raise CorruptArtifactError(
            f"{sidecar.path} names the text {path}, which the manifest beside it does not: copy both, or preprocess, "
            "again"
        )
    with suppress(FileNotFoundError):  # which the reader puts better
        open_regular(path).close()  # what is found there must not be read without end
    text, line = read_document(path, row["position"], json_key)
    data = text.encode("utf-8")
    start, stop = row["start_byte"], row["start_byte"] + row["text_bytes"]
    if stop > len(data):
        raise InputError(f"{path}, line {line}: has {len(data)} bytes of text, the sidecar expects {stop}: restore it")
    return Passage(
        source=str(relative_to_cwd(Path(path))),
        line=line,
        text=data[start:stop].decode("utf-8"),
        **{name: row[name] for name in ("position", "id", "domain", "piece", "start_byte", "num_tokens")},
    )
