"""The diagonal state-space recurrence chunk by chunk: a Toeplitz product inside a chunk, one state carried between chunks."""

import torch
from torch import Tensor

from longseq.ops.diagonal_ssm.blocks import ChunkOperators
from longseq.ops.diagonal_ssm.discretize import Poles, discretize, multiply, pole_powers
from longseq.ops.diagonal_ssm.lti import run_lti


def diagonal_ssm_chunked(
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
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """`longseq.ops.diagonal_ssm` in chunks of `chunk_size` positions, in fp32 (fp64 for fp64 inputs)."""
    dtype = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
    B_DN2 = None if B_DN2 is None else B_DN2.to(dtype)
    poles = discretize(dt_D.to(dtype), A_real_DN.to(dtype), A_imag_DN.to(dtype), B_DN2, discretization)
    if initial_state_BDN2 is None:
        initial_state_BDN2 = poles.input_DN2.new_zeros(x_BLD.shape[0], *poles.input_DN2.shape)
    y_BLD, state_BDM = run_lti(
        x_BLD,
        lambda size: diagonal_operators(poles, C_DN2.to(dtype), size),
        lambda state_BDM, steps_B: _advance(poles, state_BDM, steps_B),
        initial_state_BDN2.to(dtype).flatten(2),
        mask_BL=mask_BL,
        segment_ids_BL=segment_ids_BL,
        reverse=reverse,
        chunk_size=chunk_size,
    )
    if D_D is not None:
        # Zeros before the product: NaN under the mask would reach D's gradient through it.
        skipped_BLD = x_BLD if mask_BL is None else x_BLD.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
        y_BLD = y_BLD + D_D.to(dtype) * skipped_BLD.to(dtype)
    return y_BLD.to(x_BLD.dtype), state_BDM.unflatten(2, (-1, 2))


def diagonal_operators(poles: Poles, C_DN2: Tensor, size: int) -> ChunkOperators:
    """The operators over `size` positions; a state's numbers are real and imaginary parts side by side."""
    powers_DNt2 = pole_powers(poles, size + 1)
    out_DNT2 = 2 * multiply(C_DN2.unsqueeze(2), powers_DNt2[:, :, 1:])
    # 2 Re(u h) = 2 Re u Re h - 2 Im u Im h.
    out_DTM = torch.stack([out_DNT2[..., 0], -out_DNT2[..., 1]], dim=-1).transpose(1, 2).flatten(2)
    in_DNT2 = multiply(poles.input_DN2.unsqueeze(2), powers_DNt2[:, :, :size].flip(2))
    in_DMT = in_DNT2.transpose(2, 3).flatten(1, 2)
    first_D1 = 2 * multiply(C_DN2, poles.input_DN2)[..., 0].sum(1, keepdim=True)
    later_DT = (out_DTM[:, :-1] @ poles.input_DN2.flatten(1).unsqueeze(-1)).squeeze(-1)
    return ChunkOperators(torch.cat([first_D1, later_DT], dim=1), out_DTM, in_DMT, powers_DNt2[:, :, size])


def _advance(poles: Poles, state_BDM: Tensor, steps_B: Tensor) -> Tensor:
    """`z^steps h`."""
    steps_B11 = steps_B.to(state_BDM.dtype)[:, None, None]
    size_BDN, angle_BDN = torch.exp(poles.log_size_DN * steps_B11), poles.angle_DN * steps_B11
    power_BDN2 = torch.stack([size_BDN * torch.cos(angle_BDN), size_BDN * torch.sin(angle_BDN)], dim=-1)
    return multiply(power_BDN2, state_BDM.unflatten(2, (-1, 2))).flatten(2)
