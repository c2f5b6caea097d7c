"""The equal error rate, which speaker and event detection report."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_eer
from torchmetrics.utilities import dim_zero_cat


class EqualErrorRate(Metric):
    """Where as many impostors are accepted as targets are refused.

    Of two classes it is that of the second; of more, the mean over the classes, each against all others.
    """

    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds probabilities (B, C) and labels: classes (B,), or 0/1 per tag (B, C)."""
        self.scores.append(probabilities)
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """The rate, from 0 to 1; NaN if no class has both kinds of rows."""
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
        if labels.ndim == 1:
            labels = torch.nn.functional.one_hot(labels, scores.shape[1])
        classes = [1] if scores.shape[1] == 2 and bool((labels.sum(1) == 1).all()) else range(scores.shape[1])
        rates = [binary_eer(scores[:, c].float(), labels[:, c].long()) for c in classes if 0 < labels[:, c].sum() < len(labels)]
        return torch.stack(rates).mean() if rates else torch.tensor(math.nan, device=scores.device)
