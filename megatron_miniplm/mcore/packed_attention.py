"""Packed rows for Megatron's `local` layers: attention that stays inside documents, rotary positions that restart.

Transformer Engine's attention takes packed rows by itself (`qkv_format="thd"`). Megatron's own `DotProductAttention`
refuses them (core/transformer/dot_product_attention.py:158), writes S x S scores, and repeats the keys of grouped
queries. Here two modules of a built model are replaced, on the instance and through the interfaces that Megatron calls
them by; nothing of Megatron is patched:

- `core_attention` of every layer, which is given `packed_seq_params` (core/transformer/attention.py:1552);
- `rotary_pos_emb` of the model, whose `get_rotary_seq_len` sees `packed_seq_params` and whose result is applied row by
  row (core/models/gpt/gpt_model.py:401).

Why not Megatron's unfused rotary code for packed rows (core/models/common/embeddings/rope_utils.py:186)? It copies the
boundaries to the host in every layer and starts ten kernels a document; and where the row is as long as the longest
document it takes the angles for those of the whole row, so that positions no longer restart.

Axes: S tokens of a row, N query heads and G key/value heads of this rank, D head size.
"""

import argparse
import importlib.util
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.utils import unwrap_model
from torch.nn.functional import scaled_dot_product_attention

from megatron_miniplm.errors import InputError, UnsupportedMegatronError

#: Kernels of torch's variable-length attention take these (Flash Attention, torch 2.10 and later).
FLASH_DTYPES = (torch.float16, torch.bfloat16)
FLASH_MAX_HEAD_SIZE = 256
#: `position_embedding_type` whose angles depend on nothing but the position.
POSITIONS = ("rope", "learned_absolute", "none")


@dataclass
class PackedRowParams(PackedSeqParams):
    """Megatron's packing parameters, and what our modules need beside them.

    `qkv_format` is "sbhd" here: the row is one sequence of a batch of one for everything but attention and positions.

    Attributes:
        boundaries: where the documents of the row start, and at the end its length; host numbers.
        position_ids_S: position of each token in its document, int64, on the model's device.
    """

    boundaries: Sequence[int] = ()
    position_ids_S: torch.Tensor | None = None


def packing_parameters(
    boundaries: Sequence[int], position_ids_S: torch.Tensor, *, context_tokens: int, own_attention: bool
) -> PackedSeqParams:
    """What `model.forward` is given as `packed_seq_params` for one row.

    Args:
        boundaries: starts of the documents, then the length of the row.
        position_ids_S: on the model's device.
        context_tokens: most tokens of a document.
        own_attention: whether `use_packed_attention` has prepared the model; else Transformer Engine's takes the row.
    """
    boundaries_D = torch.tensor(boundaries, dtype=torch.int32).to(position_ids_S.device, non_blocking=True)
    shape = {
        "cu_seqlens_q": boundaries_D,
        "cu_seqlens_kv": boundaries_D,
        # A rotary table as long as the row would be taken for the angles of the whole row (rope_utils.py:212).
        "max_seqlen_q": context_tokens + (context_tokens == boundaries[-1]),
        "max_seqlen_kv": context_tokens + (context_tokens == boundaries[-1]),
    }
    if own_attention:
        return PackedRowParams(qkv_format="sbhd", boundaries=boundaries, position_ids_S=position_ids_S, **shape)
    return PackedSeqParams(qkv_format="thd", total_tokens=boundaries[-1], **shape)


def use_packed_attention(args: argparse.Namespace, chunks: Sequence[Any]) -> bool:
    """Prepare the `local` layers of a loaded model for packed rows, in place.

    Returns:
        Whether there were any: False for a model whose attention is Transformer Engine's.

    Raises:
        InputError: the model needs what this attention does not offer; the message names the flag.
        UnsupportedMegatronError: the model's modules are not those that this release knows.
    """
    from megatron.core.transformer.dot_product_attention import DotProductAttention

    owners = [
        module
        for chunk in chunks
        for module in chunk.modules()
        if isinstance(getattr(module, "core_attention", None), DotProductAttention)
    ]
    if not owners:
        _require_transformer_engine(args, chunks)
        return False
    softmax = getattr(args, "softmax_type", "vanilla")
    for flag, is_offered in (
        (f"--position-embedding-type {args.position_embedding_type}", args.position_embedding_type in POSITIONS),
        (f"--softmax-type {softmax}", softmax == "vanilla"),
        ("--multi-latent-attention", not args.multi_latent_attention),
    ):
        if not is_offered:
            raise InputError(f"scoring a model with {flag} needs Transformer Engine: pip install megatron-miniplm[gpu]")
    for owner in owners:
        owner.core_attention = PackedAttention(owner.core_attention)
    for chunk in chunks:
        model = unwrap_model(chunk)
        if args.position_embedding_type == "rope":
            model.rotary_pos_emb = PackedRotaryEmbedding(model.rotary_pos_emb)
    return True


def _require_transformer_engine(args: argparse.Namespace, chunks: Sequence[Any]) -> None:
    """Refuse a model with attention that neither we nor Transformer Engine provide."""
    names = {
        type(module.core_attention).__name__
        for chunk in chunks
        for module in chunk.modules()
        if hasattr(module, "core_attention")
    }
    if names - {"TEDotProductAttention"}:
        raise UnsupportedMegatronError(
            f"--transformer-impl {args.transformer_impl} builds attention of class {', '.join(sorted(names))}, which "
            "scoring does not know to keep inside documents: use local or transformer_engine"
        )


