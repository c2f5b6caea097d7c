"""The sum of a residual stream and a branch, and its norm, in one pass; also the gated norm of Mamba-2."""

from typing import Literal

import torch
from torch import Tensor

from longseq.ops.add_norm.chunked import add_norm_chunked
from longseq.ops.add_norm.reference import add_norm_reference
from longseq.ops.dispatch import Operator

__all__ = ["Implementation", "Kind", "add_norm"]

Implementation = Literal["auto", "reference", "chunked", "triton"]
Kind = Literal["layer", "rms"]
_operator = Operator("add_norm", reference=add_norm_reference, chunked=add_norm_chunked)


def add_norm(
    x: Tensor,
    weight_D: Tensor,
    bias_D: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    kind: Kind = "rms",
    eps: float = 1e-5,
    n_groups: int = 1,
    sum_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream and normalise: s = residual + x, y = norm(s SiLU(gate)) weight + bias.

    A pre-norm block gives its output as x and gets the next branch's input y and the new stream s; a post-norm block needs y
    alone. Sums and norms are computed in fp32 (fp64 for fp64), whatever the dtypes; s is rounded to its dtype before the norm.

    Args:
        x: (..., D), any number of leading dimensions.
        weight_D: factor after the norm (D,).
        bias_D: added after it (D,).
        residual: what x is added to, shaped like x.
        gate: z, shaped like x; the norm is of s SiLU(z). With it the norm comes after the gate.
        kind: "rms" (divided by the root of the mean square) or "layer" (mean taken away, then the same).
        eps: added to the mean square.
        n_groups: groups of D / n_groups neighbouring channels, each with its own norm.
        sum_dtype: of s; if left out, what residual and x promote to. float32 keeps a stream of bf16 branches in fp32.
        out_dtype: of y; if left out, that of s.
        implementation: "auto", or "reference" (the equations), "chunked" (plain PyTorch), "triton" (GPU kernels).

    Returns:
        y and s, both shaped like x. Without `residual` and with x's dtype s is x itself.

    Raises:
        TypeError: inputs that are not floating point.
        ValueError: shapes that do not fit, groups that do not divide D, an unknown kind or implementation.

    Cost: O(D) time a position. The kernels read x, residual and gate and write y and s once; backward they read dy, ds and s
    and write the gradients once, and the gradients of weight and bias are summed in a fixed order.

    Paper: Root Mean Square Layer Normalization, https://arxiv.org/abs/1910.07467, equation 4; Layer Normalization,
    https://arxiv.org/abs/1607.06450, section 3; the gated form: Mamba-2, https://arxiv.org/abs/2405.21060, section 7.
    """
    _check(x, weight_D, bias_D, residual, gate, kind, n_groups)
    return _operator(
        implementation,
        x,
        weight_D,
        bias_D,
        residual=residual,
        gate=gate,
        kind=kind,
        eps=eps,
        n_groups=n_groups,
        sum_dtype=sum_dtype,
        out_dtype=out_dtype,
    )


def _check(
    x: Tensor, weight_D: Tensor, bias_D: Tensor | None, residual: Tensor | None, gate: Tensor | None, kind: str, n_groups: int
) -> None:
    if kind not in ("layer", "rms"):
        raise ValueError(f"kind must be 'layer' or 'rms', found {kind!r}")
    width = x.shape[-1]
    if n_groups < 1 or width % n_groups:
        raise ValueError(f"n_groups={n_groups} must divide the width {width} of x")
    shapes = {"weight_D": (weight_D, (width,)), "bias_D": (bias_D, (width,))}
    shapes |= {"x": (x, x.shape), "residual": (residual, x.shape), "gate": (gate, x.shape)}
    for name, (tensor, shape) in shapes.items():
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(f"{name} must be floating point, found {tensor.dtype}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must have shape {tuple(shape)} to fit x, found {tuple(tensor.shape)}")
