"""Which windows each split has: complete ones, and for short series windows that are padded in front."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from longseq.domains.timeseries.series import Scale, SeriesSet
from longseq.domains.timeseries.windows import ForecastRows, SpanRows
from longseq.errors import ConfigError, DataError


@dataclass(frozen=True)
class Part:
    """Where one split lies, and the scale that its metrics are in.

    Attributes:
        series: the table.
        scale: of the training part, per series of this table.
        begin: (S,) first step of the split in each series.
        end: (S,) the step behind its last.
    """

    series: SeriesSet
    scale: Scale
    begin: np.ndarray
    end: np.ndarray


@dataclass(frozen=True)
class WindowOptions:
    """Sizes of windows; each field is the option of the same name of the data module."""

    lookback: int
    horizon: int
    stride: int = 1
    min_lookback: int | None = None
    backtest_windows: int | None = None
    backtest_step: int | None = None
    on_bad: str = "error"

    def __post_init__(self) -> None:
        for name in ("lookback", "horizon", "stride", "min_lookback", "backtest_windows", "backtest_step"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"data.{name} must be at least 1, found {value}")

    @property
    def least(self) -> int:
        """Steps of history that a padded window must have."""
        return min(self.lookback, self.min_lookback or max(1, self.lookback // 4))


def forecast_rows(part: Part, name: str, options: WindowOptions, counts: dict[str, Any]) -> ForecastRows:
    """The windows of a split whose steps to forecast all lie in it; their history may lie in the split before.

    Raises:
        DataError: if a series is too short for a window, unless bad series are skipped; if no window is left.
    """
    lengths = part.end - part.begin
    in_train = name == "train"
    # Train has no split before it. Series too short for a whole window give padded ones.
    whole = lengths >= options.lookback + options.horizon
    history = np.where(whole, options.lookback, options.least) if in_train else options.least
    first = np.maximum(part.begin, history)
    room = part.end - options.horizon - first
    short = np.flatnonzero(room < 0)
    if len(short):
        _too_short(part, name, options, short, counts)
    n_padded = int((first < options.lookback).sum() - (room[first < options.lookback] < 0).sum())
    if n_padded:
        counts[f"series with windows padded in front in {name}"] = n_padded
    stride = options.stride if in_train else 1
    windows = np.where(room >= 0, room // stride + 1, 0)
    if name == "test" and (options.backtest_windows is not None or options.backtest_step is not None):
        stride = options.backtest_step or options.horizon
        windows = np.where(room >= 0, room // stride + 1, 0)
        windows = windows if options.backtest_windows is None else np.minimum(windows, options.backtest_windows)
        # Counted from the end, so that the newest values are always among them.
        first = part.end - options.horizon - (windows - 1) * stride
        most = int(windows.max(initial=0))
        counts["backtest"] = f"the last {most} origins of each series, {stride} steps apart"
        if options.backtest_windows is not None and most < options.backtest_windows:
            counts["backtest"] += f"; test has no more, of data.backtest_windows={options.backtest_windows}"
    rows = ForecastRows(part.series, first, windows, stride=stride, lookback=options.lookback, horizon=options.horizon)
    if not len(rows):
        raise DataError(f"{part.series.source}: no window of {options.lookback} + {options.horizon} steps fits into {name}")
    return rows


def _too_short(part: Part, name: str, options: WindowOptions, short: np.ndarray, counts: dict[str, Any]) -> None:
    if options.on_bad == "skip":
        counts[f"series too short for a window in {name}, left out"] = len(short)
        return
    i = int(short[0])
    has = int(part.end[i] - part.begin[i])
    needs = (
        f"data.min_lookback + data.horizon = {options.least} + {options.horizon}"
        if name == "train"
        else f"data.horizon={options.horizon}"
    )
    raise DataError(
        f"{part.series.name(i)}: {name} has {has} of its {int(part.series.lengths[i])} steps, but a window needs {needs} "
        f"({len(short)} such series); lower data.horizon, give more to {name} (data.split=last, data.val_fraction, "
        "data.test_fraction), or set data.on_bad=skip to leave such series out"
    )


def predict_rows(series: SeriesSet, options: WindowOptions) -> ForecastRows:
    """One window per series, whose forecast begins behind its last observation.

    Raises:
        DataError: if a series has too little history.
    """
    first = series.lengths
    short = np.flatnonzero(first < options.least)
    if len(short) and options.on_bad == "error":
        raise DataError(
            f"{series.name(int(short[0]))}: {first[short[0]]} steps of history, but data.min_lookback={options.least} "
            "are needed; set data.min_lookback lower, or data.on_bad=skip"
        )
    counts = (first >= options.least).astype(np.int64)
    return ForecastRows(series, first, counts, stride=1, lookback=options.lookback, horizon=options.horizon)


def span_rows(part: Part, name: str, options: WindowOptions, counts: dict[str, Any], **spans: Any) -> SpanRows:
    """Windows of `lookback` steps within a split; in train they overlap by the stride, else they stand side by side.

    Raises:
        DataError: if no window fits.
    """
    rows = SpanRows(
        part.series,
        part.begin,
        part.end,
        length=options.lookback,
        stride=options.stride if name == "train" else None,
        **spans,
    )
    short = np.flatnonzero(part.end - part.begin < options.lookback)
    if len(short) and options.on_bad == "error":
        i = int(short[0])
        raise DataError(
            f"{part.series.name(i)}: {name} has {int(part.end[i] - part.begin[i])} steps, fewer than "
            f"data.lookback={options.lookback}; lower it, or set data.on_bad=skip to leave such series out"
        )
    if len(short):
        counts[f"series too short for a window in {name}, left out"] = len(short)
    if not len(rows):
        raise DataError(f"{part.series.source}: no window of {options.lookback} steps fits into {name}")
    return rows


def matched_scale(series: SeriesSet, train: SeriesSet, scale: Scale) -> Scale:
    """The training scale for the series of another file: by name, and of all series together for names that train lacks.

    A single series is the same series whatever its file is called.
    """
    place = {name: i for i, name in enumerate(train.ids)}
    if len(train) == 1:
        place |= dict.fromkeys(series.ids, 0)
    rows: list[Sequence[np.ndarray]] = []
    for name in series.ids:
        if name in place:
            i = place[name]
            rows.append((scale.mean_SC[i], scale.std_SC[i], scale.mase_SC[i]))
        else:
            rows.append((scale.channel_mean, scale.channel_std, scale.channel_mase))
    mean, std, mase = (np.stack([row[k] for row in rows]) for k in range(3))
    return replace(scale, mean_SC=mean, std_SC=std, mase_SC=mase)


def covariate_scale(part: Part) -> tuple[list[float], list[float]]:
    """Mean and deviation of every covariate in the training part; calendar columns are left as they are."""
    series = part.series
    inside = np.concatenate(
        [np.arange(o + b, o + e) for o, b, e in zip(series.offsets[:-1], part.begin, part.end, strict=True)]
        or [np.empty(0, int)]
    )
    known = series.known_TK[inside] if len(inside) else series.known_TK
    n_calendar = 2 * len(series.calendar)
    given = known[:, : known.shape[1] - n_calendar].astype(np.float64)
    mean = [*np.nan_to_num(np.nanmean(given, 0)), *np.zeros(n_calendar), *series.static_SK.mean(0)]
    std = [*np.nanstd(given, 0), *np.ones(n_calendar), *series.static_SK.std(0)]
    return [float(m) for m in mean], [float(s) if np.isfinite(s) and s > 1e-6 else 1.0 for s in std]
