"""Diagonal-plus-low-rank state-space models (S4): one linear time-invariant recurrence per channel."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from longseq.ops.dplr_ssm.cauchy import kernel_by_cauchy, undo_length_correction
from longseq.ops.dplr_ssm.chunked import dplr_ssm_chunked, kernel_by_powers
from longseq.ops.dplr_ssm.discretize import output_row, resolvent
from longseq.ops.dplr_ssm.reference import dplr_ssm_reference

__all__ = ["Implementation", "KernelMethod", "dplr_ssm", "dplr_ssm_kernel", "dplr_ssm_step", "undo_length_correction"]

Implementation = Literal["auto", "reference", "chunked"]
KernelMethod = Literal["cauchy", "powers"]


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
    _check(x_BLD, dt_D, A_real_DN, A_imag_DN, P_DN2, B_DN2, C_DN2, D_D, initial_state_BDN2)
    _check_rows(x_BLD, mask_BL, segment_ids_BL)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: expected 1 or more positions")
    run = _choose(implementation)
    options = {
        "initial_state_BDN2": initial_state_BDN2,
        "mask_BL": mask_BL,
        "segment_ids_BL": segment_ids_BL,
        "reverse": reverse,
        "chunk_size": chunk_size,
    }
    if not torch.is_autocast_enabled(x_BLD.device.type):
        return run(x_BLD, dt_D, A_real_DN, A_imag_DN, P_DN2, B_DN2, C_DN2, D_D, **options)
    # Autocast would run the products over kernel taps and states in 16 bits.
    with torch.autocast(x_BLD.device.type, enabled=False):
        return run(x_BLD, dt_D, A_real_DN, A_imag_DN, P_DN2, B_DN2, C_DN2, D_D, **options)


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
        C_DN2: output weights as (real, imaginary), without length correction.
        length: number of taps, 1 or more.
        method: "powers" (products of powers of the transition) or "cauchy" (the paper's generating function and one inverse
            FFT; blocks of frequencies are recomputed in backward).

    Returns:
        K (D, length) in fp32 (fp64 for fp64 parameters).

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
    with torch.autocast(A_real_DN.device.type, enabled=False):
        parameters = [p.to(dtype) for p in (dt_D, A_real_DN, A_imag_DN, P_DN2, B_DN2, C_DN2)]
        return (kernel_by_cauchy if method == "cauchy" else kernel_by_powers)(*parameters, length=length)


def _choose(implementation: str) -> Callable[..., tuple[Tensor, Tensor]]:
    """The one place where an implementation is picked."""
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation={implementation!r}: expected one of {', '.join(get_args(Implementation))}")
    return dplr_ssm_reference if implementation == "reference" else dplr_ssm_chunked


def _check(
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    P_DN2: Tensor,
    B_DN2: Tensor,
    C_DN2: Tensor,
    D_D: Tensor | None,
    initial_state_BDN2: Tensor | None,
) -> None:
    if x_BLD.ndim != 3:
        raise ValueError(f"x_BLD: expected (batch, length, width), found shape {tuple(x_BLD.shape)}")
    if not x_BLD.is_floating_point():
        raise TypeError(f"x_BLD: expected a floating dtype, found {x_BLD.dtype}")
    if not torch.compiler.is_compiling() and x_BLD.shape[1] == 0:
        raise ValueError("x_BLD: expected at least one position, found length 0")
    if A_real_DN.ndim != 2:
        raise ValueError(f"A_real_DN: expected (width, pairs), found shape {tuple(A_real_DN.shape)}")
    width, pairs = x_BLD.shape[2], A_real_DN.shape[1]
    full = (width, pairs, 2)
    named = {"A_real_DN": (A_real_DN, full[:2]), "A_imag_DN": (A_imag_DN, full[:2]), "P_DN2": (P_DN2, full)}
    named |= {"B_DN2": (B_DN2, full), "C_DN2": (C_DN2, full), "dt_D": (dt_D, (width,))}
    for name, (tensor, shape) in named.items():
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name}: expected shape {shape} for the width of x_BLD, found {tuple(tensor.shape)}")
    if D_D is not None and tuple(D_D.shape) != (width,):
        raise ValueError(f"D_D: expected shape ({width},), found {tuple(D_D.shape)}")
    if torch.compiler.is_compiling() or initial_state_BDN2 is None:
        return
    if tuple(initial_state_BDN2.shape) != (x_BLD.shape[0], *full):
        expected = (x_BLD.shape[0], *full)
        raise ValueError(f"initial_state_BDN2: expected {expected}, found {tuple(initial_state_BDN2.shape)}")


def _check_rows(x_BLD: Tensor, mask_BL: Tensor | None, segment_ids_BL: Tensor | None) -> None:
    if mask_BL is not None and mask_BL.dtype != torch.bool:
        raise TypeError(f"mask_BL: expected bool with True at real positions, found {mask_BL.dtype}")
    if segment_ids_BL is not None and (segment_ids_BL.is_floating_point() or segment_ids_BL.dtype == torch.bool):
        raise TypeError(f"segment_ids_BL: expected integers, found {segment_ids_BL.dtype}")
    if torch.compiler.is_compiling():
        return
    for name, tensor in (("mask_BL", mask_BL), ("segment_ids_BL", segment_ids_BL)):
        if tensor is not None and tensor.shape != x_BLD.shape[:2]:
            raise ValueError(f"{name}: expected (batch, length) = {tuple(x_BLD.shape[:2])}, found {tuple(tensor.shape)}")
