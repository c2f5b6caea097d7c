"""Window attention written as one dense masked softmax: slow, quadratic in memory, obviously right."""

import torch
from torch import Tensor

from longseq.ops.autocast import without_autocast


def window_attention_reference(
    q_BLHP: Tensor,
    k_BLHP: Tensor,
    v_BLHP: Tensor,
    *,
    window: int,
    causal: bool,
    dilation: int,
    global_mask_BL: Tensor | None,
    q_global_BLHP: Tensor,
    k_global_BLHP: Tensor,
    v_global_BLHP: Tensor,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    scale: float,
    max_global: int | None = None,
) -> Tensor:
    """Dense form of `longseq.ops.window_attention.window_attention`; see there for the arguments.

    Args:
        max_global: accepted for the common signature; a dense softmax has no use for it.

    Cost: O(L^2 (P + 1)) time and O(L^2) memory a head. Computes in float32, or in float64 for float64 inputs.
    """
    real_BM = _real_positions(k_BLHP, mask_BL)
    reachable_BLM = _reachable(q_BLHP, k_BLHP, real_BM, segment_ids_BL, causal)
    in_window_LM = _in_window(q_BLHP, k_BLHP, window, dilation)
    if global_mask_BL is None:
        y_BLHP = _masked_softmax_attention(q_BLHP, k_BLHP, v_BLHP, reachable_BLM & in_window_LM, real_BM, scale)
        return y_BLHP.to(v_BLHP.dtype)
    # A global key leaves the window and comes back through its own column: each key is counted once.
    seen_BLM = reachable_BLM & (in_window_LM | global_mask_BL[:, None, :])
    local_BLHP = _masked_softmax_attention(q_BLHP, k_BLHP, v_BLHP, seen_BLM, real_BM, scale)
    global_BLHP = _masked_softmax_attention(q_global_BLHP, k_global_BLHP, v_global_BLHP, reachable_BLM, real_BM, scale)
    return torch.where(global_mask_BL[:, :, None, None], global_BLHP, local_BLHP).to(v_BLHP.dtype)


def _real_positions(k_BLHP: Tensor, mask_BL: Tensor | None) -> Tensor:
    if mask_BL is None:
        return torch.ones(k_BLHP.shape[:2], dtype=torch.bool, device=k_BLHP.device)
    return mask_BL


def _reachable(q_BLHP: Tensor, k_BLHP: Tensor, real_BM: Tensor, segment_ids_BL: Tensor | None, causal: bool) -> Tensor:
    """(B, L, M): may query i look at key j at all, however far apart they are?"""
    length, n_keys = q_BLHP.shape[1], k_BLHP.shape[1]
    query_L, key_M = _positions(q_BLHP, k_BLHP)
    reachable_BLM = real_BM[:, None, :].expand(-1, length, -1)
    if causal:
        reachable_BLM = reachable_BLM & (key_M[None, :] <= query_L[:, None])
    if segment_ids_BL is not None:
        query_segment_BL = segment_ids_BL[:, n_keys - length :]
        reachable_BLM = reachable_BLM & (query_segment_BL[:, :, None] == segment_ids_BL[:, None, :])
    return reachable_BLM


def _positions(q_BLHP: Tensor, k_BLHP: Tensor) -> tuple[Tensor, Tensor]:
    """Queries are the last L of the M key positions."""
    length, n_keys = q_BLHP.shape[1], k_BLHP.shape[1]
    key_M = torch.arange(n_keys, device=q_BLHP.device)
    return key_M[n_keys - length :], key_M


def _in_window(q_BLHP: Tensor, k_BLHP: Tensor, window: int, dilation: int) -> Tensor:
    query_L, key_M = _positions(q_BLHP, k_BLHP)
    distance_LM = (key_M[None, :] - query_L[:, None]).abs()
    return (distance_LM <= window * dilation) & (distance_LM % dilation == 0)


def _masked_softmax_attention(
    q_BLHP: Tensor, k_BMHP: Tensor, v_BMHP: Tensor, seen_BLM: Tensor, real_BM: Tensor, scale: float
) -> Tensor:
    dtype = torch.float64 if q_BLHP.dtype == torch.float64 else torch.float32
    length, n_keys = seen_BLM.shape[1:]
    query_real_BL = real_BM[:, n_keys - length :]
    # Zero times NaN is NaN, so what stands under the mask is overwritten before it is multiplied.
    q_BLHP = q_BLHP.to(dtype).masked_fill(~query_real_BL[:, :, None, None], 0.0)
    k_BMHP = k_BMHP.to(dtype).masked_fill(~real_BM[:, :, None, None], 0.0)
    v_BMHP = v_BMHP.to(dtype).masked_fill(~real_BM[:, :, None, None], 0.0)
    with without_autocast(q_BLHP):
        score_BHLM = torch.einsum("blhp,bmhp->bhlm", q_BLHP * scale, k_BMHP)
        score_BHLM = score_BHLM.masked_fill(~seen_BLM[:, None], torch.finfo(dtype).min)
        y_BLHP = torch.einsum("bhlm,bmhp->blhp", score_BHLM.softmax(dim=-1), v_BMHP)
    # Real queries always see at least themselves; the others have no answer and get zero.
    return y_BLHP.masked_fill(~query_real_BL[:, :, None, None], 0.0)
