"""Show which sequences went into a training step: text, source, scores, weight. Needs no GPU and no running job.

Give it all flags of the training run. The parallel layout does not matter, and no model is built:

  miniplm inspect-batch --iteration 4711 <all flags of the training run>

Reads the index caches of the run from --data-cache-path, or builds them.
"""

import argparse
import io
import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.device_flags import given_flags
from megatron_miniplm.runtime.command_line import MissingFlagError, wants_help
from megatron_miniplm.runtime.terminal import printable, printable_json
from megatron_miniplm.training.flags import add_arguments as add_training_flags

if TYPE_CHECKING:
    from megatron_miniplm.artifacts.scores import ScoreStore
    from megatron_miniplm.training.consumed import Part
    from megatron_miniplm.training.refinement import RefinedPrefix, Refinement

#: Characters that are shown of what a sample has of each sequence.
SHOWN_CHARACTERS = 100
#: Flags that Megatron's parser insists on and that mean nothing here.
UNUSED_BUT_REQUIRED = {"lr": 1e-4, "micro_batch_size": 1, "num_layers": 1, "hidden_size": 64, "num_attention_heads": 1}
_PARALLEL_FLAGS = ("--tensor-model-parallel-size", "--pipeline-model-parallel-size", "--context-parallel-size")


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Our argument group beside Megatron's and that of training."""
    group = parser.add_argument_group(title="miniplm inspect-batch")
    group.add_argument(
        "--iteration", type=int, required=True, metavar="K", help="training step, as in the training log"
    )
    group.add_argument("--json", action="store_true", help="print one JSON object with whole texts instead of a table")
    group.add_argument(
        "--text-characters",
        type=int,
        default=SHOWN_CHARACTERS,
        metavar="N",
        help=f"shown of each sequence (default: {SHOWN_CHARACTERS})",
    )
    return parser


FLAGS = (add_arguments, add_training_flags)


def run(argv: Sequence[str]) -> None:
    """Parse the flags of the run, build or read its indices, print."""
    from megatron_miniplm.mcore import program

    help_only = wants_help(argv)
    given = given_flags(argv)
    if not help_only and not given & {"--global-batch-size", "--step-batch-size-schedule"}:
        raise MissingFlagError("--global-batch-size", "without it the batch depends on the number of ranks of the run")
    program.set_flags(argv)
    # One replica of the run's layout, of which this is rank 0: flags are checked as there, nothing is started.
    os.environ |= {"RANK": "0", "WORLD_SIZE": str(_num_model_parallel_ranks(argv))}
    from megatron_miniplm.training.plugin import plug_in

    logging.getLogger("megatron").setLevel(logging.WARNING)
    with nullcontext() if help_only else redirect_stdout(io.StringIO()):  # Megatron prints all of its 500 flags
        plug_in()
        args = program.parse(add_arguments, defaults=UNUSED_BUT_REQUIRED)
        found = _inspect(args)
    if args.json:
        print(printable_json(found))
    else:
        _print(found, args.text_characters)


