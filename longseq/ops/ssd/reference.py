"""The SSD recurrence as a plain loop over time: slow, and obviously right."""

import torch
from torch import Tensor
from torch.nn import functional as F


def ssd_step(
    x_BHP: Tensor,
    dt_BH: Tensor,
    A_H: Tensor,
    B_BGN: Tensor,
    C_BGN: Tensor,
    D_H: Tensor | None = None,
    dt_bias_H: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    state_BHPN: Tensor,
) -> tuple[Tensor, Tensor]:
    """One position of `longseq.ops.ssd`: the same arguments without the length, and the state to continue from.

    Returns:
        y (B, H, P) in x's dtype, and the state after this position, (B, H, P, N) in fp32 (fp64 for fp64 inputs).

    Cost: O(H P N) per row, whatever the position.
    """
    dtype = torch.float64 if x_BHP.dtype == torch.float64 else torch.float32
    n_repeat = x_BHP.shape[1] // B_BGN.shape[1]
    dt_BH = dt_BH.to(dtype) if dt_bias_H is None else dt_BH.to(dtype) + dt_bias_H.to(dtype)
    dt_BH = F.softplus(dt_BH) if dt_softplus else dt_BH
    decay_BH = torch.exp((dt_BH * A_H.to(dtype)).clamp(max=0.0))
    B_BHN = B_BGN.to(dtype).repeat_interleave(n_repeat, dim=1)
    C_BHN = C_BGN.to(dtype).repeat_interleave(n_repeat, dim=1)
    update_BHPN = (dt_BH[..., None] * x_BHP.to(dtype))[..., None] * B_BHN[:, :, None, :]
    state_BHPN = decay_BH[..., None, None] * state_BHPN.to(dtype) + update_BHPN
    y_BHP = (state_BHPN * C_BHN[:, :, None, :]).sum(-1)
    if D_H is not None:
        y_BHP = y_BHP + D_H.to(dtype)[:, None] * x_BHP.to(dtype)
    return y_BHP.to(x_BHP.dtype), state_BHPN


def ssd_reference(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None = None,
    dt_bias_H: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    initial_state_BHPN: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
    chunk_size: int = 0,
) -> tuple[Tensor, Tensor]:
    """`longseq.ops.ssd` one position after another; `chunk_size` is not used. Cost: O(L H P N), L dependent steps."""
    del chunk_size
    dtype = torch.float64 if x_BLHP.dtype == torch.float64 else torch.float32
    n_batch, length, n_heads, width = x_BLHP.shape
    state_BHPN = x_BLHP.new_zeros((n_batch, n_heads, width, B_BLGN.shape[-1]), dtype=dtype)
    if initial_state_BHPN is not None:
        state_BHPN = initial_state_BHPN.to(dtype)
    real_BL = x_BLHP.new_ones((n_batch, length), dtype=torch.bool) if mask_BL is None else mask_BL
    # NaN under the mask would reach the gradients through products with zero, so it leaves before any arithmetic.
    x_BLHP, dt_BLH, B_BLGN, C_BLGN = (
        t.masked_fill(~real_BL.view(n_batch, length, *[1] * (t.ndim - 2)), 0.0) for t in (x_BLHP, dt_BLH, B_BLGN, C_BLGN)
    )
    started_B = torch.zeros_like(real_BL[:, 0])
    segment_B = None if segment_ids_BL is None else torch.zeros_like(segment_ids_BL[:, 0])
    ys: list[Tensor] = []
    for t in reversed(range(length)) if reverse else range(length):
        real_B = real_BL[:, t]
        if segment_ids_BL is not None and segment_B is not None:
            changed_B = real_B & started_B & (segment_ids_BL[:, t] != segment_B)
            state_BHPN = state_BHPN.masked_fill(changed_B.view(-1, 1, 1, 1), 0.0)
            segment_B = torch.where(real_B, segment_ids_BL[:, t], segment_B)
            started_B = started_B | real_B
        now = (x_BLHP[:, t], dt_BLH[:, t], A_H, B_BLGN[:, t], C_BLGN[:, t], D_H, dt_bias_H)
        y_BHP, new_BHPN = ssd_step(*now, dt_softplus=dt_softplus, state_BHPN=state_BHPN)
        state_BHPN = torch.where(real_B.view(-1, 1, 1, 1), new_BHPN, state_BHPN)
        ys.append(y_BHP.masked_fill(~real_B.view(-1, 1, 1), 0.0))
    return torch.stack(ys[::-1] if reverse else ys, dim=1), state_BHPN
