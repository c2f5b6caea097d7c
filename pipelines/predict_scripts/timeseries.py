"""The time series part of predict.py."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.answers import records
from longseq.pipelines.predict_scripts.series import Series, SeriesTables, wave
from longseq.pipelines.predict_scripts.shared import InputError, Model, Row
from longseq.pipelines.predict_scripts.tables import Table, read_table
from longseq.pipelines.predict_scripts.times import (
    PERIODS,
    clock,
    is_text,
    number,
    show,
    times_of,
)

# -- behind this line goes into predict.py


LABEL_NAMES = ("label", "class", "target", "y")


class Domain(SeriesTables):
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
        parser.add_argument("--id-column", help="names the series of long tables; as in training if unset, else unique_id")
        parser.add_argument("--origins", help="a table with a column last_observed (and id): forecast from each of these times")
        parser.add_argument(
            "--unlabelled", action="store_true", help="lines of series hold values alone, whatever they look like"
        )

    def __init__(self, model: Model, options: Any) -> None:
        super().__init__(model.config, options)
        self.model = model
        self.lookback = int(model.config["embedding"]["lookback"])
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
        least = int(self.reading.get("min_lookback") or max(1, self.lookback // 4))
        if origin < least:
            raise InputError(f"series {series.name}: {origin} steps of history, and a forecast needs {least}")
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
        """One series a line; a label in front, or in a column of such a name, is passed over."""
        table = read_table(path, header=False)
        first = table.rows[0]
        # A header is a first line whose second cell is no number.
        header = is_text(first[min(1, len(first) - 1)])
        skip = self.label_place(table, header)
        for line, cells in list(zip(table.lines, table.rows, strict=True))[1 if header else 0 :]:
            kept = [cell for i, cell in enumerate(cells) if i != skip]
            values = np.array([number(cell, f"{path}, line {line}", self.decimal) for cell in kept], dtype=np.float32)
            if np.isnan(values).all():
                raise InputError(f"{path}, line {line}: no value")
            padded = np.full((self.lookback, 1), np.nan, dtype=np.float32)
            padded[: len(values), 0] = values[: self.lookback]
            yield Row({"id": f"{path}, line {line}"}, padded)

    def label_place(self, table: Table, header: bool) -> int | None:
        """Where the labels stand: in a column named so; else in the first one, if it holds nothing but labels of the model."""
        if self.options.unlabelled:
            return None
        if header:
            names = [name.lower() for name in table.rows[0]]
            return next((i for i, name in enumerate(names) if name in LABEL_NAMES), None)
        texts = {row[0] for row in table.rows}
        if all(is_text(text) for text in texts):
            return 0
        known = {*self.model.labels, *(str(float(label)) for label in self.model.labels if not is_text(label))}
        # As many numbers as the model reads steps are a series.
        return 0 if len(table.header) != self.lookback and {*texts} <= known else None

    def origins(self) -> list[tuple[str | None, str]]:
        """Series and time of each forecast that is asked for, each once."""
        path = Path(self.options.origins)
        table = read_table(path)
        place = table.place("last_observed", "--origins")
        name = table.header.index("id") if "id" in table.header else None
        return list(dict.fromkeys((None if name is None else row[name], row[place]) for row in table.rows))

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
            column, _, level = name.partition("=")
            if name in series.cells:
                values = np.array([number(cell, f"column {name}", self.decimal) for cell in series.cells[name]])
                rows[skip:inside, i] = values[first + skip : first + inside]
                known = values[~np.isnan(values)]
                if len(known) and (known == known[0]).all() and name not in self.reading.get("known_covariates", ()):
                    rows[:, i] = known[0]
                elif inside < count:
                    raise InputError(
                        f"series {series.name}: {name} must be known {self.horizon} steps ahead: add rows for them"
                    )
            elif wave(name):
                base, _, kind = name.rpartition("_")
                angle = 2 * np.pi * clock(ahead, base) / PERIODS[base]
                rows[skip:, i] = np.sin(angle) if kind == "sin" else np.cos(angle)
            elif level and column in series.cells:
                rows[:, i] = float(self.level(series, column) == level)
            else:
                raise InputError(f"the model reads the covariate {name!r}, and the table has no such column")
        return rows

    def level(self, series: Series, column: str) -> str:
        """A text that belongs to a whole series, one of those of the training."""
        text, prefix = series.cells[column][0], f"{column}="
        known = [name.removeprefix(prefix) for name in self.covariates if name.startswith(prefix)]
        if text not in known:
            raise InputError(
                f"series {series.name}: {text!r} in column {column!r}, and in training it was {', '.join(known[:20])}"
            )
        return text

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
