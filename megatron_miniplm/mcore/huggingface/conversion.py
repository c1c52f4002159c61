"""The two halves of `miniplm convert-checkpoint`, once Megatron is initialised."""

import argparse
from pathlib import Path

from megatron.training import get_model
from megatron.training.checkpointing import save_checkpoint

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore import models, program
from megatron_miniplm.mcore.huggingface.loading import load_weights
from megatron_miniplm.mcore.huggingface.megatron_flags import architecture_of_args
from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel
from megatron_miniplm.mcore.huggingface.saving import save_huggingface
from megatron_miniplm.mcore.megatron_output import hidden


def to_megatron(args: argparse.Namespace, model: HuggingFaceModel) -> None:
    """Write `--save` as a `torch_dist` checkpoint that `--load --use-checkpoint-args` reads at any TP x PP x EP.

    It is a "release" checkpoint: without iteration, optimizer or random state, so that training starts at 0 from it.
    Its args keep the real vocabulary size as `vocab_size`, and the model's tokenizer where the directory has one.

    Args:
        args: parsed from `model.megatron_flags()`, with `model.take_vocabulary(args)`.
    """
    with hidden():
        chunks = get_model(models.model_provider, wrap_with_ddp=False)
    load_weights(chunks, model)
    if model.has_tokenizer:
        args.tokenizer_type, args.tokenizer_model = "HuggingFaceTokenizer", str(model.directory.absolute())
    args.no_save_optim = args.no_save_rng = True
    with hidden(), program.megatron_errors(f"to save into {args.save}"):
        save_checkpoint(0, chunks, None, None, 0, release=True)
    program.say_once(
        f"{args.save}: {model.family}, vocabulary of {args.vocab_size:,} in {args.padded_vocab_size:,} rows; "
        "load it with --load and --use-checkpoint-args"
    )


def to_huggingface(args: argparse.Namespace, directory: Path, family: str | None, tokenizer_dir: Path | None) -> None:
    """Write the checkpoint `--load` as a Hugging Face directory.

    Args:
        args: parsed with `--use-checkpoint-args`; `vocab_size` is the number of real rows.
        family: to force, or None.
        tokenizer_dir: to copy, or None.
    """
    checkpoint = models.checkpoint_directory(args.load)
    models.take_architecture(args, checkpoint)
    if args.padded_vocab_size < args.vocab_size:
        raise InputError(
            f"--vocab-size {args.vocab_size} is more than the {args.padded_vocab_size} rows of {checkpoint}: "
            "give the size of the tokenizer that the model was trained with"
        )
    save_huggingface(
        models.load_for_scoring(args),
        architecture_of_args(args, args.vocab_size),
        directory,
        padded_vocab_size=args.padded_vocab_size,
        family=family,
        tokenizer_dir=tokenizer_dir,
    )
    program.say_once(f"{directory}: vocabulary of {args.vocab_size:,}; load it with AutoModelForCausalLM")
