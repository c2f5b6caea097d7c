"""The diagonal-plus-low-rank recurrence as a plain loop over time with dense complex matrices: slow, and obviously right."""

import torch
from torch import Tensor

from longseq.ops.chunks import segment_starts


def dense_system(dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, P_DN2: Tensor, B_DN2: Tensor) -> tuple[Tensor, Tensor]:
    """The discrete transition (D, 2N, 2N) and input (D, 2N) with both of each conjugate pair, by a complex solve."""
    poles_DN = torch.complex(A_real_DN, A_imag_DN)
    P_DN, B_DN = (torch.complex(t[..., 0], t[..., 1]) for t in (P_DN2, B_DN2))
    poles_DM, P_DM, B_DM = (torch.cat([t, t.conj()], dim=1) for t in (poles_DN, P_DN, B_DN))
    A_DMM = torch.diag_embed(poles_DM) - P_DM.unsqueeze(2) * P_DM.conj().unsqueeze(1)
    eye_MM = torch.eye(A_DMM.shape[-1], dtype=A_DMM.dtype, device=A_DMM.device)
    half_D11 = dt_D[:, None, None] / 2
    transition_DMM = torch.linalg.solve(eye_MM - half_D11 * A_DMM, eye_MM + half_D11 * A_DMM)
    input_DM = torch.linalg.solve(eye_MM - half_D11 * A_DMM, (dt_D.unsqueeze(1) * B_DM).unsqueeze(2)).squeeze(2)
    return transition_DMM, input_DM


def dplr_ssm_reference(
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    P_DN2: Tensor,
    B_DN2: Tensor,
    C_DN2: Tensor,
    D_D: Tensor | None = None,
    *,
    initial_state_BDN2: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
    chunk_size: int = 0,
) -> tuple[Tensor, Tensor]:
    """`longseq.ops.dplr_ssm` one position after another; `chunk_size` is not used. Cost: O(L D N^2), L dependent steps."""
    del chunk_size
    dtype = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
    n_batch, length, width = x_BLD.shape
    transition_DMM, input_DM = dense_system(*(p.to(dtype) for p in (dt_D, A_real_DN, A_imag_DN, P_DN2, B_DN2)))
    C_DN = torch.complex(C_DN2[..., 0].to(dtype), C_DN2[..., 1].to(dtype))
    C_DM = torch.cat([C_DN, C_DN.conj()], dim=1)
    h_BDM = torch.zeros(n_batch, width, C_DM.shape[1], dtype=C_DM.dtype, device=x_BLD.device)
    if initial_state_BDN2 is not None:
        h_BDN = torch.complex(initial_state_BDN2[..., 0].to(dtype), initial_state_BDN2[..., 1].to(dtype))
        h_BDM = torch.cat([h_BDN, h_BDN.conj()], dim=2)
    real_BL = x_BLD.new_ones((n_batch, length), dtype=torch.bool) if mask_BL is None else mask_BL
    x_BLD_real = x_BLD.masked_fill(~real_BL.unsqueeze(-1), 0.0).to(dtype)
    order = list(reversed(range(length))) if reverse else list(range(length))
    start_BL = torch.zeros_like(real_BL)
    if segment_ids_BL is not None:
        start_BL[:, order] = segment_starts(segment_ids_BL[:, order], real_BL[:, order])
    ys: list[Tensor] = []
    for t in order:
        h_BDM = h_BDM.masked_fill(start_BL[:, t, None, None], 0.0)
        new_BDM = torch.einsum("dmn,bdn->bdm", transition_DMM, h_BDM) + input_DM * x_BLD_real[:, t, :, None]
        h_BDM = torch.where(real_BL[:, t, None, None], new_BDM, h_BDM)
        y_BD = (C_DM * h_BDM).sum(-1).real
        if D_D is not None:
            y_BD = y_BD + D_D.to(dtype) * x_BLD_real[:, t]
        ys.append(y_BD.masked_fill(~real_BL[:, t, None], 0.0))
    y_BLD = torch.stack(ys[::-1] if reverse else ys, dim=1)
    return y_BLD.to(x_BLD.dtype), torch.view_as_real(h_BDM[:, :, : C_DN.shape[1]])
