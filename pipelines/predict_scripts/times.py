"""Numbers and times in tables: the part of the time series' predict.py that knows calendars."""

from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError

# -- behind this line goes into predict.py


UNITS = {"d": 86_400_000_000_000, "h": 3_600_000_000_000, "min": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "ns": 1}
MONTHS = {"month": 1, "quarter": 3, "year": 12}
MISSING = ("", "na", "nan", "null", "none", "n/a")
PERIODS = {"minute": 60, "hour": 24, "weekday": 7, "monthday": 31, "yearday": 366, "month": 12}


def number(cell: str, place: str) -> float:
    """A cell as a number, NaN where it is empty."""
    text = cell.strip()
    if text.lower() in MISSING:
        return float("nan")
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{place}: {text!r} is no number") from None


def is_text(cell: str) -> bool:
    """Whether a cell holds neither a number nor nothing."""
    try:
        number(cell, "")
    except InputError:
        return True
    return False


def times_of(cells: list[str], path: Any) -> np.ndarray:
    """A column of times as datetime64[ns], or as integers if it holds whole numbers that are no dates."""
    whole = all(cell.lstrip("-").isdigit() for cell in cells)
    if whole and not all(19000101 <= int(cell) <= 21001231 for cell in cells):
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    try:
        texts = [f"{cell[:4]}-{cell[4:6]}-{cell[6:]}" if whole else iso(cell) for cell in cells]
        return np.array(texts, dtype="datetime64[ns]")
    except ValueError as error:
        raise InputError(f"{path}: {error}; write times as 2024-01-31 23:00") from None


def iso(cell: str) -> str:
    """A time as numpy reads it: 2024/1/31 1:00 becomes 2024-01-31T01:00."""
    date, _, clock_time = cell.strip().replace("T", " ").removesuffix("Z").partition(" ")
    parts = date.replace("/", "-").split("-")
    if len(parts) == 3:
        date = "-".join(part.zfill(2) for part in parts)
    hour, colon, rest = clock_time.partition(":")
    return f"{date}T{hour.zfill(2)}{colon}{rest}" if clock_time else date


def step_of(name: str) -> int:
    """A fixed step: nanoseconds of `15 min`, or the difference of `steps of 2`."""
    if name.startswith("steps of "):
        return int(name.removeprefix("steps of "))
    count, _, unit = name.partition(" ")
    return round(float(count) * UNITS[unit])


def continued(start: Any, steps: np.ndarray, name: str) -> np.ndarray:
    """The times so many steps after one."""
    if name in MONTHS:
        month = start.astype("datetime64[M]")
        day = int((start.astype("datetime64[D]") - month).astype(int))
        clock_time = start - start.astype("datetime64[D]")
        moved = month + steps * MONTHS[name]
        days = ((moved + 1).astype("datetime64[D]") - moved.astype("datetime64[D]")).astype(int)
        # A series of month ends stays on month ends.
        at_end = day > 27 and day + 1 == int(((month + 1).astype("datetime64[D]") - month.astype("datetime64[D]")).astype(int))
        place = days - 1 if at_end else np.minimum(day, days - 1)
        return (moved.astype("datetime64[D]") + place).astype("datetime64[ns]") + clock_time
    if name == "business":
        days = np.busday_offset(start.astype("datetime64[D]"), steps, roll="forward")
        return days.astype("datetime64[ns]") + (start - start.astype("datetime64[D]"))
    moved = steps * step_of(name)
    return start + (moved.astype("timedelta64[ns]") if isinstance(start, np.datetime64) else moved)


def clock(times: np.ndarray, cycle: str) -> np.ndarray:
    """Place in a cycle: minutes of the hour, hours of the day, days of the week, the month and the year, months."""
    day, month = times.astype("datetime64[D]"), times.astype("datetime64[M]")
    seconds = (times - day).astype("timedelta64[s]").astype(float)
    if cycle == "minute":
        return np.floor(seconds / 60) % 60 + seconds % 60 / 60
    hour = np.floor(seconds / 3600)
    if cycle == "hour":
        return hour + np.floor(seconds / 60) % 60 / 60
    if cycle == "weekday":
        return (day.astype(int) + 3) % 7 + hour / 24
    if cycle == "monthday":
        return (day - month.astype("datetime64[D]")).astype(float)
    if cycle == "yearday":
        return (day - times.astype("datetime64[Y]").astype("datetime64[D]")).astype(float)
    return month.astype(int) % 12 + 0.0


def show(times: np.ndarray, whole_days: bool) -> list[str]:
    """Times as people write them."""
    if times.dtype.kind != "M":
        return [str(time) for time in times]
    return [str(time).replace("T", " ") for time in times.astype("datetime64[D]" if whole_days else "datetime64[s]")]
