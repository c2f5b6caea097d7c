"""The short causal depthwise convolution in front of a state space model."""

from typing import Literal

import torch
from torch import Tensor

from longseq.ops.causal_conv1d.chunked import causal_conv1d_chunked
from longseq.ops.causal_conv1d.reference import causal_conv1d_reference
from longseq.ops.checks import check_not_empty
from longseq.ops.dispatch import Operator
from longseq.ops.tracing import is_exporting

__all__ = ["causal_conv1d"]

Implementation = Literal["auto", "reference", "chunked", "cpu", "triton"]
_operator = Operator(
    "causal_conv1d", reference=causal_conv1d_reference, chunked=causal_conv1d_chunked, kernels=("cpu", "triton")
)


def causal_conv1d(
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state_BKD: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own K taps, y_t = act(bias + sum_k weight_k x_{t-(K-1)+k}), seeing no later input.

    The last tap meets the current input, as in the weight of `nn.Conv1d` (a correlation). For filters as long as the
    sequence use the FFT convolution instead.

    Args:
        x_BLD: inputs (B, L, D).
        weight_DK: taps (D, K), oldest input first.
        bias_D: added to every output (D,).
        activation: "silu", or None.
        initial_state_BKD: the K-1 inputs before the first real position (B, K-1, D), oldest first; zeros if left out.
        mask_BL: bool (B, L), True = real. Masked inputs count as zeros, masked outputs are zeros, and NaN at a masked
            position is not read.
        segment_ids_BL: integers (B, L); no tap reaches across a change of the id between real positions.
        reverse: convolve from right to left: y_t sees x_t ... x_{t+K-1}. The states then stand on the other sides: the
            initial one to the right (the rightmost input is the oldest), the final one at the left end.
        implementation: "auto", or "reference" (loops), "chunked" (plain PyTorch), "cpu" (compiled loops),
            "triton" (CUDA kernels).

    Returns:
        y_BLD in the dtype of `x_BLD`, and the final state: the K-1 inputs up to the last real position, (B, K-1, D),
        float32 (float64 for float64 inputs), with zeros for what another segment holds.

    Raises:
        TypeError: a mask that is not bool, segment ids that are not integers, inputs that are not floating point.
        ValueError: shapes that do not fit, an unknown activation or implementation, or one not available here.

    Cost: O(B L D K) time and O(B L D) memory.

    Paper: Mamba, https://arxiv.org/abs/2312.00752, section 3.4 and figure 3. The authors' kernel works on (B, D, L); this
    one needs no transpose, and its state is K-1 inputs, not K.
    """
    _check(x_BLD, weight_DK, bias_D, activation, initial_state_BKD, mask_BL, segment_ids_BL)
    return _operator(
        implementation,
        x_BLD,
        weight_DK,
        bias_D,
        activation=activation,
        initial_state_BKD=initial_state_BKD,
        mask_BL=mask_BL,
        segment_ids_BL=segment_ids_BL,
        reverse=reverse,
    )


def _check(
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    activation: str | None,
    initial_state_BKD: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
) -> None:
    if x_BLD.ndim != 3 or weight_DK.ndim != 2 or weight_DK.shape[1] == 0:
        shapes = f"x {tuple(x_BLD.shape)} and weight {tuple(weight_DK.shape)}"
        raise ValueError(f"x must be (batch, length, width) and weight (width, taps), found {shapes}")
    batch, length, width = x_BLD.shape
    if not is_exporting():
        check_not_empty("x", x_BLD)
    if activation not in (None, "silu"):
        raise ValueError(f"activation must be 'silu' or None, found {activation!r}")
    expected: dict[str, tuple[Tensor | None, tuple[int, ...]]] = {
        "x": (x_BLD, (batch, length, width)),
        "weight": (weight_DK, (width, weight_DK.shape[1])),
        "bias": (bias_D, (width,)),
        "initial_state": (initial_state_BKD, (batch, weight_DK.shape[1] - 1, width)),
        "mask": (mask_BL, (batch, length)),
        "segment_ids": (segment_ids_BL, (batch, length)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor is None:
            continue
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {shape} to fit x and weight, found {tuple(tensor.shape)}")
        if name not in ("mask", "segment_ids") and not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, found {tensor.dtype}")
    if mask_BL is not None and mask_BL.dtype != torch.bool:
        raise TypeError(f"mask must be bool with True at real positions, found {mask_BL.dtype}: use mask.bool()")
    if segment_ids_BL is not None and (segment_ids_BL.is_floating_point() or segment_ids_BL.dtype == torch.bool):
        raise TypeError(f"segment_ids must be integers, found {segment_ids_BL.dtype}")
