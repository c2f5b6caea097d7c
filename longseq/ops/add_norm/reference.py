"""The sum and its norm, written out as the equations are."""

from typing import Literal

import torch
from torch import Tensor


def add_norm_reference(
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
    """The sum and its norm, group by group; arguments as in `longseq.ops.add_norm.add_norm`."""
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide) if residual is None else residual.to(wide) + x.to(wide)
    promoted = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    total = total.to(sum_dtype or promoted)
    value = total.to(wide)
    if gate is not None:
        z = gate.to(wide)
        value = value * z / (1.0 + torch.exp(-z))
    normed = []
    for group in value.chunk(n_groups, dim=-1):
        if kind == "layer":
            group = group - group.mean(-1, keepdim=True)
        normed.append(group / torch.sqrt((group * group).mean(-1, keepdim=True) + eps))
    y = torch.cat(normed, dim=-1) * weight_D.to(wide)
    if bias_D is not None:
        y = y + bias_D.to(wide)
    return y.to(out_dtype or total.dtype), total
