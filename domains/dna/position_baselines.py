"""What a model of positions must beat: means, base composition around a bin, and base weights around a site."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from longseq.domains.base import Row
from longseq.domains.dna.positions import sample_rows
from longseq.domains.dna.targets import TargetRows
from longseq.domains.dna.tokenizer import A_ID, T_ID
from longseq.domains.tasks import IGNORE, Task

FIT_ROWS, RIDGE_BINS = 2000, 100_000
FLANK = 10


def profile_baselines(rows: dict[str, TargetRows], task: Task, bin_size: int) -> dict[str, Row]:
    """The mean of each track, its mean at each place of the window, and ridge regression on 3-mers of a bin and around it."""
    train = _profiles(rows["train"], sample_rows(len(rows["train"]), FIT_ROWS))
    test_rows = list(range(len(rows["test"])))
    truth = _profiles(rows["test"], test_rows)
    mean = np.nanmean(train, (0, 1), keepdims=True)
    known = ~np.isnan(train)
    place = np.where(known.any(0), np.nan_to_num(train).sum(0) / np.maximum(known.sum(0), 1), mean[0])
    ridge = _fit_ridge(rows["train"], bin_size)
    predicted = {
        "mean": np.broadcast_to(mean, truth.shape),
        "mean at each place": np.broadcast_to(place[None], truth.shape),
        "k-mer ridge regression": np.stack([ridge.predict(_bin_features(rows["test"].store[i], bin_size)) for i in test_rows]),
    }
    labels = torch.from_numpy(truth)
    return {name: task.score_predictions(torch.from_numpy(np.array(v)).float(), labels) for name, v in predicted.items()}


def _profiles(rows: TargetRows, index: list[int]) -> NDArray[np.float32]:
    return np.stack([rows.targets[i] for i in index])


def _bin_features(ids: NDArray[np.uint8], bin_size: int) -> NDArray[np.float32]:
    """3-mer shares of every bin, and of three bins around it, (bins, 128)."""
    base = ids.astype(np.int64) - A_ID
    known = (base >= 0) & (base <= T_ID - A_ID)
    code = base[:-2] * 16 + base[1:-1] * 4 + base[2:]
    valid = known[:-2] & known[1:-1] & known[2:]
    bins = np.arange(len(code)) // bin_size
    n_bins = -(-len(ids) // bin_size)
    counts = np.bincount(bins[valid] * 64 + code[valid], minlength=n_bins * 64).reshape(n_bins, 64).astype(np.float32)
    wide = np.pad(counts, ((1, 1), (0, 0)))
    around = wide[:-2] + wide[1:-1] + wide[2:]
    return np.concatenate([c / np.maximum(c.sum(1, keepdims=True), 1) for c in (counts, around)], 1)


def _fit_ridge(rows: TargetRows, bin_size: int) -> Any:
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    n_bins = max(1, int(rows.lengths[0]) // bin_size)
    index = sample_rows(len(rows), max(1, min(FIT_ROWS, RIDGE_BINS // n_bins)))
    features = np.concatenate([_bin_features(rows.store[i], bin_size) for i in index])
    values = np.concatenate([rows.targets[i] for i in index])
    known = ~np.isnan(values).any(1)
    model = make_pipeline(StandardScaler(), Ridge(alpha=10.0))
    model.fit(features[known], values[known])
    return _TwoDimensional(model)


class _TwoDimensional:
    """A regression whose answer keeps its track axis, which scikit-learn drops for a single one."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.model.predict(features), dtype=np.float32).reshape(len(features), -1)


class BaseWeights:
    """Each label's base frequencies at the positions around a base (a position weight matrix), with Bayes' rule.

    `log p(label | bases) = log p(label) + sum_o log p(base at offset o | label) + const`: the bases count as independent.

    Args:
        rows: Training rows.
        n_labels: Number of labels.
        flank: Bases on each side.
    """

    def __init__(self, rows: TargetRows, n_labels: int, flank: int = FLANK) -> None:
        self.flank = flank
        counts = np.zeros((2 * flank + 1, n_labels, 5))
        labels = np.zeros(n_labels)
        for i in sample_rows(len(rows), FIT_ROWS):
            codes = rows.targets[i]
            known = codes != IGNORE
            labels += np.bincount(codes[known], minlength=n_labels)
            for o, around in enumerate(self._around(rows.store[i])):
                counts[o] += np.bincount(codes[known] * 5 + around[known], minlength=5 * n_labels).reshape(n_labels, 5)
        # N says nothing about the label.
        counts[:, :, 4] = 0
        smoothed = counts + 1.0
        self.log_weights = np.log(smoothed / smoothed[:, :, :4].sum(2, keepdims=True))
        self.log_weights[:, :, 4] = 0.0
        self.log_prior = np.log((labels + 1) / (labels + 1).sum())

    def _around(self, ids: NDArray[np.uint8]) -> list[NDArray[np.int64]]:
        base = ids.astype(np.int64) - A_ID
        base = np.pad(np.where((base >= 0) & (base <= 3), base, 4), self.flank, constant_values=4)
        return [base[o : o + len(ids)] for o in range(2 * self.flank + 1)]

    def predict(self, ids: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Probabilities of the labels at every base, (L, C)."""
        scores = self.log_prior + sum(self.log_weights[o][:, around].T for o, around in enumerate(self._around(ids)))
        scores = scores - scores.max(1, keepdims=True)
        odds = np.exp(scores)
        return odds / odds.sum(1, keepdims=True)


def label_baselines(rows: dict[str, TargetRows], task: Task, n_labels: int) -> dict[str, Row]:
    """The labels' shares, and base weights around a position."""
    weights = BaseWeights(rows["train"], n_labels)
    shares = np.exp(weights.log_prior)
    metrics = {"label shares": task.metrics(), f"base weights ±{FLANK}": task.metrics()}
    for i in range(len(rows["test"])):
        row = rows["test"][i]
        labels = torch.from_numpy(row["targets"])[None]
        for collection, p in zip(
            metrics.values(), (np.tile(shares, (len(row["ids"]), 1)), weights.predict(row["ids"])), strict=True
        ):
            task.update(collection, task.outputs_from(torch.from_numpy(p).float()[None]), {"labels": labels})
    return {name: {key: float(value) for key, value in found.compute().items()} for name, found in metrics.items()}
