"""The one table between Megatron's parameters and Hugging Face's tensors; loading and saving both follow it.

A Megatron parameter, whole, is one or two *blocks* laid along an axis; a block is a row of *pieces*, each a range of
one Hugging Face tensor along the same axis. Tensor parallelism cuts every block evenly and joins a rank's shares:

    linear_qkv   one block   q0 q0 k0 v0 | q1 q1 k1 v1       heads of a group together
    linear_fc1   two blocks  gate | gate   up | up           so that a rank holds its gate and its up
    embedding    one block   rows of the vocabulary | rows and padding

Pure functions of names and numbers: no torch, no rank.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from megatron_miniplm.mcore.huggingface.architecture import Architecture

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Piece:
    """A range `start:stop` of a Hugging Face tensor; of zeros where `tensor` is None."""

    tensor: str | None
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a whole Megatron parameter is made.

    Attributes:
        blocks: rows of pieces along `axis`.
        is_split: whether tensor parallelism cuts it; else every rank holds all of it.
        is_expert: whether it is the expert's tensor parallelism that does.
    """

    blocks: tuple[tuple[Piece, ...], ...]
    axis: int = 0
    is_split: bool = False
    is_expert: bool = False

    @property
    def tensors(self) -> list[str]:
        """The Hugging Face tensors, each once, in the order of their first piece."""
        return list(dict.fromkeys(piece.tensor for block in self.blocks for piece in block if piece.tensor is not None))

    def share(self, rank: int, world_size: int) -> list[Piece]:
        """The pieces that `rank` of `world_size` holds, in order; they may be parts of the table's pieces.

        Raises:
            ValueError: a block does not divide by `world_size`.
        """
        if not self.is_split:
            rank, world_size = 0, 1
        pieces: list[Piece] = []
        for block in self.blocks:
            size, rest = divmod(block_size(block), world_size)
            if rest:
                raise ValueError(f"{block_size(block)} rows do not divide by {world_size}")
            pieces += _clip(block, rank * size, (rank + 1) * size)
        return pieces


def block_size(block: tuple[Piece, ...]) -> int:
    return sum(piece.size for piece in block)


