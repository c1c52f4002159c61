"""From parsed flags to which model reads the corpus, with which tokenizer, and by which rules it scores."""

import argparse
from pathlib import Path

from megatron.training import get_tokenizer

from megatron_miniplm.corpus.tokenization.settings import TokenizerSettings
from megatron_miniplm.corpus.tokenization.tokenizers import make_encoder
from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore import checkpoints, program
from megatron_miniplm.mcore.huggingface.model import HuggingFaceModel
from megatron_miniplm.mcore.identity import ModelIdentity, TokenizerIdentity
from megatron_miniplm.scoring.rows import ScoringRules


def scoring_setup(
    args: argparse.Namespace, huggingface: HuggingFaceModel | None
) -> tuple[ModelIdentity, TokenizerIdentity, ScoringRules]:
    """Complete Megatron's args with what the model knows, and say who scores how; a collective call.

    Args:
        args: validated and initialised; architecture and vocabulary are taken from the model.
        huggingface: the `--load-hf` directory, if it is one.

    Raises:
        InputError: the model does not fit the flags, or a token that a rule needs is unknown.
    """
    model, tokenizer, eod_token = model_and_tokenizer(args, huggingface)
    with program.alike_on_all_ranks():
        bos_token = _bos_token(args, huggingface) if args.score_first_token else None
        if args.mask_eod and eod_token is None:
            raise InputError(f"--mask-eod: {tokenizer.place} has no end-of-document token")
    rules = ScoringRules(
        context_tokens=args.seq_length,
        overlap_tokens=args.window_overlap,
        bos_token=bos_token,
        masked_input=eod_token if args.mask_eod else None,
    )
    return model, tokenizer, rules


def model_and_tokenizer(
    args: argparse.Namespace, huggingface: HuggingFaceModel | None
) -> tuple[ModelIdentity, TokenizerIdentity, int | None]:
    """Complete Megatron's args with what the model knows; a collective call.

    Returns:
        Both identities, and the end-of-document token, None where the tokenizer has none.

    Raises:
        InputError: the model does not fit the flags.
    """
    with program.alike_on_all_ranks():
        model = _huggingface_model(args, huggingface) if huggingface else _megatron_model(args)
    return model, *program.on_rank_zero(lambda: _tokenizer(args, huggingface))


def _huggingface_model(args: argparse.Namespace, huggingface: HuggingFaceModel) -> ModelIdentity:
    huggingface.take_vocabulary(args)
    weights = program.on_rank_zero(huggingface.fingerprint)
    return ModelIdentity(path=huggingface.directory, weights=weights, vocab_size=huggingface.vocab_size)


def _megatron_model(args: argparse.Namespace) -> ModelIdentity:
    """A Megatron checkpoint; its real vocabulary is the tokenizer's unless the checkpoint knows of more rows."""
    directory = checkpoints.checkpoint_directory(args.load, args.ckpt_step)
    if args.use_checkpoint_args:
        checkpoints.take_architecture(args, directory)
    program.on_rank_zero(lambda: checkpoints.check_architecture(args, directory))
    weights = program.on_rank_zero(lambda: checkpoints.weights_fingerprint(directory))
    recorded = program.on_rank_zero(lambda: checkpoints.recorded_vocab_size(directory))
    return ModelIdentity(
        path=directory,
        weights=weights,
        vocab_size=max(get_tokenizer().vocab_size, recorded or 0),
        training_data=program.on_rank_zero(lambda: checkpoints.recorded_training_data(directory)),
    )


def _tokenizer(args: argparse.Namespace, huggingface: HuggingFaceModel | None) -> tuple[TokenizerIdentity, int | None]:
    """The tokenizer of the flags, by default that of the Hugging Face directory, and its end-of-document token."""
    settings = tokenizer_settings(args, huggingface)
    if not settings.files:
        megatron = get_tokenizer()
        place = f"--tokenizer-type {args.tokenizer_type}"
        identity = TokenizerIdentity(place=place, fingerprint=None, vocab_size=megatron.vocab_size)
        return identity, megatron.eod
    encoder = make_encoder(settings, num_threads=1)
    identity = TokenizerIdentity(
        place=" and ".join(map(str, settings.files)),
        fingerprint=encoder.fingerprint(),
        vocab_size=encoder.vocab_size,
        must_match=not args.allow_tokenizer_mismatch,
        changed_by=getattr(encoder, "changed_by", None),
    )
    return identity, encoder.eod_id


def tokenizer_settings(args: argparse.Namespace, huggingface: HuggingFaceModel | None) -> TokenizerSettings:
    """The tokenizer of the flags, by default that of the Hugging Face directory."""
    settings = _settings(args)
    if settings.tokenizer_type == "NullTokenizer" and huggingface is not None and huggingface.has_tokenizer:
        return TokenizerSettings(tokenizer_type="HuggingFaceTokenizer", tokenizer_model=huggingface.directory)
    return settings


def _settings(args: argparse.Namespace) -> TokenizerSettings:
    def path(name: str) -> Path | None:
        value = getattr(args, name, None)
        return None if value is None else Path(value)

    return TokenizerSettings(
        tokenizer_type=args.tokenizer_type,
        tokenizer_model=path("tokenizer_model"),
        vocab_file=path("vocab_file"),
        merge_file=path("merge_file"),
        vocab_size=args.vocab_size if args.tokenizer_type in ("TikTokenizer", "NullTokenizer") else None,
        tiktoken_pattern=args.tiktoken_pattern or "v2",
        tiktoken_num_special_tokens=args.tiktoken_num_special_tokens,
        special_tokens=tuple(getattr(args, "tokenizer_special_tokens", None) or ()),
    )


def _bos_token(args: argparse.Namespace, huggingface: HuggingFaceModel | None) -> int:
    found = args.bos_token_id
    if found is None:
        found = huggingface.config.get("bos_token_id") if huggingface else getattr(get_tokenizer(), "bos", None)
    if not isinstance(found, int) or found < 0:
        raise InputError("--score-first-token needs a BOS token, and this tokenizer has none: give --bos-token-id")
    return found
