"""Estimate FLOPs, GPU-hours and disk of every stage before running anything, and compare with other methods.

Models are Hugging Face directories, Megatron checkpoints, or models of the paper by name:

    miniplm plan --teacher qwen1.5-1.8b --reference qwen-104m --student qwen-200m qwen-500m qwen-1.2b \\
        --corpus-tokens 105e9 --reference-fraction 0.048 --seq-length 1024 --gpu H100 --num-gpus 8
"""

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_miniplm.errors import InputError

if TYPE_CHECKING:
    from megatron_miniplm.planning.cost import Hardware, Models, PipelineSettings

#: Shares of the peak. Of training: what Megatron-LM's README says of the smallest model that it measured on H100s. Of
#: scoring: an assumption of ours.
TRAINING_MFU, SCORING_MFU = 0.41, 0.45
#: Of cached logits: ids and probabilities of the teacher's 100 likeliest tokens.
CACHED_BYTES_PER_TOKEN = 500.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    models = parser.add_argument_group("models (a Hugging Face directory, a Megatron checkpoint, or a name)")
    models.add_argument("--teacher", required=True, metavar="MODEL")
    models.add_argument("--reference", required=True, metavar="MODEL")
    models.add_argument("--student", required=True, nargs="+", metavar="MODEL")
    _add_data(parser)
    _add_proxy(parser)
    _add_devices(parser)
    parser.add_argument(
        "--cached-bytes-per-token",
        type=float,
        default=CACHED_BYTES_PER_TOKEN,
        metavar="N",
        help="bytes per token of cached teacher logits (default: %(default)g)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write all numbers to this file")


def _add_data(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group("data")
    corpus = data.add_mutually_exclusive_group(required=True)
    corpus.add_argument(
        "--corpus-tokens",
        type=float,
        metavar="N",
        help="tokens of the corpus, including the reference's part, such as 100e9",
    )
    corpus.add_argument(
        "--corpus",
        type=Path,
        nargs="+",
        metavar="PREFIX",
        help="prefixes of a corpus: read the lengths from their .idx files",
    )
    data.add_argument(
        "--sequence-tokens", type=int, metavar="N", help="tokens per sequence (default: --seq-length + 1)"
    )
    data.add_argument(
        "--seq-length",
        type=int,
        default=1024,
        metavar="N",
        help="context length in scoring and training (default: %(default)s)",
    )
    data.add_argument(
        "--window-overlap",
        type=int,
        metavar="N",
        help="as in score-corpus (default: a quarter of --seq-length)",
    )
    data.add_argument(
        "--reference-fraction",
        type=float,
        default=0.05,
        metavar="F",
        help="fraction of the corpus that the reference is trained on (default: %(default)s)",
    )
    data.add_argument(
        "--reference-tokens",
        type=float,
        metavar="N",
        help="training tokens of the reference (default: one epoch of its part; 0: already trained)",
    )
    data.add_argument(
        "--ratio", type=float, default=0.5, metavar="A", help="fraction of sequences to keep (default: %(default)s)"
    )
    data.add_argument(
        "--student-tokens",
        type=float,
        metavar="N",
        help="training tokens of each student (default: one epoch of the kept data)",
    )


def _add_proxy(parser: argparse.ArgumentParser) -> None:
    proxy = parser.add_argument_group("proxy mode (see fit-proxy)")
    proxy.add_argument(
        "--sample-fraction", type=float, metavar="F", help="fraction of the sequences that teacher and reference score"
    )
    proxy.add_argument("--proxy", metavar="MODEL", help="model of fit-proxy (default: the reference)")
    proxy.add_argument(
        "--proxy-sequences",
        type=float,
        metavar="N",
        help="training sequences of fit-proxy: --proxy-steps x --proxy-batch-sequences",
    )


def _add_devices(parser: argparse.ArgumentParser) -> None:
    devices = parser.add_argument_group("devices")
    peak = devices.add_mutually_exclusive_group()
    peak.add_argument(
        "--gpu", default="H100", metavar="NAME", help="GPU model, whose bfloat16 peak is used (default: %(default)s)"
    )
    peak.add_argument("--peak-flops", type=float, metavar="N", help="peak FLOP/s of one GPU, instead of --gpu")
    peak.add_argument(
        "--flops-per-second",
        type=float,
        metavar="N",
        help="achieved FLOP/s of one GPU for all work, instead of peak and MFU",
    )
    devices.add_argument("--num-gpus", type=int, default=8, metavar="N", help="number of GPUs (default: %(default)s)")
    devices.add_argument(
        "--training-mfu",
        type=float,
        default=TRAINING_MFU,
        metavar="F",
        help="model FLOPs utilization in training (default: %(default)s)",
    )
    devices.add_argument(
        "--scoring-mfu",
        type=float,
        default=SCORING_MFU,
        metavar="F",
        help="model FLOPs utilization in scoring (default: %(default)s)",
    )
    devices.add_argument("--recompute", action="store_true", help="assume training with --recompute-granularity full")


def run(arguments: argparse.Namespace) -> None:
    _check(arguments)

    from megatron_miniplm.planning.plan import as_json, lines_of, make_plan

    plan = make_plan(
        _models(arguments),
        _settings(arguments),
        _hardware(arguments),
        cached_bytes_per_token=arguments.cached_bytes_per_token,
    )
    print("\n".join(lines_of(plan)))
    if arguments.json:
        from megatron_miniplm.artifacts import write_result

        write_result(arguments.json, as_json(plan))


def _check(arguments: argparse.Namespace) -> None:
    """Refuse numbers that mean nothing.

    Raises:
        InputError: a share outside its range, or a count that is not positive.
    """
    shares = {
        "--ratio": arguments.ratio,
        "--sample-fraction": arguments.sample_fraction,
        "--training-mfu": arguments.training_mfu,
        "--scoring-mfu": arguments.scoring_mfu,
    }
    for flag, value in shares.items():
        if value is not None and not 0 < value <= 1:
            raise InputError(f"{flag} {value} must lie in (0, 1]")
    if not 0 <= arguments.reference_fraction < 1:
        raise InputError(f"--reference-fraction {arguments.reference_fraction} must lie in [0, 1)")
    positive = ("corpus_tokens", "sequence_tokens", "seq_length", "student_tokens", "proxy_sequences", "peak_flops")
    for name in (*positive, "flops_per_second", "num_gpus", "cached_bytes_per_token"):
        value = getattr(arguments, name)
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name.replace('_', '-')} {value} must be a positive number")
    if arguments.reference_tokens is not None and not 0 <= arguments.reference_tokens < math.inf:
        raise InputError(f"--reference-tokens {arguments.reference_tokens} must be a number from 0 on")
    overlap = arguments.window_overlap
    if overlap is not None and not 0 <= overlap < arguments.seq_length:
        raise InputError(f"--window-overlap {overlap} must lie in [0, --seq-length {arguments.seq_length})")
    if arguments.corpus is not None and arguments.sequence_tokens is not None:
        raise InputError(
            "--sequence-tokens is for --corpus-tokens: the .idx files of --corpus say how long each one is"
        )
    if arguments.sample_fraction is None and (arguments.proxy or arguments.proxy_sequences):
        raise InputError("--proxy needs --sample-fraction: the share of the sequences that teacher and reference score")


