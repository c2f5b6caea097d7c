"""State-space duality (SSD), the operator of Mamba-2: a scan whose decay is one scalar per head and position."""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from longseq.ops.ssd.chunked import ssd_chunked
from longseq.ops.ssd.reference import ssd_reference, ssd_step

__all__ = ["Implementation", "ssd", "ssd_step"]

Implementation = Literal["auto", "reference", "chunked", "triton"]
_TRITON_MODULE = "longseq.ops.ssd.triton"
# Looked up once: searching the path costs more than launching a kernel, and a compiler cannot trace it.
_HAS_TRITON = all(importlib.util.find_spec(name) is not None for name in (_TRITON_MODULE, "triton"))


def ssd(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None = None,
    dt_bias_H: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    initial_state_BHPN: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
    chunk_size: int = 64,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """State-space scan with a scalar decay per head, in matrix products.

    `h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t^T` and `y_t = h_t C_t + D x_t`, with a P x N state h per head. The decay is one
    number per head and position, which is what makes the matrix form possible; the selective scan of Mamba-1 has one per
    channel and state. Heads of one group share B and C.

    A masked position is an identity step: the state passes it unchanged, what stands in x, dt, B and C there (NaN too) is
    not read, and y is 0 there. Where the segment id of a real position differs from that of the real position before it,
    the state restarts from zero; the initial state belongs to the row's first segment. Everything is differentiable,
    both states too.

    Args:
        x_BLHP: input (B, L, H, P); the output has its dtype.
        dt_BLH: step sizes (B, L, H), at least 0 after bias and softplus.
        A_H: decay rates (H,), negative. Log-decays are clamped to at most 0.
        B_BLGN: input projections (B, L, G, N); G divides H.
        C_BLGN: output projections (B, L, G, N).
        D_H: skip weights (H,).
        dt_bias_H: added to dt before the softplus, (H,).
        dt_softplus: use `softplus(dt + dt_bias)`.
        initial_state_BHPN: state before the first position (the last one with `reverse`), (B, H, P, N); zeros if None.
        mask_BL: bool (B, L), True = real.
        segment_ids_BL: integers (B, L), equal for the positions of one packed document.
        reverse: run from the last position to the first.
        chunk_size: positions per chunk of the chunked form.
        implementation: "auto", "reference" (a loop over time), "chunked" (plain PyTorch, CPU and GPU, traceable) or
            "triton" (GPU). "auto" takes Triton for 16-bit and fp32 tensors on a GPU where it is installed.

    Returns:
        y (B, L, H, P) in x's dtype, and the final state (B, H, P, N) in fp32 (fp64 for fp64 inputs).

    Raises:
        ValueError: shapes that do not fit together, or an implementation that is unknown or not available.
        TypeError: a mask that is not bool, segment ids that are not integers, inputs that are not floating point.

    Cost: O(L H P (N + chunk_size)) time; memory for backward is the inputs and one state per block of chunks.

    Paper: Transformers are SSMs, https://arxiv.org/abs/2405.21060, equations 1 and 2 with the scalar A of section 5, and
    section 6 for the chunked form. Differs from the authors' code: chunk decays are summed directly instead of as
    differences of a cumulative sum, and the op takes masks, a reversed order and differentiable states.
    """
    _check_shapes(x_BLHP, dt_BLH, B_BLGN, C_BLGN)
    _check_heads(x_BLHP, A_H=A_H, D_H=D_H, dt_bias_H=dt_bias_H)
    _check_rows(x_BLHP, B_BLGN, initial_state_BHPN, mask_BL, segment_ids_BL)
    if chunk_size < 1:
        raise ValueError(f"chunk_size={chunk_size}: expected 1 or more positions")
    run = _choose(implementation, x_BLHP)
    options = {
        "dt_softplus": dt_softplus,
        "initial_state_BHPN": initial_state_BHPN,
        "mask_BL": mask_BL,
        "segment_ids_BL": segment_ids_BL,
        "reverse": reverse,
        "chunk_size": chunk_size,
    }
    if not torch.is_autocast_enabled(x_BLHP.device.type):
        return run(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, dt_bias_H, **options)
    # Autocast would run the products over decays and states in 16 bits.
    with torch.autocast(x_BLHP.device.type, enabled=False):
        return run(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, dt_bias_H, **options)


def _choose(implementation: str, x_BLHP: Tensor) -> Callable[..., tuple[Tensor, Tensor]]:
    """The one place where an implementation is picked."""
    if implementation not in get_args(Implementation):
        raise ValueError(f"implementation={implementation!r}: expected one of {', '.join(get_args(Implementation))}")
    if implementation == "reference":
        return ssd_reference
    if implementation == "triton":
        if not _HAS_TRITON:
            raise ValueError("implementation='triton': not available for ssd; use 'auto' or 'chunked'")
        return _triton()
    on_gpu = x_BLHP.device.type == "cuda" and x_BLHP.dtype != torch.float64 and not torch.compiler.is_exporting()
    return _triton() if implementation == "auto" and on_gpu and _HAS_TRITON else ssd_chunked


def _triton() -> Callable[..., tuple[Tensor, Tensor]]:
    module: Any = importlib.import_module(_TRITON_MODULE)
    return module.ssd_triton


def _check_shapes(x_BLHP: Tensor, dt_BLH: Tensor, B_BLGN: Tensor, C_BLGN: Tensor) -> None:
    expected = {"x_BLHP": 4, "dt_BLH": 3, "B_BLGN": 4, "C_BLGN": 4}
    for (name, ndim), tensor in zip(expected.items(), (x_BLHP, dt_BLH, B_BLGN, C_BLGN), strict=True):
        if tensor.ndim != ndim:
            raise ValueError(f"{name}: expected {ndim} dimensions, found shape {tuple(tensor.shape)}")
        if not tensor.is_floating_point():
            raise TypeError(f"{name}: expected a floating dtype, found {tensor.dtype}")
        if not torch.compiler.is_compiling() and tensor.shape[:2] != x_BLHP.shape[:2]:
            raise ValueError(f"{name}: expected (batch, length) = {tuple(x_BLHP.shape[:2])}, found {tuple(tensor.shape[:2])}")
    if not torch.compiler.is_compiling() and x_BLHP.shape[1] == 0:
        raise ValueError("x_BLHP: expected at least one position, found length 0")
    if dt_BLH.shape[2] != x_BLHP.shape[2]:
        raise ValueError(f"dt_BLH: expected {x_BLHP.shape[2]} heads as in x_BLHP, found {dt_BLH.shape[2]}")
    if B_BLGN.shape[2:] != C_BLGN.shape[2:]:
        raise ValueError(f"B_BLGN and C_BLGN must agree, found {tuple(B_BLGN.shape)} and {tuple(C_BLGN.shape)}")
    if x_BLHP.shape[2] % B_BLGN.shape[2]:
        raise ValueError(f"the {B_BLGN.shape[2]} groups of B_BLGN must divide the {x_BLHP.shape[2]} heads of x_BLHP")


def _check_heads(x_BLHP: Tensor, **named: Tensor | None) -> None:
    for name, tensor in named.items():
        if tensor is not None and tensor.shape != (x_BLHP.shape[2],):
            raise ValueError(f"{name}: expected shape ({x_BLHP.shape[2]},), one per head, found {tuple(tensor.shape)}")


def _check_rows(
    x_BLHP: Tensor, B_BLGN: Tensor, initial_state_BHPN: Tensor | None, mask_BL: Tensor | None, segment_ids_BL: Tensor | None
) -> None:
    if mask_BL is not None and mask_BL.dtype != torch.bool:
        raise TypeError(f"mask_BL: expected bool with True at real positions, found {mask_BL.dtype}")
    if segment_ids_BL is not None and (segment_ids_BL.is_floating_point() or segment_ids_BL.dtype == torch.bool):
        raise TypeError(f"segment_ids_BL: expected integers, found {segment_ids_BL.dtype}")
    if torch.compiler.is_compiling():
        return
    for name, tensor in (("mask_BL", mask_BL), ("segment_ids_BL", segment_ids_BL)):
        if tensor is not None and tensor.shape != x_BLHP.shape[:2]:
            raise ValueError(f"{name}: expected (batch, length) = {tuple(x_BLHP.shape[:2])}, found {tuple(tensor.shape)}")
    expected = (x_BLHP.shape[0], *x_BLHP.shape[2:], B_BLGN.shape[-1])
    if initial_state_BHPN is not None and tuple(initial_state_BHPN.shape) != expected:
        raise ValueError(f"initial_state_BHPN: expected {expected}, found {tuple(initial_state_BHPN.shape)}")
