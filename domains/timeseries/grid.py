"""How files are read, and what happens to one series' rows: sorted, none twice, on a regular grid of time."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longseq.domains.timeseries.files import Table
from longseq.domains.timeseries.frequency import Frequency, check_grid, show
from longseq.errors import ConfigError, DataError

LONG_ID = "unique_id"


@dataclass(frozen=True)
class ReadOptions:
    """How files are read; each field is the option of the same name of the data module."""

    format: str = "auto"
    time_column: str | None = None
    id_column: str = LONG_ID
    targets: Sequence[str] | None = None
    past_covariates: Sequence[str] = ()
    known_covariates: Sequence[str] = ()
    static_covariates: Sequence[str] = ()
    anomaly_column: str | None = None
    calendar: Sequence[str] = ()
    frequency: str | None = None
    gaps: str = "fill"
    missing: str = "mask"
    on_bad: str = "error"
    encoding: str | None = None
    decimal: str = "."
    day_first: bool = False

    def __post_init__(self) -> None:
        choices = {
            "format": ("auto", "wide", "long"),
            "gaps": ("fill", "ignore", "error"),
            "missing": ("mask", "forward", "error"),
            "on_bad": ("error", "skip"),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"data.{name} must be {' or '.join(known)}, found {getattr(self, name)!r}")


@dataclass
class Piece:
    """One series before it is put on the grid: its rows in the table, their times and values."""

    id: str
    table: Table
    rows: np.ndarray
    times: np.ndarray
    values: np.ndarray

    def where(self, row: int) -> str:
        """File, line and series of one of its rows."""
        return f"{self.table.where(int(self.rows[row]))}, series {self.id!r}"


def in_order(piece: Piece, on_bad: str, counts: dict[str, Any]) -> Piece:
    """The rows in rising order of time, none twice.

    Rows that repeat another in full are dropped and counted, since nothing is lost; two different rows of one time are an
    error, as are unsorted rows, unless `on_bad` is `skip`.
    """
    steps = np.diff(piece.times)
    zero = np.zeros(1, dtype=steps.dtype)[0]
    back = np.flatnonzero(steps < zero)
    if len(back):
        if on_bad == "error":
            raise DataError(
                f"{piece.where(int(back[0]) + 1)}: time {show(piece.times[back[0] + 1])} stands behind "
                f"{show(piece.times[back[0]])}; sort the rows by time, or set data.on_bad=skip to have them sorted"
            )
        order = np.argsort(piece.times, kind="stable")
        piece = Piece(piece.id, piece.table, piece.rows[order], piece.times[order], piece.values[order])
        counts["series that were not sorted by time"] = int(counts.get("series that were not sorted by time", 0)) + 1
        steps = np.diff(piece.times)
    twice = np.flatnonzero(steps == zero)
    if not len(twice):
        return piece
    same = np.array([np.array_equal(piece.values[i], piece.values[i + 1], equal_nan=True) for i in twice])
    if not same.all() and on_bad == "error":
        first = int(twice[~same][0])
        raise DataError(
            f"{piece.where(first + 1)}: time {show(piece.times[first])} stands there a "
            f"second time with other values (first in {piece.table.word} {piece.rows[first] + piece.table.first_line}); "
            "remove one, or set data.on_bad=skip to keep the first"
        )
    key = "rows that repeat a time, left out"
    counts[key] = int(counts.get(key, 0)) + len(twice)
    keep = np.ones(len(piece.times), dtype=bool)
    keep[twice + 1] = False
    return Piece(piece.id, piece.table, piece.rows[keep], piece.times[keep], piece.values[keep])


def on_grid(piece: Piece, frequency: Frequency, options: ReadOptions, counts: dict[str, Any]) -> Piece:
    """The rows on the regular grid; steps that are not there become rows of NaN."""
    if options.gaps == "ignore" or len(piece.times) < 2:
        return piece
    places, off = check_grid(piece.times, frequency)
    if len(off):
        if options.on_bad == "error":
            row = int(off[0])
            raise DataError(
                f"{piece.where(row)}: time {show(piece.times[row])} is not a multiple of "
                f"{frequency.name} after {show(piece.times[0])} ({len(off)} such rows); set data.frequency, data.gaps=ignore "
                "to take rows as equally spaced, or data.on_bad=skip to leave them out"
            )
        counts["rows off the time grid, left out"] = int(counts.get("rows off the time grid, left out", 0)) + len(off)
        keep = np.delete(np.arange(len(places)), off)
        piece = Piece(piece.id, piece.table, piece.rows[keep], piece.times[keep], piece.values[keep])
        places = places[keep]
    length = int(places[-1]) + 1
    if length == len(places):
        return piece
    gaps = length - len(places)
    if options.gaps == "error":
        row = int(np.argmax(np.diff(places) > 1)) + 1
        raise DataError(
            f"{piece.where(row)}: {gaps} steps of {frequency.name} are missing, the first before "
            f"{show(piece.times[row])}; set data.gaps=fill to read them as missing values"
        )
    if length > 50 * len(places) + 1000:
        raise DataError(
            f"{piece.table.path}, series {piece.id!r}: {len(places)} rows are spread over {length} steps of {frequency.name}; "
            "set data.frequency to the real step, or data.gaps=ignore"
        )
    counts["steps missing in time, filled"] = int(counts.get("steps missing in time, filled", 0)) + gaps
    values = np.full((length, piece.values.shape[1]), np.nan)
    values[places] = piece.values
    rows = np.zeros(length, dtype=np.int64)
    rows[places] = piece.rows
    return Piece(piece.id, piece.table, rows, frequency.after(piece.times[0], np.arange(length)), values)
