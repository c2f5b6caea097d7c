"""Diagonal state-space models (S4D, DSS and their kin): one linear time-invariant recurrence per channel."""

from typing import Literal, get_args

import torch
from torch import Tensor

from longseq.ops.autocast import without_autocast
from longseq.ops.checks import check_chunk_size, check_parameters, check_rows, check_sequence
from longseq.ops.diagonal_ssm.chunked import diagonal_ssm_chunked
from longseq.ops.diagonal_ssm.discretize import Discretization, discretize, kernel_taps, multiply
from longseq.ops.diagonal_ssm.reference import diagonal_ssm_reference
from longseq.ops.dispatch import Operator

__all__ = ["Discretization", "Implementation", "diagonal_ssm", "diagonal_ssm_kernel", "diagonal_ssm_step"]

Implementation = Literal["auto", "reference", "chunked", "triton"]
_operator = Operator("diagonal_ssm", reference=diagonal_ssm_reference, chunked=diagonal_ssm_chunked)


def diagonal_ssm(
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    C_DN2: Tensor,
    B_DN2: Tensor | None = None,
    D_D: Tensor | None = None,
    *,
    discretization: Discretization = "zoh",
    initial_state_BDN2: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
    chunk_size: int = 64,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Linear recurrence with a diagonal complex transition, sampled from a continuous state-space model.

    `h_t = z h_{t-1} + b x_t`, `y_t = 2 Re(sum_n C_n h_{n,t}) + D x_t`, with z and b the discrete form of `h' = A h + B x`.
    N counts conjugate pairs, of which one is kept. Nothing depends on the input, unlike the selective scan; the same outputs
    come from a convolution with `diagonal_ssm_kernel`, which carries no state.

    A masked position is an identity step: the state passes it unchanged, what stands there (NaN too) is not read, and y is 0
    there. Where the segment id of a real position differs from that of the real position before it, the state restarts from
    zero; the initial state belongs to the row's first segment. Everything is differentiable, both states too.

    Args:
        x_BLD: input (B, L, D); the output has its dtype.
        dt_D: step sizes (D,), positive, in the units of 1 / A.
        A_real_DN: real parts of the continuous poles (D, N), negative.
        A_imag_DN: imaginary parts (D, N).
        C_DN2: output weights as (real, imaginary).
        B_DN2: input weights as (real, imaginary); ones if None, as when B is folded into C.
        D_D: skip weights (D,).
        discretization: "zoh" (x is held between samples) or "bilinear".
        initial_state_BDN2: state before the first position (the last one with `reverse`), (B, D, N, 2); zeros if None.
        mask_BL: bool (B, L), True = real.
        segment_ids_BL: integers (B, L), equal for the positions of one packed document.
        reverse: run from the last position to the first.
        chunk_size: positions per chunk of the chunked form.
        implementation: "auto", "reference" (a loop over time), "chunked" (plain PyTorch, CPU and GPU, traceable) or
            "triton" (GPU). "auto" takes Triton for 16-bit and fp32 tensors on a GPU where it is installed.

    Returns:
        y (B, L, D) in x's dtype, and the final state (B, D, N, 2) in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: shapes that do not fit together, or an implementation or discretization that is unknown or not available.
        TypeError: a mask that is not bool, segment ids that are not integers, inputs that are not floating point.

    Cost: O(L D (chunk_size + N)) time; memory for backward is x and 2N numbers per channel and chunk. Short packed documents
    are padded to whole chunks, of down to 8 positions.

    Paper: On the Parameterization and Initialization of Diagonal State Space Models, https://arxiv.org/abs/2206.11893,
    equations 2 and 3. Differs from the authors' code: no FFT and no kernel as long as the input, but chunks with a carried
    state, all in real arithmetic.
    """
    _check(x_BLD, dt_D, A_real_DN, A_imag_DN, C_DN2, B_DN2, D_D)
    _check_discretization(discretization)
    state_shape = (x_BLD.shape[0], *A_real_DN.shape, 2)
    check_rows(x_BLD.shape[:2], mask_BL, segment_ids_BL, ("initial_state_BDN2", initial_state_BDN2, state_shape))
    check_chunk_size(chunk_size)
    options = {
        "discretization": discretization,
        "initial_state_BDN2": initial_state_BDN2,
        "mask_BL": mask_BL,
        "segment_ids_BL": segment_ids_BL,
        "reverse": reverse,
        "chunk_size": chunk_size,
    }
    # Autocast would run the products over kernel taps and states in 16 bits.
    with without_autocast(x_BLD):
        return _operator(implementation, x_BLD, dt_D, A_real_DN, A_imag_DN, C_DN2, B_DN2, D_D, **options)


def diagonal_ssm_step(
    x_BD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    C_DN2: Tensor,
    B_DN2: Tensor | None = None,
    D_D: Tensor | None = None,
    *,
    discretization: Discretization = "zoh",
    state_BDN2: Tensor,
) -> tuple[Tensor, Tensor]:
    """One position of `diagonal_ssm`: the same arguments without the length, and the state to continue from.

    Returns:
        y (B, D) in x's dtype, and the state after this position.

    Cost: O(D N) per row, whatever the position.
    """
    _check_discretization(discretization)
    dtype = torch.float64 if x_BD.dtype == torch.float64 else torch.float32
    B_DN2 = None if B_DN2 is None else B_DN2.to(dtype)
    poles = discretize(dt_D.to(dtype), A_real_DN.to(dtype), A_imag_DN.to(dtype), B_DN2, discretization)
    size_DN = torch.exp(poles.log_size_DN)
    z_DN2 = torch.stack([size_DN * torch.cos(poles.angle_DN), size_DN * torch.sin(poles.angle_DN)], dim=-1)
    x_BD11 = x_BD.to(dtype)[..., None, None]
    state_BDN2 = multiply(state_BDN2.to(dtype), z_DN2) + poles.input_DN2 * x_BD11
    y_BD = 2 * multiply(state_BDN2, C_DN2.to(dtype))[..., 0].sum(-1)
    if D_D is not None:
        y_BD = y_BD + D_D.to(dtype) * x_BD.to(dtype)
    return y_BD.to(x_BD.dtype), state_BDN2


def diagonal_ssm_kernel(
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    C_DN2: Tensor,
    length: int,
    B_DN2: Tensor | None = None,
    *,
    discretization: Discretization = "zoh",
) -> Tensor:
    """The convolution kernel of `diagonal_ssm`: `y = K * x + D x` from a zero state.

    `K_t = 2 Re(sum_n C_n b_n z_n^t)`. Any length: the taps do not depend on it. Use it where a kernel is wanted in one piece:
    as a buffer for export, as one half of a two-sided convolution, or to look at.

    Args:
        dt_D: step sizes (D,).
        A_real_DN: real parts of the continuous poles (D, N).
        A_imag_DN: imaginary parts (D, N).
        C_DN2: output weights as (real, imaginary).
        length: number of taps, 1 or more.
        B_DN2: input weights as (real, imaginary); ones if None.
        discretization: "zoh" or "bilinear".

    Returns:
        K (D, length) in fp32 (fp64 for fp64 parameters).

    Raises:
        ValueError: a length below 1 or an unknown discretization.

    Cost: O(D N length) as matrix products, O(D N sqrt(length)) exponentials and memory beside the result.

    Paper: https://arxiv.org/abs/2206.11893, equation 6.
    """
    if length < 1:
        raise ValueError(f"length={length}: expected 1 or more taps")
    _check_discretization(discretization)
    dtype = torch.float64 if A_real_DN.dtype == torch.float64 else torch.float32
    B_DN2 = None if B_DN2 is None else B_DN2.to(dtype)
    with without_autocast(A_real_DN):
        poles = discretize(dt_D.to(dtype), A_real_DN.to(dtype), A_imag_DN.to(dtype), B_DN2, discretization)
        return kernel_taps(poles, C_DN2.to(dtype), length)


def _check_discretization(discretization: str) -> None:
    if discretization not in get_args(Discretization):
        raise ValueError(f"discretization={discretization!r}: expected one of {', '.join(get_args(Discretization))}")


def _check(
    x_BLD: Tensor,
    dt_D: Tensor,
    A_real_DN: Tensor,
    A_imag_DN: Tensor,
    C_DN2: Tensor,
    B_DN2: Tensor | None,
    D_D: Tensor | None,
) -> None:
    check_sequence("x_BLD", x_BLD, 3)
    if A_real_DN.ndim != 2:
        raise ValueError(f"A_real_DN: expected (width, pairs), found shape {tuple(A_real_DN.shape)}")
    width, pairs = x_BLD.shape[2], A_real_DN.shape[1]
    per_pole = {"A_real_DN": A_real_DN, "A_imag_DN": A_imag_DN}
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {n: (t, (width, pairs)) for n, t in per_pole.items()}
    expected |= {n: (t, (width, pairs, 2)) for n, t in {"C_DN2": C_DN2, "B_DN2": B_DN2}.items()}
    expected |= {n: (t, (width,)) for n, t in {"dt_D": dt_D, "D_D": D_D}.items()}
    check_parameters(expected, "the width of x_BLD")
