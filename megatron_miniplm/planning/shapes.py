"""The shape of a model that a user names: a Hugging Face directory, a Megatron checkpoint, or a model of the paper."""

import argparse
import sys
import warnings
from contextlib import redirect_stdout
from pathlib import Path

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.flops import ModelShape
from megatron_miniplm.mcore.huggingface.config_json import read_config
from megatron_miniplm.mcore.huggingface.model import locate


def _qwen(layers: int, hidden: int, ffn: int, heads: int, *, tied: bool) -> ModelShape:
    return ModelShape(
        num_layers=layers,
        hidden_size=hidden,
        ffn_hidden_size=ffn,
        num_attention_heads=heads,
        vocab_size=151_936,
        tied=tied,
        qkv_bias=True,
    )


#: The models of MiniPLM, as examples/paper/ trains them; docs/recipes.md says which of these are reconstructed.
NAMED_SHAPES = {
    "qwen1.5-1.8b": _qwen(24, 2048, 5504, 16, tied=False),
    "qwen-1.2b": _qwen(24, 1536, 4224, 16, tied=False),
    "qwen-500m": _qwen(24, 1024, 2816, 16, tied=True),
    "qwen-200m": _qwen(12, 768, 2112, 12, tied=True),
    "qwen-104m": _qwen(8, 512, 1408, 8, tied=True),
}

#: Megatron's name of a setting -> the values for which all layers are alike and of the kind that `ModelShape` knows.
_KNOWN_LAYERS: dict[str, tuple[object, ...]] = {
    "hybrid_layer_pattern": (None,),
    "multi_latent_attention": (False,),
    "attention_output_gate": (False,),
    "experimental_attention_variant": (None,),
    "moe_layer_freq": (1,),
    "moe_shared_expert_intermediate_size": (None,),
    "moe_latent_size": (None,),
    "mtp_num_layers": (None, 0),
    "heterogeneous_layers_config_path": (None,),
    "window_attn_skip_freq": (None,),
}


def model_shape(model: str) -> ModelShape:
    """Find out what a model is; imports torch for a Megatron checkpoint only.

    Args:
        model: a directory, the name of a model in the hub's cache, or a name of `NAMED_SHAPES` in any case.

    Raises:
        InputError: it is neither, or its layers are of a kind that has no formula here.
    """
    if model.lower() in NAMED_SHAPES and not Path(model).exists():
        return NAMED_SHAPES[model.lower()]
    directory = locate(Path(model), "config.json")
    if (config_path := directory / "config.json").is_file():
        return ModelShape.from_huggingface(read_config(config_path), config_path)
    if directory.is_dir():
        return _checkpoint_shape(directory)
    raise InputError(
        f"{model} is no model: expected a Hugging Face directory, a Megatron checkpoint (as --load takes it), "
        f"or one of {', '.join(NAMED_SHAPES)}"
    )


def _checkpoint_shape(directory: Path) -> ModelShape:
    from megatron_miniplm.mcore import checkpoints

    iteration_dir = checkpoints.checkpoint_directory(str(directory))
    with warnings.catch_warnings(), redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")  # of torch and Megatron, about what only training needs
        args = checkpoints.recorded_args(iteration_dir)
    if args is None:
        raise InputError(f"{iteration_dir} does not say what model it is (legacy format): give a torch_dist checkpoint")
    require_known_layers(args, iteration_dir)
    return ModelShape.from_megatron_args(args)


def require_known_layers(args: argparse.Namespace, place: Path) -> None:
    """Refuse Megatron's args of a model whose layers differ, or are of a kind that `ModelShape` has no formula for.

    Raises:
        InputError: names the setting.
    """
    for name, known in _KNOWN_LAYERS.items():
        found = getattr(args, name, known[0])
        if found not in known:
            raise InputError(
                f"{place} has {name} = {found!r}, of which the cost is not known here: {known[0]!r} would do"
            )
