"""The two halves of `miniplm convert-checkpoint`, once Megatron is initialised."""

import argparse
import shutil
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from megatron.training import get_model
from megatron.training.checkpointing import save_checkpoint

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore import checkpoints, models, program
from megatron_miniplm.mcore.checkpoint_saving import sole_saver
from megatron_miniplm.mcore.huggingface.loading import load_weights
from megatron_miniplm.mcore.huggingface.megatron_flags import architecture_of_args
from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel
from megatron_miniplm.mcore.huggingface.saving import save_huggingface
from megatron_miniplm.mcore.huggingface.special_tokens import UNKNOWN, GenerationSettings, tokenizer_of_export
from megatron_miniplm.mcore.huggingface.tensor_files import model_bytes, require_space

_RELEASE = "release"


def to_megatron(args: argparse.Namespace, model: HuggingFaceModel) -> None:
    """Write `--save` as a `torch_dist` checkpoint that `--load --use-checkpoint-args` reads at any TP x PP x EP.

    It is a "release" checkpoint: without iteration, optimizer or random state, so that training starts at 0 from it.
    Its args keep the real vocabulary size as `vocab_size`, the model's tokenizer where the directory has one, and what
    the model says about generation.

    Args:
        args: parsed from `model.megatron_flags()`, with `model.take_vocabulary(args)`.

    Raises:
        InputError: another process writes there, or the disk is full; nothing is left of what was written.
    """
    settings = program.on_rank_zero(lambda: GenerationSettings.of_model(model.directory) or UNKNOWN)
    with _released(Path(args.save), model_bytes(model.architecture, args.params_dtype.itemsize)):
        chunks = get_model(models.model_provider, wrap_with_ddp=False)
        load_weights(chunks, model)
        if model.has_tokenizer:
            args.tokenizer_type, args.tokenizer_model = "HuggingFaceTokenizer", str(model.directory.absolute())
        setattr(args, checkpoints.GENERATION, settings.as_record())
        args.no_save_optim = args.no_save_rng = True
        with program.megatron_errors(f"to save into {args.save}"):
            save_checkpoint(0, chunks, None, None, 0, release=True)
    program.say_once(
        f"{args.save}: {model.family}, vocabulary of {args.vocab_size:,} in {args.padded_vocab_size:,} rows; "
        "load it with --load and --use-checkpoint-args"
    )


def _released(directory: Path, num_bytes: int) -> AbstractContextManager[None]:
    """Hold `directory` while a release checkpoint is written; a collective call. Without its end nothing is left."""

    def start() -> None:
        if checkpoints.has_checkpoint(directory):
            raise InputError(f"{directory} holds a checkpoint already: give another directory, or delete it")
        _discard(directory)  # of a process that was killed
        require_space(directory, num_bytes)

    return sole_saver(directory, start=start, discard=lambda: _discard_unfinished(directory))


def _discard_unfinished(directory: Path) -> None:
    if not checkpoints.has_checkpoint(directory):
        _discard(directory)


def _discard(directory: Path) -> None:
    """Remove an unfinished release checkpoint."""
    with suppress(FileNotFoundError):
        shutil.rmtree(directory / _RELEASE)
    (directory / checkpoints.TRACKER).unlink(missing_ok=True)


def to_huggingface(args: argparse.Namespace, directory: Path, family: str | None, tokenizer_dir: Path | None) -> None:
    """Write the checkpoint `--load` as a Hugging Face directory.

    Args:
        args: parsed with `--use-checkpoint-args`; `vocab_size` is the number of real rows.
        family: to force, or None.
        tokenizer_dir: to copy; None for the one that the checkpoint names, if it is still there.
    """
    checkpoint = checkpoints.checkpoint_directory(args.load)
    checkpoints.take_architecture(args, checkpoint)
    if args.padded_vocab_size < args.vocab_size:
        raise InputError(
            f"--vocab-size {args.vocab_size} is more than the {args.padded_vocab_size} rows of {checkpoint}: "
            "give the size of the tokenizer that the model was trained with"
        )
    architecture = architecture_of_args(args, args.vocab_size)
    tokenizer = program.on_rank_zero(lambda: tokenizer_of_export(checkpoint, tokenizer_dir, args.vocab_size))
    program.on_rank_zero(lambda: require_space(directory, model_bytes(architecture, args.params_dtype.itemsize)))
    save_huggingface(
        models.load_for_scoring(args),
        architecture,
        directory,
        padded_vocab_size=args.padded_vocab_size,
        family=family,
        tokenizer_dir=tokenizer.directory,
        generation=tokenizer.generation,
    )
    program.say_once(f"{directory}: vocabulary of {args.vocab_size:,}, {tokenizer}; load it with AutoModelForCausalLM")
