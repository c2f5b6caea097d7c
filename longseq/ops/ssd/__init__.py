"""State-space duality (SSD), the operator of Mamba-2: a scan whose decay is one scalar per head and position."""

from typing import Literal

import torch
from torch import Tensor

from longseq.ops.autocast import without_autocast
from longseq.ops.checks import check_chunk_size, check_parameters, check_rows, check_sequence
from longseq.ops.dispatch import Operator
from longseq.ops.ssd.chunked import ssd_chunked
from longseq.ops.ssd.reference import ssd_reference, ssd_step

__all__ = ["Implementation", "ssd", "ssd_step"]

Implementation = Literal["auto", "reference", "chunked", "triton"]
_operator = Operator("ssd", reference=ssd_reference, chunked=ssd_chunked)


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
    per_head = {"A_H": A_H, "D_H": D_H, "dt_bias_H": dt_bias_H}
    check_parameters({n: (t, (x_BLHP.shape[2],)) for n, t in per_head.items()}, "the heads of x_BLHP")
    state_shape = (x_BLHP.shape[0], *x_BLHP.shape[2:], B_BLGN.shape[-1])
    check_rows(x_BLHP.shape[:2], mask_BL, segment_ids_BL, ("initial_state_BHPN", initial_state_BHPN, state_shape))
    check_chunk_size(chunk_size)
    options = {
        "dt_softplus": dt_softplus,
        "initial_state_BHPN": initial_state_BHPN,
        "mask_BL": mask_BL,
        "segment_ids_BL": segment_ids_BL,
        "reverse": reverse,
        "chunk_size": chunk_size,
    }
    # Autocast would run the products over decays and states in 16 bits.
    with without_autocast(x_BLHP):
        return _operator(implementation, x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, dt_bias_H, **options)


def _check_shapes(x_BLHP: Tensor, dt_BLH: Tensor, B_BLGN: Tensor, C_BLGN: Tensor) -> None:
    for name, tensor, ndim in (("x_BLHP", x_BLHP, 4), ("dt_BLH", dt_BLH, 3), ("B_BLGN", B_BLGN, 4), ("C_BLGN", C_BLGN, 4)):
        check_sequence(name, tensor, ndim)
        if not torch.compiler.is_compiling() and tensor.shape[:2] != x_BLHP.shape[:2]:
            raise ValueError(f"{name}: expected (batch, length) = {tuple(x_BLHP.shape[:2])}, found {tuple(tensor.shape[:2])}")
    if dt_BLH.shape[2] != x_BLHP.shape[2]:
        raise ValueError(f"dt_BLH: expected {x_BLHP.shape[2]} heads as in x_BLHP, found {dt_BLH.shape[2]}")
    if B_BLGN.shape[2:] != C_BLGN.shape[2:]:
        raise ValueError(f"B_BLGN and C_BLGN must agree, found {tuple(B_BLGN.shape)} and {tuple(C_BLGN.shape)}")
    if x_BLHP.shape[2] % B_BLGN.shape[2]:
        raise ValueError(f"the {B_BLGN.shape[2]} groups of B_BLGN must divide the {x_BLHP.shape[2]} heads of x_BLHP")
