"""Reads csv, tsv and parquet files of series, compressed or not and in any usual encoding, as tables of numbers and text."""

import difflib
import gzip
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.domains.timeseries.ucr_files import SUFFIXES, read_ucr
from longseq.errors import DataError

# A byte-order mark says which; without one, UTF-8 fails on almost any text of another encoding.
BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
FALLBACK, FALLBACK_NAME = "cp1252", "Windows-1252"


@dataclass
class Table:
    """One file's rows.

    Attributes:
        path: of the file.
        frame: its columns, as pandas reads them.
        notes: what was unusual about reading it, for the report.
        first_line: what the first row is called in messages: 2 behind a header.
        word: what that number counts, "line" or "row".
    """

    path: Path
    frame: pd.DataFrame
    notes: dict[str, str] = field(default_factory=dict)
    first_line: int = 2
    word: str = "line"

    def where(self, row: int) -> str:
        """The file and line of a row."""
        return f"{self.path}, {self.word} {row + self.first_line}"


def read_table(path: str | Path, *, encoding: str | None = None, decimal: str = ".", header: bool = True) -> Table:
    """Reads a csv, tsv or parquet file; without a header also the UCR archive's .ts and .arff, label first.

    Args:
        path: gzipped or not, whatever its name says.
        encoding: of the text; None finds out: the byte-order mark, UTF-8, then Windows-1252 with a note.
        decimal: the decimal point.
        header: whether the first line names the columns.

    Raises:
        DataError: if the file is missing, empty, damaged or not of the format its name says.
    """
    path = Path(path).expanduser()
    data = _read_bytes(path)
    if any(suffix.lower() in (".parquet", ".pq") for suffix in path.suffixes):
        return _read_parquet(path, data)
    text, notes = _decode(path, data, encoding)
    if not header and any(suffix.lower() in SUFFIXES for suffix in path.suffixes):
        frame, first_line = read_ucr(path, text)
        return Table(path, frame, notes, first_line=first_line)
    return Table(path, _parse(path, text, decimal, header), notes, first_line=2 if header else 1)


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except FileNotFoundError:
        names = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise DataError(f"{path}: there is no such file{hint}") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a directory, where a csv, tsv or parquet file was expected") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the compressed data are cut off or damaged: {error}") from None
    if not data.strip():
        raise DataError(f"{path}: the file is empty")
    return data


def _read_parquet(path: Path, data: bytes) -> Table:
    import pyarrow as pa

    try:
        frame = pd.read_parquet(io.BytesIO(data))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path}: not a parquet file: {error}") from None
    if not isinstance(frame.index, pd.RangeIndex):
        frame = frame.reset_index()
    frame.columns = [str(name) for name in frame.columns]
    return Table(path, frame, first_line=1, word="row")


def _decode(path: Path, data: bytes, encoding: str | None) -> tuple[str, dict[str, str]]:
    if encoding is not None:
        try:
            return data.decode(encoding), {}
        except (UnicodeDecodeError, LookupError) as error:
            raise DataError(f"{path}: cannot be read with data.encoding={encoding}: {error}") from None
    for mark, name in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data.decode(name), {}
    try:
        text = data.decode("utf-8")
        lost = text.split("\n", 1)[0].count("\ufffd")
        # Whoever wrote the file had lost them already; the columns keep these names.
        note = f"{lost} letters of the header were lost before (they are the replacement character)"
        return text, {f"encoding of {path.name}": note} if lost else {}
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        note = f"read as {FALLBACK_NAME}: line {line} is not UTF-8 (data.encoding= says otherwise)"
        return data.decode(FALLBACK, errors="replace"), {f"encoding of {path.name}": note}


def _parse(path: Path, text: str, decimal: str, header: bool) -> pd.DataFrame:
    first = text.split("\n", 1)[0]
    separator = max("\t;,", key=first.count) if any(mark in first for mark in "\t;,") else ","
    if not header and separator not in first and len(first.split()) > 1:
        # The archive's oldest files have blanks between the values.
        separator = r"\s+"
    try:
        frame = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            header=0 if header else None,
            decimal=decimal,
            skipinitialspace=len(separator) == 1,
            skip_blank_lines=False,
            low_memory=False,
            # Without it a row with one cell more than the header shifts all columns by one.
            index_col=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, pd.errors.ParserWarning, ValueError) as error:
        raise DataError(f"{path}: not a table with {separator!r} between its columns: {error}") from None
    # Blank lines at the end are no rows; those in between keep their place, so that line numbers stay right.
    filled = np.flatnonzero(frame.notna().any(axis=1).to_numpy())
    frame = frame.iloc[: filled[-1] + 1] if len(filled) else frame.iloc[:0]
    frame.columns = [str(name).strip() for name in frame.columns]
    if frame.empty:
        raise DataError(f"{path}: the table has the columns {list(frame.columns)} but no rows")
    return frame


def require_columns(table: Table, names: Sequence[str], option: str) -> None:
    """Raises DataError naming the option if the table lacks a column."""
    known = [str(name) for name in table.frame.columns]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise DataError(f"{table.path}: there is no column {name!r} ({option}); it has {', '.join(known[:30])}{hint}")


def numbers(table: Table, column: str, on_bad: str, counts: dict[str, Any]) -> np.ndarray:
    """A column as fp64, NaN where cells are empty.

    Args:
        table: the file.
        column: its name.
        on_bad: `error` refuses cells that are no numbers, `skip` counts them and reads them as missing.
        counts: takes up how many were skipped.

    Raises:
        DataError: naming the cell.
    """
    cells = table.frame[column]
    parsed: Any = pd.to_numeric(cells, errors="coerce")
    values: np.ndarray = parsed.to_numpy(np.float64, na_value=np.nan).copy()
    # Models compute in fp32, where such a number would be infinite.
    too_large = np.abs(values) > np.finfo(np.float32).max
    bad = np.flatnonzero((np.isnan(values) & cells.notna().to_numpy()) | too_large)
    if len(bad):
        if on_bad == "error":
            row = int(bad[0])
            raise DataError(
                f"{table.where(row)}, column {column!r}: {str(cells.iloc[row])!r} is not a finite number "
                f"({len(bad)} such cells in this column); correct it, or set data.on_bad=skip to read such cells as missing"
            )
        key = "cells that are no numbers, read as missing"
        counts[key] = int(counts.get(key, 0)) + len(bad)
        values[bad] = np.nan
    return values
