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


class ScalarNorm(Norm):
    """`y = (x - mean + bias) / sqrt(var + eps) * weight` with one bias and one weight for all channels.

    The norm of published S4 and SaShiMi, whose training code keeps time last; it adds nothing to the variance, which here
    keeps positions of zeros finite.
    """

    def __init__(self, d_model: int, eps: float = 1e-10) -> None:
        del d_model
        super().__init__(1, eps, bias=True)

    def forward(self, x: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        variance, mean = torch.var_mean(wide, dim=-1, correction=0, keepdim=True)
        assert self.bias is not None
        y = (wide - mean + self.bias) * (torch.rsqrt(variance + self.eps) * self.weight)
        return y.to(out_dtype or x.dtype)

    def add(self, update: Tensor, x: Tensor, out_dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        total = x + update
        return self.forward(total, out_dtype), total


NORMS: dict[str, type[RMSNorm] | type[LayerNorm] | type[ScalarNorm]] = {
    "layer": LayerNorm,
    "rms": RMSNorm,
    "scalar": ScalarNorm,
}


def build_norm(name: str, d_model: int, eps: float | None = None) -> Norm:
    """A norm by name: `layer`, `rms` or `scalar`; `eps` is its own if left out."""
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, found {name!r}")
    return NORMS[name](d_model) if eps is None else NORMS[name](d_model, eps)
