"""The kernel of a diagonal-plus-low-rank model through its generating function at the roots of unity.

The transform of the first L taps, `C (I - A^L) (I - A z)^-1 B` at `z = exp(-2 pi i k / L)`, is a few sums over the poles of the
form `sum_n v_n / (g - lambda_n)`: Cauchy products. With conjugate pairs taken together they are real sums, so the only
complex tensor is the spectrum itself.
"""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longseq.ops.diagonal_ssm.discretize import multiply
from longseq.ops.dplr_ssm.discretize import Powers, output_row, resolvent

# Elements of the (D, N, frequencies) tensors that are alive at a time.
BLOCK_ELEMENTS = 1 << 20


def kernel_by_cauchy(
    dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, P_DN2: Tensor, B_DN2: Tensor, C_DN2: Tensor, length: int
) -> Tensor:
    """The first `length` taps, (D, length). Blocks of frequencies are recomputed in backward.

    Paper: https://arxiv.org/abs/2111.00396, algorithm 1 and appendix C.3.
    """
    C_DN2 = correct_for_length(dt_D, A_real_DN, A_imag_DN, P_DN2, C_DN2, length)
    numerators_D8N = _numerators(A_real_DN, A_imag_DN, P_DN2, B_DN2, C_DN2)
    n_frequencies = length // 2 + 1
    half_F = math.pi / length * torch.arange(n_frequencies, dtype=torch.float64, device=dt_D.device)
    block = max(1, BLOCK_ELEMENTS // A_real_DN.numel())
    spectra = [
        checkpoint(_spectrum, part_F, dt_D, A_real_DN, A_imag_DN, numerators_D8N, use_reentrant=False, preserve_rng_state=False)
        for part_F in half_F.split(block)
    ]
    spectrum_DF2 = torch.cat(spectra, dim=1)  # type: ignore[arg-type]
    return torch.fft.irfft(torch.view_as_complex(spectrum_DF2.contiguous()), n=length)


def correct_for_length(dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, P_DN2: Tensor, C_DN2: Tensor, length: int) -> Tensor:
    """`C (I - A^length)`, which cuts the kernel after `length` taps; published S4 checkpoints store this."""
    return _from_row(output_row(C_DN2).unsqueeze(1) @ _truncation(dt_D, A_real_DN, A_imag_DN, P_DN2, length))


def undo_length_correction(
    dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, P_DN2: Tensor, C_DN2: Tensor, length: int
) -> Tensor:
    """C from `C (I - A^length)`."""
    factor_DMM = _truncation(dt_D, A_real_DN, A_imag_DN, P_DN2, length)
    row_DM1 = torch.linalg.solve(factor_DMM.transpose(1, 2), output_row(C_DN2).unsqueeze(2))
    return _from_row(row_DM1.transpose(1, 2))


def _truncation(dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, P_DN2: Tensor, length: int) -> Tensor:
    """`I - A^length`, (D, M, M)."""
    power_DMM = Powers(resolvent(dt_D, A_real_DN, A_imag_DN, P_DN2).dense()).power(length)
    return torch.eye(power_DMM.shape[-1], dtype=power_DMM.dtype, device=power_DMM.device) - power_DMM


def _from_row(row_D1M: Tensor) -> Tensor:
    """The C whose `output_row` this is."""
    row_DN2 = row_D1M.squeeze(1).unflatten(1, (-1, 2))
    return 0.5 * torch.stack([row_DN2[..., 0], -row_DN2[..., 1]], dim=-1)


def _numerators(A_real_DN: Tensor, A_imag_DN: Tensor, P_DN2: Tensor, B_DN2: Tensor, C_DN2: Tensor) -> Tensor:
    """(D, 8, N): Re v, then Re(v conj(lambda)), for v = C B, C P, conj(P) B, conj(P) P."""
    P_conj_DN2 = torch.stack([P_DN2[..., 0], -P_DN2[..., 1]], dim=-1)
    v_D4N2 = torch.stack(
        [multiply(C_DN2, B_DN2), multiply(C_DN2, P_DN2), multiply(P_conj_DN2, B_DN2), multiply(P_conj_DN2, P_DN2)], dim=1
    )
    pole_D1N2 = torch.stack([A_real_DN, A_imag_DN], dim=-1).unsqueeze(1)
    return torch.cat([v_D4N2[..., 0], (v_D4N2 * pole_D1N2).sum(-1)], dim=1)


def _spectrum(half_F: Tensor, dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, numerators_D8N: Tensor) -> Tensor:
    """The transform (D, F, 2) at angles 2 half.

    With c = cos(half), s = 2/dt sin(half), the bilinear point is g = i s / c. A factor c taken out of every sum keeps all of
    them finite where g is not (at the highest frequency).
    """
    dtype = dt_D.dtype
    c_F, sin_F, cos_F = torch.sin(math.pi / 2 - half_F).to(dtype), torch.sin(half_F).to(dtype), torch.cos(half_F).to(dtype)
    s_DF = 2 / dt_D.unsqueeze(1) * sin_F
    damping_DNF, turn_DNF, s_D1F = A_real_DN.unsqueeze(2) * c_F, A_imag_DN.unsqueeze(2) * c_F, s_DF.unsqueeze(1)
    # c^2 (g - lambda)(g - conj(lambda)); the difference of squares is written as a product, which keeps its digits.
    real_DNF = damping_DNF.square() - (s_D1F - turn_DNF) * (s_D1F + turn_DNF)
    imag_DNF = -2 * damping_DNF * s_D1F
    size_DNF = real_DNF.square() + imag_DNF.square()
    sums_real_D8F = numerators_D8N @ (real_DNF / size_DNF)
    sums_imag_D8F = numerators_D8N @ (-imag_DNF / size_DNF)
    s_D1F = s_DF.unsqueeze(1)
    real_D4F = -2 * (s_D1F * sums_imag_D8F[:, :4] + c_F * sums_real_D8F[:, 4:])
    imag_D4F = 2 * (s_D1F * sums_real_D8F[:, :4] - c_F * sums_imag_D8F[:, 4:])
    cauchy_D4F2 = torch.stack([real_D4F, imag_D4F], dim=-1)
    c_F1 = c_F.unsqueeze(-1)
    one_2 = torch.tensor([1.0, 0.0], dtype=dtype, device=dt_D.device)
    low_rank_DF2 = c_F1 * multiply(cauchy_D4F2[:, 1], cauchy_D4F2[:, 2])
    below_DF2 = one_2 + c_F1 * cauchy_D4F2[:, 3]
    conj_DF2 = torch.stack([below_DF2[..., 0], -below_DF2[..., 1]], dim=-1)
    correction_DF2 = multiply(low_rank_DF2, conj_DF2) / below_DF2.square().sum(-1, keepdim=True)
    return multiply(cauchy_D4F2[:, 0] - correction_DF2, torch.stack([cos_F, sin_F], dim=-1))