@cache
def _has_varlen_attention(head_size: int) -> bool:
    """torch 2.10 and later; before, each document is a call of its own."""
    return head_size <= FLASH_MAX_HEAD_SIZE and importlib.util.find_spec("torch.nn.attention.varlen") is not None


class PackedRotaryEmbedding(torch.nn.Module):
    """Megatron's rotary angles, gathered by the positions of the row at hand."""

    def __init__(self, inner: torch.nn.Module) -> None:
        super().__init__()
        if not all(hasattr(inner, name) for name in ("get_emb", "get_rotary_seq_len")):
            raise UnsupportedMegatronError(
                f"{type(inner).__name__} has no `get_emb`, as in megatron-core 0.18 and 0.19: install one of these"
            )
        self.inner: Any = inner
        self._row: PackedRowParams | None = None
        self._tables: dict[int, torch.Tensor] = {}

    def get_rotary_seq_len(self, *args: Any, **kwargs: Any) -> int:
        """Megatron asks for the length right before it asks for the angles; the row comes along with the question."""
        self._row = next(value for value in (*args, *kwargs.values()) if isinstance(value, PackedRowParams))
        return self._row.max_seqlen_q

    def forward(self, max_seq_len: int, **_: Any) -> torch.Tensor:
        """Angles of the row, (S, 1, 1, rotary size) float32."""
        assert self._row is not None
        assert self._row.position_ids_S is not None
        if max_seq_len not in self._tables:
            self._tables = {max_seq_len: self.inner.get_emb(max_seq_len)}
        return self._tables[max_seq_len][self._row.position_ids_S]


class PackedAttention(torch.nn.Module):
    """Causal softmax attention inside each document of a row."""

    def __init__(self, replaced: Any) -> None:
        """Take scale and window from the `DotProductAttention` that it replaces."""
        super().__init__()
        self.scale = replaced.softmax_scale * (replaced.scale_mask_softmax.scale or 1.0)
        window = replaced.scale_mask_softmax.window_size
        self.window_tokens = None if window is None or window[0] < 0 else window[0] + 1

    def forward(
        self,
        query_S1ND: torch.Tensor,
        key_S1GD: torch.Tensor,
        value_S1GD: torch.Tensor,
        attention_mask: None,
        attn_mask_type: Any = None,
        attention_bias: None = None,
        packed_seq_params: PackedRowParams | None = None,
    ) -> torch.Tensor:
        """Attention of one row, (S, 1, N * D); the arguments are those of Megatron's `DotProductAttention`."""
        assert packed_seq_params is not None
        qkv = (query_S1ND.squeeze(1), key_S1GD.squeeze(1), value_S1GD.squeeze(1))
        query_SND = qkv[0]
        if query_SND.is_cuda and query_SND.dtype in FLASH_DTYPES and _has_varlen_attention(query_SND.shape[-1]):
            return self._all_documents_at_once(*qkv, packed_seq_params).flatten(1).unsqueeze(1)
        out_SND = torch.empty_like(query_SND, memory_format=torch.contiguous_format)
        for start, stop in itertools.pairwise(packed_seq_params.boundaries):
            out_SND[start:stop] = self._one_document(*(part[start:stop] for part in qkv))
        return out_SND.flatten(1).unsqueeze(1)

    def _all_documents_at_once(
        self, query_SND: torch.Tensor, key_SGD: torch.Tensor, value_SGD: torch.Tensor, row: PackedRowParams
    ) -> torch.Tensor:
        from torch.nn.attention.varlen import varlen_attn

        out_SND = varlen_attn(
            query_SND,
            key_SGD,
            value_SGD,
            row.cu_seqlens_q,
            row.cu_seqlens_kv,
            row.max_seqlen_q,
            row.max_seqlen_kv,
            scale=self.scale,
            window_size=((self.window_tokens or 0) - 1, 0),  # (-1, 0): causal, all the way back
            enable_gqa=query_SND.shape[1] != key_SGD.shape[1],
            num_splits=1,  # a document's result must not depend on its neighbours in the row
        )
        assert isinstance(out_SND, torch.Tensor)  # only a request for more than the output gives a tuple
        return out_SND

    def _one_document(self, query_LND: torch.Tensor, key_LGD: torch.Tensor, value_LGD: torch.Tensor) -> torch.Tensor:
        query_1NLD, key_1GLD, value_1GLD = (
            part.transpose(0, 1).unsqueeze(0) for part in (query_LND, key_LGD, value_LGD)
        )
        length = len(query_LND)
        mask_LL = None
        if self.window_tokens is not None and length > self.window_tokens:
            distance_LL = torch.arange(length).unsqueeze(1) - torch.arange(length)
            mask_LL = ((distance_LL >= 0) & (distance_LL < self.window_tokens)).to(query_LND.device)
        out_1NLD = scaled_dot_product_attention(
            query_1NLD,
            key_1GLD,
            value_1GLD,
            attn_mask=mask_LL,
            is_causal=mask_LL is None,
            scale=self.scale,
            enable_gqa=query_1NLD.shape[1] != key_1GLD.shape[1],
        )
        return out_1NLD.squeeze(0).transpose(0, 1)
