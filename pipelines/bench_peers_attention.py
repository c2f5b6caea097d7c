"""Window attention by others: flex_attention with a block mask written by hand, full attention, transformers' Longformer."""

import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.pipelines.bench_cases import Case, Peer

_BLOCK = 128


def _heads_first(case: Case) -> list[Tensor]:
    """(B, L, H, P) as (B, H, L, P) without a copy, as a projection's output is handed on."""
    return [v.detach().transpose(1, 2).requires_grad_() for v in case.leaves]


def sdpa(case: Case) -> Peer:
    """Full attention: every position sees every other."""
    return Peer("SDPA, full", F.scaled_dot_product_attention, _heads_first(case), "full attention")


def flex(case: Case) -> Peer:
    """The same mask as ours, blocks listed by hand: no mask of all pairs is ever made."""
    from torch.nn.attention.flex_attention import flex_attention

    leaves = _heads_first(case)
    size, cuda = case.size, leaves[0].is_cuda
    blocks = block_mask(size["L"], size["W"], size["G"], leaves[0].device)
    run: Any = torch.compile(flex_attention, dynamic=False) if cuda else flex_attention

    def call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if cuda:
            return run(q, k, v, block_mask=blocks)
        with warnings.catch_warnings():
            # Uncompiled it makes all scores, and says so.
            warnings.simplefilter("ignore")
            return run(q, k, v, block_mask=blocks)

    return Peer("flex_attention", call, leaves, "" if cuda else "not compiled")


def block_mask(length: int, window: int, n_global: int, device: torch.device) -> Any:
    """The blocks that a band of `window` positions on each side and `n_global` leading global positions touch."""
    from torch.nn.attention.flex_attention import BlockMask

    count = -(-length // _BLOCK)
    row, column = (torch.arange(count, device=device).view(shape) for shape in ((-1, 1), (1, -1)))
    apart = (row - column).abs()
    nearest, farthest = (apart - 1).clamp(min=0) * _BLOCK + (apart > 0), (apart + 1) * _BLOCK - 1
    whole = (torch.maximum(row, column) + 1) * _BLOCK <= length
    full = whole & (farthest <= window)
    touched = nearest <= window
    if n_global:
        reach = -(-n_global // _BLOCK)
        touched = touched | (row < reach) | (column < reach)

    def seen(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return ((query - key).abs() <= window) | (key < n_global) | (query < n_global)

    some_counts, some_places = _listed(touched & ~full)
    full_counts, full_places = _listed(full)
    listed = (some_counts, some_places, full_counts, full_places)
    return BlockMask.from_kv_blocks(*listed, BLOCK_SIZE=_BLOCK, mask_mod=seen, seq_lengths=(length, length))


def _listed(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks each row has, and which ones come first."""
    places = torch.argsort(blocks.int(), dim=1, descending=True, stable=True)
    return blocks.sum(1).int()[None, None], places.int()[None, None]


def transformers_longformer(case: Case) -> Peer:
    """One self-attention layer of transformers' Longformer, whose projections stand inside of it."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    size, q = case.size, case.leaves[0]
    width = size["H"] * size["P"]
    if size["L"] % (2 * size["W"]):
        raise ValueError(f"it wants lengths that are multiples of {2 * size['W']}")
    config: Any = LongformerConfig(
        hidden_size=width, num_attention_heads=size["H"], num_hidden_layers=1, attention_window=[2 * size["W"]]
    )
    layer: Any = LongformerSelfAttention(config, 0).to(q.device, q.dtype).eval()
    role = torch.zeros(size["B"], size["L"], device=q.device)
    role[:, : size["G"]] = 1.0
    roles = {"attention_mask": role, "is_index_masked": role < 0, "is_index_global_attn": role > 0, "is_global_attn": True}

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        del parameters
        return layer(x, **roles)[0]

    inputs = q.detach().flatten(2).clone().requires_grad_()
    return Peer("transformers", call, [inputs, *layer.parameters()], "with its projections")
