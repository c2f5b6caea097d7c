"""What a forecast must beat: repeat-last, seasonal naive and closed-form ridge; interpolation; nearest neighbours."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import average_precision_score, roc_auc_score

from longseq.domains.timeseries.metrics import POINT, ROOTS, forecast_sums
from longseq.domains.timeseries.series import Scale, SeriesSet
from longseq.domains.timeseries.windows import ForecastRows, SpanRows

# (n, L, C) windows to (n, F, C) forecasts, both in original units.
Forecaster = Callable[[np.ndarray, np.ndarray], np.ndarray]
# Numbers of a chunk of windows: about 64 MB.
CHUNK = 8_000_000
# Multiply-adds that the ridge may cost; beyond, it learns from every so manyth window.
RIDGE_WORK = 6e10


def chunks(rows: ForecastRows, stride: int = 1) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Windows in bulk: series numbers (n,), past (n, L, C) and future (n, F, C), forecast channels only."""
    n_targets = rows.series.n_targets
    size = max(1, CHUNK // ((rows.lookback + rows.horizon) * n_targets))
    steps = np.arange(-rows.lookback, rows.horizon)
    index = np.arange(0, len(rows), stride)
    offsets = rows.series.offsets
    for begin in range(0, len(index), size):
        chosen = index[begin : begin + size]
        which = np.searchsorted(rows.ends, chosen, side="right")
        before = np.where(which > 0, rows.ends[which - 1], 0)
        place = offsets[which] + rows.first[which] + (chosen - before) * rows.stride
        wanted = place[:, None] + steps
        inside = (wanted >= offsets[which][:, None]) & (wanted < offsets[which + 1][:, None])
        windows = rows.series.values_TC[np.where(inside, wanted, 0), :n_targets]
        windows[~inside] = np.nan
        yield which, windows[:, : rows.lookback], windows[:, rows.lookback :]


def last_values(past: np.ndarray) -> np.ndarray:
    """(n, C) last observed value of each window; zero if there is none."""
    seen = ~np.isnan(past)
    place = np.where(seen, np.arange(past.shape[1])[None, :, None], -1).max(1)
    found = np.take_along_axis(past, np.maximum(place, 0)[:, None], axis=1)[:, 0]
    return np.where(place >= 0, found, 0.0)


def repeat_last(horizon: int) -> Forecaster:
    """The last value, again and again."""
    return lambda past, std: np.repeat(last_values(past)[:, None], horizon, axis=1)


def seasonal_naive(horizon: int, season: int) -> Forecaster:
    """The last season, again and again; the last value where a step of it is missing."""

    def forecast(past: np.ndarray, std: np.ndarray) -> np.ndarray:
        cycle = past[:, -season:]
        found = cycle[:, np.arange(horizon) % season]
        return np.where(np.isnan(found), last_values(past)[:, None], found)

    return forecast


class RidgeForecast:
    """Ridge regression of the standardised future on the standardised window, the last value taken off both.

    One map `(L, F)` for all channels and series, from `X'X` and `X'Y` summed up over chunks of windows, so that the windows
    are never held at once: `W = (X'X + penalty I)^-1 X'Y`.

    Args:
        rows: training windows.
        scale: of the training part.
        penalty: on the squared weights.

    Cost: O(n C L (L + F)) once, O(L^2 + L F) memory.
    """

    def __init__(self, rows: ForecastRows, scale: Scale, penalty: float = 1.0) -> None:
        n_targets = rows.series.n_targets
        work = len(rows) * n_targets * rows.lookback * (rows.lookback + rows.horizon)
        self.stride = max(1, int(np.ceil(work / RIDGE_WORK)))
        xx = np.zeros((rows.lookback, rows.lookback))
        xy = np.zeros((rows.lookback, rows.horizon))
        for which, past, future in chunks(rows, self.stride):
            std = scale.std_SC[which][:, None, :n_targets].astype(np.float32)
            last = last_values(past)[:, None]
            x = np.nan_to_num((past - last) / std).transpose(0, 2, 1).reshape(-1, rows.lookback)
            y = ((future - last) / std).transpose(0, 2, 1).reshape(-1, rows.horizon)
            complete = ~np.isnan(y).any(1)
            xx += x[complete].T @ x[complete]
            xy += x[complete].T @ y[complete]
        self.weight_LF = np.linalg.solve(xx + penalty * np.eye(rows.lookback), xy).astype(np.float32)

    def __call__(self, past: np.ndarray, std: np.ndarray) -> np.ndarray:
        last = last_values(past)[:, None]
        x = np.nan_to_num((past - last) / std)
        return np.einsum("nlc,lf->nfc", x, self.weight_LF, optimize=True) * std + last


def score_forecaster(forecaster: Forecaster, rows: ForecastRows, scale: Scale) -> dict[str, float]:
    """The metrics that a model is judged by, over all windows. The CRPS of a forecast without intervals is its MAE."""
    n_targets = rows.series.n_targets
    sums, counts = torch.zeros(len(POINT), dtype=torch.float64), torch.zeros(len(POINT), dtype=torch.float64)
    for which, past, future in chunks(rows):
        std = scale.std_SC[which][:, :n_targets].astype(np.float32)
        forecast = forecaster(past, std[:, None]).astype(np.float32)
        tensors = (forecast[..., None], future, std, scale.mase_SC[which][:, :n_targets])
        a, b, c, d = (torch.from_numpy(np.ascontiguousarray(t)) for t in tensors)
        more = forecast_sums(a, b, c, d, [0.5])
        sums, counts = sums + more[0], counts + more[1]
    found = {name: float(sums[i] / counts[i]) for i, name in enumerate(POINT)}
    found |= {name: found[mean] ** 0.5 for name, mean in ROOTS.items()}
    return {**found, "crps": found["mae"]}


def forecast_baselines(
    train: ForecastRows | None, test: ForecastRows, train_scale: Scale, scale: Scale, season: int
) -> dict[str, dict[str, float]]:
    """Scores of all baselines on the test windows, and in the ridge's name what it was fitted on."""
    horizon = test.horizon
    found = {"repeat-last": score_forecaster(repeat_last(horizon), test, scale)}
    if 1 < season <= test.lookback:
        name = f"seasonal naive ({season} steps)"
        found[name] = score_forecaster(seasonal_naive(horizon, season), test, scale)
    if train is not None and train.horizon == horizon and len(train):
        ridge = RidgeForecast(train, train_scale)
        every = "" if ridge.stride == 1 else f", on one in {ridge.stride} windows"
        found[f"ridge (lookback {train.lookback}{every})"] = score_forecaster(ridge, test, scale)
    return found


# -- filling in and anomalies


def fill_linear(values: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """(L, C) with hidden and missing values on straight lines between their neighbours."""
    filled = values.copy()
    steps = np.arange(len(values))
    for c in range(values.shape[1]):
        known = ~hidden[:, c] & ~np.isnan(values[:, c])
        if known.any():
            filled[:, c] = np.interp(steps, steps[known], values[known, c])
    return filled


def fill_last(values: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """(L, C) with hidden and missing values replaced by the last one before; in front of the first, by that."""
    filled = values.copy()
    for c in range(values.shape[1]):
        known = ~hidden[:, c] & ~np.isnan(values[:, c])
        if known.any():
            place = np.maximum.accumulate(np.where(known, np.arange(len(values)), -1))
            filled[:, c] = values[np.where(place < 0, np.argmax(known), place), c]
    return filled


def imputation_baselines(test: SpanRows, scale: Scale) -> dict[str, dict[str, float]]:
    """Scores of the last value, of straight lines and of the training mean on the hidden test values."""
    found = {}
    means = {
        "last value": fill_last,
        "linear interpolation": fill_linear,
    }
    for name, fill in means.items():
        found[name] = _score_filled(test, scale, lambda row, fill=fill: fill(row["values"], row["hidden"]))
    found["training mean"] = _score_filled(
        test, scale, lambda row: np.broadcast_to(scale.mean_SC[row["series"]], row["values"].shape)
    )
    return found


def _score_filled(test: SpanRows, scale: Scale, fill: Callable[[dict[str, Any]], np.ndarray]) -> dict[str, float]:
    sums, counts = torch.zeros(len(POINT), dtype=torch.float64), torch.zeros(len(POINT), dtype=torch.float64)
    for i in range(len(test)):
        row = test[i]
        truth = np.where(row["hidden"], row["values"], np.nan)
        # Scored in the window before already.
        truth[: row["scored"]] = np.nan
        filled = np.nan_to_num(np.asarray(fill(row)))
        tensors = (filled[None, ..., None], truth[None], scale.std_SC[[row["series"]]], scale.mase_SC[[row["series"]]])
        a, b, c, d = (torch.from_numpy(np.array(t, dtype=np.float64)) for t in tensors)
        more = forecast_sums(a, b, c, d, [0.5])
        sums, counts = sums + more[0], counts + more[1]
    found = {name: float(sums[i] / counts[i]) for i, name in enumerate(POINT)}
    return found | {name: found[mean] ** 0.5 for name, mean in ROOTS.items()}


def anomaly_baselines(series: SeriesSet, scale: Scale, first: np.ndarray, end: np.ndarray) -> dict[str, dict[str, float]]:
    """AUROC and AUPRC of two scores without a model; empty without labels of both kinds.

    Args:
        series: with labels.
        scale: of the training part.
        first: (S,) first step of the test part.
        end: (S,) the step behind its last.
    """
    if series.labels_T is None:
        return {}
    scores: dict[str, list[np.ndarray]] = {"distance from the training mean": [], "difference to the step before": []}
    labels = []
    for i, begin in enumerate(series.offsets[:-1]):
        part = slice(int(begin + first[i]), int(begin + end[i]))
        x = (series.values_TC[part] - scale.mean_SC[i]) / scale.std_SC[i]
        steps = np.diff(x, axis=0, prepend=x[:1])
        for name, values in zip(scores, (x, steps), strict=True):
            scores[name].append(np.nan_to_num(values**2).mean(1))
        labels.append(series.labels_T[part])
    truth = np.concatenate(labels)
    known = ~np.isnan(truth)
    if len(np.unique(truth[known])) < 2:
        return {}
    found = {}
    for name, values in scores.items():
        flat = np.concatenate(values)[known]
        found[name] = {
            "auroc": float(roc_auc_score(truth[known], flat)),
            "auprc": float(average_precision_score(truth[known], flat)),
        }
    return found


# -- classification


def classification_baselines(
    train: np.ndarray, train_labels: np.ndarray, test: np.ndarray, n_classes: int
) -> dict[str, np.ndarray]:
    """Probabilities (N, O) by method: the most frequent class, the nearest neighbour, and ridge on simple features.

    Args:
        train: (N, L, C) training series, NaN behind their ends.
        train_labels: (N,) classes.
        test: (M, L, C).
        n_classes: O.
    """
    counts = np.bincount(train_labels, minlength=n_classes)
    a, b = z_normalized(train), z_normalized(test)
    distance = (a**2).sum(1)[None] - 2 * b @ a.T + (b**2).sum(1)[:, None]
    found = {
        "most frequent class": np.tile(np.eye(n_classes)[counts.argmax()], (len(test), 1)),
        "1-nearest neighbour (Euclidean)": np.eye(n_classes)[train_labels[distance.argmin(1)]],
    }
    if len(np.unique(train_labels)) > 1:
        features, more = series_features(train), series_features(test)
        mean, std = features.mean(0), features.std(0)
        std = np.where(std > 0, std, 1.0)
        model = RidgeClassifier(alpha=1.0).fit((features - mean) / std, train_labels)
        predicted = np.asarray(model.predict((more - mean) / std), dtype=np.int64)
        found["ridge on features"] = np.eye(n_classes)[predicted]
    return found


def z_normalized(values: np.ndarray) -> np.ndarray:
    """(N, L C) each series and channel with mean 0 and deviation 1, zero where nothing was observed."""
    mean = np.nanmean(values, 1, keepdims=True)
    std = np.nanstd(values, 1, keepdims=True)
    return np.nan_to_num((values - mean) / np.where(std > 0, std, 1.0)).reshape(len(values), -1)


def series_features(values: np.ndarray) -> np.ndarray:
    """(N, features): level, spread, extremes, quartiles, roughness, and the power in 16 bands of frequency, per channel."""
    filled = np.where(np.isnan(values), np.nanmean(values, 1, keepdims=True), values)
    centred = filled - filled.mean(1, keepdims=True)
    steps = np.diff(filled, axis=1)
    power = np.abs(np.fft.rfft(centred, axis=1)) ** 2
    edges = np.unique(np.geomspace(1, power.shape[1], 17).astype(int))
    bands = [np.log1p(power[:, low:high].sum(1)) for low, high in itertools.pairwise(edges)]
    quartiles = np.quantile(filled, (0.0, 0.25, 0.5, 0.75, 1.0), axis=1)
    parts = [filled.mean(1), filled.std(1), np.abs(steps).mean(1), steps.std(1), *quartiles, *bands]
    return np.concatenate(parts, 1)
