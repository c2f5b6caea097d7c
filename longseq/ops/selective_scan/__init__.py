"""The selective scan of Mamba-1: a diagonal state space model whose step size, input and output maps depend on time."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.ops.checks import check_not_empty
from longseq.ops.dispatch import Operator
from longseq.ops.selective_scan.chunked import selective_scan_chunked
from longseq.ops.selective_scan.reference import selective_scan_reference
from longseq.ops.tracing import is_exporting

__all__ = ["Implementation", "selective_scan", "selective_scan_step"]

Implementation = Literal["auto", "reference", "chunked", "cpu", "triton"]
_operator = Operator(
    "selective_scan", reference=selective_scan_reference, chunked=selective_scan_chunked, kernels=("cpu", "triton")
)


def selective_scan(
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
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Run h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t and return y_t = (C_t h_t + D x_t) SiLU(z_t).

    Every channel has N states that decay at their own rates; unlike in S4 the rates, inputs and outputs are chosen by
    the sequence. Not the scan of Mamba-2, whose decay is one scalar for a head (SSD).

    Args:
        x_BLD: inputs (B, L, D).
        dt_BLD: step sizes (B, L, D), before `dt_bias_D` and softplus if those are asked for; at least 0 after them.
        A_DN: rates of decay (D, N), negative.
        B_BLN: input map (B, L, N), shared by all channels.
        C_BLN: output map (B, L, N), shared by all channels.
        D_D: skip weight (D,); none if left out.
        z_BLD: gate (B, L, D), before SiLU; none if left out.
        dt_bias_D: added to the step sizes (D,).
        dt_softplus: pass the step sizes through softplus.
        initial_state_BDN: state before the first step (B, D, N); zeros if left out.
        mask_BL: bool (B, L), True = real. A masked step leaves the state as it is and gives 0; nothing at a masked
            position is read, NaN included.
        segment_ids_BL: integers (B, L). The state starts from zero where a real position's id differs from that of the
            last real position before it. The first real position continues the initial state.
        reverse: run from right to left, for the backward half of a bidirectional layer. The initial state then stands
            to the right of the sequence, and the final state is the one at its left end.
        implementation: "auto", or "reference" (a loop over time), "chunked" (plain PyTorch), "cpu"
            (compiled loops), "triton" (CUDA kernels).

    Returns:
        y_BLD in the dtype of `x_BLD`, and the final state (B, D, N) in float32 (float64 for float64 inputs). Both are
        differentiable in everything that is floating point.

    Raises:
        TypeError: a mask that is not bool, segment ids that are not integers, inputs that are not floating point.
        ValueError: shapes that do not fit, an unknown implementation, or one that is not available here.

    Cost: O(B L D N) time; memory O(B L D) and one state for each 64 (compiled) or 128 steps, in forward and backward.

    Paper: Mamba: Linear-Time Sequence Modeling with Selective State Spaces, https://arxiv.org/abs/2312.00752, equation
    2a with the discretisation of equation 4, B simplified to dt B as in the authors' code. Unlike there, the state can
    be given, is returned with its gradient, and stays float32.
    """
    _check(x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, initial_state_BDN, mask_BL, segment_ids_BL)
    return _operator(
        implementation,
        x_BLD,
        dt_BLD,
        A_DN,
        B_BLN,
        C_BLN,
        D_D,
        z_BLD,
        dt_bias_D,
        dt_softplus=dt_softplus,
        initial_state_BDN=initial_state_BDN,
        mask_BL=mask_BL,
        segment_ids_BL=segment_ids_BL,
        reverse=reverse,
    )


def selective_scan_step(
    x_BD: Tensor,
    dt_BD: Tensor,
    A_DN: Tensor,
    B_BN: Tensor,
    C_BN: Tensor,
    D_D: Tensor | None = None,
    z_BD: Tensor | None = None,
    dt_bias_D: Tensor | None = None,
    *,
    state_BDN: Tensor,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """One step of `selective_scan`, without the length dimension: the short way for generation and streaming.

    Args:
        x_BD: input (B, D).
        dt_BD: step size (B, D).
        A_DN: rates of decay (D, N).
        B_BN: input map (B, N).
        C_BN: output map (B, N).
        D_D: skip weight (D,).
        z_BD: gate (B, D).
        dt_bias_D: added to the step size (D,).
        state_BDN: state before the step (B, D, N); it is not changed.
        dt_softplus: pass the step size through softplus.

    Returns:
        y_BD in the dtype of `x_BD`, and the state after the step, float32 (float64 for float64 inputs).

    Cost: O(B D N), whatever the position.
    """
    dtype = torch.promote_types(x_BD.dtype, torch.float32)
    x, dt = x_BD.to(dtype), dt_BD.to(dtype)
    if dt_bias_D is not None:
        dt = dt + dt_bias_D.to(dtype)
    if dt_softplus:
        dt = F.softplus(dt)
    state_BDN = torch.exp(dt.unsqueeze(-1) * A_DN.to(dtype)) * state_BDN.to(dtype)
    state_BDN = torch.addcmul(state_BDN, (dt * x).unsqueeze(-1), B_BN.to(dtype).unsqueeze(1))
    y = (state_BDN * C_BN.to(dtype).unsqueeze(1)).sum(-1)
    if D_D is not None:
        y = y + D_D.to(dtype) * x
    if z_BD is not None:
        y = y * F.silu(z_BD.to(dtype))
    return y.to(x_BD.dtype), state_BDN


def _check(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor | None,
    z_BLD: Tensor | None,
    dt_bias_D: Tensor | None,
    initial_state_BDN: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
) -> None:
    if x_BLD.ndim != 3 or A_DN.ndim != 2:
        shapes = f"x {tuple(x_BLD.shape)} and A {tuple(A_DN.shape)}"
        raise ValueError(f"x must be (batch, length, width) and A (width, states), found {shapes}")
    batch, length, width = x_BLD.shape
    n_state = A_DN.shape[1]
    if not is_exporting():
        check_not_empty("x", x_BLD)
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "x": (x_BLD, (batch, length, width)),
        "dt": (dt_BLD, (batch, length, width)),
        "A": (A_DN, (width, n_state)),
        "B": (B_BLN, (batch, length, n_state)),
        "C": (C_BLN, (batch, length, n_state)),
        "D": (D_D, (width,)),
        "z": (z_BLD, (batch, length, width)),
        "dt_bias": (dt_bias_D, (width,)),
        "initial_state": (initial_state_BDN, (batch, width, n_state)),
        "mask": (mask_BL, (batch, length)),
        "segment_ids": (segment_ids_BL, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape} to fit x and A, found {tuple(tensor.shape)}")
        if name not in ("mask", "segment_ids") and not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, found {tensor.dtype}")
    if mask_BL is not None and mask_BL.dtype != torch.bool:
        raise TypeError(f"mask must be bool with True at real positions, found {mask_BL.dtype}: use mask.bool()")
    if segment_ids_BL is not None and (segment_ids_BL.is_floating_point() or segment_ids_BL.dtype == torch.bool):
        raise TypeError(f"segment_ids must be integers, found {segment_ids_BL.dtype}")