def _num_model_parallel_ranks(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in _PARALLEL_FLAGS:
        parser.add_argument(flag, type=int, default=1)
    sizes, _ = parser.parse_known_args(argv)
    return math.prod(vars(sizes).values())


def _inspect(args: argparse.Namespace) -> dict[str, Any]:
    from megatron.core.tokenizers.utils.build_tokenizer import build_tokenizer
    from megatron.training.global_vars import set_args
    from megatron.training.training import get_train_valid_test_num_samples, update_train_iters

    from megatron_miniplm.training.consumed import parts_of_samples, samples_of_iteration
    from megatron_miniplm.training.dataset import refinement_of_run
    from megatron_miniplm.training.provider import train_valid_test_datasets_provider

    set_args(args)
    samples = samples_of_iteration(args, args.iteration)
    update_train_iters(args)
    dataset, _, _ = train_valid_test_datasets_provider(list(get_train_valid_test_num_samples()))
    parts = list(parts_of_samples(dataset, samples))
    refinement = refinement_of_run(args)
    described = _described(parts, refinement)
    detokenize = build_tokenizer(args).detokenize
    for entry, part in zip(described, parts, strict=True):
        entry["text"] = detokenize(part.tokens.tolist())
    return {
        "iteration": args.iteration,
        "consumed_samples": [samples.start, samples.stop],
        "num_tokens": sum(part.num_tokens for part in parts),
        "tokens_by_prefix": _tokens_by_prefix(parts),
        "sequences": described,
    }


def _tokens_by_prefix(parts: Iterable["Part"]) -> dict[str, int]:
    tokens: dict[str, int] = defaultdict(int)
    for part in parts:
        tokens[part.path] += part.num_tokens
    return dict(tokens)


def _described(parts: list["Part"], refinement: "Refinement | None") -> list[dict[str, Any]]:
    """One entry a part, in order; what is known of the sequences is looked up prefix by prefix."""
    known: dict[tuple[str, int], dict[str, Any]] = {}
    by_path: dict[str, set[int]] = defaultdict(set)
    for part in parts:
        by_path[part.path].add(part.sequence)
    for path, sequences in by_path.items():
        refined = refinement.of(path) if refinement is not None else None
        stores = _stores(refined)
        for sequence in sorted(sequences):
            known[path, sequence] = _source(path, sequence) | _scores(refined, stores, sequence)
    return [
        {
            "sample": part.sample,
            "prefix": part.path,
            "sequence": part.sequence,
            "start_token": part.start_token,
            "num_tokens": part.num_tokens,
            **known[part.path, part.sequence],
        }
        for part in parts
    ]


def _source(path: str, sequence: int) -> dict[str, Any]:
    """Where the text of a sequence comes from, if its corpus says so."""
    from megatron_miniplm.artifacts.lineage import relative_to_cwd
    from megatron_miniplm.indexed import IndexedCorpus
    from megatron_miniplm.indexed.sidecar import Sidecar
    from megatron_miniplm.indexed.view import source_sequence

    try:
        corpus = IndexedCorpus.open(path)
    except InputError:
        return {}  # in object storage
    sidecar = Sidecar.of(corpus)
    if sidecar is None:
        return {}
    rows = sidecar.pieces_of(source_sequence(corpus, sequence))
    return {
        "documents": [
            {
                "source": str(relative_to_cwd(sidecar.source_path(row["source"]))),
                **{key: row[key] for key in ("position", "id", "domain")},
            }
            for row in rows
        ]
    }


def _scores(refined: "RefinedPrefix | None", stores: dict[str, "ScoreStore"], sequence: int) -> dict[str, Any]:
    """What the selection and the scores behind it say of a sequence."""
    import numpy as np

    if refined is None:
        return {}
    (value,), (weight,) = refined.look_up(np.array([sequence]))
    found: dict[str, Any] = {"value": float(value) if math.isfinite(value) else None, "weight": float(weight)}
    of_all = refined.selected.start + sequence
    for role, store in stores.items():
        nll, num_tokens = store.read(range(of_all, of_all + 1))[0]
        found[role] = {"nll_nats": float(nll), "num_scored_tokens": int(num_tokens)}
    return found


def _stores(refined: "RefinedPrefix | None") -> dict[str, "ScoreStore"]:
    """The stores of scores that the selection was made from, as far as they are still there."""
    from megatron_miniplm.artifacts.lineage import parent_path
    from megatron_miniplm.artifacts.scores import ScoreStore, is_score_store

    if refined is None:
        return {}
    selection = refined.pool.selection
    found = {}
    for parent in selection.manifest.inputs:
        path = parent_path(selection.directory, parent)
        if is_score_store(path):
            found[parent.role] = ScoreStore.open(path)
    return found


def _print(found: dict[str, Any], num_characters: int) -> None:
    first, stop = found["consumed_samples"]
    print(f"iteration {found['iteration']:,}: consumed samples {first:,} to {stop:,}, {found['num_tokens']:,} tokens")
    for path, tokens in found["tokens_by_prefix"].items():
        print(f"  {tokens / max(1, found['num_tokens']):6.1%}  {path}")
    for entry in found["sequences"]:
        stop_token = entry["start_token"] + entry["num_tokens"]
        parts = [
            f"sample {entry['sample']:,}",
            f"{Path(entry['prefix']).name} sequence {entry['sequence']:,}",
            f"tokens {entry['start_token']:,} to {stop_token:,}",
        ]
        if "weight" in entry:
            value = "nothing scored" if entry["value"] is None else f"value {entry['value']:.4f}"
            parts.append(f"{value}, weight {entry['weight']:.4f}")
        parts += [
            f"{role.removesuffix(' scores')} {scores['nll_nats'] / scores['num_scored_tokens']:.3f} nats a token"
            for role, scores in entry.items()
            if isinstance(scores, dict) and scores.get("num_scored_tokens")
        ]
        print("\n" + " · ".join(parts))
        for document in entry.get("documents", []):
            domain = f" [{document['domain']}]" if document["domain"] else ""
            unit = "row" if document["source"].endswith(".parquet") else "byte"
            print(f"  from {document['source']}, {unit} {document['position']:,} of the text{domain}")
        print("  " + printable(json.dumps(entry["text"][:num_characters], ensure_ascii=False), one_line=True))
