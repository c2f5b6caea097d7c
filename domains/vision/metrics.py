"""Metrics of vision that the shared ones do not hold."""

import torch
from torch import Tensor
from torchmetrics import Metric


class MaskedError(Metric):
    """Mean squared error of hidden pixels, or its peak signal-to-noise ratio; exact under DDP.

    Args:
        which: `mse` on pixels between 0 and 1, or `psnr`, `-10 log10(mse)` in decibels.
    """

    total: Tensor
    count: Tensor

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which
        for name in ("total", "count"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, squared: Tensor, count: Tensor) -> None:
        """Adds a batch's summed squared errors and their number."""
        self.total += squared.double()
        self.count += count.double()

    def compute(self) -> Tensor:
        """The mean over all hidden pixels so far."""
        mse = self.total / self.count
        return (mse if self.which == "mse" else -10 * torch.log10(mse)).float()
