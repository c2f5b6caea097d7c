"""Tasks of series: forecasts with intervals, filling in, and anomaly scores.

A batch holds `inputs` (B, L, C) in original units with NaN where nothing was observed, `targets` of the same kind, and
`scale` and `mase` (B, C), the training deviation and the unit of MASE of each row's channels; `report` (B,) marks rows for
predictions.csv, and `unknown` says that the truth still lies ahead.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection

from longseq.domains.metrics import BinaryScores
from longseq.domains.tasks import Batch, Task
from longseq.domains.timeseries.metrics import POINT, forecast_sums, mean_metrics, metric_names, pinball, quantile_weights
from longseq.embeddings_timeseries import OUTPUTS, check_quantiles
from longseq.errors import ConfigError

POINT_LOSSES = ("mse", "mae", "huber")
QUANTILES = (0.025, 0.1, 0.25, 0.5, 0.75, 0.9, 0.975)


class Forecasting(Task):
    """The next F steps of every channel, with intervals.

    `point` trains the squared (or absolute) error and takes its intervals from calibration alone; `quantiles` trains the
    pinball loss of every quantile; `student_t` the likelihood of a Student's t per step. All losses are on standardised values.

    Args:
        channels: names of the forecast channels.
        horizon: F, in steps.
        output: `point`, `quantiles` or `student_t`.
        quantiles: of the answer; odd in number and symmetric about 0.5.
        point_loss: `mse`, `mae` or `huber`, for `point`.
        calibrate: split-conformal calibration of the intervals on the validation windows.
        linear_skip: add a linear map of the window to the network's forecast.
        ridge_start: begin with the ridge regression of the training windows as that map, in place of zeros.
        rank: width of the head's map to quantiles, and to all channels in the mixing layouts.
        dropout: before the head.
    """

    name = "forecasting"

    def __init__(
        self,
        channels: Sequence[str],
        horizon: int,
        *,
        output: str = "quantiles",
        quantiles: Sequence[float] = QUANTILES,
        point_loss: str = "mse",
        calibrate: bool = True,
        linear_skip: bool = True,
        ridge_start: bool = True,
        rank: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if output not in OUTPUTS:
            raise ConfigError(f"task.output must be one of {', '.join(OUTPUTS)}, found {output!r}")
        if point_loss not in POINT_LOSSES:
            raise ConfigError(f"task.point_loss must be one of {', '.join(POINT_LOSSES)}, found {point_loss!r}")
        try:
            check_quantiles(quantiles)
        except ValueError as error:
            raise ConfigError(f"task.{error}") from None
        self.channels, self.horizon, self.output, self.point_loss = list(channels), horizon, output, point_loss
        self.calibrate, self.linear_skip, self.rank, self.dropout = calibrate, linear_skip, rank, dropout
        self.ridge_start = ridge_start and linear_skip
        # A point forecast without calibration has no intervals.
        self.quantiles = [float(q) for q in quantiles] if output != "point" or calibrate else [0.5]

    @property
    def middle(self) -> int:
        """Place of the point forecast among the quantiles."""
        return len(self.quantiles) // 2

    def head(self) -> dict[str, Any]:
        return {
            "name": "forecast",
            "horizon": self.horizon,
            "output": self.output,
            "quantiles": self.quantiles,
            "linear_skip": self.linear_skip,
            "rank": self.rank,
            "dropout": self.dropout,
        }

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        truth_BFC, scale_B1C = batch["targets"], batch["scale"].unsqueeze(1)
        seen_BFC = ~torch.isnan(truth_BFC)
        n_quantiles = len(self.quantiles)
        # Differences in original units first: they are small where values are large.
        truth_BFC = torch.where(seen_BFC, truth_BFC, outputs[..., self.middle].detach())
        error_BFCQ = (truth_BFC.unsqueeze(-1) - outputs[..., :n_quantiles]) / scale_B1C.unsqueeze(-1)
        if self.output == "quantiles":
            weights_Q = quantile_weights(self.quantiles).to(error_BFCQ)
            levels_Q = torch.tensor(self.quantiles, device=error_BFCQ.device)
            loss_BFC = 2 * (pinball(error_BFCQ, levels_Q) * weights_Q).sum(-1)
        elif self.output == "student_t":
            location_BFC, width_BFC, freedom_BFC = outputs[..., n_quantiles:].unbind(-1)
            loss_BFC = -student_t_log_density((truth_BFC - location_BFC) / scale_B1C, width_BFC / scale_B1C, freedom_BFC)
        else:
            error_BFC = error_BFCQ[..., self.middle]
            losses = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}
            loss_BFC = losses[self.point_loss](error_BFC, torch.zeros_like(error_BFC), reduction="none")
        return torch.where(seen_BFC, loss_BFC, 0.0).sum() / seen_BFC.sum().clamp(min=1)

    def metrics(self) -> MetricCollection:
        return mean_metrics(metric_names(self.quantiles))

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        answer = outputs[..., : len(self.quantiles)]
        metrics.update(*forecast_sums(answer, batch["targets"], batch["scale"], batch["mase"], self.quantiles))

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """One row per window, step and channel, of the windows that are marked in `report`.

        The index counts them all: `(window * F + step) * C + channel`.
        """
        chosen_B = batch["report"]
        answer_BFCQ = outputs[chosen_B][..., : len(self.quantiles)].float().cpu().numpy()
        horizon, n_channels = answer_BFCQ.shape[1:3]
        windows = batch["index"][chosen_B].cpu().numpy()
        index = windows[:, None] * (horizon * n_channels) + np.arange(horizon * n_channels)
        found = {"index": index.reshape(-1), "forecast": answer_BFCQ[..., self.middle].reshape(-1)}
        for i, q in enumerate(self.quantiles if len(self.quantiles) > 1 else []):
            found[f"q{q:g}"] = answer_BFCQ[..., i].reshape(-1)
        if "unknown" not in batch:
            found["truth"] = batch["targets"][chosen_B].cpu().numpy().reshape(-1)
        return found

    def config(self) -> dict[str, Any]:
        names = ("channels", "horizon", "output", "quantiles")
        return {"task": self.name, **{name: getattr(self, name) for name in names}}


def student_t_log_density(error: Tensor, width: Tensor, freedom: Tensor) -> Tensor:
    """Log density of Student's t at an error from its location."""
    half = (freedom + 1) / 2
    constant = torch.lgamma(half) - torch.lgamma(freedom / 2) - 0.5 * torch.log(torch.pi * freedom)
    return constant - torch.log(width) - half * torch.log1p((error / width).square() / freedom)


