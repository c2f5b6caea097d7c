"""Series on their regular grids: one table of numbers for all of them, and where each begins."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longseq.domains.timeseries.calendar_features import calendar_features
from longseq.domains.timeseries.frequency import Frequency, show
from longseq.errors import DataError


@dataclass
class SeriesSet:
    """S series, one behind the other in the rows of one table.

    Attributes:
        ids: names of the series.
        offsets: (S + 1,) first row of each series, and the end of the last.
        starts: time of each series' first row.
        frequency: one step.
        values_TC: (T, C) fp32, NaN where nothing was observed; forecast channels first, then those that are only read.
        known_TK: (T, K) fp32 covariates that are known ahead.
        static_SK: (S, K') fp32 covariates that belong to a whole series.
        channels: names of the C channels.
        n_targets: how many of them are forecast.
        covariates: names of the K + K' covariates.
        ahead: (S,) rows at the end of each series that hold only covariates.
        calendar: cycles whose columns are the last of `known_TK`.
        labels_T: (T,) 0 or 1 for anomalies; NaN where it is not known; None without labels.
        source: the files, for messages.
        counts: what was filled, skipped and so on.
    """

    ids: list[str]
    offsets: np.ndarray
    starts: list[Any]
    frequency: Frequency
    values_TC: np.ndarray
    known_TK: np.ndarray
    static_SK: np.ndarray
    channels: list[str]
    n_targets: int
    covariates: list[str]
    ahead: np.ndarray
    calendar: Sequence[str] = ()
    labels_T: np.ndarray | None = None
    source: str = "the data"
    counts: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def targets(self) -> list[str]:
        """Names of the forecast channels."""
        return self.channels[: self.n_targets]

    @property
    def n_covariates(self) -> int:
        """K + K'."""
        return self.known_TK.shape[1] + self.static_SK.shape[1]

    @property
    def static_names(self) -> list[str]:
        """Names of the K' covariates that belong to a whole series."""
        return self.covariates[self.known_TK.shape[1] :]

    @property
    def lengths(self) -> np.ndarray:
        """(S,) rows of each series that may hold observations."""
        return np.diff(self.offsets) - self.ahead

    @property
    def memory(self) -> int:
        """Bytes that the table takes."""
        return self.values_TC.nbytes + self.known_TK.nbytes + self.static_SK.nbytes

    def name(self, series: int) -> str:
        """File and series, for messages."""
        return f"{self.source}, series {self.ids[series]!r}" if len(self) > 1 else self.source

    def time(self, series: int, step: int) -> Any:
        """The time of a series' row; also of rows beyond its end."""
        return self.frequency.after(self.starts[series], np.array([step]))[0]

    def times(self, series: int, first: int, count: int) -> np.ndarray:
        """The times of consecutive rows."""
        return self.frequency.after(self.starts[series], np.arange(first, first + count))

    def covariate_rows(self, series: int, first: int, count: int) -> np.ndarray:
        """(count, K + K') covariates of consecutive rows; zeros in front of the series, calendar columns also behind its end.

        Raises:
            DataError: if a covariate that must be known ahead ends too early.
        """
        begin, end = int(self.offsets[series]), int(self.offsets[series + 1])
        rows = np.zeros((count, self.n_covariates), dtype=np.float32)
        n_known, n_calendar = self.known_TK.shape[1], 2 * len(self.calendar)
        given = max(0, min(count, end - begin - first))
        skip = max(0, -first)
        rows[skip:given, :n_known] = self.known_TK[begin + first + skip : begin + first + given]
        rows[:, n_known:] = self.static_SK[series]
        if given < count and n_known > n_calendar:
            raise DataError(
                f"{self.name(series)}: {', '.join(self.covariates[: n_known - n_calendar])} must be known up to "
                f"{show(self.time(series, first + count - 1))}, but the file ends at "
                f"{show(self.time(series, end - begin - 1))}: add rows with these covariates and empty "
                "values, or leave them out of data.known_covariates"
            )
        if given < count and n_calendar:
            rows[given:, :n_known] = calendar_features(self.times(series, first + given, count - given), self.calendar)
        return rows

    def select(self, chosen: Sequence[int]) -> "SeriesSet":
        """Some of the series."""
        rows = [np.arange(self.offsets[i], self.offsets[i + 1]) for i in chosen]
        index = np.concatenate(rows) if rows else np.empty(0, np.int64)
        return SeriesSet(
            ids=[self.ids[i] for i in chosen],
            offsets=np.cumsum([0, *(len(r) for r in rows)]),
            starts=[self.starts[i] for i in chosen],
            frequency=self.frequency,
            values_TC=self.values_TC[index],
            known_TK=self.known_TK[index],
            static_SK=self.static_SK[list(chosen)],
            channels=self.channels,
            n_targets=self.n_targets,
            covariates=self.covariates,
            ahead=self.ahead[list(chosen)],
            calendar=self.calendar,
            labels_T=None if self.labels_T is None else self.labels_T[index],
            source=self.source,
            counts=self.counts,
        )


@dataclass(frozen=True)
class Scale:
    """What the training part says of the size of things.

    Attributes:
        mean_SC: (S, C) of each series and channel.
        std_SC: likewise; 1 where a channel does not vary.
        mase_SC: mean absolute difference to the value one season before, the unit of MASE; NaN where it is not defined.
        constant: how many channels of how many series do not vary.
    """

    mean_SC: np.ndarray
    std_SC: np.ndarray
    mase_SC: np.ndarray
    constant: int

    @property
    def channel_mean(self) -> np.ndarray:
        """Of each channel over all series."""
        return self.mean_SC.mean(0)

    @property
    def channel_std(self) -> np.ndarray:
        """Likewise: the deviations within series and between their means."""
        return np.sqrt((self.std_SC**2).mean(0) + self.mean_SC.var(0))

    @property
    def channel_mase(self) -> np.ndarray:
        """Mean over the series where it is defined; NaN where it is not in any."""
        known = np.isfinite(self.mase_SC)
        return np.where(known.any(0), np.nan_to_num(self.mase_SC).sum(0) / np.maximum(1, known.sum(0)), np.nan)

    def channel_options(self) -> dict[str, list[float]]:
        """Mean, deviation and floor per channel over all series, for the model."""
        least_C = 1e-3 * self.std_SC.min(0)
        return {"mean": self.channel_mean.tolist(), "std": self.channel_std.tolist(), "floor": least_C.tolist()}


def measure_scale(series: SeriesSet, train_ends: np.ndarray, season: int) -> Scale:
    """Mean, deviation and seasonal difference over the training part alone.

    Args:
        series: all of them.
        train_ends: (S,) steps of each series that are training data; a series with none has the scale of all others, and where
            there are no others that of its whole.
        season: steps of the season of MASE.
    """
    n_channels = series.values_TC.shape[1]
    mean, std = np.zeros((len(series), n_channels)), np.ones((len(series), n_channels))
    mase, constant = np.full((len(series), n_channels), np.nan), 0
    without = train_ends <= 0
    if without.all():
        train_ends, without = series.lengths, np.zeros(len(series), dtype=bool)
    for i in np.flatnonzero(~without):
        begin, end = int(series.offsets[i]), int(train_ends[i])
        x = series.values_TC[begin : begin + end].astype(np.float64)
        seen = ~np.isnan(x)
        count = seen.sum(0)
        mean[i] = np.where(count > 0, np.nansum(x, 0) / np.maximum(1, count), 0.0)
        deviation = np.sqrt(np.nansum((x - mean[i]) ** 2, 0) / np.maximum(1, count))
        # Rounding leaves a constant channel with a deviation of about 1e-8 of its value.
        flat = deviation <= 1e-7 * np.abs(mean[i])
        constant += int(flat.sum())
        std[i] = np.where(flat, 1.0, deviation)
        gap = season if end > season else 1
        if end > gap:
            steps = np.abs(x[gap:] - x[:-gap])
            known = (~np.isnan(steps)).sum(0)
            average = np.nansum(steps, 0) / np.maximum(1, known)
            mase[i] = np.where((known > 0) & (average > 0), average, np.nan)
    if without.any():
        rest = Scale(mean[~without], std[~without], mase[~without], constant)
        mean[without], std[without], mase[without] = rest.channel_mean, rest.channel_std, rest.channel_mase
    return Scale(mean, std, mase, constant)
