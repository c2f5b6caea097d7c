"""Metrics that torchmetrics does not hold in the form that several domains need; exact under DDP."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import Metric, R2Score
from torchmetrics.functional.classification import binary_auroc, binary_average_precision
from torchmetrics.utilities import dim_zero_cat


class BinaryScores(Metric):
    """AUROC or AUPRC of the second of two classes, from probabilities (B, 2).

    Args:
        which: `auroc` or `auprc`.
    """

    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, which: str) -> None:
        super().__init__()
        self.compute_score = {"auroc": binary_auroc, "auprc": binary_average_precision}[which]
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds probabilities (B, 2) and labels (B,)."""
        self.scores.append(probabilities[:, 1])
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """The score; NaN while only one class has been seen, for which it is not defined."""
        labels = dim_zero_cat(self.labels)
        if labels.min() == labels.max():
            return torch.tensor(math.nan, device=labels.device)
        return self.compute_score(dim_zero_cat(self.scores), labels)


class LabelScores(Metric):
    """The mean AUROC or AUPRC over labels, from probabilities (B, K); labels that all rows have, or none, are left out.

    Args:
        which: `auroc` or `auprc`.
    """

    scores: list[Tensor]
    labels: list[Tensor]

    def __init__(self, which: str) -> None:
        super().__init__()
        self.compute_score = {"auroc": binary_auroc, "auprc": binary_average_precision}[which]
        self.add_state("scores", default=[], dist_reduce_fx="cat")
        self.add_state("labels", default=[], dist_reduce_fx="cat")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds probabilities and labels, both (B, K)."""
        self.scores.append(probabilities)
        self.labels.append(labels)

    def compute(self) -> Tensor:
        """The mean; NaN while no label has been seen both present and absent."""
        scores, labels = dim_zero_cat(self.scores), dim_zero_cat(self.labels)
        known = (labels.amin(0) != labels.amax(0)).nonzero().flatten().tolist()
        found = [self.compute_score(scores[:, k], labels[:, k]) for k in known]
        return torch.stack(found).mean() if found else torch.tensor(math.nan, device=labels.device)


class OneVsRestScores(LabelScores):
    """The mean AUROC or AUPRC of each of several classes against the others, from probabilities (B, C) and labels (B,).

    Classes without a row, for which neither is defined, are left out.
    """

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds probabilities (B, C) and labels (B,)."""
        super().update(probabilities, F.one_hot(labels, probabilities.shape[1]))


class Matthews(Metric):
    """Matthews correlation coefficient over classes; 0, as in scikit-learn, where all answers or labels are of one class.

    Args:
        n_classes: number of classes.
    """

    confusion: Tensor

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.add_state("confusion", default=torch.zeros(n_classes, n_classes, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, probabilities: Tensor, labels: Tensor) -> None:
        """Adds probabilities (B, C) and labels (B,)."""
        self.confusion += confusion_counts(probabilities.argmax(-1), labels, len(self.confusion))

    def compute(self) -> Tensor:
        """The coefficient."""
        return matthews(self.confusion).float()


def confusion_counts(predicted: Tensor, labels: Tensor, n_classes: int) -> Tensor:
    """How often each label (row) was given each class (column), float64 (C, C)."""
    return torch.bincount(labels * n_classes + predicted, minlength=n_classes**2).view(n_classes, n_classes).double()


def matthews(confusion: Tensor) -> Tensor:
    """Matthews correlation coefficient of a float64 confusion matrix; 0 where it is not defined.

    Paper: Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006, equation 8.
    """
    labels, answers, total = confusion.sum(1), confusion.sum(0), confusion.sum()
    covariance = confusion.trace() * total - labels @ answers
    spread = (total**2 - labels @ labels) * (total**2 - answers @ answers)
    return torch.where(spread > 0, covariance / spread.clamp(min=1).sqrt(), 0.0)


class Determination(R2Score):
    """The coefficient of determination; NaN for a single row, for which it is not defined."""

    def compute(self) -> Tensor:
        """The score, the mean over targets."""
        return super().compute() if self.total > 1 else torch.tensor(math.nan, device=self.total.device)


class TokenLoss(Metric):
    """Mean token loss over a whole split, in the unit asked for.

    Args:
        which: `loss` (nats), `bits`, `perplexity` or `accuracy`.
    """

    total: Tensor
    count: Tensor
    correct: Tensor

    def __init__(self, which: str) -> None:
        super().__init__()
        self.which = which
        # fp64: a genome has more tokens than fp32 can count one by one.
        for name in ("total", "count", "correct"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor, correct: Tensor) -> None:
        """Adds a batch's summed loss in nats, its number of tokens, and how many were predicted right."""
        self.total += total.double()
        self.count += count.double()
        self.correct += correct.double()

    def compute(self) -> Tensor:
        """The mean in the unit asked for."""
        nats = self.total / self.count
        values = {"loss": nats, "bits": nats / math.log(2), "perplexity": nats.exp()}
        return values.get(self.which, self.correct / self.count).float()
