"""Metrics of the field: equal error rate, word and character error rates, and labels per frame."""

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


class TextErrorRate(Metric):
    """Insertions, deletions and substitutions of all texts, over the length of all references.

    Args:
        words: count words; otherwise characters, blanks included.
    """

    errors: Tensor
    total: Tensor

    def __init__(self, words: bool) -> None:
        super().__init__()
        self.words = words
        self.add_state("errors", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: list[str], references: list[str]) -> None:
        """Adds texts and what they should have been."""
        for text, reference in zip(predicted, references, strict=True):
            pair = (text.split(), reference.split()) if self.words else (list(text), list(reference))
            self.errors += edit_distance(*pair)
            self.total += len(pair[1])

    def compute(self) -> Tensor:
        """The rate; above 1 if more is inserted than there was."""
        return (self.errors / self.total).float()


def edit_distance(a: list[str], b: list[str]) -> int:
    """The fewest insertions, deletions and substitutions that turn one list into the other (Levenshtein)."""
    before = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        row = [i]
        for j, y in enumerate(b, start=1):
            row.append(min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y)))
        before = row
    return before[-1]
