"""Select the sequences that the teacher predicts much better than the reference (difference sampling).

Writes to --output: `selection.json`, indices, weights and a view per prefix, and `data_args.txt` for Megatron's
--data-args-path. No token is copied. Differences come from two scores, or from the predictions of fit-proxy. Under
torchrun or srun all processes share the work, with the same result.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from megatron_miniplm.artifacts.data_args import DATA_ARGS, expand_prefixes, require_readable
from megatron_miniplm.errors import InputError
from megatron_miniplm.selection.difference import DIFFERENCE, REDUCTIONS, UNITS, Measure
from megatron_miniplm.selection.rule import RATIO_OF, SAMPLING, WEIGHTS, Rule

#: Source prefixes that are printed.
MAX_SOURCES = 4
SEEN_BY_REFERENCE = ("error", "exclude", "allow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--index-only", action="store_true", help="write indices and weights, but no views")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes on this host, without torchrun or srun (default: one per core, at most 16)",
    )
    _add_scores(parser.add_argument_group("scores"))
    _add_target(parser.add_argument_group("how much is kept (one of the three)"))
    _add_ranking(parser.add_argument_group("what is kept"))
    _add_filters(parser.add_argument_group("what takes part"))
    _add_weights(parser.add_argument_group("weights"))


def _add_scores(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--teacher-scores", type=Path, metavar="DIR")
    group.add_argument("--reference-scores", type=Path, metavar="DIR")
    group.add_argument(
        "--difference-scores",
        type=Path,
        metavar="DIR",
        help="predictions of fit-proxy; if --teacher-scores and --reference-scores are given too, they "
        "may cover a sample, and their scores replace the predictions",
    )
    group.add_argument(
        "--rank-by",
        default=DIFFERENCE,
        metavar="EXPR",
        help=f"rank by this instead of '{DIFFERENCE}', the greatest first: an expression of teacher and reference "
        "(NLLs, reduced) and tokens, such as '-teacher' (lowest perplexity of the teacher)",
    )
    group.add_argument(
        "--score-reduction",
        choices=REDUCTIONS,
        default="mean",
        help="mean: NLL per token, as in the paper's code (default); sum: total NLL, as in the paper's "
        "formula; bits-per-byte: NLL per byte of text",
    )


def _add_target(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--ratio", type=float, help="fraction to keep, in (0, 1]; the paper keeps 0.5")
    group.add_argument("--ratio-of", choices=RATIO_OF, default="sequences")
    group.add_argument("--target-tokens", type=int, metavar="N", help="number of tokens to keep")
    group.add_argument("--threshold", type=float, metavar="R", help="keep every sequence with at least this difference")


def _add_ranking(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--sampling",
        choices=SAMPLING,
        default="top",
        help="keep the top set, or a sample without replacement in proportion to exp(difference / temperature)",
    )
    group.add_argument("--temperature", type=float, default=1.0, help="temperature of --sampling gumbel (default: 1)")
    group.add_argument(
        "--seed", type=int, default=1, help="seed of --sampling gumbel and --repeat-by-weight (default: 1)"
    )
    group.add_argument("--per-domain", action="store_true", help="apply the ratio or target within every domain")
    group.add_argument("--drop-negative", action="store_true", help="drop negative differences, whatever the ratio")


def _add_filters(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--keep-domain",
        action="append",
        default=[],
        metavar="NAME",
        help="keep only this domain; repeat the flag for several",
    )
    group.add_argument(
        "--drop-domain",
        action="append",
        default=[],
        metavar="NAME",
        help="drop this domain; repeat the flag for several",
    )
    group.add_argument("--min-tokens", type=int, default=0, metavar="N", help="drop sequences with fewer tokens")
    group.add_argument(
        "--seen-by-reference",
        choices=SEEN_BY_REFERENCE,
        default="error",
        help="what to do with sequences that the reference model was trained on (default: error)",
    )
    group.add_argument(
        "--reference-data",
        nargs="+",
        default=[],
        metavar="PREFIX",
        help="what the reference model was trained on, in addition to what its checkpoint records: "
        "prefixes, or directories of them",
    )


def _add_weights(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--weights", choices=WEIGHTS, default="none", help="weights of the kept sequences, with mean 1 (default: all 1)"
    )
    group.add_argument(
        "--weight-temperature", type=float, default=1.0, help="temperature of --weights softmax (default: 1)"
    )
    group.add_argument("--weight-cap", type=float, default=10.0, help="largest weight (default: 10)")
    group.add_argument(
        "--repeat-by-weight",
        action="store_true",
        help="repeat each sequence in the views by its weight w: floor(w) times, and once more with "
        "the remaining probability",
    )


def run(arguments: argparse.Namespace) -> None:
    measure = Measure(expression=arguments.rank_by, reduction=arguments.score_reduction)
    rule = Rule(
        measure=measure,
        keep_domains=tuple(arguments.keep_domain),
        drop_domains=tuple(arguments.drop_domain),
        repeat=arguments.repeat_by_weight,
        **{name: getattr(arguments, name) for name in _SAME_NAME},
    )
    scores = _scores(arguments, measure)
    if arguments.workers is not None and arguments.workers < 1:
        raise InputError(f"--workers {arguments.workers} must be at least 1")
    require_readable(arguments.output)
    reference_data = expand_prefixes(arguments.reference_data)

    from megatron_miniplm.runtime.processes import keep_freed_memory
    from megatron_miniplm.selection.ranks import Ranks, run_on_ranks
    from megatron_miniplm.selection.sampling import difference_sample

    keep_freed_memory()

    def select(ranks: Ranks) -> None:
        summary = difference_sample(
            scores,
            arguments.output,
            rule,
            index_only=arguments.index_only,
            seen_by_reference=arguments.seen_by_reference,
            reference_data=reference_data,
            ranks=ranks,
        )
        if ranks.rank == 0:
            _print(arguments.output, summary, rule)

    run_on_ranks(select, arguments.workers)


_SAME_NAME = (
    "ratio",
    "ratio_of",
    "target_tokens",
    "threshold",
    "sampling",
    "temperature",
    "seed",
    "per_domain",
    "min_tokens",
    "drop_negative",
    "weights",
    "weight_temperature",
    "weight_cap",
)


def _scores(arguments: argparse.Namespace, measure: Measure) -> dict[str, Path]:
    """The directories of scores by role, all that the measure needs and no other."""
    from megatron_miniplm.selection.scored_corpus import PREDICTIONS, REFERENCE, TEACHER

    given = {TEACHER: arguments.teacher_scores, REFERENCE: arguments.reference_scores}
    scores = {role: directory for role, directory in given.items() if directory is not None}
    if arguments.difference_scores is not None:
        if not measure.is_difference:
            raise InputError("--difference-scores are differences: leave --rank-by out")
        scores = {PREDICTIONS: arguments.difference_scores, **scores}
    if measure.is_difference and scores.keys() not in ({TEACHER, REFERENCE}, {PREDICTIONS}, {*given, PREDICTIONS}):
        raise InputError("give --teacher-scores and --reference-scores, or --difference-scores, or all three")
    for name, role in (("teacher", TEACHER), ("reference", REFERENCE)):
        if not measure.is_difference and name in measure.names and role not in scores:
            raise InputError(f"--rank-by {measure.expression!r} needs --{name}-scores")
    return scores


def _print(output: Path, summary: dict[str, Any], rule: Rule) -> None:
    measure = rule.measure
    print(
        f"{output}: kept {summary['num_kept']:,} of {summary['num_sequences']:,} sequences, "
        f"{summary['num_kept_scored_tokens']:,} of {summary['num_scored_tokens']:,} scored tokens"
    )
    what = "difference" if measure.is_difference else measure.expression
    lowest = summary["lowest_kept_value"]
    print(
        f"{what} ({UNITS[measure.reduction]}): mean {summary['mean_value']:.4f}, of the kept "
        f"{summary['mean_kept_value']:.4f}, lowest kept {'none' if lowest is None else f'{lowest:.4f}'}; "
        f"negative {summary['negative_fraction']:.1%}"
    )
    from megatron_miniplm.selection.difference import warning_of

    if warning := warning_of(summary, is_difference=measure.is_difference):
        print(warning, file=sys.stderr)
    if summary["num_kept"] == 0:
        raise InputError(
            f"{output} keeps no sequence, so nothing can be trained on it: delete it, then give a larger --ratio or a "
            "lower --threshold, or relax what leaves sequences out (--min-tokens, domains, --seen-by-reference exclude)"
        )
    print("\n".join(training_hints(output, summary, rule)))


def training_hints(output: Path, summary: dict[str, Any], rule: Rule) -> list[str]:
    """The flags with which training reads the selection, and where it has weights those with which it uses them."""
    selection = f"--miniplm-selection {output}"
    blend = f"--data-args-path {output}/{DATA_ARGS}"
    if rule.weights == "none" or rule.repeat:
        return [f"train on it with: {blend}" + (f" {selection}" if summary["index_only"] else "")]
    weighting = f"{selection} --miniplm-weighting resample (sequences drawn by weight) or loss (losses scaled)"
    if summary["index_only"]:
        return [f"train on it with: {blend} {weighting}"]
    sources = " ".join(f"{entry['num_tokens']} {_source(output, entry)}" for entry in summary["prefixes"][:MAX_SOURCES])
    more = " ..." if len(summary["prefixes"]) > MAX_SOURCES else ""
    return [
        f"train on it without the weights, which views do not hold: {blend}",
        f"train on it with the weights: --data-path {sources}{more} {weighting}",
    ]


def _source(output: Path, entry: dict[str, Any]) -> str:
    return os.path.normpath(output / entry["path"])