def _clip(block: tuple[Piece, ...], start: int, stop: int) -> list[Piece]:
    """The part `start:stop` of a block."""
    clipped, offset = [], 0
    for piece in block:
        first, last = max(start, offset), min(stop, offset + piece.size)
        if first < last:
            clipped.append(Piece(piece.tensor, piece.start + first - offset, piece.start + last - offset))
        offset += piece.size
    return clipped


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The Hugging Face tensors of a model, with their shapes."""
    hidden, query = architecture.hidden_size, architecture.num_heads * architecture.head_size
    key = architecture.num_groups * architecture.head_size
    ffn = architecture.ffn_size
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (hidden,),
        "post_attention_layernorm.weight": (hidden,),
        "self_attn.o_proj.weight": (hidden, query),
    }
    for name, rows in (("q", query), ("k", key), ("v", key)):
        layer[f"self_attn.{name}_proj.weight"] = (rows, hidden)
        if architecture.qkv_bias:
            layer[f"self_attn.{name}_proj.bias"] = (rows,)
        if architecture.qk_norm and name != "v":
            layer[f"self_attn.{name}_norm.weight"] = (architecture.head_size,)
    if architecture.num_experts is None:
        layer |= {f"mlp.{name}_proj.weight": (ffn, hidden) for name in ("gate", "up")}
        layer["mlp.down_proj.weight"] = (hidden, ffn)
    else:
        layer["block_sparse_moe.gate.weight"] = (architecture.num_experts, hidden)
        for expert in range(architecture.num_experts):
            layer |= {f"block_sparse_moe.experts.{expert}.{name}.weight": (ffn, hidden) for name in ("w1", "w3")}
            layer[f"block_sparse_moe.experts.{expert}.w2.weight"] = (hidden, ffn)
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (architecture.vocab_size, hidden),
        "model.norm.weight": (hidden,),
    }
    if not architecture.tied:
        shapes["lm_head.weight"] = (architecture.vocab_size, hidden)
    for index in range(architecture.num_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    return shapes


#: Names of Transformer Engine's layers -> those of the local ones, which the table uses.
_TRANSFORMER_ENGINE_NAMES = (
    (re.compile(r"self_attention\.linear_qkv\.layer_norm_weight$"), "input_layernorm.weight"),
    (re.compile(r"mlp\.linear_fc1\.layer_norm_weight$"), "pre_mlp_layernorm.weight"),
    (re.compile(r"mlp\.experts\.linear_fc([12])\.weight(\d+)$"), r"mlp.experts.local_experts.\2.linear_fc\1.weight"),
)


def local_spec_name(name: str) -> str:
    """A parameter's name in Megatron's local layer spec."""
    for pattern, replacement in _TRANSFORMER_ENGINE_NAMES:
        name = pattern.sub(replacement, name)
    return name


@dataclass(frozen=True)
class _Context:
    """What a row of the table may ask for; `prefix` and `expert` are those of the parameter at hand."""

    architecture: Architecture
    shapes: Shapes
    padded_vocab_size: int
    prefix: str = ""
    expert: str = ""

    def name(self, suffix: str) -> str:
        return self.prefix + suffix.replace("EXPERT", self.expert)


_Row = Callable[[_Context], Layout]


def _all_of(context: _Context, name: str, axis: int = 0) -> Piece:
    return Piece(name, 0, context.shapes[name][axis])


def _replicated(suffix: str) -> _Row:
    return lambda context: Layout(blocks=((_all_of(context, context.name(suffix)),),))


def _columns(suffix: str, *, is_expert: bool = False) -> _Row:
    return lambda context: Layout(
        blocks=((_all_of(context, context.name(suffix), axis=1),),), axis=1, is_split=True, is_expert=is_expert
    )


def _gate_above_up(gate: str, up: str, *, is_expert: bool = False) -> _Row:
    return lambda context: Layout(
        blocks=((_all_of(context, context.name(gate)),), (_all_of(context, context.name(up)),)),
        is_split=True,
        is_expert=is_expert,
    )


def _vocabulary(name: str) -> _Row:
    def layout(context: _Context) -> Layout:
        real = context.architecture.vocab_size
        rows = (Piece(name, 0, real), Piece(None, real, context.padded_vocab_size))
        return Layout(blocks=(tuple(piece for piece in rows if piece.size),), is_split=True)

    return layout


def _output(context: _Context) -> Layout:
    # The last pipeline stage of a tied model holds a copy of the embedding.
    name = "model.embed_tokens.weight" if context.architecture.tied else "lm_head.weight"
    return _vocabulary(name)(context)


def _groups_of_heads(kind: str) -> _Row:
    """Query heads, key head and value head of each group in turn."""

    def layout(context: _Context) -> Layout:
        architecture = context.architecture
        heads = {"q": architecture.num_heads // architecture.num_groups, "k": 1, "v": 1}
        pieces = [
            Piece(
                context.name(f"self_attn.{name}_proj.{kind}"),
                group * count * architecture.head_size,
                (group + 1) * count * architecture.head_size,
            )
            for group in range(architecture.num_groups)
            for name, count in heads.items()
        ]
        return Layout(blocks=(tuple(pieces),), is_split=True)

    return layout


_OUTER_TABLE: dict[str, _Row] = {
    "embedding.word_embeddings.weight": _vocabulary("model.embed_tokens.weight"),
    "decoder.final_layernorm.weight": _replicated("model.norm.weight"),
    "output_layer.weight": _output,
}
_LAYER_TABLE: dict[str, _Row] = {
    "input_layernorm.weight": _replicated("input_layernorm.weight"),
    "self_attention.linear_qkv.weight": _groups_of_heads("weight"),
    "self_attention.linear_qkv.bias": _groups_of_heads("bias"),
    "self_attention.q_layernorm.weight": _replicated("self_attn.q_norm.weight"),
    "self_attention.k_layernorm.weight": _replicated("self_attn.k_norm.weight"),
    "self_attention.linear_proj.weight": _columns("self_attn.o_proj.weight"),
    "pre_mlp_layernorm.weight": _replicated("post_attention_layernorm.weight"),
    "mlp.linear_fc1.weight": _gate_above_up("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "mlp.linear_fc2.weight": _columns("mlp.down_proj.weight"),
    "mlp.router.weight": _replicated("block_sparse_moe.gate.weight"),
    "mlp.experts.local_experts.EXPERT.linear_fc1.weight": _gate_above_up(
        "block_sparse_moe.experts.EXPERT.w1.weight", "block_sparse_moe.experts.EXPERT.w3.weight", is_expert=True
    ),
    "mlp.experts.local_experts.EXPERT.linear_fc2.weight": _columns(
        "block_sparse_moe.experts.EXPERT.w2.weight", is_expert=True
    ),
}
_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)$")
_EXPERT = re.compile(r"(?<=\.local_experts\.)(\d+)")


def layout_of(name: str, architecture: Architecture, shapes: Shapes, padded_vocab_size: int) -> Layout | None:
    """How a Megatron parameter is made of Hugging Face tensors.

    Args:
        name: in the local or Transformer Engine spec, with layers and experts numbered over the whole model.
        shapes: `tensor_shapes(architecture)`.
        padded_vocab_size: rows of Megatron's embedding over all ranks.

    Returns:
        None for a parameter that the architecture does not have.
    """
    name = local_spec_name(name)
    context = _Context(architecture, shapes, padded_vocab_size)
    row = _OUTER_TABLE.get(name)
    if found := _LAYER.match(name):
        expert = _EXPERT.search(found[2])
        context = _Context(
            architecture, shapes, padded_vocab_size, f"model.layers.{found[1]}.", expert[1] if expert else ""
        )
        row = _LAYER_TABLE.get(_EXPERT.sub("EXPERT", found[2]))
    if row is None:
        return None
    try:
        layout = row(context)
    except KeyError:  # a dense model has no experts, a fourth layer no fifth
        return None
    return layout if all(tensor in shapes for tensor in layout.tensors) else None


def padded_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """Rows of the embedding with padding: the same for every layout whose TP size divides `divisible_by`.

    Megatron's own rule multiplies the two (training/vocab_utils.py:24), so that a checkpoint would depend on the layout
    that wrote it, and a score's identity on the layout that computed it.
    """
    multiple = math.lcm(divisible_by, tensor_parallel_size)
    return -(-vocab_size // multiple) * multiple
