"""The `miniplm` command: one subcommand a tool, the same code as `tools/*.py`.

A command is a module of `megatron_miniplm.commands` with `add_arguments(parser)` and `run(arguments)`; its docstring is
its `--help`. Only the module of the command that runs is imported, so that `--help` costs milliseconds. Megatron
programs have their own parser (Megatron's) and are listed by module only.
"""

import argparse
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

from megatron_miniplm.errors import EXIT_RESUMABLE, STOP_SIGNALS, MiniPLMError, unusable_path
from megatron_miniplm.launchers import adopt_srun, leave_exit_code, leave_exit_code_of_crashes

#: Subcommand -> (module, one line of help), in the order in which data flows.
COMMANDS: dict[str, tuple[str, str]] = {
    "plan": ("plan", "what the whole road costs before it is gone: operations, GPU hours, bytes, break-even"),
    "doctor": ("doctor", "what is installed, what each absence costs, and what mends it"),
    "convert-checkpoint": ("convert_checkpoint", "a Hugging Face model -> a Megatron checkpoint, or back"),
    "train-tokenizer": ("train_tokenizer", "train a SentencePiece or byte-level BPE tokenizer on JSONL text"),
    "preprocess-data": ("preprocess_data", "JSONL text -> Megatron .bin/.idx"),
    "merge-datasets": ("merge_datasets", "shards, corpora or views -> one corpus, or one data_args.txt"),
    "split-reference": ("split_reference", "split a corpus at random into a reference part and a pool, as views"),
    "score-corpus": ("score_corpus", "NLL of every sequence under a model (a Megatron program, run it with torchrun)"),
    "fit-proxy": ("fit_proxy", "a sample of scores -> predicted differences of all sequences (a Megatron program)"),
    "generate-corpus": ("generate_corpus", "prompts of a corpus -> a corpus by the teacher (a Megatron program)"),
    "scores": ("scores", "progress and export of a directory of scores"),
    "difference-sampling": ("difference_sampling", "teacher scores + reference scores -> refined views"),
    "report": ("report", "a selection -> one HTML page: what was kept, from where, and what it reads like"),
    "materialize": ("materialize", "refined views or an index-only selection -> copies, without symbolic links"),
    "explain": ("explain", "why a selection keeps a sequence or not: scores, rank, threshold, weight, text"),
    "convert-tokenization": ("convert_tokenization", "a corpus or refined view -> a corpus in another tokenizer"),
    "compare-runs": ("compare_runs", "held-out loss of students by number of tokens, from TensorBoard logs"),
    "evaluate-lm": ("evaluate_lm", "held-out loss, perplexity, bits a byte of checkpoints (a Megatron program)"),
    "evaluate-tasks": ("evaluate_tasks", "downstream tasks by lm_eval, without export (a Megatron program)"),
    "fit-scaling-curve": ("fit_scaling_curve", "losses by compute -> scaling curves: where they lead, compute saved"),
    "analyze-data": ("analyze_data", "what selection did to the data: diversity, lengths, vocabulary, domains, copies"),
    "inspect-batch": ("inspect_batch", "which sequences went into a training step (give it the flags of the run)"),
    "status": ("status", "the stages of a SLURM pipeline: state, jobs, progress, time left, what went wrong"),
    "inspect": ("inspect", "what any artifact holds, where it comes from, and whether it is intact"),
    "lineage": ("lineage", "the tree from any artifact down to raw files and checkpoints"),
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
#: A rank with nothing to say leaves so much later: launchers end all ranks once one has left, the one that prints too.
LAST_WORD_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `miniplm`; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if argv and argv[0] in COMMANDS:
        return run_tool(argv[0], argv[1:], program=f"miniplm {argv[0]}")
    parser = argparse.ArgumentParser(prog="miniplm", description="Difference sampling for Megatron (MiniPLM).")
    width = max(map(len, COMMANDS))
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = "commands:\n" + "\n".join(f"  {name:<{width}}  {line}" for name, (_, line) in COMMANDS.items())
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="see below; each has its own --help")
    parser.parse_args(argv)
    return 0


def run_tool(name: str, argv: Sequence[str] | None = None, program: str | None = None) -> int:
    """Run one command and turn what went wrong into an exit code.

    Returns:
        0 done, 2 bad input or usage (one line on stderr), 75 interrupted but resumable. A bug raises.
    """
    if name not in MEGATRON_PROGRAMS:
        # No tool multiplies matrices, and a process with threads that NumPy has started cannot be forked.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    module = importlib.import_module(f"megatron_miniplm.commands.{COMMANDS[name][0]}")
    argv = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    told_to_stop: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        told_to_stop.append(number)
        raise KeyboardInterrupt

    try:
        for number in STOP_SIGNALS:
            signal.signal(number, interrupt)  # until the tool knows a better place to stop at
        if name in MEGATRON_PROGRAMS:
            leave_exit_code_of_crashes()
            adopt_srun()
            module.run(argv)
            return 0
        parser = argparse.ArgumentParser(
            prog=program, description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        module.add_arguments(parser)
        arguments = parser.parse_args(argv)
        return int(module.run(arguments) or 0)
    except MiniPLMError as error:
        return report(error)
    except OSError as error:
        if isinstance(error, BrokenPipeError):
            sys.stderr.close()  # `| head` closed the pipe: no traceback, and nothing more to print
            return 0
        return report(unusable_path(error))
    except BaseException as error:
        # torch.distributed.checkpoint, for one, catches whatever is raised and raises its own.
        if not told_to_stop and not isinstance(error, KeyboardInterrupt):
            raise
        if os.environ.get("RANK", "0") == "0":
            print("interrupted; run the same command again to continue", file=sys.stderr)
        leave_exit_code(EXIT_RESUMABLE)
        return EXIT_RESUMABLE


def report(error: MiniPLMError) -> int:
    """Print the one line that a user's error deserves, with the rank unless it is 0; returns its exit code."""
    if error.reported_elsewhere:
        time.sleep(LAST_WORD_SECONDS)
    else:
        rank = os.environ.get("RANK", "0")
        place = "" if rank == "0" else f"[rank {rank}] "
        print(f"{place}error: {error}", file=sys.stderr, flush=True)
        leave_exit_code(error.exit_code)
    return error.exit_code
