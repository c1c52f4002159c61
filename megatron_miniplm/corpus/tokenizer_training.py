"""Train a tokenizer on JSONL text: byte-level BPE (HuggingFace) or SentencePiece BPE with byte fallback.

Nothing is normalised and every byte has a token, so that text survives the way to ids and back (in SentencePiece all
but a literal `▁`, its own sign for a space). The same text and settings give the same files.
"""

import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_miniplm.artifacts import ArtifactInput, Manifest, atomic_output, load_manifest, manifest_path
from megatron_miniplm.artifacts.atomic import named_in_errors
from megatron_miniplm.artifacts.directories import LOCK, sole_writer
from megatron_miniplm.artifacts.fingerprint import digest_file_samples
from megatron_miniplm.artifacts.manifest import DIRECTORY_MANIFEST, checksum_of, input_of, is_prefix
from megatron_miniplm.corpus.readers import read_texts
from megatron_miniplm.corpus.sources import Source, expand_inputs
from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder
from megatron_miniplm.corpus.units import MAX_LINE_BYTES
from megatron_miniplm.errors import InputError, one_line

logger = logging.getLogger(__name__)

#: Algorithm -> the `--tokenizer-type` under which Megatron loads the result.
TOKENIZER_TYPE_OF = {"bpe": "HuggingFaceTokenizer", "sentencepiece": "SentencePieceTokenizer"}
END_OF_TEXT = "<|endoftext|>"
SENTENCEPIECE_MODEL = "tokenizer.model"
_FILES = ("tokenizer.json", "tokenizer_config.json", SENTENCEPIECE_MODEL)
_MIN_VOCAB_SIZE = {"bpe": 257, "sentencepiece": 260}  # 256 bytes and the special tokens (SentencePiece: and one merge)
_NO_LONGEST_INPUT = 10**30  # what HuggingFace writes for a tokenizer without a longest input
_MAX_LINE_BYTES = 1 << 20  # SentencePiece leaves longer lines out; its own limit of 4,192 loses many


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """What shapes a tokenizer.

    Attributes:
        algorithm: `bpe` or `sentencepiece`.
        vocab_size: tokens, special ones included; byte-level BPE gives fewer where the text has no more to merge.
        json_keys: the keys whose values are text.
        max_bytes: documents are taken in order until their text reaches this many UTF-8 bytes; None takes all.
        max_line_bytes: a longer line is refused.
    """

    algorithm: str
    vocab_size: int
    json_keys: tuple[str, ...]
    max_bytes: int | None
    max_line_bytes: int = MAX_LINE_BYTES


def train_tokenizer(inputs: Sequence[Path], output_dir: Path, settings: TrainingSettings) -> Manifest:
    """Train a tokenizer and write its directory, or recognise that this was already done.

    Raises:
        InputError: an input, the vocabulary size or the directory cannot be used; no tokenizer was written.
    """
    minimum = _MIN_VOCAB_SIZE[settings.algorithm]
    if settings.vocab_size < minimum:
        raise InputError(f"--vocab-size {settings.vocab_size} has no room for every byte: give at least {minimum}")
    sources = expand_inputs(inputs)
    parents = tuple(
        input_of("text", source.path, digest_file_samples(source.path), relative_to=output_dir) for source in sources
    )
    if is_prefix(output_dir):
        raise InputError(f"{output_dir} is the prefix of a .bin/.idx pair: give another --output")
    values = {**asdict(settings), "json_keys": list(settings.json_keys)}
    if settings.max_line_bytes == MAX_LINE_BYTES:
        del values["max_line_bytes"]
    was_killed = (output_dir / LOCK).exists()  # or is written just now
    if manifest_path(output_dir).exists() and not was_killed:
        return _finished(output_dir, values, parents)
    with sole_writer(output_dir):
        if was_killed and not manifest_path(output_dir).exists():
            _remove_files(output_dir)
        if any(path.name != LOCK for path in output_dir.iterdir()):
            return _finished(output_dir, values, parents)
        train = _train_byte_level_bpe if settings.algorithm == "bpe" else _train_sentencepiece
        files = train(_texts(sources, settings), settings.vocab_size)
        try:
            return _write(output_dir, files, settings.algorithm, values, parents)
        except BaseException:
            _remove_files(output_dir)
            raise


