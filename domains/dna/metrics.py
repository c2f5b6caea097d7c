"""Metrics in the field's own units: bits per base, votes over windows, tracks along a genome, rare sites among many bases."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score
from torchmetrics.utilities import dim_zero_cat

from longseq.domains.base import Row
from longseq.domains.metrics import confusion_counts, matthews


def language_scores(bits: float) -> Row:
    """The metrics of a language model that needs so many bits per base; 2 is a guess among four bases."""
    return {"bits_per_base": bits, "loss": bits * math.log(2), "perplexity": 2.0**bits}


class RecordVote(Metric):
    """A score of whole records, whose class is the one with the largest mean log-probability over their windows.

    Args:
        which: `accuracy`, `mcc` or `f1` (macro).
        n_classes: number of classes.
    """

    log_probabilities: list[Tensor]
    labels: list[Tensor]
    records: list[Tensor]

    def __init__(self, which: str, n_classes: int) -> None:
        super().__init__()
        self.which, self.n_classes = which, n_classes
        for name in ("log_probabilities", "labels", "records"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, log_probabilities: Tensor, labels: Tensor, records: Tensor) -> None:
        """Adds windows: log-probabilities (B, C), their records' labels (B,) and the records' numbers (B,)."""
        self.log_probabilities.append(log_probabilities)
        self.labels.append(labels)
        self.records.append(records)

    def compute(self) -> Tensor:
        """The score over records."""
        values, labels = dim_zero_cat(self.log_probabilities).double(), dim_zero_cat(self.labels)
        found, place = torch.unique(dim_zero_cat(self.records), return_inverse=True)
        # The sum decides as the mean does: every class has as many windows of a record as any other.
        sums = torch.zeros(len(found), values.shape[1], dtype=values.dtype, device=values.device).index_add(0, place, values)
        truth = torch.zeros(len(found), dtype=labels.dtype, device=labels.device)
        truth[place] = labels
        voted = sums.argmax(1)
        if self.which == "accuracy":
            return multiclass_accuracy(voted, truth, self.n_classes, average="micro", validate_args=False)
        if self.which == "mcc":
            return matthews(confusion_counts(voted, truth, self.n_classes)).float()
        return multiclass_f1_score(voted, truth, self.n_classes, average="macro", validate_args=False)


class SiteF1(Metric):
    """F1 score, the mean over some classes; those that neither stand there nor are predicted are left out.

    Args:
        classes: the classes to average over.
        n_classes: number of classes.
    """

    confusion: Tensor

    def __init__(self, classes: list[int], n_classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("confusion", default=torch.zeros(n_classes, n_classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, labels: Tensor) -> None:
        """Adds bases: predicted classes and labels, both (N,)."""
        self.confusion += confusion_counts(predicted, labels, len(self.confusion))

    def compute(self) -> Tensor:
        """The mean; NaN if there is no such class."""
        sizes = (self.confusion.sum(0) + self.confusion.sum(1))[self.classes]
        scores = 2 * self.confusion.diagonal()[self.classes] / sizes
        return scores[sizes > 0].mean().float()


class TrackScore(Metric):
    """Pearson correlation or squared error of tracks over all bins of a split, in constant memory.

    Args:
        which: `pearson` or `mse`.
        n_tracks: number of tracks.
        track: give this track's score; None for the mean over tracks.
    """

    moments: Tensor

    def __init__(self, which: str, n_tracks: int, track: int | None = None) -> None:
        super().__init__()
        self.which, self.track = which, track
        # n, x, y, xx, yy, xy of every track; fp64, for a genome has more bins than fp32 can add up.
        self.add_state("moments", default=torch.zeros(6, n_tracks, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, truth: Tensor) -> None:
        """Adds bins (B, bins, T); those whose truth is NaN do not count."""
        known = ~truth.isnan()
        x, y = (torch.where(known, values.double(), 0.0).flatten(0, 1) for values in (predicted, truth))
        self.moments += torch.stack([known.flatten(0, 1).double().sum(0), *(v.sum(0) for v in (x, y, x * x, y * y, x * y))])

    def compute(self) -> Tensor:
        """The score; correlations are NaN where one side is constant."""
        n, x, y, xx, yy, xy = self.moments
        if self.which == "mse":
            scores = (xx - 2 * xy + yy) / n
        else:
            spread_x, spread_y = n * xx - x * x, n * yy - y * y
            constant = (spread_x <= 1e-9 * n * xx) | (spread_y <= 1e-9 * n * yy)
            scores = torch.where(constant, math.nan, (n * xy - x * y) / (spread_x * spread_y).clamp(min=1e-300).sqrt())
        return (scores.nanmean() if self.track is None else scores[self.track]).float()


class SiteScore(Metric):
    """Area under the precision-recall curve, or top-k accuracy, of one class among all bases, in constant memory.

    Scores are counted in 4,096 bins of their log-odds, between -20 and 20: the area is exact but for ties within a bin.
    Top-k accuracy takes as many of the highest scores as there are true sites (Jaganathan et al. 2019).

    Args:
        which: `auprc` or `topk`.
        classes: the classes to average over; those without a site are left out.
        n_classes: number of classes.
    """

    counts: Tensor
    BINS, REACH = 4096, 20.0

    def __init__(self, which: str, classes: list[int], n_classes: int) -> None:
        super().__init__()
        self.which, self.classes = which, classes
        self.add_state("counts", default=torch.zeros(n_classes, 2, self.BINS, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, log_probabilities: Tensor, labels: Tensor) -> None:
        """Adds bases: log-probabilities (N, C) and labels (N,)."""
        log_p = log_probabilities.double()
        odds = log_p - torch.log1p(-log_p.exp().clamp(max=1 - 1e-12))
        place = ((odds + self.REACH) / (2 * self.REACH) * self.BINS).long().clamp(0, self.BINS - 1)
        for c in self.classes:
            cell = (labels == c).long() * self.BINS + place[:, c]
            self.counts[c] += torch.bincount(cell, minlength=2 * self.BINS).view(2, self.BINS)

    def compute(self) -> Tensor:
        """The mean over the classes; NaN if none has a site."""
        scores = [self._score(*self.counts[c].flip(-1)) for c in self.classes if self.counts[c, 1].sum() > 0]
        return torch.stack(scores).mean().float() if scores else torch.tensor(math.nan, device=self.counts.device)

    def _score(self, negatives: Tensor, positives: Tensor) -> Tensor:
        total = positives.sum()
        found, called = positives.cumsum(0), (positives + negatives).cumsum(0)
        if self.which == "auprc":
            return (positives / total * found / called.clamp(min=1)).sum()
        last = int(torch.searchsorted(called, total))
        before_found, before_called = (
            values[last] - step[last] for values, step in ((found, positives), (called, positives + negatives))
        )
        # Within the bin where k is reached, sites and other bases are taken in their proportion.
        share = (total - before_called) / (called[last] - before_called).clamp(min=1)
        return (before_found + share * positives[last]) / total
