"""Reads csv, tsv and parquet files as text columns and finds columns in them by name or number."""

from __future__ import annotations

import difflib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longseq.domains.dna.formats import file_format, open_binary
from longseq.domains.dna.tokenizer import invalid_characters
from longseq.domains.text_tables import read_text_table
from longseq.errors import DataError


def read_table(path: Path, *, header: bool = True) -> tuple[pd.DataFrame, NDArray[np.int64], str]:
    """Reads a csv, tsv or parquet file.

    Args:
        path: The file, compressed or not.
        header: Whether the first line of a csv or tsv file names the columns; without, they are called "1", "2", ...

    Returns:
        The table (csv and tsv: all columns as text, empty cells as empty text), the line (parquet: row) of each
        entry, from 1, and what that number counts, "line" or "row".

    Raises:
        DataError: The file is empty or cannot be read as its suffix says.
    """
    if file_format(path) == ".parquet":
        frame = _read_parquet(path)
        lines, word = np.arange(1, len(frame) + 1), "row"
    else:
        frame, lines = _read_text(path, header)
        word = "line"
    if frame.empty:
        raise DataError(f"{path}: the table has columns {list(frame.columns)} but no rows")
    return frame, lines, word


def _read_parquet(path: Path) -> pd.DataFrame:
    import pyarrow as pa

    try:
        with open_binary(path) as handle:
            return pd.read_parquet(io.BytesIO(handle.read()))
    except (pa.ArrowInvalid, pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file: {error}") from error


def _read_text(path: Path, header: bool) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    # Says what is wrong with a file that is absent or damaged, and asks for genuine compression.
    with open_binary(path):
        found = read_text_table(path, header=header)
    return found.frame, np.array(found.lines, dtype=np.int64)


def find_column(frame: pd.DataFrame, name: str | int, path: Path | str, role: str, option: str) -> str:
    """The column called `name`, or the one at that number, counted from 1.

    Args:
        frame: The table.
        name: Its name, or its number as in cut and awk.
        path: The file, for errors.
        role: What the column holds ("sequence", "label").
        option: The option that names it ("sequence_column").

    Raises:
        DataError: There is none; lists the columns and the nearest name.
    """
    columns = [str(column) for column in frame.columns]
    if isinstance(name, int):
        if not 1 <= name <= len(columns):
            raise DataError(f"{path}: {option}={name}, but the table has columns 1 to {len(columns)}: {columns}")
        return columns[name - 1]
    if name in columns:
        return name
    raise DataError(f"{path}: no column {name!r} for the {role}; found {_shown(columns)}{_hint(columns, name, option)}")


def _hint(columns: list[str], name: str, option: str) -> str:
    lowered = {column.lower().strip(): column for column in columns}
    near = difflib.get_close_matches(name.lower(), list(lowered), n=1, cutoff=0.5)
    if near:
        return f". Did you mean {option}={lowered[near[0]]!r}?"
    if any(len(column) >= 8 and not invalid_characters(column) for column in columns):
        return ". The first line looks like data: if the file has no header, set header=false and count columns from 1"
    if len(columns) == 1 and any(mark in columns[0] for mark in ";\t|"):
        return ". Another separator seems to be in use: write commas in .csv and tabs in .tsv"
    return f". Set {option} to one of them"


def _shown(columns: list[str], most: int = 20) -> str:
    names = [column if len(column) <= 30 else column[:27] + "..." for column in columns[:most]]
    return "[" + ", ".join(names) + (f", ... {len(columns)} in all" if len(columns) > most else "") + "]"


def text_column(frame: pd.DataFrame, column: str, path: Path) -> list[str]:
    """A column of sequences as texts without surrounding blanks; missing ones are empty.

    Raises:
        DataError: A parquet column holds something else than text.
    """
    values: list[Any] = frame[column].tolist()
    for value in values[:1]:
        if not isinstance(value, str):
            raise DataError(f"{path}: column {column!r} must hold sequences as text, found {type(value).__name__} ({value!r})")
    return [value.strip() if isinstance(value, str) else "" for value in values]
