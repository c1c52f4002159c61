import itertools
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch
from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
from megatron.core.transformer.dot_product_attention import DotProductAttention

from megatron_miniplm.errors import InputError, UnsupportedMegatronError
from megatron_miniplm.mcore.packed_attention import (
    PackedAttention,
    PackedRotaryEmbedding,
    PackedRowParams,
    packing_parameters,
    use_packed_attention,
)

HEADS, HEAD_SIZE, SCALE = 4, 8, 0.3
BOUNDARIES = [0, 5, 6, 17, 24]


def replaced(window: tuple[int, int] | None = None) -> SimpleNamespace:
    """What a `DotProductAttention` tells of itself."""
    return SimpleNamespace(softmax_scale=SCALE / 2, scale_mask_softmax=SimpleNamespace(scale=2.0, window_size=window))


def row_params(boundaries: list[int] = BOUNDARIES) -> PackedRowParams:
    positions = [position for start, stop in itertools.pairwise(boundaries) for position in range(stop - start)]
    params = packing_parameters(boundaries, torch.tensor(positions), context_tokens=16, own_attention=True)
    assert isinstance(params, PackedRowParams)
    return params


def by_hand(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None) -> torch.Tensor:
    """Softmax over what each token may see, in float64, from the definition."""
    num_tokens, repeats = len(query), query.shape[2] // key.shape[2]
    document = torch.tensor([sum(at >= start for start in BOUNDARIES) for at in range(num_tokens)])
    out = torch.empty(num_tokens, HEADS, HEAD_SIZE, dtype=torch.float64)
    for at in range(num_tokens):
        seen = [
            other
            for other in range(at + 1)
            if document[other] == document[at] and (window is None or at - other < window)
        ]
        for head in range(HEADS):
            scores = key[seen, 0, head // repeats].double() @ query[at, 0, head].double() * SCALE
            out[at, head] = scores.softmax(0) @ value[seen, 0, head // repeats].double()
    return out.flatten(1).unsqueeze(1)


@pytest.mark.parametrize("groups", [HEADS, 2, 1])
@pytest.mark.parametrize("window", [None, 4])
def test_a_token_sees_its_own_document_up_to_itself(groups: int, window: int | None) -> None:
    torch.manual_seed(0)
    query = torch.randn(BOUNDARIES[-1], 1, HEADS, HEAD_SIZE)
    key, value = torch.randn(2, BOUNDARIES[-1], 1, groups, HEAD_SIZE)
    attention = PackedAttention(replaced(None if window is None else (window - 1, 0)))
    out = attention(query, key, value, None, packed_seq_params=row_params())
    assert out.shape == (BOUNDARIES[-1], 1, HEADS * HEAD_SIZE)
    torch.testing.assert_close(out.double(), by_hand(query, key, value, window), rtol=0, atol=2e-6)


def test_a_document_has_the_same_bits_wherever_it_lies() -> None:
    """The result of a sequence must not depend on its neighbours."""
    torch.manual_seed(0)
    query, key, value = torch.randn(3, BOUNDARIES[-1], 1, HEADS, HEAD_SIZE)
    attention = PackedAttention(replaced())
    packed = attention(query, key, value, None, packed_seq_params=row_params())
    parts = (part[6:17].clone() for part in (query, key, value))
    assert torch.equal(attention(*parts, None, packed_seq_params=row_params([0, 11])), packed[6:17])


def test_angles_are_those_of_the_position_in_the_document(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "current_device", lambda: "cpu")  # Megatron moves its table there
    inner = RotaryEmbedding(kv_channels=HEAD_SIZE, rotary_percent=1.0, use_cpu_initialization=True, cp_group=None)
    params = row_params()
    rotary = PackedRotaryEmbedding(inner)
    length = rotary.get_rotary_seq_len(None, None, None, None, params)
    angles = rotary(length, packed_seq=False, cp_group=None)
    table = inner.get_emb(16)
    assert angles.shape == (BOUNDARIES[-1], 1, 1, HEAD_SIZE)
    assert torch.equal(angles, table[params.position_ids_S])
    assert torch.equal(angles[17:19], table[:2])


def test_no_table_of_angles_is_as_long_as_a_row() -> None:
    """Megatron would take it for the angles of the whole row, and positions would no longer restart."""
    for boundaries in ([0, 3, 16], [0, 3, 15], [0, 16, 32]):
        params = packing_parameters(boundaries, torch.arange(boundaries[-1]), context_tokens=16, own_attention=False)
        assert params.qkv_format == "thd"
        assert 16 <= params.max_seqlen_q != boundaries[-1]
        assert params.cu_seqlens_q.tolist() == boundaries


class OtherAttention(torch.nn.Module):
    """Attention of a class that we do not know."""


def layer_with(attention: torch.nn.Module) -> torch.nn.Module:
    layer = torch.nn.Module()
    layer.core_attention = attention
    return layer


def test_attention_that_nobody_keeps_inside_documents_is_refused() -> None:
    with pytest.raises(UnsupportedMegatronError, match="builds attention of class OtherAttention"):
        use_packed_attention(Namespace(transformer_impl="modelopt"), [layer_with(OtherAttention())])


@pytest.mark.parametrize(
    ("settings", "flag"),
    [
        ({"position_embedding_type": "yarn"}, "--position-embedding-type yarn"),
        ({"softmax_type": "learnable"}, "--softmax-type learnable"),
        ({"multi_latent_attention": True}, "--multi-latent-attention"),
    ],
)
def test_what_needs_transformer_engine_is_named(settings: dict[str, object], flag: str) -> None:
    attention = DotProductAttention.__new__(DotProductAttention)
    torch.nn.Module.__init__(attention)
    args = Namespace(position_embedding_type="rope", softmax_type="vanilla", multi_latent_attention=False)
    vars(args).update(settings)
    with pytest.raises(InputError, match=f"{flag} needs Transformer Engine"):
        use_packed_attention(args, [layer_with(attention)])
