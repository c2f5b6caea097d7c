"""What a model is trained for: its head, loss, metrics and predictions. Domains share these and add their own.

A batch is a dict of tensors: `inputs` (B, L) or (B, L, C), `mask` (B, L) with True at real positions, `index` (B,) row
numbers, and what the task needs, such as `labels`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import (
    MeanAbsoluteError,
    MeanSquaredError,
    Metric,
    MetricCollection,
    PearsonCorrCoef,
    SpearmanCorrCoef,
)
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAccuracy,
    MultilabelF1Score,
)

from longseq.domains.metrics import BinaryScores, Determination, LabelScores, Matthews, OneVsRestScores, TokenLoss
from longseq.errors import ConfigError

Batch = dict[str, Tensor]
IGNORE = -100


class Task(nn.Module, ABC):
    """One way of training a model.

    Attributes:
        name: as in `task=`.
        per_position: whether the model answers at every position.
    """

    name: str
    per_position = False

    @abstractmethod
    def head(self) -> dict[str, Any]:
        """Name and options of the model's head."""

    @abstractmethod
    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The mean training loss of a batch."""

    @abstractmethod
    def metrics(self) -> MetricCollection:
        """Fresh metrics, which `update` fills."""

    @abstractmethod
    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        """Adds a batch to the metrics."""

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """Columns of predictions.csv for the batch's rows."""
        del outputs, batch
        return {}

    def outputs_from(self, predicted: Tensor) -> Tensor:
        """What a model would have to put out to predict this: the inverse of the task's activation and scaling."""
        return predicted

    def score_predictions(self, predicted: Tensor, labels: Tensor) -> dict[str, float]:
        """The metrics of predictions that some other method made: probabilities (B, O), or quantities (B, O)."""
        metrics = self.metrics()
        self.update(metrics, self.outputs_from(predicted.contiguous()), {"labels": labels})
        return {name: float(value) for name, value in metrics.compute().items()}

    def combine(self, outputs: Sequence[Tensor]) -> Tensor:
        """One output from those of several views of the same rows, such as the two strands."""
        return torch.stack(list(outputs)).mean(0)

    def config(self) -> dict[str, Any]:
        """What the saved model needs to know of the task."""
        return {"task": self.name}


class Classification(Task):
    """One label of several for each row: cross-entropy.

    Args:
        labels: the classes, in the order of the outputs.
        pool: how positions become one vector.
        dropout: before the last layer.
        class_weights: per class, in the loss; `balanced` makes each class count alike, for which it needs `class_counts`.
        class_counts: rows of each class in train.
        label_smoothing: share of the target spread over all classes.
    """

    name = "classification"
    class_weights: Tensor | None

    def __init__(
        self,
        labels: Sequence[str],
        *,
        pool: str = "mean",
        dropout: float = 0.0,
        class_weights: Sequence[float] | str | None = None,
        class_counts: Sequence[int] | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.labels = list(labels)
        self.pool, self.dropout, self.label_smoothing = pool, dropout, label_smoothing
        if isinstance(class_weights, str):
            class_weights = balanced_weights(class_weights, class_counts)
        if class_weights is not None and len(class_weights) != len(self.labels):
            raise ConfigError(
                f"task.class_weights must hold {len(self.labels)} numbers, one per label; found {len(class_weights)}"
            )
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def head(self) -> dict[str, Any]:
        return {"name": "pool", "n_outputs": len(self.labels), "pool": self.pool, "dropout": self.dropout}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs.float(), batch["labels"], self.class_weights, label_smoothing=self.label_smoothing)

    def metrics(self) -> MetricCollection:
        n = len(self.labels)
        found: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(n, average="micro", validate_args=False),
            "mcc": Matthews(n),
            "f1": MulticlassF1Score(n, average="macro", validate_args=False),
        }
        if n == 2:
            found |= {"auroc": BinaryScores("auroc"), "auprc": BinaryScores("auprc")}
        else:
            found |= {"auroc": OneVsRestScores("auroc"), "auprc": OneVsRestScores("auprc")}
        return MetricCollection(found, compute_groups=False)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        metrics.update(outputs.float().softmax(-1), batch["labels"])

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        probabilities = outputs.float().softmax(-1).cpu().numpy()
        names = np.array(self.labels)
        found = {"prediction": names[probabilities.argmax(-1)]}
        if "labels" in batch:
            found["label"] = names[batch["labels"].cpu().numpy()]
        return found | {f"p_{label}": probabilities[:, i] for i, label in enumerate(self.labels)}

    def outputs_from(self, predicted: Tensor) -> Tensor:
        return predicted.clamp(min=1e-12).log()

    def combine(self, outputs: Sequence[Tensor]) -> Tensor:
        # Averaged as probabilities, which is what strand averaging means in the field.
        return self.outputs_from(torch.stack([o.float().softmax(-1) for o in outputs]).mean(0))

    def config(self) -> dict[str, Any]:
        return {"task": self.name, "labels": self.labels}


def balanced_weights(name: str, counts: Sequence[int] | None) -> list[float]:
    """Weights inversely proportional to the classes' counts, of mean 1 over the rows."""
    if name != "balanced" or counts is None:
        raise ConfigError(f"task.class_weights must be null, balanced, or one number per label; found {name!r}")
    return [sum(counts) / (len(counts) * max(1, count)) for count in counts]