class Imputation(Task):
    """Values in hidden spans from what is around them: squared error on standardised values, at hidden ones alone.

    The batch also holds `hidden` (B, L, C), True at values that were taken out of `inputs`.

    Args:
        channels: names of the channels.
        length: L, steps of a window.
        rank: width of the head's map to all channels in the mixing layouts.
        dropout: before the head.
    """

    name = "imputation"

    def __init__(self, channels: Sequence[str], length: int, *, rank: int = 64, dropout: float = 0.0) -> None:
        super().__init__()
        self.channels, self.length, self.rank, self.dropout = list(channels), length, rank, dropout

    def head(self) -> dict[str, Any]:
        return {"name": "forecast", "horizon": self.length, "output": "point", "rank": self.rank, "dropout": self.dropout}

    def scored(self, batch: Batch) -> Tensor:
        """Targets (B, L, C) with NaN at whatever does not count: what was shown, or is another window's."""
        return batch["targets"].masked_fill(~self.asked(batch), torch.nan)

    def asked(self, batch: Batch) -> Tensor:
        """(B, L, C) values to fill in; where windows share steps, in the first of them alone."""
        return batch["hidden"] & batch["fresh"].unsqueeze(-1) if "fresh" in batch else batch["hidden"]

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        truth_BLC = self.scored(batch)
        seen_BLC = ~torch.isnan(truth_BLC)
        error_BLC = (torch.where(seen_BLC, truth_BLC, 0.0) - outputs[..., 0]) / batch["scale"].unsqueeze(1)
        return torch.where(seen_BLC, error_BLC.square(), 0.0).sum() / seen_BLC.sum().clamp(min=1)

    def metrics(self) -> MetricCollection:
        return mean_metrics(POINT)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        metrics.update(*forecast_sums(outputs, self.scored(batch), batch["scale"], batch["mase"], [0.5]))

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """One row per hidden value of the windows marked in `report`; the index is `(window * L + step) * C + channel`."""
        chosen_B = batch["report"]
        hidden = self.asked(batch)[chosen_B].flatten(1).cpu().numpy()
        index = batch["index"][chosen_B].cpu().numpy()[:, None] * hidden.shape[1] + np.arange(hidden.shape[1])
        filled = outputs[chosen_B][..., 0].float().flatten(1).cpu().numpy()
        found = {"index": index[hidden], "forecast": filled[hidden]}
        if "unknown" not in batch:
            found["truth"] = batch["targets"][chosen_B].flatten(1).cpu().numpy()[hidden]
        return found

    def config(self) -> dict[str, Any]:
        return {"task": self.name, "channels": self.channels, "length": self.length}


