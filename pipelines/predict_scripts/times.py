"""Numbers and times in tables: the part of the time series' predict.py that knows calendars."""

import re
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError

# -- behind this line goes into predict.py


UNITS = {"d": 86_400_000_000_000, "h": 3_600_000_000_000, "min": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "ns": 1}
MONTHS = {"month": 1, "quarter": 3, "year": 12}
MISSING = ("", "na", "nan", "null", "none", "n/a")
PERIODS = {"minute": 60, "hour": 24, "weekday": 7, "monthday": 31, "yearday": 366, "month": 12}


# A zone behind a time of day: Z, or how far it is from UTC.
ZONE = re.compile(r"(?<=\d)\s*(?:(Z|UTC)|([+-])(\d\d):?(\d\d)?)$")


def number(cell: str, place: str, decimal: str = ".") -> float:
    """A cell as a number, NaN where it is empty."""
    text = cell.strip()
    if text.lower() in MISSING:
        return float("nan")
    try:
        found = float(text if decimal == "." else text.replace(decimal, "."))
    except ValueError:
        raise InputError(f"{place}: {text!r} is no number") from None
    if not np.isfinite(found):
        raise InputError(f"{place}: {text!r} is not finite; leave the cell empty if the value is missing")
    return found


def is_text(cell: str) -> bool:
    """Whether a cell holds neither a number nor nothing."""
    try:
        number(cell, "")
    except InputError:
        return True
    return False


def times_of(cells: list[str], path: Any, day_first: bool = False) -> np.ndarray:
    """A column of times as datetime64[ns], or as integers if it holds whole numbers that are no dates."""
    whole = all(cell.lstrip("-").isdigit() for cell in cells)
    if whole and not all(19000101 <= int(cell) <= 21001231 for cell in cells):
        return np.array([int(cell) for cell in cells], dtype=np.int64)
    # 31/1/2024 has its day in front, whatever is usual.
    day_first |= any((parts := re.split(r"[/.-]", cell.strip()))[0].isdigit() and 12 < int(parts[0]) <= 31 for cell in cells)
    try:
        return np.array([f"{c[:4]}-{c[4:6]}-{c[6:]}" if whole else iso(c, day_first) for c in cells], dtype="datetime64[ns]")
    except (ValueError, IndexError) as error:
        raise InputError(f"{path}: {error or 'a time that cannot be read'}; write times as 2024-01-31 23:00") from None


def iso(cell: str, day_first: bool = False) -> Any:
    """A time as numpy reads it, in UTC where it says its zone: 2024/1/31 1:00+01:00 becomes 2024-01-31T00:00."""
    date, _, clock_time = cell.strip().replace("T", " ").partition(" ")
    if not date:
        raise ValueError("a row without a time")
    parts = re.split(r"[/.-]", date)
    if len(parts) == 3:
        if len(parts[0]) < 4:
            if len(parts[2]) != 4:
                raise ValueError(f"{cell!r} has no year of four digits")
            parts = [parts[2], *(parts[1::-1] if day_first else parts[:2])]
        date = "-".join(part.zfill(2) for part in parts)
    zone = ZONE.search(clock_time)
    clock_time = clock_time[: zone.start() if zone else None].strip().upper()
    half, clock_time = clock_time[-2:], clock_time.removesuffix("AM").removesuffix("PM").strip()
    hour, colon, rest = clock_time.partition(":")
    if half in ("AM", "PM"):
        hour = str(int(hour) % 12 + 12 * (half == "PM"))
    if not re.fullmatch(r"[\d.:-]*", date + hour + rest):
        raise ValueError(f"{cell!r} is no time")
    moment = np.datetime64(f"{date}T{hour.zfill(2)}{colon}{rest}" if hour else date, "ns")
    if zone is None or zone[2] is None:
        return moment
    minutes = int(f"{zone[2]}1") * (60 * int(zone[3]) + int(zone[4] or 0))
    return moment - np.timedelta64(minutes, "m")


def step_of(name: str) -> int:
    """A fixed step: nanoseconds of `15 min`, or the difference of `steps of 2`."""
    if name.startswith("steps of "):
        return int(name.removeprefix("steps of "))
    count, _, unit = name.partition(" ")
    return round(float(count) * UNITS[unit])


def month_ends(times: np.ndarray) -> bool:
    """Whether all times are last days of their months."""
    if times.dtype.kind != "M":
        return False
    tomorrow = times.astype("datetime64[D]") + 1
    return bool((tomorrow.astype("datetime64[M]") != times.astype("datetime64[M]")).all())


def continued(start: Any, steps: np.ndarray, name: str, at_end: bool = False) -> np.ndarray:
    """The times so many steps after one; months that are given by their last days go on so."""
    if name in MONTHS:
        month = start.astype("datetime64[M]")
        day = int((start.astype("datetime64[D]") - month).astype(int))
        clock_time = start - start.astype("datetime64[D]")
        moved = month + steps * MONTHS[name]
        days = ((moved + 1).astype("datetime64[D]") - moved.astype("datetime64[D]")).astype(int)
        place = days - 1 if at_end else np.minimum(day, days - 1)
        return (moved.astype("datetime64[D]") + place).astype("datetime64[ns]") + clock_time
    if name == "business":
        days = np.busday_offset(start.astype("datetime64[D]"), steps, roll="forward")
        return days.astype("datetime64[ns]") + (start - start.astype("datetime64[D]"))
    moved = steps * step_of(name)
    return start + (moved.astype("timedelta64[ns]") if isinstance(start, np.datetime64) else moved)


def ordinals(times: np.ndarray, name: str) -> np.ndarray:
    """Places of times on the grid of a frequency, from 0; -1 for those that lie between two."""
    if name in MONTHS:
        found = times.astype("datetime64[M]").astype(np.int64) // MONTHS[name]
    elif name == "business":
        days = times.astype("datetime64[D]")
        found = np.where(np.is_busday(days), np.busday_count("1970-01-01", days), np.iinfo(np.int64).min)
    else:
        elapsed = times.astype(np.int64) - times.astype(np.int64)[0]
        return np.where(elapsed % step_of(name) == 0, elapsed // step_of(name), -1)
    return np.maximum(found - found[0], -1)


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
