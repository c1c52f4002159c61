"""Where each parameter of Megatron lies in the tensors of Hugging Face."""

from pathlib import Path
from typing import Any

import huggingface_models
import pytest

from megatron_miniplm.mcore.huggingface import HuggingFaceModel
from megatron_miniplm.mcore.huggingface.mapping import Layout, Piece, layout_of, padded_size, tensor_shapes


@pytest.fixture
def llama(saved: Path, tmp_path: Path) -> Path:
    """A copy of the sharded model, to be broken."""
    for path in (saved / "llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.mark.parametrize("name", huggingface_models.CONFIGS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_shares_cover_every_tensor_once(saved: Path, name: str, world_size: int) -> None:
    """Over all tensor-parallel ranks, each row of each tensor has exactly one place."""
    architecture = HuggingFaceModel.open(saved / name).architecture
    shapes = tensor_shapes(architecture)
    covered: dict[str, list[int]] = {}
    for layout in _layouts_of_the_whole_model(name, architecture, shapes):
        for rank in range(world_size if layout.is_split else 1):
            for piece in layout.share(rank, world_size):
                if piece.tensor is not None:
                    covered.setdefault(piece.tensor, []).extend(range(piece.start, piece.stop))
                    axis_size = shapes[piece.tensor][layout.axis]
                    assert piece.stop <= axis_size
    assert covered.keys() == shapes.keys()
    for tensor, rows in covered.items():
        assert sorted(rows) in [list(range(size)) for size in shapes[tensor]]


def _layouts_of_the_whole_model(name: str, architecture: Any, shapes: Any) -> list[Layout]:
    """Under Transformer Engine's names, which the table must know too."""
    outer = ["embedding.word_embeddings.weight", "decoder.final_layernorm.weight"]
    layer = ["self_attention.linear_qkv.layer_norm_weight", "self_attention.linear_qkv.weight"]
    layer += ["self_attention.linear_proj.weight"]
    if not architecture.tied:
        outer.append("output_layer.weight")
    if architecture.qkv_bias:
        layer.append("self_attention.linear_qkv.bias")
    if architecture.qk_norm:
        layer += ["self_attention.q_layernorm.weight", "self_attention.k_layernorm.weight"]
    if architecture.num_experts:
        layer += ["pre_mlp_layernorm.weight", "mlp.router.weight"]
        layer += [f"mlp.experts.linear_fc{part}.weight{expert}" for part in (1, 2) for expert in range(4)]
    else:
        layer += ["mlp.linear_fc1.layer_norm_weight", "mlp.linear_fc1.weight", "mlp.linear_fc2.weight"]
    names = outer + [f"decoder.layers.{index}.{part}" for index in range(4) for part in layer]
    layouts = [layout_of(name, architecture, shapes, 128) for name in names]
    assert None not in layouts
    return [layout for layout in layouts if layout is not None]


def test_an_unknown_parameter_has_no_layout(saved: Path) -> None:
    architecture = HuggingFaceModel.open(saved / "llama").architecture
    shapes = tensor_shapes(architecture)
    for name in (
        "decoder.layers.0.mlp.router.weight",
        "decoder.layers.0.self_attention.linear_qkv.bias",
        "decoder.layers.4.input_layernorm.weight",
        "mtp.layers.0.enorm.weight",
    ):
        assert layout_of(name, architecture, shapes, 128) is None, name


def test_a_share_of_two_blocks() -> None:
    layout = Layout(blocks=((Piece("gate", 0, 4),), (Piece("up", 0, 4),)), is_split=True)
    assert layout.share(1, 2) == [Piece("gate", 2, 4), Piece("up", 2, 4)]
    with pytest.raises(ValueError, match="4 rows do not divide by 3"):
        layout.share(0, 3)


@pytest.mark.parametrize(("tp", "expected"), [(1, 151_936), (2, 151_936), (64, 151_936), (3, 152_064)])
def test_padding_does_not_depend_on_a_tp_size_that_divides(tp: int, expected: int) -> None:
    assert padded_size(151_665, 128, tp) >= 151_665
    assert padded_size(151_936, 128, tp) == expected
