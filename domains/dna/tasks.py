"""The field's own tasks: votes over windows, tracks over bins of a genome, and a label at every base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection

from longseq.domains.dna.metrics import RecordVote, SiteF1, SiteScore, TrackScore
from longseq.domains.metrics import TokenLoss
from longseq.domains.tasks import IGNORE, Batch, Classification, Task, balanced_weights
from longseq.errors import ConfigError

# With more tracks or classes than this, only their mean is reported.
MOST_NAMED = 8


class WindowVote(Classification):
    """One label for each record, from its windows: trained on windows, reported for windows and for records.

    A record's class is the one with the largest mean log-probability over its windows. The batch holds `record` (B,).
    """

    def metrics(self) -> MetricCollection:
        found = super().metrics()
        found.add_metrics({f"record_{which}": RecordVote(which, len(self.labels)) for which in ("accuracy", "mcc", "f1")})
        return found

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        log_probabilities = outputs.float().log_softmax(-1)
        for metric in metrics.values():
            if isinstance(metric, RecordVote):
                metric.update(log_probabilities, batch["labels"], batch["record"])
            else:
                metric.update(log_probabilities.exp(), batch["labels"])


class Profile(Task):
    """Tracks along the genome: one value for every bin and track.

    Labels are (B, bins, T), NaN where a bin lies outside of its chromosome.

    Args:
        labels: names of the T tracks.
        mean: of each track's bins in train.
        std: of each track's bins in train.
        bin_size: bases of a bin.
        loss: `poisson` for counts and coverage (the model gives a rate), `mse` for any real numbers, standardised.
        dropout: on the bins' vectors.
        other_strand: the track that takes each track's place when a sequence is read from the other strand.
        smallest: value of the tracks in train.

    Raises:
        ConfigError: a Poisson rate is asked for, but values lie below 0.
    """

    name = "profile"
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        labels: Sequence[str],
        mean: Sequence[float],
        std: Sequence[float],
        *,
        bin_size: int,
        loss: str = "poisson",
        dropout: float = 0.0,
        other_strand: Sequence[int] | None = None,
        smallest: float = 0.0,
    ) -> None:
        super().__init__()
        if loss not in ("poisson", "mse"):
            raise ConfigError(f"task.loss must be poisson or mse, found {loss!r}")
        if loss == "poisson" and smallest < 0:
            raise ConfigError(
                f"a track holds {smallest:g}, and task.loss=poisson predicts no value below 0; choose task.loss=mse"
            )
        self.labels, self.bin_size, self.loss_name, self.dropout = list(labels), bin_size, loss, dropout
        self.other_strand = list(other_strand or range(len(self.labels)))
        # A track without any signal would divide by zero.
        for key, values in (("mean", mean), ("std", std)):
            scale = [float(value) if (key == "mean" and loss == "mse") or value > 0 else 1.0 for value in values]
            self.register_buffer(key, torch.tensor(scale, dtype=torch.float32), persistent=False)

    def head(self) -> dict[str, Any]:
        return {"name": "bins", "n_outputs": len(self.labels), "bin_size": self.bin_size, "dropout": self.dropout}

    def values(self, outputs: Tensor) -> Tensor:
        """The tracks in their own unit, from the model's outputs."""
        if self.loss_name == "poisson":
            return F.softplus(outputs.float()) * self.mean
        return outputs.float() * self.std + self.mean

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        truth = batch["labels"].float()
        known = ~truth.isnan()
        if self.loss_name == "poisson":
            # In units of each track's mean, so that tracks of different depth weigh alike.
            rate, count = F.softplus(outputs.float()), torch.where(known, truth, 0.0) / self.mean
            losses = rate - count * (rate + 1e-6).log()
        else:
            losses = (outputs.float() - (torch.where(known, truth, 0.0) - self.mean) / self.std).square()
        return (losses * known).sum() / known.sum().clamp(min=1)

    def metrics(self) -> MetricCollection:
        n = len(self.labels)
        found: dict[str, Any] = {"pearson": TrackScore("pearson", n), "mse": TrackScore("mse", n)}
        if 1 < n <= MOST_NAMED:
            found |= {f"pearson_{name}": TrackScore("pearson", n, i) for i, name in enumerate(self.labels)}
        return MetricCollection(found, compute_groups=False)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        metrics.update(self.values(outputs), batch["labels"].float())

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        means = self.values(outputs).mean(1).cpu().numpy()
        found = {f"predicted_{label}": means[:, i] for i, label in enumerate(self.labels)}
        if "labels" in batch:
            truth = batch["labels"].float().nanmean(1).cpu().numpy()
            found |= {label: truth[:, i] for i, label in enumerate(self.labels)}
        return found

    def outputs_from(self, predicted: Tensor) -> Tensor:
        if self.loss_name == "poisson":
            rate = (predicted / self.mean).clamp(min=1e-6)
            # The inverse of softplus, which is the identity for large values.
            return torch.where(rate > 20, rate, torch.log(torch.expm1(rate.clamp(max=20))))
        return (predicted - self.mean) / self.std

    def combine(self, outputs: Sequence[Tensor]) -> Tensor:
        return self.outputs_from(torch.stack([self.values(o) for o in outputs]).mean(0))

    def turn(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Outputs for the other strand, as they lie on this one."""
        del batch
        return outputs.flip(1)[..., self.other_strand]

    def config(self) -> dict[str, Any]:
        scale = {"mean": self.mean.tolist(), "std": self.std.tolist()}
        about = {"task": self.name, "labels": self.labels, "bin_size": self.bin_size, "loss": self.loss_name, **scale}
        return about | {"other_strand": self.other_strand}


class BaseLabels(Task):
    """A label at every base, such as splice sites: cross-entropy.

    The batch holds `labels` (B, L), -100 where there is none.

    Args:
        labels: the classes, in the order of the outputs.
        background: the class that most bases have; averages over classes leave it out.
        class_weights: per class, in the loss; `balanced` makes each class count alike, for which it needs `class_counts`.
        class_counts: bases of each class in train.
        dropout: before the last layer.
    """

    name = "base_labels"
    per_position = True
    class_weights: Tensor | None

    def __init__(
        self,
        labels: Sequence[str],
        *,
        background: str | None = None,
        class_weights: Sequence[float] | str | None = None,
        class_counts: Sequence[int] | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.labels, self.background, self.dropout = list(labels), background, dropout
        if isinstance(class_weights, str):
            class_weights = balanced_weights(class_weights, class_counts)
        if class_weights is not None and len(class_weights) != len(self.labels):
            raise ConfigError(
                f"task.class_weights must hold {len(self.labels)} numbers, one per label; found {len(class_weights)}"
            )
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def head(self) -> dict[str, Any]:
        return {"name": "bins", "n_outputs": len(self.labels), "bin_size": 1, "dropout": self.dropout}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        flat, labels = outputs.float().flatten(0, 1), batch["labels"].flatten()
        return F.cross_entropy(flat, labels, self.class_weights, ignore_index=IGNORE)

    def metrics(self) -> MetricCollection:
        n = len(self.labels)
        sites = [i for i, name in enumerate(self.labels) if name != self.background]
        found: dict[str, Any] = {
            "auprc": SiteScore("auprc", sites, n),
            "topk_accuracy": SiteScore("topk", sites, n),
            "f1": SiteF1(sites, n),
            "accuracy": TokenLoss("accuracy"),
            "loss": TokenLoss("loss"),
        }
        if 1 < len(sites) <= MOST_NAMED:
            found |= {f"auprc_{self.labels[i]}": SiteScore("auprc", [i], n) for i in sites}
        return MetricCollection(found, compute_groups=False)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        known = batch["labels"] != IGNORE
        labels, log_p = batch["labels"][known], outputs.float()[known].log_softmax(-1)
        guess = log_p.argmax(-1)
        sums = F.nll_loss(log_p, labels, reduction="sum"), known.sum(), (guess == labels).sum()
        for metric in metrics.values():
            if isinstance(metric, SiteScore):
                metric.update(log_p, labels)
            else:
                metric.update(*(sums if isinstance(metric, TokenLoss) else (guess, labels)))

    def outputs_from(self, predicted: Tensor) -> Tensor:
        return predicted.clamp(min=1e-12).log()

    def combine(self, outputs: Sequence[Tensor]) -> Tensor:
        return self.outputs_from(torch.stack([o.float().softmax(-1) for o in outputs]).mean(0))

    def turn(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Outputs for the other strand, as they lie on this one; rows are padded on the right."""
        length_B1 = batch["mask"].sum(1, keepdim=True)
        place_BL = (length_B1 - 1 - torch.arange(outputs.shape[1], device=outputs.device)).clamp(min=0)
        return outputs.gather(1, place_BL.unsqueeze(-1).expand_as(outputs))

    def config(self) -> dict[str, Any]:
        return {"task": self.name, "labels": self.labels, "background": self.background}
