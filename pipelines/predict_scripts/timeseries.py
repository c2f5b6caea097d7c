"""The time series part of predict.py."""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError, Model, Row, read_csv, records
from longseq.pipelines.predict_scripts.times import MONTHS, PERIODS, clock, continued, is_text, number, show, step_of, times_of

# -- behind this line goes into predict.py


TIME_COLUMNS = ("ds", "date", "datetime", "timestamp", "time")


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
