"""The diagonal-plus-low-rank recurrence chunk by chunk, with a dense transition between chunks."""

import math

import torch
from torch import Tensor

from longseq.ops.diagonal_ssm.blocks import ChunkOperators
from longseq.ops.diagonal_ssm.lti import run_lti
from longseq.ops.dplr_ssm.discretize import Powers, output_row, resolvent


class ChunkModel:
    """A model made ready for `run_lti`: its operators over a chunk, and states moved on by less than a chunk.

    Args:
        dt_D: step sizes, and all others in the computing dtype.
        A_real_DN: real parts of the diagonal.
        A_imag_DN: imaginary parts.
        P_DN2: low-rank factor.
        B_DN2: input weights.
        C_DN2: output weights.
    """

    def __init__(self, dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, P_DN2: Tensor, B_DN2: Tensor, C_DN2: Tensor) -> None:
        solve = resolvent(dt_D, A_real_DN, A_imag_DN, P_DN2)
        self.powers = Powers(solve.dense())
        self.column_DM = solve.apply(dt_D[:, None, None] * B_DN2).flatten(1)
        self.row_DM = output_row(C_DN2)
        self.size = 1

    def build(self, size: int) -> ChunkOperators:
        """The operators for chunks of `size` positions."""
        self.size = size
        columns_DMT = self.powers.columns(self.column_DM, size)
        row_D1M = self.row_DM.unsqueeze(1)
        out_DTM = self.powers.rows(row_D1M @ self.powers.square(0), size)
        return ChunkOperators((row_D1M @ columns_DMT).squeeze(1), out_DTM, columns_DMT.flip(2), self.powers.power(size))

    def advance(self, state_BDM: Tensor, steps_B: Tensor) -> Tensor:
        """`A^steps h` for less than the built size."""
        return self.powers.advance(state_BDM, steps_B, self.size)


def dplr_ssm_chunked(
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
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """`longseq.ops.dplr_ssm` in chunks of `chunk_size` positions, in fp32 (fp64 for fp64 inputs)."""
    dtype = torch.float64 if x_BLD.dtype == torch.float64 else torch.float32
    parameters = [p.to(dtype) for p in (dt_D, A_real_DN, A_imag_DN, P_DN2, B_DN2, C_DN2)]
    model = ChunkModel(*parameters)
    if initial_state_BDN2 is None:
        initial_state_BDN2 = parameters[4].new_zeros(x_BLD.shape[0], *B_DN2.shape)
    y_BLD, state_BDM = run_lti(
        x_BLD,
        model.build,
        model.advance,
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


def kernel_by_powers(
    dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, P_DN2: Tensor, B_DN2: Tensor, C_RDN2: Tensor, length: int
) -> Tensor:
    """The first `length` taps, (R, D, length): `K_(iT + j) = (C A^(iT)) (A^j B)`, sqrt(length) rows times as many columns."""
    solve = resolvent(dt_D, A_real_DN, A_imag_DN, P_DN2)
    baby = math.isqrt(length - 1) + 1
    giant = (length + baby - 1) // baby
    powers = Powers(solve.dense())
    columns_DMb = powers.columns(solve.apply(dt_D[:, None, None] * B_DN2).flatten(1), baby)
    taps_DSb = Powers(powers.power(baby)).rows(output_row(C_RDN2).transpose(0, 1), giant) @ columns_DMb
    return taps_DSb.unflatten(1, (giant, -1)).permute(2, 0, 1, 3).flatten(2)[..., :length]
