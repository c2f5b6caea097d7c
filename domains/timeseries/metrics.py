"""Errors of forecasts as sums and counts, so that they are exact over batches of any sizes and over processes."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

POINT = ("mse", "mae", "rmse", "smape", "mase", "mse_original", "mae_original", "rmse_original")
ROOTS = {"rmse": "mse", "rmse_original": "mse_original"}


class MeanOfSums(Metric):
    """One of several means that share an update: `update(sums, counts)` holds a number for each.

    Args:
        place: which of them.
        root: take the square root of the mean.
    """

    total: Tensor
    count: Tensor

    def __init__(self, place: int, *, root: bool = False) -> None:
        super().__init__()
        self.place, self.root = place, root
        # fp64: a test set has more values than fp32 can count one by one.
        for name in ("total", "count"):
            self.add_state(name, default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Adds a batch's sums and counts, (M,) each."""
        self.total += sums[self.place]
        self.count += counts[self.place]

    def compute(self) -> Tensor:
        """The mean; NaN if nothing was counted."""
        mean = self.total / self.count
        return (mean.sqrt() if self.root else mean).float()


def mean_metrics(names: Sequence[str]) -> MetricCollection:
    """A metric for each name; `rmse` is the root of what stands at `mse`."""
    found: dict[str, Metric | MetricCollection] = {name: MeanOfSums(i, root=name in ROOTS) for i, name in enumerate(names)}
    return MetricCollection(found, compute_groups=False)


def metric_names(quantiles: Sequence[float]) -> list[str]:
    """Of a forecast with these quantiles: point errors, CRPS and the coverage of each central interval."""
    levels = central_levels(quantiles)
    return [*POINT, *(["crps"] if levels else []), *(f"coverage_{100 * level:g}" for level in levels)]


def central_levels(quantiles: Sequence[float]) -> list[float]:
    """Levels of the central intervals, narrow to wide: 0.8 for 0.1 and 0.9."""
    values = list(quantiles)
    half = len(values) // 2
    return [round(values[-1 - i] - values[i], 6) for i in range(half)][::-1]


def quantile_weights(quantiles: Sequence[float]) -> Tensor:
    """What share of (0, 1) each quantile stands for: up to half-way to its neighbours; they sum to 1."""
    values = torch.tensor(list(quantiles), dtype=torch.float64)
    middle = (values[1:] + values[:-1]) / 2
    edges = torch.cat([torch.zeros(1, dtype=torch.float64), middle, torch.ones(1, dtype=torch.float64)])
    return edges.diff()


def pinball(error: Tensor, quantiles: Tensor) -> Tensor:
    """`max(q e, (q - 1) e)` for the error `truth - quantile`, whose last dimension is that of the quantiles."""
    return torch.maximum(quantiles * error, (quantiles - 1) * error)


def forecast_sums(
    forecast_BFCQ: Tensor, truth_BFC: Tensor, scale_BC: Tensor, mase_BC: Tensor, quantiles: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Sums and counts of every metric in `metric_names`, over the observed values of a batch.

    Standardised errors are errors over the channel's training deviation: the shift cancels. CRPS is the integral of twice
    the pinball loss over the levels, by the midpoint rule on the quantiles that there are, on standardised values. sMAPE is
    in percent of the mean of |truth| and |forecast|; where both are zero it is zero.

    Args:
        forecast_BFCQ: quantiles in original units.
        truth_BFC: in original units, NaN where nothing was observed.
        scale_BC: training deviation of each row's channels.
        mase_BC: the unit of MASE of each row's channels; NaN where it is not defined.
        quantiles: as in the last dimension.
    """
    half = len(quantiles) // 2
    seen_BFC = ~torch.isnan(truth_BFC)
    truth_BFC = torch.nan_to_num(truth_BFC).double()
    forecast_BFCQ = forecast_BFCQ.double()
    scale_B1C = scale_BC.double().unsqueeze(1)
    point_BFC = forecast_BFCQ[..., half]
    error_BFC = torch.where(seen_BFC, (point_BFC - truth_BFC).abs(), 0.0)
    scaled_BFC = error_BFC / scale_B1C
    n_seen = seen_BFC.sum().double()
    size_BFC = (truth_BFC.abs() + point_BFC.abs()).clamp(min=1e-12)
    defined_BFC = seen_BFC & torch.isfinite(mase_BC).unsqueeze(1)
    unit_B1C = torch.nan_to_num(mase_BC, nan=1.0).double().unsqueeze(1)
    squared, absolute = scaled_BFC.square().sum(), scaled_BFC.sum()
    squared_original, absolute_original = error_BFC.square().sum(), error_BFC.sum()
    mase = torch.where(defined_BFC, error_BFC / unit_B1C, 0.0).sum()
    smape = 200 * (error_BFC / size_BFC).sum()
    sums = [squared, absolute, squared, smape, mase, squared_original, absolute_original, squared_original]
    counts = [n_seen] * 4 + [defined_BFC.sum().double()] + [n_seen] * 3
    if half:
        q_Q = torch.tensor(list(quantiles), dtype=torch.float64, device=truth_BFC.device)
        loss_BFCQ = pinball((truth_BFC.unsqueeze(-1) - forecast_BFCQ) / scale_B1C.unsqueeze(-1), q_Q)
        crps_BFC = 2 * (loss_BFCQ * quantile_weights(quantiles).to(q_Q.device)).sum(-1)
        sums.append(torch.where(seen_BFC, crps_BFC, 0.0).sum())
        counts.append(n_seen)
        for i in reversed(range(half)):
            inside_BFC = (truth_BFC >= forecast_BFCQ[..., i]) & (truth_BFC <= forecast_BFCQ[..., -1 - i])
            sums.append((inside_BFC & seen_BFC).sum().double())
            counts.append(n_seen)
    return torch.stack(sums), torch.stack(counts)
