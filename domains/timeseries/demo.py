"""Synthetic series for trying everything without data: what tomorrow looks like follows from today, but not linearly."""

import numpy as np

from longseq.domains.timeseries.calendar_features import calendar_features, calendar_names
from longseq.domains.timeseries.frequency import Frequency
from longseq.domains.timeseries.labelled import LabelledSeries
from longseq.domains.timeseries.series import SeriesSet
from longseq.errors import ConfigError

DAY = 24
DESCRIPTION = (
    "hourly series, each a daily wave whose height follows from the day before by a chaotic rule, a weekly wave, a slow drift "
    "and noise"
)
LABELLED_DESCRIPTION = "a bump up and a bump down at random places in noise; the class is which comes first"
START = np.datetime64("2024-01-01T00:00:00", "ns")
ANOMALIES = 40


def make_series(*, n_series: int, n_days: int, seed: int, calendar: tuple[str, ...] = (), anomalies: bool = False) -> SeriesSet:
    """Seasonal series with a rule that no linear forecast can hold.

    The height of a day's wave is `a' = 3.95 a (1 - a)` of the day before: one day ahead it is nearly known, but the
    correlation between one day and the next is close to zero, so a linear map forecasts little more than the mean.

    Args:
        n_series: number of channels.
        n_days: length of each, in days of 24 steps.
        seed: chooses everything.
        calendar: covariates to add.
        anomalies: put short disturbances into the last third, with labels.
    """
    rng = np.random.default_rng(seed)
    steps = np.arange(n_days * DAY)
    columns = [_channel(rng, steps, n_days) for _ in range(n_series)]
    values = np.stack(columns, 1).astype(np.float32)
    labels = _disturb(rng, values) if anomalies else None
    frequency = Frequency("fixed", 3600 * 10**9)
    times = frequency.after(START, steps)
    known = calendar_features(times, calendar) if calendar else np.zeros((len(steps), 0), dtype=np.float32)
    return SeriesSet(
        ids=["demo"],
        offsets=np.array([0, len(steps)]),
        starts=[START],
        frequency=frequency,
        values_TC=values,
        known_TK=known,
        static_SK=np.zeros((1, 0), dtype=np.float32),
        channels=[f"demand_{i + 1}" for i in range(n_series)],
        n_targets=n_series,
        covariates=calendar_names(calendar),
        ahead=np.zeros(1, dtype=np.int64),
        calendar=calendar,
        labels_T=labels,
        source="the demo data",
        counts={"synthetic": DESCRIPTION, "frequency": frequency.name},
    )


def _channel(rng: np.random.Generator, steps: np.ndarray, n_days: int) -> np.ndarray:
    heights = np.empty(n_days)
    heights[0] = rng.uniform(0.2, 0.8)
    for day in range(1, n_days):
        heights[day] = np.clip(3.95 * heights[day - 1] * (1 - heights[day - 1]) + rng.normal(0, 0.01), 0.02, 0.98)
    hour = steps % DAY
    # Zero at midnight, so that the wave has no jump where its height changes.
    wave = np.sin(np.pi * hour / DAY) ** 2 * (1 + 0.4 * np.sin(2 * np.pi * hour / DAY))
    week = np.sin(2 * np.pi * steps / (7 * DAY) + rng.uniform(0, 2 * np.pi))
    drift = np.cumsum(rng.normal(0, 0.01, len(steps)))
    level, size = rng.uniform(20, 200), rng.uniform(5, 50)
    return level + size * (2.5 * heights[steps // DAY] * wave + 0.3 * week + drift + rng.normal(0, 0.08, len(steps)))


def _disturb(rng: np.random.Generator, values: np.ndarray) -> np.ndarray:
    labels = np.zeros(len(values), dtype=np.float32)
    for start in rng.integers(2 * len(values) // 3, len(values) - 12, ANOMALIES):
        size = int(rng.integers(3, 10))
        channel = int(rng.integers(values.shape[1]))
        values[start : start + size, channel] += rng.choice([-1, 1]) * rng.uniform(1.0, 2.0) * values[:, channel].std()
        labels[start : start + size] = 1.0
    return labels


def make_labelled(*, n: int, length: int, seed: int) -> LabelledSeries:
    """A bump up and a bump down at random places in noise, of two classes: which of them comes first.

    Both classes have the same values and the same power in every band; only the order tells them apart.

    Args:
        n: number of series.
        length: steps of each.
        seed: chooses everything.
    """
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.7, (n, length))
    classes = rng.integers(0, 2, n)
    width = max(4, length // 14)
    if length <= 2 * width:
        raise ConfigError(f"the demo data hold two bumps and need data.lookback={2 * width + 1} or more, found {length}")
    bump = 2 * np.hanning(width)
    for i in range(n):
        first = int(rng.integers(0, length - 2 * width))
        second = int(rng.integers(first + width, length - width + 1))
        sign = 1 if classes[i] == 1 else -1
        values[i, first : first + width] += sign * bump
        values[i, second : second + width] -= sign * bump
    labels = np.where(classes == 1, "up first", "down first").astype(object)
    return LabelledSeries(values.astype(np.float32)[..., None], labels, [f"demo series {i + 1}" for i in range(n)])


def labelled_splits(length: int, seed: int) -> dict[str, LabelledSeries]:
    """The demo of classification in three splits.

    Args:
        length: steps of each series.
        seed: chooses everything.
    """
    sizes = {"train": 1000, "val": 200, "test": 500}
    return {name: make_labelled(n=n, length=length, seed=seed + i) for i, (name, n) in enumerate(sizes.items())}
