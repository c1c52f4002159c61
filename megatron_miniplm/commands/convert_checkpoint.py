"""Convert a model between Hugging Face's format and Megatron's, in either direction.

    miniplm convert-checkpoint --load-hf MODEL_DIR --save CKPT
    miniplm convert-checkpoint --load CKPT --save-hf MODEL_DIR [--tokenizer-model TOKENIZER_DIR]

A Megatron program. Plain `miniplm` is enough for a model that fits into memory. Under torchrun or srun it takes
Megatron's own flags (--tensor-model-parallel-size, --pipeline-model-parallel-size, --bf16, ...), and each rank holds
only its part. The output does not depend on the parallel layout.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from megatron_miniplm.artifacts.directories import remove_dead_writer
from megatron_miniplm.errors import InputError

#: Flags that Megatron's parser insists on and that mean nothing to a conversion.
UNUSED_BUT_REQUIRED = {"train_iters": 1, "lr": 1e-4, "micro_batch_size": 1}


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The flags that are read before Megatron's parser runs."""
    hugging_face = parser.add_argument_group("Hugging Face")
    hugging_face.add_argument(
        "--load-hf",
        type=Path,
        metavar="MODEL",
        help="Hugging Face model to convert to a Megatron checkpoint: a directory, or a downloaded ORG/NAME",
    )
    hugging_face.add_argument(
        "--save-hf", type=Path, metavar="DIR", help="directory to write the Hugging Face model to; must not exist"
    )
    hugging_face.add_argument(
        "--hf-family", metavar="NAME", help="model_type to write if several fit, such as mistral instead of llama"
    )
    megatron = parser.add_argument_group("Megatron's, and every other flag of its own")
    megatron.add_argument(
        "--load", type=Path, metavar="CKPT", help="Megatron checkpoint to convert to a Hugging Face model"
    )
    megatron.add_argument(
        "--save", type=Path, metavar="CKPT", help="directory to write the Megatron checkpoint to; must not hold one"
    )
    megatron.add_argument(
        "--tokenizer-model",
        metavar="DIR",
        help="tokenizer to copy into --save-hf (default: the run's); its size is taken as the vocabulary size",
    )
    megatron.add_argument(
        "--vocab-size",
        type=int,
        metavar="N",
        help="vocabulary size without padding, if neither --load nor its tokenizer tells",
    )
    return parser


def run(argv: Sequence[str]) -> None:
    """Find the direction, and convert."""
    parser = argparse.ArgumentParser(
        prog="miniplm convert-checkpoint",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    ours, rest = add_arguments(parser).parse_known_args(argv)
    given = {name for name in ("load_hf", "save_hf", "load", "save") if getattr(ours, name) is not None}
    if given == {"load_hf", "save"}:
        _to_megatron(ours, rest)
    elif given == {"load", "save_hf"}:
        _to_huggingface(ours, rest)
    else:
        raise InputError("give either --load-hf DIR --save CKPT, or --load CKPT --save-hf DIR")


def _to_megatron(ours: argparse.Namespace, rest: Sequence[str]) -> None:
    from megatron_miniplm.mcore import program
    from megatron_miniplm.mcore.checkpoints import has_checkpoint
    from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel

    with program.alike_on_all_ranks():
        if ours.hf_family or ours.tokenizer_model or ours.vocab_size:
            raise InputError("--hf-family, --tokenizer-model and --vocab-size belong to --save-hf: leave them out")
        if has_checkpoint(ours.save):
            remove_dead_writer(ours.save)
            raise InputError(f"{ours.save} holds a checkpoint already: give another directory, or delete it")
        model = HuggingFaceModel.open(ours.load_hf)
        model.check_tensors()
        model.refuse_contradictions(rest)
        flags = [
            *model.megatron_flags(),
            *model.precision_flags(rest),
            *("--seq-length", str(model.architecture.max_positions)),
            *("--save", str(ours.save), "--save-interval", "1"),
            *("--tokenizer-type", "NullTokenizer", "--vocab-size", str(model.vocab_size)),
            *rest,
        ]
    with program.running(flags, defaults=UNUSED_BUT_REQUIRED, complete=model.take_vocabulary) as args:
        from megatron_miniplm.mcore.conversion import to_megatron

        to_megatron(args, model)


def _to_huggingface(ours: argparse.Namespace, rest: Sequence[str]) -> None:
    from megatron_miniplm.mcore import checkpoints, program
    from megatron_miniplm.mcore.device_flags import given_flags

    with program.alike_on_all_ranks():
        if ours.save_hf.exists():
            raise InputError(f"{ours.save_hf} exists already: give another directory, or delete it")
        tokenizer_dir = Path(ours.tokenizer_model) if ours.tokenizer_model else None
        if tokenizer_dir is not None and not tokenizer_dir.is_dir():
            raise InputError(f"--tokenizer-model {tokenizer_dir} is no directory: give a Hugging Face tokenizer")
        checkpoint = checkpoints.checkpoint_directory(str(ours.load))
        program.prepare()  # reading the checkpoint needs Megatron
        vocab_size = ours.vocab_size or checkpoints.recorded_vocab_size(checkpoint)
        if vocab_size is None and tokenizer_dir is None:
            raise InputError(
                f"{checkpoint} does not say how many of its rows are padding: give --tokenizer-model or --vocab-size"
            )
        tokenizer = ["--tokenizer-type", "NullTokenizer", "--vocab-size", str(vocab_size)]
        if vocab_size is None:
            tokenizer = ["--tokenizer-type", "HuggingFaceTokenizer", "--tokenizer-model", str(tokenizer_dir)]
        flags = [
            *("--load", str(ours.load), "--use-checkpoint-args", "--no-use-tokenizer-model-from-checkpoint-args"),
            *([] if given_flags(rest) & {"--bf16", "--fp16"} else checkpoints.recorded_precision_flags(checkpoint)),
            *tokenizer,
            *rest,
        ]
    with program.running(flags, defaults=UNUSED_BUT_REQUIRED) as args:
        from megatron.training import get_tokenizer

        from megatron_miniplm.mcore.conversion import to_huggingface

        args.vocab_size = vocab_size or get_tokenizer().vocab_size
        to_huggingface(args, ours.save_hf, ours.hf_family, tokenizer_dir)
