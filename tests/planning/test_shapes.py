"""Which models a plan takes, and their shapes."""

import json
from argparse import Namespace
from pathlib import Path

import pytest
from megatron_runs import VOCAB_SIZE, TinyRun

from megatron_miniplm.errors import InputError
from megatron_miniplm.mcore.flops import ModelShape
from megatron_miniplm.planning.shapes import NAMED_SHAPES, model_shape, require_known_layers

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 768,
    "intermediate_size": 2112,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_key_value_heads": 12,
    "vocab_size": 151936,
    "max_position_embeddings": 1024,
    "tie_word_embeddings": True,
}


def test_a_hugging_face_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    theirs, named = model_shape(str(tmp_path)), NAMED_SHAPES["qwen-200m"]
    assert theirs.num_parameters == named.num_parameters
    assert theirs.training_flops_per_token(1024) == named.training_flops_per_token(1024)


def test_layers_without_a_formula_are_refused() -> None:
    with pytest.raises(
        InputError, match=r"checkpoint has multi_latent_attention = True, of which the cost is not known"
    ):
        require_known_layers(Namespace(multi_latent_attention=True), Path("checkpoint"))
    require_known_layers(Namespace(multi_latent_attention=False, moe_layer_freq=1), Path("checkpoint"))


@pytest.mark.parametrize(
    ("name", "num_parameters", "without_embeddings"),
    [
        # As Megatron counts the models that examples/paper/ builds (docs/recipes.md).
        ("qwen-104m", 103_502_336, 25_711_104),
        ("qwen-200m", 203_437_824, 86_750_976),
        ("qwen-500m", 463_987_712, 308_405_248),
        ("qwen-1.2b", 1_160_566_272, 693_818_880),
    ],
)
def test_models_of_the_paper(name: str, num_parameters: int, without_embeddings: int) -> None:
    shape = model_shape(name.upper())
    assert shape.num_parameters == num_parameters
    assert num_parameters - shape.num_embedding_parameters == without_embeddings


@pytest.mark.slow
def test_a_megatron_checkpoint_is_what_was_trained(tiny: TinyRun) -> None:
    shape = model_shape(str(tiny.checkpoint))
    expected = ModelShape(
        num_layers=2,
        hidden_size=32,
        ffn_hidden_size=64,
        num_attention_heads=4,
        num_query_groups=2,
        kv_channels=8,
        vocab_size=128,
    )
    assert shape == expected
    assert shape.vocab_size > VOCAB_SIZE  # the padded one: training multiplies by all rows
