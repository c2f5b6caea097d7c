"""The time series part of predict.py."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError, Model, Row, read_csv, records

# -- behind this line goes into predict.py


TIME_COLUMNS = ("ds", "date", "datetime", "timestamp", "time")
UNITS = {"d": 86_400_000_000_000, "h": 3_600_000_000_000, "min": 60_000_000_000, "s": 1_000_000_000, "ms": 1_000_000, "ns": 1}
MONTHS = {"month": 1, "quarter": 3, "year": 12}
MISSING = ("", "na", "nan", "null", "none", "n/a")
PERIODS = {"minute": 60, "hour": 24, "weekday": 7, "monthday": 31, "yearday": 366, "month": 12}


@dataclass
class Series:
    """One series on its regular grid.

    Attributes:
        name: its id.
        times: (T,) datetime64[ns], or integers.
        values: (T, C), NaN where nothing was observed.
        cells: its columns as text, for covariates.
        length: rows up to the last observation.
    """

    name: str
    times: np.ndarray
    values: np.ndarray
    cells: dict[str, list[str]]
    length: int

    @property
    def whole_days(self) -> bool:
        """Whether its times are days, without hours."""
        return bool((self.times == self.times.astype("datetime64[D]")).all()) if self.times.dtype.kind == "M" else False


class Domain:
    """Reads csv and tsv tables of series: wide (a column of times, one column per channel) or long (unique_id, ds, y).

    Forecasts what follows the last row of each series, or with `--origins` what follows each time of that file.

    Args:
        model: the graph.
        options: of the command line.
    """

    FILES = "csv or tsv tables, also .gz: wide (date, columns) or long (unique_id, ds, y); for classes one series a line"
    pad, stride = 0.0, 1

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """What only series have."""
        parser.add_argument("--time-column", help="the column of times")
        parser.add_argument("--id-column", default="unique_id", help="names the series of long tables")
        parser.add_argument("--origins", help="a table with a column last_observed (and id): forecast from each of these times")
        parser.add_argument("--unlabelled", action="store_true", help="lines of series hold values alone, no label in front")

    def __init__(self, model: Model, options: Any) -> None:
        self.model, self.options = model, options
        self.lookback = int(model.config["embedding"]["lookback"])
        self.about = model.config.get("series") or {}
        self.channels, self.covariates = self.about.get("channels", []), self.about.get("covariates", [])
        self.targets = self.about.get("targets", self.channels)
        self.horizon = int(model.config.get("horizon", 0))

    def rows(self, path: Path) -> Iterator[Row]:
        """Windows."""
        if self.model.task == "classification":
            yield from self.labelled(path)
            return
        origins = self.origins() if self.options.origins else None
        for series in self.read(path):
            if self.model.task == "forecasting":
                for origin in [series.length] if origins is None else self.places(series, origins):
                    yield self.window(series, origin)
            else:
                yield from self.spans(series)

    # -- windows

    def window(self, series: Series, origin: int) -> Row:
        """What the model reads to forecast from a row on."""
        past = np.full((self.lookback, len(self.channels)), np.nan, dtype=np.float32)
        seen = series.values[max(0, origin - self.lookback) : origin]
        past[self.lookback - len(seen) :] = seen
        names = {"id": series.name, "last_observed": show(self.after(series, origin - 1, 1), series.whole_days)[0]}
        extra = show(self.after(series, origin, self.horizon), series.whole_days)
        if not self.covariates:
            return Row(names, past, extra)
        empty = np.full((self.horizon, len(self.channels)), np.nan, dtype=np.float32)
        known = self.known(series, origin - self.lookback, self.lookback + self.horizon)
        return Row(names, np.concatenate([np.concatenate([past, empty]), known], 1), extra)

    def spans(self, series: Series) -> Iterator[Row]:
        """Windows side by side; the last is moved back to the end, where only its new steps count."""
        if series.length < self.lookback:
            raise InputError(f"series {series.name}: {series.length} steps, fewer than the {self.lookback} of a window")
        for start in range(0, series.length, self.lookback):
            first = min(start, series.length - self.lookback)
            window = series.values[first : first + self.lookback].astype(np.float32)
            times = show(self.after(series, first, self.lookback), series.whole_days)
            yield Row({"id": series.name}, window, (times, start - first))

    def labelled(self, path: Path) -> Iterator[Row]:
        """One series a line, a label in front unless there is none."""
        first, rows = read_csv(path)
        skip = 0 if self.options.unlabelled else 1
        # A header is a first line whose second cell is no number.
        header = len(first) > 1 and is_text(first[1])
        for line, row in enumerate(rows if header else [first, *rows], start=2 if header else 1):
            values = np.array([number(cell, f"{path}, line {line}") for cell in row[skip:]], dtype=np.float32)
            padded = np.full((self.lookback, 1), np.nan, dtype=np.float32)
            padded[: len(values), 0] = values[: self.lookback]
            yield Row({"id": f"{path}, line {line}"}, padded)

    def origins(self) -> list[tuple[str | None, str]]:
        """Series and time of each forecast that is asked for, each once."""
        path = Path(self.options.origins)
        header, rows = read_csv(path)
        if "last_observed" not in header:
            raise InputError(f"{path}: there is no column last_observed, it has {', '.join(header)}")
        name = header.index("id") if "id" in header else None
        place = header.index("last_observed")
        return list(dict.fromkeys((None if name is None else row[name], row[place]) for row in rows))

    def places(self, series: Series, origins: list[tuple[str | None, str]]) -> Iterator[int]:
        """The row behind each origin of a series."""
        single = len({name for name, _ in origins}) == 1
        for name, text in origins:
            if name not in (None, series.name) and not single:
                continue
            found = np.flatnonzero(series.times == times_of([text], self.options.origins)[0])
            if not len(found):
                raise InputError(f"{self.options.origins}: series {series.name} has no row at {text}")
            yield int(found[0]) + 1

    # -- covariates

    def known(self, series: Series, first: int, count: int) -> np.ndarray:
        """Covariates of consecutive rows; zeros in front of the series, but for those that never change."""
        rows = np.zeros((count, len(self.covariates)), dtype=np.float32)
        skip, inside = max(0, -first), max(0, min(count, len(series.times) - first))
        ahead = self.after(series, max(0, first), count - skip)
        for i, name in enumerate(self.covariates):
            base, _, wave = name.rpartition("_")
            column, _, level = name.partition("=")
            if name in series.cells:
                values = np.array([number(cell, name) for cell in series.cells[name]])
                rows[skip:inside, i] = values[first + skip : first + inside]
                if len(set(series.cells[name])) == 1:
                    rows[:, i] = values[0]
                elif inside < count:
                    raise InputError(
                        f"series {series.name}: {name} must be known {self.horizon} steps ahead: add rows for them"
                    )
            elif wave in ("sin", "cos") and base in PERIODS:
                angle = 2 * np.pi * clock(ahead, base) / PERIODS[base]
                rows[skip:, i] = np.sin(angle) if wave == "sin" else np.cos(angle)
            elif level and column in series.cells:
                rows[:, i] = float(series.cells[column][0] == level)
            else:
                raise InputError(f"the model reads the covariate {name!r}, and the table has no such column")
        return rows

    # -- tables

    def read(self, path: Path) -> Iterator[Series]:
        """The series of a table."""
        header, rows = read_csv(path)
        if any(len(row) != len(header) for row in rows):
            line = next(i for i, row in enumerate(rows, start=2) if len(row) != len(header))
            raise InputError(f"{path}, line {line}: {len(rows[line - 2])} cells, the header has {len(header)}")
        lowered = {name.lower(): name for name in reversed(header)}
        time = self.options.time_column or next((lowered[name] for name in TIME_COLUMNS if name in lowered), header[0])
        missing = [name for name in (time, *self.channels) if name not in header]
        if missing:
            raise InputError(f"{path}: there is no column {missing[0]!r}; it has {', '.join(header)}")
        own = header.index(self.options.id_column) if self.options.id_column in header else None
        groups: dict[str, list[list[str]]] = {}
        for row in rows:
            groups.setdefault(path.name.split(".")[0] if own is None else row[own], []).append(row)
        for name, group in groups.items():
            cells = {column: [row[i].strip() for row in group] for i, column in enumerate(header)}
            yield self.series(name, times_of(cells[time], path), cells, path)

    def series(self, name: str, times: np.ndarray, cells: dict[str, list[str]], path: Path) -> Series:
        """One series, missing steps filled with NaN."""
        if (np.diff(times).astype(np.int64) <= 0).any():
            raise InputError(f"{path}, series {name}: its times do not rise; sort the rows and leave one of each time")
        values = np.stack([[number(cell, f"{path}, column {c}") for cell in cells[c]] for c in self.channels], 1)
        whole = continued(times[0], np.arange(self.steps_between(times[0], times[-1]) + 1), self.about["frequency"])
        if len(whole) != len(times):
            place = np.searchsorted(whole, times)
            if place.max() >= len(whole) or (whole[place] != times).any():
                raise InputError(f"{path}, series {name}: its times are not {self.about['frequency']} apart, as in training")
            filled = np.full((len(whole), values.shape[1]), np.nan)
            filled[place] = values
            previous = np.searchsorted(times, whole, side="right") - 1
            cells = {column: [texts[i] for i in previous] for column, texts in cells.items()}
            times, values = whole, filled
        seen = np.flatnonzero(~np.isnan(values[:, : len(self.targets)]).all(1))
        return Series(name, times, values.astype(np.float32), cells, int(seen[-1]) + 1 if len(seen) else 0)

    def steps_between(self, first: Any, last: Any) -> int:
        """Steps of the model's frequency from one time to another."""
        name = self.about["frequency"]
        if name in MONTHS:
            return int(last.astype("datetime64[M]") - first.astype("datetime64[M]")) // MONTHS[name]
        if name == "business":
            return int(np.busday_count(first.astype("datetime64[D]"), last.astype("datetime64[D]")))
        return int(last - first) // step_of(name)

    def after(self, series: Series, first: int, count: int) -> np.ndarray:
        """The times of consecutive rows, also of those beyond the end."""
        return continued(series.times[0], np.arange(first, first + count), self.about["frequency"])

    # -- lines

    def records(self, model: Model, row: Row, answer: np.ndarray) -> Iterator[dict[str, Any]]:
        """Lines of the csv file for one window."""
        if model.task == "forecasting":
            yield from self.forecasts(row, answer)
        elif model.task == "imputation":
            times, scored = row.extra
            for step, c in np.argwhere(np.isnan(row.inputs)):
                if step >= scored:
                    yield {**row.names, "channel": self.channels[c], "time": times[step], "forecast": answer[step, c]}
        elif model.task == "anomaly":
            times, scored = row.extra
            for step in range(scored, len(answer)):
                yield {**row.names, "time": times[step], "score": answer[step]}
        else:
            yield from records(model, row, answer)

    def forecasts(self, row: Row, answer: np.ndarray) -> Iterator[dict[str, Any]]:
        """One line for each step and channel, with the quantiles."""
        levels = self.model.config["quantiles"]
        for step, values in enumerate(answer):
            for channel, quantiles in zip(self.targets, values, strict=True):
                line = {"id": row.names["id"], "channel": channel, "last_observed": row.names["last_observed"]}
                line |= {"step": step + 1, "time": row.extra[step], "forecast": quantiles[len(levels) // 2]}
                yield line | ({f"q{q:g}": v for q, v in zip(levels, quantiles, strict=True)} if len(levels) > 1 else {})


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
