"""Windows of series: views into the one table that holds all of them, cut when they are asked for."""

from typing import Any

import numpy as np

from longseq.domains.base import Rows
from longseq.domains.loading import row_generator
from longseq.domains.timeseries.series import SeriesSet


class WindowRows(Rows):
    """Windows given by their first step in their series; those of one series are `stride` apart.

    Args:
        series: the table.
        first: (S,) first step of each series' first window.
        counts: (S,) windows of each series.
        stride: steps from one window to the next.
        positions: length of a window, for the loader.

    Cost: 24 bytes a series, whatever the number of windows.
    """

    def __init__(self, series: SeriesSet, first: np.ndarray, counts: np.ndarray, stride: int, positions: int) -> None:
        self.series, self.first, self.stride = series, first, stride
        self.ends = np.cumsum(counts)
        # One number seen as many: all windows are of one length.
        self.lengths = np.broadcast_to(np.int64(positions), (int(self.ends[-1]) if len(self.ends) else 0,))

    def place(self, index: int) -> tuple[int, int]:
        """Series and step of a window."""
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} of {len(self)}")
        series = int(np.searchsorted(self.ends, index, side="right"))
        before = int(self.ends[series - 1]) if series else 0
        return series, int(self.first[series]) + (index - before) * self.stride

    def values(self, series: int, start: int, count: int) -> np.ndarray:
        """(count, C) values from a step on: a view, or a copy padded with NaN where the window leaves its series."""
        begin, end = int(self.series.offsets[series]), int(self.series.offsets[series + 1])
        low, high = begin + start, begin + start + count
        if begin <= low and high <= end:
            return self.series.values_TC[low:high]
        rows = np.full((count, self.series.values_TC.shape[1]), np.nan, dtype=np.float32)
        inside = slice(max(low, begin), min(high, end))
        rows[inside.start - low : max(inside.start, inside.stop) - low] = self.series.values_TC[inside]
        return rows


class ForecastRows(WindowRows):
    """A lookback and what follows; the window's place is the first step to forecast.

    Args:
        series: the table.
        first: (S,) first origin of each series.
        counts: (S,) windows of each series.
        stride: steps from one origin to the next.
        lookback: L, in steps.
        horizon: F, in steps.
    """

    def __init__(
        self, series: SeriesSet, first: np.ndarray, counts: np.ndarray, *, stride: int, lookback: int, horizon: int
    ) -> None:
        super().__init__(series, first, counts, stride, lookback)
        self.lookback, self.horizon = lookback, horizon

    def __getitem__(self, index: int) -> dict[str, Any]:
        series, origin = self.place(index)
        row: dict[str, Any] = {
            "index": index,
            "series": series,
            "past": self.values(series, origin - self.lookback, self.lookback),
            "future": self.values(series, origin, self.horizon)[:, : self.series.n_targets],
        }
        if self.series.n_covariates:
            row["known"] = self.series.covariate_rows(series, origin - self.lookback, self.lookback + self.horizon)
        return row


class SpanRows(WindowRows):
    """Windows with spans to be filled in, for imputation and for anomaly scores.

    Args:
        series: the table.
        first: (S,) first step of each series' part.
        ends: (S,) the step behind it.
        length: L, steps of a window.
        stride: steps from one window to the next; None for windows side by side, the last one moved back to the end of the
            part, where only the steps that no other window holds are scored.
        seed: of the hidden spans.
        hide: share of the steps that is hidden; with 0, what is missing anyway is to be filled in.
        span: mean length of a hidden span, in steps.
        together: hide all channels at once.
    """

    def __init__(
        self,
        series: SeriesSet,
        first: np.ndarray,
        ends: np.ndarray,
        *,
        length: int,
        stride: int | None,
        seed: int,
        hide: float,
        span: int,
        together: bool,
    ) -> None:
        room = ends - first
        side_by_side = stride is None
        step = length if stride is None else stride
        counts = np.where(room >= length, (room - length) // step + 1, 0)
        if side_by_side:
            counts = np.where(room >= length, -(-room // length), 0)
        super().__init__(series, first, counts, step, length)
        self.length, self.part_ends, self.side_by_side = length, ends, side_by_side
        self.seed, self.hide, self.span, self.together = seed, hide, span, together

    def start(self, index: int) -> tuple[int, int, int]:
        """Series and first step of a window, and how many of its first steps another window has scored already."""
        series, step = self.place(index)
        moved = max(0, step + self.length - int(self.part_ends[series])) if self.side_by_side else 0
        return series, step - moved, moved

    def __getitem__(self, index: int) -> dict[str, Any]:
        series, step, scored = self.start(index)
        values = self.values(series, step, self.length)
        rng = row_generator(self.seed, 0 if self.side_by_side else self.epoch + 1, index)
        hidden = hidden_spans(rng, values.shape, self.hide, self.span, self.together) if self.hide else np.isnan(values)
        row: dict[str, Any] = {"index": index, "series": series, "values": values, "hidden": hidden, "scored": scored}
        if self.series.labels_T is not None:
            begin = int(self.series.offsets[series]) + step
            row["labels"] = self.series.labels_T[begin : begin + self.length]
        return row


def hidden_spans(rng: np.random.Generator, shape: tuple[int, int], share: float, span: int, together: bool) -> np.ndarray:
    """Which of (L, C) values are hidden: spans of about `span` steps that together take the given share.

    Args:
        rng: draws them.
        shape: (L, C).
        share: of the steps, from 0 to 1.
        span: mean length, in steps.
        together: the same spans in every channel.
    """
    length, channels = shape
    hidden = np.zeros(shape, dtype=bool)
    for c in range(1 if together else channels):
        n_spans = max(1, round(share * length / span))
        for size in np.maximum(1, rng.geometric(1 / span, n_spans)):
            begin = int(rng.integers(0, length))
            hidden[begin : begin + int(size), c] = True
    if together:
        hidden[:] = hidden[:, :1]
    return hidden
