"""One module a command: `add_arguments` and `run`. This table names them."""

import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

#: Subcommand -> (module, one line of help), in the order in which data flows.
COMMANDS: dict[str, tuple[str, str]] = {
    "plan": ("plan", "estimate FLOPs, GPU-hours, disk and break-even before running anything"),
    "doctor": ("doctor", "check the installation: what is missing, what that costs, how to fix it"),
    "convert-checkpoint": ("convert_checkpoint", "convert a Hugging Face model to a Megatron checkpoint, or back"),
    "train-tokenizer": ("train_tokenizer", "train a SentencePiece or byte-level BPE tokenizer on JSONL text"),
    "preprocess-data": ("preprocess_data", "tokenize JSONL or Parquet text into a Megatron .bin/.idx corpus"),
    "merge-datasets": (
        "merge_datasets",
        "merge corpora or views into one corpus, or list them in one data_args.txt",
    ),
    "split-reference": (
        "split_reference",
        "split a corpus at random into a reference part and a pool, as views",
    ),
    "score-corpus": ("score_corpus", "compute the NLL of every sequence under a model (Megatron program)"),
    "fit-proxy": ("fit_proxy", "predict all differences from a scored sample with a small model (Megatron program)"),
    "generate-corpus": ("generate_corpus", "let the teacher continue the prompts of a corpus (Megatron program)"),
    "scores": ("scores", "show the progress of a score directory, or export it"),
    "difference-sampling": ("difference_sampling", "select sequences by teacher and reference scores"),
    "report": ("report", "write an HTML page about a selection: what was kept, from where, examples"),
    "materialize": ("materialize", "copy selected data out of views into a plain corpus"),
    "explain": ("explain", "explain why a selection keeps or drops a sequence: scores, rank, threshold, weight, text"),
    "convert-tokenization": ("convert_tokenization", "convert a corpus or view to another tokenizer"),
    "compare-runs": ("compare_runs", "compare the validation loss of runs by tokens, from TensorBoard logs"),
    "evaluate-lm": (
        "evaluate_lm",
        "compute held-out loss, perplexity and bits per byte (Megatron program)",
    ),
    "evaluate-tasks": ("evaluate_tasks", "run lm_eval tasks on a checkpoint without exporting it (Megatron program)"),
    "fit-scaling-curve": (
        "fit_scaling_curve",
        "fit scaling curves to losses by compute, and extrapolate them",
    ),
    "analyze-data": (
        "analyze_data",
        "measure how selection changed the data: diversity, lengths, domains, duplicates",
    ),
    "inspect-batch": ("inspect_batch", "show which sequences went into a training step (give it the flags of the run)"),
    "status": ("status", "show the stages of a SLURM pipeline: state, jobs, progress, time left, errors"),
    "inspect": ("inspect", "show what an artifact holds and where it comes from, or check that it is intact"),
    "lineage": ("lineage", "print the tree from an artifact down to raw files and checkpoints"),
    "completion": ("completion", "print a script that completes commands and flags in bash, zsh or fish"),
}

MEGATRON_PROGRAMS = frozenset(
    {
        "convert-checkpoint",
        "score-corpus",
        "fit-proxy",
        "generate-corpus",
        "evaluate-lm",
        "evaluate-tasks",
        "inspect-batch",
    }
)


def module_of(name: str) -> ModuleType:
    """The module of a command, imported."""
    return importlib.import_module(f"megatron_miniplm.commands.{COMMANDS[name][0]}")


def flags_of(name: str) -> Sequence[Callable[..., Any]]:
    """The functions that add all flags of ours that a command takes; `inspect-batch` takes those of training, too."""
    module = module_of(name)
    return getattr(module, "FLAGS", (module.add_arguments,))