class AnomalyRanking(BinaryScores):
    """AUROC or AUPRC of single steps' scores; without the point adjustment that lets random scores look good.

    Args:
        which: `auroc` or `auprc`.
    """

    def update(self, sums: Tensor, counts: Tensor, scores: Tensor, labels: Tensor) -> None:  # type: ignore[override]
        """Adds scores (M,) and labels (M,); the sums are the other metrics'."""
        del sums, counts
        # Into (0, 1) by a map that keeps the order, where torchmetrics would take a sigmoid that runs into 1.
        rank = (scores / (1 + scores)).double()
        super().update(torch.stack([1 - rank, rank], -1), labels.long())


class AnomalyDetection(Imputation):
    """How badly each step can be told from those around it: the mean squared standardised error of filling it in.

    Trained as imputation, all channels hidden at once. In evaluation every step is hidden once, in two passes over
    complementary spans, so a step's own value never helps to explain it.

    Args:
        channels: names of the channels.
        length: L, steps of a window.
        labelled: there are labels to compare the scores with.
        **options: of `Imputation`.
    """

    name = "anomaly"

    def __init__(self, channels: Sequence[str], length: int, *, labelled: bool = False, **options: Any) -> None:
        super().__init__(channels, length, **options)
        self.labelled = labelled

    def metrics(self) -> MetricCollection:
        found = mean_metrics(POINT)
        if self.labelled:
            found.add_metrics({"auroc": AnomalyRanking("auroc"), "auprc": AnomalyRanking("auprc")})
        return found

    def scores(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(B, L) mean squared standardised error over the observed channels; NaN where none is."""
        error_BLC = (batch["targets"] - outputs[..., 0].float()) / batch["scale"].unsqueeze(1)
        return error_BLC.square().nanmean(-1)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        fresh_BL1 = batch["fresh"].unsqueeze(-1)
        truth = batch["targets"].masked_fill(~fresh_BL1, torch.nan)
        sums = forecast_sums(outputs, truth, batch["scale"], batch["mase"], [0.5])
        if not self.labelled:
            metrics.update(*sums)
            return
        scores_BL, labels_BL = self.scores(outputs, batch), batch["labels"]
        known = batch["fresh"] & ~torch.isnan(scores_BL) & ~torch.isnan(labels_BL)
        metrics.update(*sums, scores=scores_BL[known], labels=labels_BL[known])

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        """One row per step, with its score; the index is `window * L + step`."""
        fresh = batch["fresh"].cpu().numpy()
        index = batch["index"].cpu().numpy()[:, None] * fresh.shape[1] + np.arange(fresh.shape[1])
        found = {"index": index[fresh], "score": self.scores(outputs, batch).cpu().numpy()[fresh]}
        if "labels" in batch:
            found["anomaly"] = batch["labels"].cpu().numpy()[fresh]
        return found
