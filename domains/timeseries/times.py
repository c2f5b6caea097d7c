"""Columns of times as people write them: either order of day and month, time zones, months and seconds as whole numbers."""

import warnings
from typing import Any

import numpy as np
import pandas as pd

from longseq.domains.timeseries.files import Table
from longseq.domains.timeseries.grid import ReadOptions
from longseq.errors import DataError

# 3/4/2024 and 3.4.24, with or without a time of day behind it.
DAY_OR_MONTH = r"^\s*\d{1,2}[./-]\d{1,2}[./-]\d{2,4}\b"
# Behind a time of day: 01-02-2024 has none.
OFFSET = r"(:\d\d(?:\.\d+)?)\s*(?:Z|[+-]\d\d(?::?\d\d)?)\s*$"
# Seconds since 1970 from 2001 to 2100.
EPOCH = (978_307_200, 4_102_444_800)


def parse_times(table: Table, column: str, options: ReadOptions, counts: dict[str, Any]) -> np.ndarray:
    """The times as datetime64[ns], or as integers if the column holds whole numbers that are no dates.

    Args:
        table: the file.
        column: of the times.
        options: `day_first`, and what to do with cells that are no times.
        counts: takes up how the times were understood, and how many were left out.

    Raises:
        DataError: naming the line of what is no time.
    """
    cells: Any = table.frame[column]
    # 20240131 is a date, 17 is not.
    if pd.api.types.is_integer_dtype(cells) and not cells.between(19000101, 21001231).all():
        return from_numbers(cells, counts)
    text = cells if pd.api.types.is_datetime64_any_dtype(cells) else cells.astype("string")
    day_first = options.day_first or (text is not cells and is_day_first(text))
    if day_first and not options.day_first:
        first = str(text[text.notna()].iloc[0])
        counts["dates"] = f"read day first, as {first!r} in {table.path.name}; the other order is no date or leaves gaps"
    parsed = to_datetime(text, day_first)
    if parsed.dt.tz is not None:
        parsed = without_zone(text, parsed, day_first, counts)
    # Times before 1678 or behind 2262 would wrap around in nanoseconds.
    parsed = parsed.where((parsed >= pd.Timestamp.min) & (parsed <= pd.Timestamp.max))
    # Blank lines in between are no rows.
    bad = np.flatnonzero((parsed.isna() & table.frame.notna().any(axis=1)).to_numpy())
    if len(bad):
        if options.on_bad == "error":
            row = int(bad[0])
            raise DataError(
                f"{table.where(row)}, column {column!r}: {str(cells.iloc[row])!r} is no time ({len(bad)} such rows); "
                "correct it, set data.time_column, or data.on_bad=skip to leave such rows out"
            )
        counts["rows without a time, left out"] = int(counts.get("rows without a time, left out", 0)) + len(bad)
    return parsed.to_numpy(dtype="datetime64[ns]")


def from_numbers(cells: Any, counts: dict[str, Any]) -> np.ndarray:
    """Whole numbers: months as 202401, seconds or milliseconds since 1970, or places in a sequence."""
    numbers = cells.to_numpy(np.int64)
    if np.all((numbers >= 190001) & (numbers <= 210012) & (numbers % 100 >= 1) & (numbers % 100 <= 12)):
        months = numbers // 100 * 12 + numbers % 100 - 1
        # As plain numbers they would jump from December to January.
        if len(np.unique(np.diff(np.unique(months)))) < len(np.unique(np.diff(np.unique(numbers)))):
            counts["times"] = f"read as months, {numbers[0]} is {numbers[0] // 100}-{numbers[0] % 100:02d}"
            return (months - 1970 * 12).astype("datetime64[M]").astype("datetime64[ns]")
    for unit, word, size in (("s", "seconds", 1), ("ms", "milliseconds", 1000)):
        if np.all((numbers >= EPOCH[0] * size) & (numbers < EPOCH[1] * size)):
            counts["times"] = f"read as {word} since 1970, UTC"
            return numbers.astype(f"datetime64[{unit}]").astype("datetime64[ns]")
    return numbers


def to_datetime(cells: Any, day_first: bool) -> Any:
    """A column of times; NaT for what is none. Text with offsets from UTC gives UTC."""
    is_text = not pd.api.types.is_datetime64_any_dtype(cells)
    options: dict[str, Any] = {"errors": "coerce"}
    with warnings.catch_warnings():
        # That the format differs from row to row is not the user's concern.
        warnings.simplefilter("ignore", UserWarning)
        # pandas reads 2010Q1, and says that it will not for ever.
        warnings.simplefilter("ignore", DeprecationWarning)
        if is_text:
            # A date that begins with its year has no other order.
            options |= {"dayfirst": day_first and bool(cells.str.match(DAY_OR_MONTH).any())}
            # Offsets may differ within a column: those of summer and of winter.
            options |= {"utc": bool(cells.str.contains(OFFSET, regex=True).any())}
        parsed = pd.to_datetime(cells, **options)
        if is_text and parsed.isna().any():
            mixed = pd.to_datetime(cells, format="mixed", **options)
            parsed = mixed if mixed.isna().sum() < parsed.isna().sum() else parsed
    return parsed


def is_day_first(text: Any) -> bool:
    """Whether dates such as 13/04/2024 begin with the day: the other order gives no dates, or dates that jump."""
    slashed = text[text.str.match(DAY_OR_MONTH).fillna(False)].drop_duplicates()
    if not len(slashed):
        return False
    numbers = slashed.str.extract(r"(\d{1,2})[./-](\d{1,2})").astype(int)
    for place, other in ((0, 1), (1, 0)):
        if (numbers[place] > 12).any():
            return place == 0 and not (numbers[other] > 12).any()
    return jump(to_datetime(slashed, True)) < jump(to_datetime(slashed, False))


def jump(times: Any) -> float:
    """The longest step between neighbours in time over the usual one."""
    seconds: np.ndarray = times.dropna().to_numpy(dtype="datetime64[s]").astype(np.float64)
    steps = np.diff(np.unique(seconds)).astype(np.float64)
    return float(steps.max() / np.median(steps)) if len(steps) else 1.0


def without_zone(cells: Any, parsed: Any, day_first: bool, counts: dict[str, Any]) -> Any:
    """Times with a zone as UTC; days and longer steps, which all begin at one hour of the clock, as the clock shows them."""
    zone = str(parsed.dt.tz)
    universal = parsed.dt.tz_convert("UTC").dt.tz_localize(None)
    if pd.api.types.is_datetime64_any_dtype(cells):
        local = parsed.dt.tz_localize(None)
    else:
        local = to_datetime(cells.str.replace(OFFSET, r"\1", regex=True), day_first)
    # A day of 23 or 25 hours, and a date that would become the day before.
    hours = (local - local.dt.normalize()).dropna().unique()
    if len(hours) == 1 and not local.equals(universal):
        counts["time zone"] = f"{zone}, dates as they stand there" if zone != "UTC" else "dates as they stand there, not UTC"
        return local
    counts["time zone"] = "read as UTC" if zone == "UTC" else f"{zone}, read as UTC"
    return universal
