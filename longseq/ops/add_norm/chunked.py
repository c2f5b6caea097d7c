"""The sum and its norm in PyTorch's own operators: any device, traceable."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F


def add_norm_chunked(
    x: Tensor,
    weight_D: Tensor,
    bias_D: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    kind: Literal["layer", "rms"] = "rms",
    eps: float = 1e-5,
    n_groups: int = 1,
    sum_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum and its norm; arguments as in `longseq.ops.add_norm.add_norm`."""
    total = _add(x, residual, sum_dtype)
    wide = torch.promote_types(total.dtype, torch.float32)
    value = total.to(wide)
    if gate is not None:
        value = value * F.silu(gate.to(wide))
    weight_D, bias_D = weight_D.to(wide), None if bias_D is None else bias_D.to(wide)
    if n_groups == 1:
        y = _norm(value, weight_D, bias_D, kind, eps)
    else:
        y = _norm(value.unflatten(-1, (n_groups, -1)), None, None, kind, eps).flatten(-2) * weight_D
        y = y if bias_D is None else y + bias_D
    return y.to(out_dtype or total.dtype), total


def _add(x: Tensor, residual: Tensor | None, sum_dtype: torch.dtype | None) -> Tensor:
    """The sum in its dtype, rounded once."""
    if residual is None:
        return x if sum_dtype is None else x.to(sum_dtype)
    if sum_dtype is not None and torch.promote_types(x.dtype, residual.dtype) != sum_dtype:
        residual = residual.to(torch.promote_types(residual.dtype, sum_dtype))
    total = residual + x
    return total if sum_dtype is None else total.to(sum_dtype)


def _norm(value: Tensor, weight: Tensor | None, bias: Tensor | None, kind: str, eps: float) -> Tensor:
    if kind == "layer":
        return F.layer_norm(value, value.shape[-1:], weight, bias, eps)
    y = F.rms_norm(value, value.shape[-1:], weight, eps)
    return y if bias is None else y + bias
