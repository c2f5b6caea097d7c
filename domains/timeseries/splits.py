"""Where training, validation and test lie in each series: always in the order of time, by a rule that the run names."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from longseq.domains.timeseries.series import SeriesSet
from longseq.errors import ConfigError, DataError

RULES = ("ratio", "ett_hour", "ett_minute", "dates", "last")
PARTS = ("train", "val", "test")
# Months of 30 days in steps: 12 for train, 4 for val, 4 for test; whatever comes after is not used.
ETT = {"ett_hour": 30 * 24, "ett_minute": 30 * 24 * 4}


@dataclass(frozen=True)
class Borders:
    """Steps at which the parts of each series begin and end.

    Attributes:
        edges: (S, 4): begin of train, of val, of test, and end of test.
        rule: in words, for the report.
    """

    edges: np.ndarray
    rule: str

    def part(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """First step of each series' part, and the step behind its last."""
        i = PARTS.index(name)
        return self.edges[:, i], self.edges[:, i + 1]


def split_series(
    series: SeriesSet,
    rule: str,
    *,
    horizon: int,
    val_fraction: float = 0.1,
    test_fraction: float = 0.2,
    val_start: str | None = None,
    test_start: str | None = None,
) -> Borders:
    """Cuts every series into train, val and test.

    Args:
        series: all of them.
        rule: `ratio` (shares of each series), `ett_hour` and `ett_minute` (12, 4 and 4 months of 30 days), `dates`
            (`val_start` and `test_start`), or `last` (the last `horizon` steps for test, as many before for val).
        horizon: steps ahead, for `last`.
        val_fraction: share for val.
        test_fraction: share for test.
        val_start: first time of val.
        test_start: first time of test.

    Raises:
        ConfigError: for an unknown rule, shares or dates out of order.
        DataError: if a series is too short for the ETT rule.
    """
    lengths = series.lengths
    if rule not in RULES:
        raise ConfigError(f"data.split must be one of {', '.join(RULES)}, found {rule!r}")
    if rule in ETT:
        return _ett(series, rule)
    if rule == "dates":
        return _dates(series, val_start, test_start)
    if rule == "last":
        edges = np.stack([0 * lengths, lengths - 2 * horizon, lengths - horizon, lengths], 1)
        return Borders(np.maximum(edges, 0), f"last: val and test are the last {horizon} steps each of every series")
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ConfigError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction} must leave a share for train"
        )
    # Rounded first: 1 - 0.1 - 0.2 is a little more than 0.7.
    n_train = np.floor(np.round(lengths * round(1 - val_fraction - test_fraction, 9), 6)).astype(np.int64)
    n_test = np.floor(np.round(lengths * test_fraction, 6)).astype(np.int64)
    edges = np.stack([0 * lengths, n_train, lengths - n_test, lengths], 1)
    shares = f"{1 - val_fraction - test_fraction:.3g} : {val_fraction:.3g} : {test_fraction:.3g}"
    return Borders(edges, f"ratio: {shares} of every series, in the order of time")


def _ett(series: SeriesSet, rule: str) -> Borders:
    month = ETT[rule]
    edges = np.array([0, 12, 16, 20]) * month
    short = np.flatnonzero(series.lengths < edges[-1])
    if len(short):
        raise DataError(
            f"{series.name(int(short[0]))}: {series.lengths[short[0]]} steps, but data.split={rule} needs 20 months of "
            f"30 days = {edges[-1]} steps; use data.split=ratio"
        )
    return Borders(np.tile(edges, (len(series), 1)), f"{rule}: 12, 4 and 4 months of 30 days")


def _dates(series: SeriesSet, val_start: str | None, test_start: str | None) -> Borders:
    if val_start is None or test_start is None:
        raise ConfigError("data.split=dates needs data.val_start and data.test_start, such as 2018-01-01")
    bounds = []
    for option, text in (("val_start", val_start), ("test_start", test_start)):
        try:
            # As text: a bare 2018 would be nanoseconds since 1970.
            bounds.append(
                int(text) if series.frequency.kind == "index" else pd.DatetimeIndex([str(text)]).to_numpy("datetime64[ns]")[0]
            )
        except ValueError:
            raise ConfigError(f"data.{option}={text!r} is no time; write it like 2018-01-01 or 2018-01-01 12:00") from None
    if not bounds[0] < bounds[1]:
        raise ConfigError(f"data.val_start={val_start} must lie before data.test_start={test_start}")
    edges = np.zeros((len(series), 4), dtype=np.int64)
    for i, length in enumerate(series.lengths):
        times = series.times(i, 0, int(length))
        edges[i] = [0, np.searchsorted(times, bounds[0]), np.searchsorted(times, bounds[1]), length]
    return Borders(edges, f"dates: val from {val_start}, test from {test_start}")
