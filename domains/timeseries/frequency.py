"""The regular grid that a series' timestamps lie on: inferred, checked, and continued into the future."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from longseq.errors import ConfigError, DataError

DAY = np.timedelta64(1, "D")
# Least and most days of a step.
CALENDAR = {"month": (27, 32), "quarter": (89, 93), "year": (364, 367)}
MONTHS = {"month": 1, "quarter": 3, "year": 12}
# Steps of the season that people look for first, by seconds of a step.
SEASONS = {3600: 24, 1800: 48, 900: 96, 600: 144, 300: 288, 60: 1440, 86400: 7, 604800: 52}
CALENDAR_SEASONS = {"month": 12, "quarter": 4, "year": 1, "business": 5}
ALIASES = {"month": "M", "quarter": "Q", "year": "Y", "business": "B"}


@dataclass(frozen=True)
class Frequency:
    """One step of a series.

    Attributes:
        kind: `fixed`, `month`, `quarter`, `year`, `business` (Monday to Friday), or `index` for numbers in place of times.
        step: of `fixed` and `index`: nanoseconds, or the difference of the numbers.
        at_end: months, quarters and years are given by their last days; it decides nothing but the dates that are shown.
    """

    kind: str
    step: int = 1
    at_end: bool = field(default=False, compare=False)

    @property
    def name(self) -> str:
        """For people: 1 h, 15 min, month."""
        if self.kind == "index":
            return f"steps of {self.step}"
        if self.kind != "fixed":
            return self.kind
        for unit, size in (("d", 86400e9), ("h", 3600e9), ("min", 60e9), ("s", 1e9), ("ms", 1e6)):
            if self.step % size == 0:
                return f"{self.step / size:g} {unit}"
        return f"{self.step} ns"

    @property
    def season(self) -> int:
        """Steps of the usual season: a day of hours, a week of days, a year of months; 1 if there is none."""
        if self.kind == "fixed":
            return SEASONS.get(self.step // 1_000_000_000, 1)
        return CALENDAR_SEASONS.get(self.kind, 1)

    def ordinals(self, times: np.ndarray) -> np.ndarray:
        """Places on the grid, as integers that rise by 1 from step to step; a time between two belongs to the first."""
        if self.kind == "index":
            return (times.astype(np.int64) - np.int64(times[0])) // self.step
        if self.kind == "fixed":
            return (times.astype("datetime64[ns]").astype(np.int64) - _origin(times)) // self.step
        if self.kind == "business":
            return np.busday_count("1970-01-01", times.astype("datetime64[D]"))
        return times.astype("datetime64[M]").astype(np.int64) // MONTHS[self.kind]

    def after(self, time: Any, steps: np.ndarray) -> np.ndarray:
        """The times so many steps after one; steps may be negative."""
        if self.kind == "index":
            return np.int64(time) + steps * self.step
        start = np.datetime64(time, "ns")
        if self.kind == "fixed":
            return start + (steps * self.step).astype("timedelta64[ns]")
        if self.kind == "business":
            days = np.busday_offset(start.astype("datetime64[D]"), steps, roll="forward")
            return days.astype("datetime64[ns]") + (start - start.astype("datetime64[D]"))
        months = MONTHS[self.kind]
        stamp = pd.Timestamp(start)
        if self.at_end:
            moved = [stamp + pd.offsets.MonthEnd(int(k) * months) if k else stamp for k in steps]
        else:
            moved = [stamp + pd.DateOffset(months=int(k) * months) for k in steps]
        return np.array([value.to_datetime64() for value in moved], dtype="datetime64[ns]")


def _origin(times: np.ndarray) -> int:
    return int(times[:1].astype("datetime64[ns]").astype(np.int64)[0]) if len(times) else 0


def infer_frequency(times: np.ndarray, name: str, given: str | None = None) -> Frequency:
    """The step that most neighbours are apart.

    Args:
        times: rising, datetime64 or integers.
        name: of file and series, for messages.
        given: what `data.frequency` says, such as `1h`, `15min`, `month`; None infers it.

    Raises:
        DataError: if there are fewer than two times.
        ConfigError: if `given` means nothing.
    """
    if given is not None:
        return ending(parse_frequency(given), times)
    if len(times) < 2:
        raise DataError(f"{name}: {len(times)} time steps say nothing about the frequency; set data.frequency, such as 1h")
    if not np.issubdtype(times.dtype, np.datetime64):
        return Frequency("index", _most_common(np.diff(times)))
    days = np.diff(times) / DAY
    middle = float(np.median(days))
    for kind, (least, most) in CALENDAR.items():
        if least <= middle < most and np.ptp(days) > 0:
            return ending(Frequency(kind), times)
    whole = times.astype("datetime64[D]")
    weekdays = bool(np.all(np.is_busday(whole))) and bool(np.all(times - whole == times[0] - whole[0]))
    if weekdays and middle == 1 and len(times) > 10:
        return Frequency("business")
    return Frequency("fixed", _most_common(np.diff(times.astype("datetime64[ns]").astype(np.int64))))


def ending(frequency: Frequency, times: np.ndarray) -> Frequency:
    """The frequency of times that all are the last days of their months, as such; others as they are."""
    if frequency.kind not in CALENDAR or not len(times) or not np.issubdtype(times.dtype, np.datetime64):
        return frequency
    return replace(frequency, at_end=bool(pd.DatetimeIndex(times).is_month_end.all()))


def _most_common(values: np.ndarray) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[np.argmax(counts)])


def parse_frequency(text: str) -> Frequency:
    """A frequency from what a user writes: 1h, 15min, 10s, 7d, month, quarter, year, business."""
    for kind, alias in ALIASES.items():
        if text.lower() == kind or text.upper().removesuffix("S").removesuffix("E") == alias:
            return Frequency(kind)
    try:
        step = pd.Timedelta(text if text[:1].isdigit() else f"1{text}").value
    except ValueError:
        raise ConfigError(
            f"data.frequency={text!r} is no frequency; write 1h, 15min, 10s, 7d, business, month, quarter or year"
        ) from None
    return Frequency("fixed", int(step))


def check_grid(times: np.ndarray, frequency: Frequency) -> tuple[np.ndarray, np.ndarray]:
    """Places on the grid from the first time on, and the rows that lie between two places.

    Args:
        times: strictly rising.
        frequency: the grid's step.

    Returns:
        Places of all rows, from 0, and the numbers of the rows that are off the grid.
    """
    places = frequency.ordinals(times)
    places = places - places[0]
    if frequency.kind == "fixed":
        elapsed = times.astype("datetime64[ns]").astype(np.int64) - _origin(times)
        off = elapsed % frequency.step != 0
    elif frequency.kind == "index":
        off = (times - times[0]) % frequency.step != 0
    elif frequency.kind == "business":
        off = ~np.is_busday(times.astype("datetime64[D]"))
    else:
        off = np.zeros(len(times), dtype=bool)
    repeated = np.flatnonzero(np.diff(places, prepend=-1) <= 0)
    off[repeated] = True
    return places, np.flatnonzero(off)


def show(time: Any) -> str:
    """A time for people: without a fraction of a second that is zero."""
    return str(pd.Timestamp(time)) if isinstance(time, np.datetime64) else str(time)