def _write(
    output_dir: Path,
    files: dict[str, bytes],
    algorithm: str,
    values: dict[str, object],
    parents: tuple[ArtifactInput, ...],
) -> Manifest:
    for name, data in files.items():
        with named_in_errors(output_dir / name), atomic_output(output_dir / name) as stream:
            stream.write(data)
    model = output_dir / SENTENCEPIECE_MODEL if algorithm == "sentencepiece" else output_dir
    encoder = load_encoder(TOKENIZER_TYPE_OF[algorithm], model, num_threads=1)
    manifest = Manifest(
        kind="tokenizer",
        fingerprint=encoder.fingerprint(),
        counts={"vocab_size": encoder.vocab_size},
        settings=values,
        versions={name: found for name, found in encoder.versions.items() if name != "gigatoken"},
        inputs=parents,
        files={name: checksum_of(output_dir / name) for name in files},
    )
    manifest.write(output_dir)
    return manifest


def _remove_files(output_dir: Path) -> None:
    """What an unfinished run has left."""
    for name in (*_FILES, DIRECTORY_MANIFEST):
        (output_dir / name).unlink(missing_ok=True)


def _finished(output_dir: Path, values: dict[str, object], parents: Sequence[ArtifactInput]) -> Manifest:
    """The manifest of a directory that holds a finished tokenizer of the same text and settings.

    Raises:
        InputError: it holds something else.
    """
    if manifest_path(output_dir).exists():
        manifest = load_manifest(output_dir)
        wanted = [parent.fingerprint for parent in parents]
        if manifest.settings == values and [parent.fingerprint for parent in manifest.inputs] == wanted:
            logger.info("%s is complete already, from the same inputs and settings: nothing to do", output_dir)
            return manifest
    raise InputError(f"{output_dir} holds something else already: choose another --output, or delete it")


def _texts(sources: Sequence[Source], settings: TrainingSettings) -> Iterator[str]:
    taken_bytes = 0
    for text in read_texts(sources, settings.json_keys, settings.max_line_bytes):
        if settings.max_bytes is not None and taken_bytes >= settings.max_bytes:
            return
        taken_bytes += len(text.encode("utf-8"))
        yield text


def _train_byte_level_bpe(texts: Iterator[str], vocab_size: int) -> dict[str, bytes]:
    """GPT-2's: its split regex (runs of digits stay together), 256 bytes, merges, and one special token as EOD."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _NO_LONGEST_INPUT,
    }
    return {
        "tokenizer.json": tokenizer.to_str(pretty=True).encode(),
        "tokenizer_config.json": (json.dumps(config, indent=2) + "\n").encode(),
    }


def _train_sentencepiece(texts: Iterator[str], vocab_size: int) -> dict[str, bytes]:
    """Llama's settings: BPE with byte fallback, split digits, white space kept; `</s>` is the EOD."""
    import sentencepiece

    model = io.BytesIO()
    read_errors: list[Exception] = []
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, read_errors),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            split_digits=True,
            allow_whitespace_only_pieces=True,
            remove_extra_whitespaces=False,
            normalization_rule_name="identity",
            max_sentence_length=_MAX_LINE_BYTES,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        if read_errors:
            raise read_errors[0] from None
        raise InputError(
            f"SentencePiece cannot train {vocab_size} tokens on this text ({one_line(error)}): give another "
            "--vocab-size or more text"
        ) from None
    if read_errors:
        raise read_errors[0]
    return {SENTENCEPIECE_MODEL: model.getvalue()}


def _lines(texts: Iterator[str], errors: list[Exception]) -> Iterator[str]:
    """Lines of all texts. SentencePiece before 0.2.3 takes an error for the end of the text: it is kept in `errors`."""
    try:
        for text in texts:
            yield from text.splitlines()
    except Exception as error:
        errors.append(error)
        raise
