"""Tables as series on their grids of time: the part of the time series' predict.py that reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError
from longseq.pipelines.predict_scripts.tables import Table, read_table
from longseq.pipelines.predict_scripts.times import PERIODS, continued, month_ends, number, ordinals, show, times_of

# -- behind this line goes into predict.py


TIME_COLUMNS = ("ds", "date", "datetime", "timestamp", "time")


@dataclass
class Series:
    """One series on its regular grid.

    Attributes:
        name: its id.
        times: (T,) datetime64[ns], or integers.
        values: (T, C), NaN where nothing was observed.
        cells: its columns as text, for covariates; empty in steps that the table lacks.
        length: rows that may hold observations.
        at_end: its times are last days of months.
    """

    name: str
    times: np.ndarray
    values: np.ndarray
    cells: dict[str, list[str]]
    length: int

    at_end: bool

    @property
    def whole_days(self) -> bool:
        """Whether its times are days, without hours."""
        return bool((self.times == self.times.astype("datetime64[D]")).all()) if self.times.dtype.kind == "M" else False


class SeriesTables:
    """Reads series as those of the training were read.

    Args:
        config: of the model.
        options: of the command line.
    """

    def __init__(self, config: dict[str, Any], options: Any) -> None:
        self.options = options
        self.about = config.get("series") or {}
        self.channels, self.covariates = self.about.get("channels", []), self.about.get("covariates", [])
        self.targets = self.about.get("targets", self.channels)
        # How the files of the training were read.
        self.reading = config.get("reading", {})
        self.decimal, self.day_first = self.reading.get("decimal", "."), bool(self.reading.get("day_first", False))
        # Covariates of the table that are known ahead: its last rows may hold them alone.
        self.ahead = bool(self.reading.get("known_covariates", [c for c in self.covariates if "=" not in c and not wave(c)]))

    def read(self, path: Path) -> Iterator[Series]:
        """The series of a table."""
        table = read_table(path)
        if not table.rows:
            raise InputError(f"{path}: a header and no rows")
        header = table.header
        lowered = {name.lower(): name for name in reversed(header)}
        usual = next((lowered[name] for name in TIME_COLUMNS if name in lowered), header[0])
        time = header[table.place(self.options.time_column or self.reading.get("time_column") or usual, "--time-column")]
        missing = [name for name in self.channels if name not in header]
        if missing:
            raise InputError(f"{path}: there is no column {missing[0]!r}, which the model reads; it has {', '.join(header)}")
        id_column = self.options.id_column or self.reading.get("id_column", "unique_id")
        own = header.index(id_column) if id_column in header else None
        groups: dict[str, list[int]] = {}
        for i, row in enumerate(table.rows):
            groups.setdefault(path.name.split(".")[0] if own is None else row[own], []).append(i)
        for name, rows in groups.items():
            yield self.series(name, time, table, rows)

    def series(self, name: str, time: str, table: Table, rows: list[int]) -> Series:
        """One series, missing steps filled with NaN."""
        where, header = f"{table.path}, series {name}", table.header
        times = times_of([table.rows[i][header.index(time)] for i in rows], where, self.day_first)
        # Rows that repeat another in full are one.
        once = [k for k in range(len(rows)) if not k or table.rows[rows[k]] != table.rows[rows[k - 1]]]
        times, rows = times[once], [rows[k] for k in once]
        back = np.flatnonzero(np.diff(times).astype(np.int64) <= 0)
        if len(back):
            line = table.lines[rows[int(back[0]) + 1]]
            raise InputError(f"{where}, line {line}: the times do not rise; sort the rows and leave one of each time")
        cells = {column: [table.rows[i][k] for i in rows] for k, column in enumerate(header)}
        values = np.stack([self.column(table, rows, channel) for channel in self.channels], 1)
        at_end = month_ends(times)
        times, values, cells = self.on_grid(times, values, cells, where)
        length = len(values)
        if self.ahead:
            seen = np.flatnonzero(~np.isnan(values[:, : len(self.targets)]).all(1))
            length = int(seen[-1]) + 1 if len(seen) else 0
        if self.reading.get("missing") == "forward":
            for channel in values[:length].T:
                last = np.maximum.accumulate(np.where(np.isnan(channel), -1, np.arange(length)))
                channel[:] = np.where(last < 0, np.nan, channel[last])
        return Series(name, times, values.astype(np.float32), cells, length, at_end)

    def column(self, table: Table, rows: list[int], name: str) -> np.ndarray:
        """Some of a column's cells as numbers."""
        place, where = table.header.index(name), f"{table.path}, line {{}}, column {name}"
        return np.array([number(table.rows[i][place], where.format(table.lines[i]), self.decimal) for i in rows])

    def on_grid(
        self, times: np.ndarray, values: np.ndarray, cells: dict[str, list[str]], where: str
    ) -> tuple[np.ndarray, np.ndarray, dict[str, list[str]]]:
        """All three with the steps that are missing between the first and the last."""
        frequency, at_end = self.about["frequency"], month_ends(times)
        if self.reading.get("gaps") == "ignore":
            return continued(times[0], np.arange(len(times)), frequency, at_end), values, cells
        if (times.dtype.kind == "M") == frequency.startswith("steps of"):
            raise InputError(f"{where}: its times are not {frequency} apart, as in training")
        places = ordinals(times, frequency)
        if (np.diff(places, prepend=-1) <= 0).any():
            row = int(np.argmax(np.diff(places, prepend=-1) <= 0))
            off = show(times[row : row + 1], False)[0]
            raise InputError(f"{where}: {off} is no whole number of steps of {frequency} behind the first time, as in training")
        steps, counts = np.unique(np.diff(places), return_counts=True)
        # Unless the frequency was given, it was inferred: what most neighbours are apart.
        if len(steps) and steps[counts.argmax()] != 1 and not self.reading.get("frequency"):
            most = f"{steps[counts.argmax()]} steps of {frequency}"
            raise InputError(
                f"{where}: most of its times are {most} apart, and the model was trained on single ones: resample it"
            )
        length = int(places[-1]) + 1
        if length == len(times):
            return times, values, cells
        if length > 50 * len(times) + 1000:
            raise InputError(f"{where}: {len(times)} rows are spread over {length} steps of {frequency}")
        filled = np.full((length, values.shape[1]), np.nan)
        filled[places] = values
        texts = {column: [""] * length for column in cells}
        for column, found in cells.items():
            for place, text in zip(places, found, strict=True):
                texts[column][place] = text
        return continued(times[0], np.arange(length), frequency, at_end), filled, texts

    def after(self, series: Series, first: int, count: int) -> np.ndarray:
        """The times of consecutive rows, also of those beyond the end."""
        return continued(series.times[0], np.arange(first, first + count), self.about["frequency"], series.at_end)


def wave(name: str) -> bool:
    """Whether a covariate is a wave of the calendar, such as hour_sin."""
    base, _, kind = name.rpartition("_")
    return kind in ("sin", "cos") and base in PERIODS
