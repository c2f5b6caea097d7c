"""The norms of the residual stack. Neither is decayed: both mark their parameters so."""

from typing import Any

import torch
from torch import Tensor, nn

from longseq.layers.marks import mark
from longseq.ops.add_norm import Kind, add_norm


class Norm(nn.Module):
    """A norm over the last dimension, computed in fp32 or wider, alone or together with the residual sum before it."""

    kind: Kind

    def __init__(self, d_model: int, eps: float, *, bias: bool) -> None:
        super().__init__()
        self.eps = eps
        self.weight = mark(nn.Parameter(torch.ones(d_model)), weight_decay=0.0)
        self.bias = mark(nn.Parameter(torch.zeros(d_model)), weight_decay=0.0) if bias else None

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """`norm(x)`, in x's dtype or another."""
        return add_norm(x, self.weight, self.bias, out_dtype=out_dtype, **self._options())[0]

    def add(self, update: Tensor, x: Tensor, out_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """`norm(x + update)` and the sum, in one pass."""
        return add_norm(update, self.weight, self.bias, residual=x, out_dtype=out_dtype, **self._options())

    def _options(self) -> dict[str, Any]:
        return {"kind": self.kind, "eps": self.eps}


class RMSNorm(Norm):
    """`y = x / sqrt(mean(x^2) + eps) * weight` over the last dimension, computed in fp32 or wider.

    Paper: Root Mean Square Layer Normalization, https://arxiv.org/abs/1910.07467, equation 4.
    """

    kind = "rms"

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__(d_model, eps, bias=False)


class LayerNorm(Norm):
    """`y = (x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, computed in fp32 or wider.

    Paper: Layer Normalization, https://arxiv.org/abs/1607.06450, section 3.
    """

    kind = "layer"

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__(d_model, eps, bias=True)


NORMS: dict[str, type[RMSNorm] | type[LayerNorm]] = {"layer": LayerNorm, "rms": RMSNorm}


def build_norm(name: str, d_model: int, eps: float = 1e-5) -> RMSNorm | LayerNorm:
    """A norm by name: `layer` or `rms`."""
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, found {name!r}")
    return NORMS[name](d_model, eps)
