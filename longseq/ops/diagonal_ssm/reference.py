"""The diagonal state-space recurrence as a plain loop over time in complex numbers: slow, and obviously right."""

import torch
from torch import Tensor

from longseq.ops.chunks import segment_starts


def discrete_poles(
    dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, B_DN2: Tensor | None, discretization: str
) -> tuple[Tensor, Tensor]:
    """z and b of `h_t = z h_{t-1} + b x_t`, complex (D, N)."""
    A_DN = torch.complex(A_real_DN, A_imag_DN)
    B_DN = torch.ones_like(A_DN) if B_DN2 is None else torch.complex(B_DN2[..., 0], B_DN2[..., 1])
    w_DN = dt_D.unsqueeze(-1) * A_DN
    if discretization == "zoh":
        z_DN = torch.exp(w_DN)
        return z_DN, (z_DN - 1) / A_DN * B_DN
    return (1 + w_DN / 2) / (1 - w_DN / 2), dt_D.unsqueeze(-1) / (1 - w_DN / 2) * B_DN


def diagonal_ssm_reference(
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    C_DN2: Tensor,
    B_DN2: Tensor | None = None,
    D_D: Tensor | None = None,
    *,
    discretization: str = "zoh",
    initial_state_BDN2: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
    chunk_size: int = 0,
) -> tuple[Tensor, Tensor]:
    """`longseq.ops.diagonal_ssm` one position after another; `chunk_size` is not used. Cost: O(L D N), L dependent steps."""
    del chunk_size
    dtype = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
    n_batch, length, width = x_BLD.shape
    parameters = [None if p is None else p.to(dtype) for p in (dt_D, A_real_DN, A_imag_DN, B_DN2)]
    z_DN, b_DN = discrete_poles(*parameters, discretization)  # type: ignore[arg-type]
    C_DN = torch.complex(C_DN2[..., 0].to(dtype), C_DN2[..., 1].to(dtype))
    h_BDN = torch.zeros(n_batch, width, z_DN.shape[1], dtype=z_DN.dtype, device=x_BLD.device)
    if initial_state_BDN2 is not None:
        h_BDN = torch.complex(initial_state_BDN2[..., 0].to(dtype), initial_state_BDN2[..., 1].to(dtype))
    real_BL = x_BLD.new_ones((n_batch, length), dtype=torch.bool) if mask_BL is None else mask_BL
    x_BLD_real = x_BLD.masked_fill(~real_BL.unsqueeze(-1), 0.0).to(dtype)
    order = list(reversed(range(length))) if reverse else list(range(length))
    start_BL = torch.zeros_like(real_BL)
    if segment_ids_BL is not None:
        start_BL[:, order] = segment_starts(segment_ids_BL[:, order], real_BL[:, order])
    ys: list[Tensor] = []
    for t in order:
        h_BDN = h_BDN.masked_fill(start_BL[:, t, None, None], 0.0)
        new_BDN = z_DN * h_BDN + b_DN * x_BLD_real[:, t, :, None]
        h_BDN = torch.where(real_BL[:, t, None, None], new_BDN, h_BDN)
        y_BD = 2 * (C_DN * h_BDN).real.sum(-1)
        if D_D is not None:
            y_BD = y_BD + D_D.to(dtype) * x_BLD_real[:, t]
        ys.append(y_BD.masked_fill(~real_BL[:, t, None], 0.0))
    y_BLD = torch.stack(ys[::-1] if reverse else ys, dim=1)
    return y_BLD.to(x_BLD.dtype), torch.view_as_real(h_BDN)
