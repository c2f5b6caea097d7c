"""The norms of the residual stack. Neither is decayed: both mark their parameters so."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from longseq.layers.marks import mark


class RMSNorm(nn.Module):
    """`y = x / sqrt(mean(x^2) + eps) * weight` over the last dimension, computed in fp32 or wider.

    Paper: Root Mean Square Layer Normalization, https://arxiv.org/abs/1910.07467, equation 4.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = mark(nn.Parameter(torch.ones(d_model)), weight_decay=0.0)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.rms_norm(x.to(wide), (x.shape[-1],), self.weight.to(wide), self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """`y = (x - mean) / sqrt(var + eps) * weight + bias` over the last dimension, computed in fp32 or wider.

    Paper: Layer Normalization, https://arxiv.org/abs/1607.06450, section 3.
    """

    def __init__(self, d_model: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.weight = mark(nn.Parameter(torch.ones(d_model)), weight_decay=0.0)
        self.bias = mark(nn.Parameter(torch.zeros(d_model)), weight_decay=0.0)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return F.layer_norm(x.to(wide), (x.shape[-1],), self.weight.to(wide), self.bias.to(wide), self.eps).to(x.dtype)


NORMS: dict[str, type[nn.Module]] = {"layer": LayerNorm, "rms": RMSNorm}


def build_norm(name: str, d_model: int, eps: float = 1e-5) -> nn.Module:
    """A norm by name: `layer` or `rms`."""
    if name not in NORMS:
        raise ValueError(f"norm must be one of {', '.join(NORMS)}, found {name!r}")
    return NORMS[name](d_model, eps)
