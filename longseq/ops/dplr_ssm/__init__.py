"""Diagonal-plus-low-rank state-space models (S4): one linear time-invariant recurrence per channel."""

from typing import Literal, get_args

import torch
from torch import Tensor

from longseq.ops.autocast import without_autocast
from longseq.ops.checks import check_chunk_size, check_parameters, check_rows, check_sequence
from longseq.ops.dispatch import Operator
from longseq.ops.dplr_ssm.cauchy import kernel_by_cauchy, undo_length_correction
from longseq.ops.dplr_ssm.chunked import dplr_ssm_chunked, kernel_by_powers
from longseq.ops.dplr_ssm.discretize import output_row, resolvent
from longseq.ops.dplr_ssm.reference import dplr_ssm_reference

__all__ = ["Implementation", "KernelMethod", "dplr_ssm", "dplr_ssm_kernel", "dplr_ssm_step", "undo_length_correction"]

Implementation = Literal["auto", "reference", "chunked"]
KernelMethod = Literal["cauchy", "powers"]
_operator = Operator("dplr_ssm", reference=dplr_ssm_reference, chunked=dplr_ssm_chunked, kernels=())


def dplr_ssm(
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
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Linear recurrence whose continuous transition is diagonal minus a rank-one term, by the bilinear rule.

    `h' = (diag(A) - P P*) h + B x`, `y = 2 Re(C h) + D x`, over conjugate pairs of which one is kept. The rank-one term is what
    HiPPO-LegS has beyond `longseq.ops.diagonal_ssm`; the transition cannot be diagonalised without losing all digits, so
    chunks pass their state on by a dense real matrix.

    Masked positions are identity steps with output 0, and what stands there (NaN too) is not read. Where the segment id of a
    real position differs from that of the real position before it, the state restarts from zero. Everything is
    differentiable, both states too.

    Args:
        x_BLD: input (B, L, D); the output has its dtype.
        dt_D: step sizes (D,), positive.
        A_real_DN: real parts of the diagonal (D, N), negative.
        A_imag_DN: imaginary parts (D, N).
        P_DN2: low-rank factor as (real, imaginary).
        B_DN2: input weights as (real, imaginary).
        C_DN2: output weights as (real, imaginary), without the length correction of published checkpoints
            (`undo_length_correction` removes that).
        D_D: skip weights (D,).
        initial_state_BDN2: state before the first position (the last one with `reverse`); zeros if None.
        mask_BL: bool (B, L), True = real.
        segment_ids_BL: integers (B, L), equal for the positions of one packed document.
        reverse: run from the last position to the first.
        chunk_size: positions per chunk of the chunked form.
        implementation: "auto" or "chunked" (plain PyTorch, CPU and GPU, traceable), or "reference" (a loop over time).

    Returns:
        y (B, L, D) in x's dtype, and the final state (B, D, N, 2) in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: shapes that do not fit together, or an unknown implementation.
        TypeError: a mask that is not bool, segment ids that are not integers, inputs that are not floating point.

    Cost: O(L D (chunk_size + N + N^2 / chunk_size)) time and O(D N^3 log chunk_size) once; memory for backward is x and 2N
    numbers per channel and chunk.

    Paper: Efficiently Modeling Long Sequences with Structured State Spaces, https://arxiv.org/abs/2111.00396, equations 3 and
    4 and theorem 1. Differs from the authors' code: chunks with a carried state instead of an FFT, in real arithmetic.
    """
    _check(x_BLD, dt_D, A_real_DN, A_imag_DN, P_DN2, B_DN2, C_DN2, D_D)
    state_shape = (x_BLD.shape[0], *A_real_DN.shape, 2)
    check_rows(x_BLD.shape[:2], mask_BL, segment_ids_BL, ("initial_state_BDN2", initial_state_BDN2, state_shape))
    check_chunk_size(chunk_size)
    options = {
        "initial_state_BDN2": initial_state_BDN2,
        "mask_BL": mask_BL,
        "segment_ids_BL": segment_ids_BL,
        "reverse": reverse,
        "chunk_size": chunk_size,
    }
    # Autocast would run the products over kernel taps and states in 16 bits.
    with without_autocast(x_BLD):
        return _operator(implementation, x_BLD, dt_D, A_real_DN, A_imag_DN, P_DN2, B_DN2, C_DN2, D_D, **options)


def dplr_ssm_step(
    x_BD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    P_DN2: Tensor,
    B_DN2: Tensor,
    C_DN2: Tensor,
    D_D: Tensor | None = None,
    *,
    state_BDN2: Tensor,
) -> tuple[Tensor, Tensor]:
    """One position of `dplr_ssm`: the same arguments without the length, and the state to continue from.

    Returns:
        y (B, D) in x's dtype, and the state after this position.

    Cost: O(D N) per row, whatever the position: the rank-one term is solved for, no matrix is made.
    """
    dtype = torch.float64 if x_BD.dtype == torch.float64 else torch.float32
    dt_D, B_DN2 = dt_D.to(dtype), B_DN2.to(dtype)
    solve = resolvent(dt_D, A_real_DN.to(dtype), A_imag_DN.to(dtype), P_DN2.to(dtype))
    forcing_BDN2 = (dt_D * x_BD.to(dtype))[..., None, None] * B_DN2
    state_BDN2 = solve.step(state_BDN2.to(dtype), forcing_BDN2)
    y_BD = (state_BDN2.flatten(2) * output_row(C_DN2.to(dtype))).sum(-1)
    if D_D is not None:
        y_BD = y_BD + D_D.to(dtype) * x_BD.to(dtype)
    return y_BD.to(x_BD.dtype), state_BDN2


def dplr_ssm_kernel(
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    P_DN2: Tensor,
    B_DN2: Tensor,
    C_DN2: Tensor,
    length: int,
    *,
    method: KernelMethod = "powers",
) -> Tensor:
    """The convolution kernel of `dplr_ssm`: `y = K * x + D x` from a zero state. The taps do not depend on the length.

    Args:
        dt_D: step sizes (D,).
        A_real_DN: real parts of the diagonal (D, N).
        A_imag_DN: imaginary parts (D, N).
        P_DN2: low-rank factor as (real, imaginary).
        B_DN2: input weights as (real, imaginary).
        C_DN2: output weights as (real, imaginary), without length correction; or several sets of them, (R, D, N, 2).
        length: number of taps, 1 or more.
        method: "powers" (products of powers of the transition) or "cauchy" (the paper's generating function and one inverse
            FFT; blocks of frequencies are recomputed in backward).

    Returns:
        K (D, length), or (R, D, length), in fp32 (fp64 for fp64 parameters).

    Raises:
        ValueError: a length below 1 or an unknown method.

    Cost: powers: O(D N^3 log length + D N length); cauchy: O(D N^3 log length + D N length) with about ten times the
    constant on `length`, as it works element by element.

    Paper: https://arxiv.org/abs/2111.00396, algorithm 1.
    """
    if length < 1:
        raise ValueError(f"length={length}: expected 1 or more taps")
    if method not in get_args(KernelMethod):
        raise ValueError(f"method={method!r}: expected one of {', '.join(get_args(KernelMethod))}")
    dtype = torch.float64 if A_real_DN.dtype == torch.float64 else torch.float32
    with without_autocast(A_real_DN):
        system = [p.to(dtype) for p in (dt_D, A_real_DN, A_imag_DN, P_DN2, B_DN2)]
        C_RDN2 = C_DN2.to(dtype).reshape(-1, *C_DN2.shape[-3:])
        if method == "powers":
            taps_RDL = kernel_by_powers(*system, C_RDN2=C_RDN2, length=length)
        else:
            taps_RDL = torch.stack([kernel_by_cauchy(*system, C_DN2=C_of_one_DN2, length=length) for C_of_one_DN2 in C_RDN2])
    return taps_RDL if C_DN2.ndim == 4 else taps_RDL[0]


def _check(
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    P_DN2: Tensor,
    B_DN2: Tensor,
    C_DN2: Tensor,
    D_D: Tensor | None,
) -> None:
    check_sequence("x_BLD", x_BLD, 3)
    if A_real_DN.ndim != 2:
        raise ValueError(f"A_real_DN: expected (width, pairs), found shape {tuple(A_real_DN.shape)}")
    width, pairs = x_BLD.shape[2], A_real_DN.shape[1]
    per_pole = {"A_real_DN": A_real_DN, "A_imag_DN": A_imag_DN}
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {n: (t, (width, pairs)) for n, t in per_pole.items()}
    expected |= {n: (t, (width, pairs, 2)) for n, t in {"P_DN2": P_DN2, "B_DN2": B_DN2, "C_DN2": C_DN2}.items()}
    expected |= {n: (t, (width,)) for n, t in {"dt_D": dt_D, "D_D": D_D}.items()}
    check_parameters(expected, "the width of x_BLD")
