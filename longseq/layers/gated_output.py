"""What follows the state-space model in an S4 layer: activation, dropout, and a gated linear map that mixes channels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GatedOutput(nn.Module):
    """`glu(linear(dropout(gelu(y))))`, with a linear map to twice the width.

    Args:
        d_model: width in and out.
        dropout: probability of dropping.
        tie_dropout: drop whole channels of a row, for all positions alike, instead of single numbers.

    Paper: https://arxiv.org/abs/2111.00396, appendix D (the layer's architecture), with the GLU of the authors' code.
    """

    def __init__(self, d_model: int, dropout: float = 0.0, tie_dropout: bool = False) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"inner_dropout must be from 0 up to but not including 1, found {dropout}")
        self.dropout, self.tie_dropout = dropout, tie_dropout
        self.linear = nn.Linear(d_model, 2 * d_model)

    def forward(self, y: Tensor) -> Tensor:
        return F.glu(self.linear(self._drop(F.gelu(y))), dim=-1)

    def _drop(self, y: Tensor) -> Tensor:
        if not self.training or self.dropout == 0.0:
            return y
        if not self.tie_dropout or y.ndim < 3:
            return F.dropout(y, self.dropout)
        kept = torch.empty(y.shape[0], 1, y.shape[2], device=y.device).bernoulli_(1.0 - self.dropout)
        return y * (kept / (1.0 - self.dropout)).to(y.dtype)