class MultiLabel(Task):
    """Any number of labels for each row: binary cross-entropy per label.

    Args:
        labels: in the order of the outputs.
        pool: how positions become one vector.
        dropout: before the last layer.
    """

    name = "multilabel"

    def __init__(self, labels: Sequence[str], *, pool: str = "mean", dropout: float = 0.0) -> None:
        super().__init__()
        self.labels, self.pool, self.dropout = list(labels), pool, dropout

    def head(self) -> dict[str, Any]:
        return {"name": "pool", "n_outputs": len(self.labels), "pool": self.pool, "dropout": self.dropout}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.binary_cross_entropy_with_logits(outputs.float(), batch["labels"].float())

    def metrics(self) -> MetricCollection:
        n = len(self.labels)
        return MetricCollection(
            {
                "accuracy": MultilabelAccuracy(n, validate_args=False),
                "f1": MultilabelF1Score(n, validate_args=False),
                "auroc": LabelScores("auroc"),
                "auprc": LabelScores("auprc"),
            },
            compute_groups=False,
        )

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        metrics.update(outputs.float().sigmoid(), batch["labels"].long())

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        probabilities = outputs.float().sigmoid().cpu().numpy()
        found = {f"p_{label}": probabilities[:, i] for i, label in enumerate(self.labels)}
        if "labels" in batch:
            truth = batch["labels"].cpu().numpy()
            found |= {label: truth[:, i] for i, label in enumerate(self.labels)}
        return found

    def outputs_from(self, predicted: Tensor) -> Tensor:
        return torch.logit(predicted, eps=1e-7)

    def combine(self, outputs: Sequence[Tensor]) -> Tensor:
        return self.outputs_from(torch.stack([o.float().sigmoid() for o in outputs]).mean(0))

    def config(self) -> dict[str, Any]:
        return {"task": self.name, "labels": self.labels}


class Regression(Task):
    """Real numbers for each row: squared error on values standardised with the training set's mean and deviation.

    Args:
        labels: names of the targets.
        mean: of each target in train.
        std: of each target in train.
        pool: how positions become one vector.
        dropout: before the last layer.
    """

    name = "regression"
    mean: Tensor
    std: Tensor

    def __init__(
        self, labels: Sequence[str], mean: Sequence[float], std: Sequence[float], *, pool: str = "mean", dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.labels, self.pool, self.dropout = list(labels), pool, dropout
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)
        # A constant target would divide by zero.
        deviation = [value if value > 0 else 1.0 for value in std]
        self.register_buffer("std", torch.tensor(deviation, dtype=torch.float32), persistent=False)

    def head(self) -> dict[str, Any]:
        return {"name": "pool", "n_outputs": len(self.labels), "pool": self.pool, "dropout": self.dropout}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(outputs.float(), (batch["labels"].float() - self.mean) / self.std)

    def metrics(self) -> MetricCollection:
        n = len(self.labels)
        found: dict[str, Metric | MetricCollection] = {
            "mse": MeanSquaredError(),
            "mae": MeanAbsoluteError(),
            "r2": Determination(),
        }
        if n == 1:
            found |= {"pearson": PearsonCorrCoef(), "spearman": SpearmanCorrCoef()}
        return MetricCollection(found, compute_groups=False)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        values, labels = outputs.float() * self.std + self.mean, batch["labels"].float()
        if len(self.labels) == 1:
            values, labels = values.squeeze(-1), labels.squeeze(-1)
        metrics.update(values, labels)

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        values = (outputs.float() * self.std + self.mean).cpu().numpy()
        found = {f"predicted_{label}": values[:, i] for i, label in enumerate(self.labels)}
        if "labels" in batch:
            truth = batch["labels"].cpu().numpy()
            found |= {label: truth[:, i] for i, label in enumerate(self.labels)}
        return found

    def outputs_from(self, predicted: Tensor) -> Tensor:
        return (predicted - self.mean) / self.std

    def config(self) -> dict[str, Any]:
        return {"task": self.name, "labels": self.labels, "mean": self.mean.tolist(), "std": self.std.tolist()}


class LanguageModel(Task):
    """The next token at every position: cross-entropy over the vocabulary.

    The batch holds `inputs` (B, L) and `labels` (B, L), already shifted, with -100 where no prediction is asked for.

    Args:
        vocab_size: rows of the embedding, which may be padded beyond the real tokens.
        tie: share the embedding's matrix with the output.
        unit: what a token is, in the name of the metric: `bits_per_base`.
    """

    name = "lm"
    per_position = True

    def __init__(self, vocab_size: int, *, tie: bool = True, unit: str = "token") -> None:
        super().__init__()
        self.vocab_size, self.tie, self.unit = vocab_size, tie, unit

    def head(self) -> dict[str, Any]:
        return {"name": "token", "n_outputs": self.vocab_size, "tie": self.tie}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE)

    def metrics(self) -> MetricCollection:
        names = {"loss": "loss", f"bits_per_{self.unit}": "bits", "perplexity": "perplexity", "accuracy": "accuracy"}
        return MetricCollection({name: TokenLoss(which) for name, which in names.items()}, compute_groups=False)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        labels = batch["labels"]
        losses = F.cross_entropy(outputs.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORE, reduction="sum")
        count = (labels != IGNORE).sum()
        correct = ((outputs.argmax(-1) == labels) & (labels != IGNORE)).sum()
        metrics.update(losses, count, correct)

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """Log likelihood of each row's targets, in nats, and bits per token."""
        labels_BL = batch["labels"]
        losses_BL = F.cross_entropy(outputs.float().transpose(1, 2), labels_BL, ignore_index=IGNORE, reduction="none")
        total_B, count_B = losses_BL.double().sum(1), (labels_BL != IGNORE).sum(1)
        bits_B = total_B / count_B.clamp(min=1) / np.log(2)
        return {"log_likelihood": -total_B.cpu().numpy(), f"bits_per_{self.unit}": bits_B.cpu().numpy()}


class MaskedLanguageModel(LanguageModel):
    """The hidden tokens from both sides: cross-entropy at masked positions; needs a backbone that is not causal."""

    name = "mlm"
