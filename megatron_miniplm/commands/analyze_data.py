"""Measure how selection changed the data: diversity, lengths, vocabulary, domains and duplicates, side by side.

Give each data set a name and its prefixes, directories of views, or selections; the first is the data before selection:

    miniplm analyze-data --data pool split/pool --data refined selection --output analysis

Lengths and domains are computed over all sequences. Duplicates and the n-grams of --heldout are computed over all
tokens, and skipped if a data set has more than --scan-tokens. Vocabulary and diversity are estimated from a sample,
with a standard error.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_miniplm.commands.shared_flags import TYPES_TEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from megatron_miniplm.evaluation.analysis.data import Dataset
    from megatron_miniplm.evaluation.analysis.diversity import Embedding


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        nargs="+",
        action="append",
        required=True,
        metavar=("NAME", "PATH"),
        help="a data set: its name and its prefixes; repeat the flag for several",
    )
    parser.add_argument(
        "--heldout",
        nargs="+",
        action="append",
        default=[],
        metavar=("NAME", "PATH"),
        help="held-out prefixes: report 13-grams shared with them",
    )
    parser.add_argument(
        "--sample", type=int, default=10_000, metavar="N", help="sequences to sample (default: %(default)s)"
    )
    parser.add_argument(
        "--sequence-tokens",
        type=int,
        default=1024,
        metavar="N",
        help="tokens to read from the start of each sampled sequence (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=1234, metavar="S", help="seed of the sample (default: %(default)s)")
    parser.add_argument(
        "--scan-tokens",
        type=float,
        default=1e9,
        metavar="N",
        help="read all tokens of a data set with at most this many (default: %(default)g)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")
    parser.add_argument("--output", type=Path, metavar="DIR", help="also write analysis.png to this directory")
    model = parser.add_argument_group("embedding", "default: hashed n-grams of tokens, without a model")
    model.add_argument(
        "--embedding-model", type=Path, metavar="DIR", help="a Hugging Face model; needs the data's text:"
    )
    model.add_argument("--tokenizer-type", metavar="TYPE", help=f"of the data: {TYPES_TEXT}")
    model.add_argument("--tokenizer-model", type=Path, metavar="PATH", help="tokenizer files, as in preprocess-data")


def run(arguments: argparse.Namespace) -> None:
    from megatron_miniplm.evaluation.analysis.measure import Settings, analyze
    from megatron_miniplm.evaluation.analysis.report import as_json, lines_of

    _check(arguments)
    datasets = _open("--data", arguments.data)
    analysis = analyze(
        datasets,
        Settings(
            num_sampled=arguments.sample,
            max_tokens=arguments.sequence_tokens,
            seed=arguments.seed,
            max_scanned_tokens=int(arguments.scan_tokens),
        ),
        _embedding(arguments, datasets),
        _open("--heldout", arguments.heldout),
    )
    print("\n".join(lines_of(analysis)))
    if arguments.json:
        from megatron_miniplm.artifacts import write_result

        write_result(arguments.json, as_json(analysis))
    if arguments.output:
        from megatron_miniplm.artifacts import sole_writer
        from megatron_miniplm.evaluation.analysis.report import plot_analysis

        with sole_writer(arguments.output):
            plot_analysis(analysis, arguments.output / "analysis.png")


def _check(arguments: argparse.Namespace) -> None:
    """Raise InputError for flags that mean nothing."""
    from megatron_miniplm.errors import InputError

    for name in ("sample", "sequence_tokens", "scan_tokens"):
        value = getattr(arguments, name)
        if not (0 if name == "scan_tokens" else 1) <= value < float("inf"):
            raise InputError(f"--{name.replace('_', '-')} {value} must be a positive number")
    if arguments.seed < 0:
        raise InputError(f"--seed {arguments.seed} must be 0 or more")
    tokenizer = (arguments.tokenizer_type, arguments.tokenizer_model)
    if arguments.embedding_model is None and tokenizer != (None, None):
        raise InputError(
            "--tokenizer-type and --tokenizer-model are for --embedding-model: hashed n-grams need no text"
        )
    if arguments.embedding_model is not None and None in tokenizer:
        raise InputError(
            "--embedding-model reads text: give the tokenizer of the data, --tokenizer-type and --tokenizer-model"
        )


def _open(flag: str, given: "Sequence[Sequence[str]]") -> "list[Dataset]":
    from megatron_miniplm.errors import InputError
    from megatron_miniplm.evaluation.analysis.data import Dataset

    datasets: dict[str, Dataset] = {}
    for name, *paths in given:
        if not paths or name in datasets:
            raise InputError(f"{flag} {name}: give each data set one name and at least one path")
        datasets[name] = Dataset.open(name, [Path(path) for path in paths])
    return list(datasets.values())


def _embedding(
    arguments: argparse.Namespace, datasets: "Sequence[Dataset]"
) -> "Callable[[Sequence[np.ndarray]], Embedding]":
    """What makes the embedding from a sample of the first data set.

    Raises:
        FingerprintMismatchError: the tokenizer is not that of the data.
    """
    from megatron_miniplm.evaluation.analysis.diversity import HashedNgrams, ModelEmbedding

    if arguments.embedding_model is None:
        return lambda sample: HashedNgrams(sample, seed=arguments.seed)
    from megatron_miniplm.artifacts.fingerprint import SHORT_HEX
    from megatron_miniplm.corpus.tokenization.tokenizers import load_encoder
    from megatron_miniplm.errors import FingerprintMismatchError

    encoder = load_encoder(arguments.tokenizer_type, arguments.tokenizer_model, num_threads=1)
    found, expected = encoder.fingerprint(), datasets[0].members[0].part.tokenizer
    if expected not in (None, found):
        raise FingerprintMismatchError(
            f"{datasets[0].name} was made with tokenizer {str(expected)[:SHORT_HEX]}, {arguments.tokenizer_model} is "
            f"{found[:SHORT_HEX]}: give the one that the data was preprocessed with"
        )
    embedding = ModelEmbedding(arguments.embedding_model, encoder.decode_batch, max_tokens=arguments.sequence_tokens)
    return lambda sample: embedding
