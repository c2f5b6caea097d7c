"""The selective scan as a plain loop over time: slow, short, and the yardstick of the other implementations."""

import torch
import torch.nn.functional as F
from torch import Tensor


def selective_scan_reference(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor | None = None,
    z_BLD: Tensor | None = None,
    dt_bias_D: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    initial_state_BDN: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan, one time step after the other; arguments as in `longseq.ops.selective_scan.selective_scan`."""
    batch, length, width = x_BLD.shape
    dtype = torch.promote_types(x_BLD.dtype, torch.float32)
    A_DN = A_DN.to(dtype)
    if initial_state_BDN is None:
        h_BDN = torch.zeros(batch, width, A_DN.shape[1], dtype=dtype, device=x_BLD.device)
    else:
        h_BDN = initial_state_BDN.to(dtype)
    # The segment of the last real position of each row; a row that has not started belongs to any segment.
    started_B = torch.zeros(batch, dtype=torch.bool, device=x_BLD.device)
    segment_B = torch.zeros(batch, dtype=torch.long, device=x_BLD.device)
    y_BLD = [torch.empty(0)] * length
    for t in reversed(range(length)) if reverse else range(length):
        real_B = torch.ones_like(started_B) if mask_BL is None else mask_BL[:, t]
        x_BD, dt_BD, B_BN, C_BN = (v[:, t].to(dtype).masked_fill(~real_B[:, None], 0.0) for v in (x_BLD, dt_BLD, B_BLN, C_BLN))
        if dt_bias_D is not None:
            dt_BD = dt_BD + dt_bias_D.to(dtype)
        if dt_softplus:
            dt_BD = F.softplus(dt_BD)
        dt_BD = dt_BD.masked_fill(~real_B[:, None], 0.0)
        if segment_ids_BL is not None:
            reset_B = real_B & started_B & (segment_ids_BL[:, t] != segment_B)
            h_BDN = h_BDN.masked_fill(reset_B[:, None, None], 0.0)
            segment_B = torch.where(real_B, segment_ids_BL[:, t].long(), segment_B)
            started_B = started_B | real_B
        decay_BDN = torch.exp(dt_BD[:, :, None] * A_DN)
        h_BDN = decay_BDN * h_BDN + (dt_BD * x_BD)[:, :, None] * B_BN[:, None, :]
        y_BD = (h_BDN * C_BN[:, None, :]).sum(-1)
        if D_D is not None:
            y_BD = y_BD + D_D.to(dtype) * x_BD
        if z_BLD is not None:
            y_BD = y_BD * F.silu(z_BLD[:, t].to(dtype).masked_fill(~real_B[:, None], 0.0))
        y_BLD[t] = y_BD
    return torch.stack(y_BLD, dim=1).to(x_BLD.dtype), h_BDN