def _models(arguments: argparse.Namespace) -> "Models":
    from megatron_miniplm.planning.cost import Models
    from megatron_miniplm.planning.shapes import model_shape

    if len(set(arguments.student)) < len(arguments.student):
        raise InputError("--student names a model twice: costs are given for any number of students of each kind")
    proxy = None
    if arguments.sample_fraction is not None:
        proxy = model_shape(arguments.proxy or arguments.reference)
    return Models(
        teacher=model_shape(arguments.teacher),
        reference=model_shape(arguments.reference),
        students={name: model_shape(name) for name in arguments.student},
        proxy=proxy,
    )


def _settings(arguments: argparse.Namespace) -> "PipelineSettings":
    from megatron_miniplm.artifacts.data_args import expand_prefixes
    from megatron_miniplm.planning.cost import PipelineSettings
    from megatron_miniplm.planning.sequences import SequenceLengths

    context, overlap = arguments.seq_length, arguments.window_overlap
    if arguments.corpus is not None:
        corpus = SequenceLengths.of_prefixes(expand_prefixes(arguments.corpus))
    else:
        corpus = SequenceLengths.all_equal(arguments.corpus_tokens, arguments.sequence_tokens or context + 1)
    return PipelineSettings(
        corpus=corpus,
        reference_fraction=arguments.reference_fraction,
        reference_tokens=arguments.reference_tokens,
        ratio=arguments.ratio,
        student_tokens=arguments.student_tokens,
        context_tokens=context,
        overlap_tokens=context // 4 if overlap is None else overlap,
        sample_fraction=1.0 if arguments.sample_fraction is None else arguments.sample_fraction,
        proxy_sequences=arguments.proxy_sequences,
        recompute=arguments.recompute,
    )


def _hardware(arguments: argparse.Namespace) -> "Hardware":
    from megatron_miniplm.planning.cost import Hardware, peak_flops_of

    if arguments.flops_per_second is not None:
        return Hardware(
            num_devices=arguments.num_gpus,
            peak_flops=arguments.flops_per_second,
            training_utilisation=1.0,
            scoring_utilisation=1.0,
        )
    return Hardware(
        num_devices=arguments.num_gpus,
        peak_flops=arguments.peak_flops or peak_flops_of(arguments.gpu),
        training_utilisation=arguments.training_mfu,
        scoring_utilisation=arguments.scoring_mfu,
    )
