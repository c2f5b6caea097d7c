"""Transformer: full attention with rotary positions, the baseline that long-sequence backbones are measured against.

Equation: y = softmax(q k^T / sqrt(P)) v
          with q and k turned by angles that grow with the position.
Good at up to some thousand positions, and at exact recall; O(L^2) beyond. Not Longformer, which sees a window, and not timm's
encoders, which have no positions of their own and no causal form.

Papers: Attention Is All You Need, https://arxiv.org/abs/1706.03762; RoFormer, https://arxiv.org/abs/2104.09864.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from longseq.backbone import Mixer, State, zero_padding
from longseq.layers.compaction import Compaction
from longseq.layers.rotary import Rotary
from longseq.registry import register_backbone


@register_backbone(
    "transformer",
    summary="full attention with rotary positions, pre-norm",
    paper="https://arxiv.org/abs/1706.03762",
    cost="O(L^2)",
    state="2 * d_model for every position seen: it grows",
)
class FullAttention(Mixer):
    """`softmax(q k^T / sqrt(P)) v` over all positions, or over all earlier ones when causal.

    It runs in torch's fused attention, so that memory stays linear in L; only packed rows (`segment_ids`) and chunks
    after the first need a mask of L x L bits. Padded rows are moved to the front instead of masked when causal.

    Args:
        d_model: width in and out, a multiple of n_heads.
        n_heads: heads of d_model / n_heads channels each (an even number for rotary positions).
        causal: no position sees a later one; False for encoders.
        rotary: rotary positions.
        rotary_base: of the angles.
        bias: biases on the projections.

    Raises:
        ValueError: for heads that do not divide d_model.

    Cost: time O(L^2 d_model + L d_model^2), memory O(L d_model). The state holds every key and value seen:
    2 * d_model + 1 numbers a position, and a step costs as much as the positions before it.

    Paper: https://arxiv.org/abs/1706.03762, equation 1, with the rotary positions of https://arxiv.org/abs/2104.09864.
    """

    state_grows = True

    def __init__(
        self,
        d_model: int,
        *,
        n_heads: int = 4,
        causal: bool = True,
        rotary: bool = True,
        rotary_base: float = 10_000.0,
        bias: bool = False,
    ) -> None:
        super().__init__()
        if n_heads < 1 or d_model % n_heads:
            raise ValueError(f"d_model={d_model} must be a multiple of n_heads={n_heads}")
        self.n_heads = n_heads
        self.causal = self.can_step = self.state_grows = causal
        self.rotary = Rotary(d_model // n_heads, rotary_base) if rotary else None
        self.qkv = nn.Linear(d_model, 3 * d_model, bias=bias)
        self.out_proj = nn.Linear(d_model, d_model, bias=bias)

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        x_BLD = zero_padding(x_BLD, mask_BL)
        if self.causal and mask_BL is not None and segment_ids_BL is None:
            # A mask beside causality would cost the fused kernel and L^2 memory; without padding on the left none is needed.
            compaction = Compaction(mask_BL)
            y_BLHP = self._attend(compaction.to_front(x_BLD), None, None)
            return self.out_proj(compaction.to_place(y_BLHP).flatten(-2))
        y_BLHP = self._attend(x_BLD, mask_BL, segment_ids_BL)
        return self.out_proj(y_BLHP.flatten(-2))

    def _attend(self, x_BLD: Tensor, mask_BL: Tensor | None, segment_ids_BL: Tensor | None) -> Tensor:
        position_L = torch.arange(x_BLD.shape[1], device=x_BLD.device)
        q_BLHP, k_BLHP, v_BLHP = self._project(x_BLD, position_L)
        if segment_ids_BL is None and mask_BL is None:
            return _attention(q_BLHP, k_BLHP, v_BLHP, causal=self.causal)
        seen_BLM = torch.ones_like(x_BLD[:, None, :, 0], dtype=torch.bool) if mask_BL is None else mask_BL[:, None, :]
        if segment_ids_BL is not None:
            seen_BLM = seen_BLM & (segment_ids_BL[:, :, None] == segment_ids_BL[:, None, :])
            if self.causal:
                seen_BLM = seen_BLM & (position_L[None, :] <= position_L[:, None])
        # A row without anything to see (padding) sees all, since an empty softmax is NaN; padding's outputs are not used.
        return _attention(q_BLHP, k_BLHP, v_BLHP, seen_BLM=seen_BLM | ~seen_BLM.any(dim=-1, keepdim=True))

    def init_state(self, batch_size: int) -> State:
        """Rotated keys, values, and 1.0 for real positions; the length seen is that of the tensors."""
        if not self.causal:
            raise self.cannot_step()
        weight = self.qkv.weight
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        keys_BMHP = torch.zeros(batch_size, 0, self.n_heads, weight.shape[1] // self.n_heads, dtype=dtype, device=weight.device)
        return {"key": keys_BMHP, "value": keys_BMHP.clone(), "real": keys_BMHP[:, :, 0, 0]}

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        if not self.causal:
            raise self.cannot_step()
        x_BLD = zero_padding(x_BLD, mask_BL)
        length, n_seen = x_BLD.shape[1], state["key"].shape[1]
        position_M = torch.arange(n_seen + length, device=x_BLD.device)
        # Rows count their own real positions: padding between two chunks moves nothing apart.
        n_before_B1 = state["real"].sum(1, keepdim=True).long()
        rank_BL = position_M[:length].unsqueeze(0) if mask_BL is None else (mask_BL.cumsum(1) - 1).clamp(min=0)
        q_BLHP, k_BLHP, v_BLHP = self._project(x_BLD, n_before_B1 + rank_BL)
        real_BL = x_BLD.new_ones(x_BLD.shape[:2]) if mask_BL is None else mask_BL
        fresh = {"key": k_BLHP, "value": v_BLHP, "real": real_BL}
        state = {name: torch.cat((state[name], x.to(state[name].dtype)), dim=1) for name, x in fresh.items()}
        k_BMHP, v_BMHP = (state[name].to(x_BLD.dtype) for name in ("key", "value"))
        if n_seen == 0 and mask_BL is None:
            y_BLHP = _attention(q_BLHP, k_BMHP, v_BMHP, causal=True)
        else:
            query_L1 = position_M[n_seen:, None]
            seen_BLM = (position_M <= query_L1) & state["real"].bool()[:, None, :]
            y_BLHP = _attention(q_BLHP, k_BMHP, v_BMHP, seen_BLM=seen_BLM | (position_M == query_L1))
        return self.out_proj(y_BLHP.flatten(-2)), state

    def _project(self, x_BLD: Tensor, position_L: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_BLHP, k_BLHP, v_BLHP = self.qkv(x_BLD).unflatten(-1, (3, self.n_heads, -1)).unbind(dim=-3)
        if self.rotary is None:
            return q_BLHP, k_BLHP, v_BLHP
        return self.rotary(q_BLHP, position_L), self.rotary(k_BLHP, position_L), v_BLHP

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, causal={self.causal}"


def _attention(
    q_BLHP: Tensor, k_BMHP: Tensor, v_BMHP: Tensor, *, seen_BLM: Tensor | None = None, causal: bool = False
) -> Tensor:
    q_BHLP, k_BHMP, v_BHMP = (x.transpose(1, 2) for x in (q_BLHP, k_BMHP, v_BMHP))
    seen_BHLM = None if seen_BLM is None else seen_BLM.unsqueeze(1)
    y_BHLP = F.scaled_dot_product_attention(q_BHLP, k_BHMP, v_BHMP, attn_mask=seen_BHLM, is_causal=causal)
    return y_BHLP.transpose(1, 2)
