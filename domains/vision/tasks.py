"""Tasks of vision: classification with top-5, and masked patches. Pixel models are the shared `lm` with bits per dimension."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from longseq.domains.tasks import Batch, Classification, Task
from longseq.domains.vision.metrics import MaskedError


class ImageClassification(Classification):
    """The shared classification with top-5 accuracy where there are more than five classes; top-1 is `accuracy`."""

    def metrics(self) -> MetricCollection:
        found = super().metrics()
        if len(self.labels) > 5:
            found.add_metrics(
                {"top5_accuracy": MulticlassAccuracy(len(self.labels), top_k=5, average="micro", validate_args=False)}
            )
        return found


class MaskedPatch(Task):
    """The pixels of hidden cells from those that are shown: squared error at hidden cells.

    The batch holds `inputs` with NaN at hidden pixels, `targets` (B, L, P) cells between 0 and 1, and `hidden` (B, L).

    Args:
        n_values: P, pixels times channels of a cell.
        mean: of all pixels in train, which a prediction of zero stands for.
        std: likewise; outputs are in its units.
        normalize_cells: in the loss, each cell's values standardised by its own mean and deviation, which makes texture count
            as much as contrast. Metrics then are of the standardised values too.

    Paper: SimMIM, https://arxiv.org/abs/2111.09886, section 3 (hidden cells stay in the sequence, a linear head); normalised
    cells are MAE's, https://arxiv.org/abs/2111.06377, section 4.1.
    """

    name = "masked_patch"
    per_position = True
    mean: Tensor
    std: Tensor

    def __init__(self, n_values: int, *, mean: float = 0.0, std: float = 1.0, normalize_cells: bool = False) -> None:
        super().__init__()
        self.n_values, self.normalize_cells = n_values, normalize_cells
        self.register_buffer("mean", torch.tensor(float(mean)), persistent=False)
        self.register_buffer("std", torch.tensor(float(std) or 1.0), persistent=False)

    def head(self) -> dict[str, Any]:
        return {"name": "token", "n_outputs": self.n_values, "bias": True}

    def standardised(self, cells_BLP: Tensor) -> Tensor:
        """Targets in the units of the outputs."""
        if not self.normalize_cells:
            return (cells_BLP - self.mean) / self.std
        mean = cells_BLP.mean(-1, keepdim=True)
        return (cells_BLP - mean) / (cells_BLP.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    def squared_errors(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the squared errors at hidden cells in the outputs' units, and their number."""
        hidden = batch["hidden"]
        errors_BL = (outputs.float() - self.standardised(batch["targets"])).square().mean(-1)
        return errors_BL.masked_fill(~hidden, 0.0).sum(), hidden.sum()

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        total, count = self.squared_errors(outputs, batch)
        return total / count

    def metrics(self) -> MetricCollection:
        names = ["mse"] if self.normalize_cells else ["mse", "psnr"]
        return MetricCollection({name: MaskedError(name) for name in names}, compute_groups=False)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        total, count = self.squared_errors(outputs, batch)
        # Of pixels between 0 and 1, which can be compared between data sets.
        metrics.update(total if self.normalize_cells else total * self.std.square(), count)

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """How well each row's hidden cells were told from the others, in the units of the metrics."""
        hidden = batch["hidden"]
        errors_BL = (outputs.float() - self.standardised(batch["targets"])).square().mean(-1).masked_fill(~hidden, 0.0)
        mse_B = errors_BL.sum(1) / hidden.sum(1)
        if self.normalize_cells:
            return {"mse": mse_B.cpu().numpy()}
        mse_B = mse_B * self.std.square()
        return {"mse": mse_B.cpu().numpy(), "psnr": (-10 * mse_B.log10()).cpu().numpy()}

    def pixels(self, outputs: Tensor) -> Tensor:
        """Predicted cells between 0 and 1."""
        return (outputs.float() * self.std + self.mean).clamp(0, 1)

    def config(self) -> dict[str, Any]:
        return {"task": self.name, "mean": float(self.mean), "std": float(self.std), "normalize_cells": self.normalize_cells}
