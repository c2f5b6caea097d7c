"""Reads BED files, and tables with chrom, start and end columns, as intervals of a genome."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longseq.domains.dna.bad_rows import BadRows
from longseq.domains.dna.formats import file_format, open_binary
from longseq.domains.dna.genome import Genome, IntervalSequences, unknown_chromosome
from longseq.domains.dna.labels import as_numbers
from longseq.errors import DataError

_STANDARD = ("chrom", "start", "end", "name", "score", "strand")
_PEAK_COLUMNS = ("signal_value", "p_value", "q_value", "peak")
_ALIASES = {
    "chr": "chrom",
    "chromosome": "chrom",
    "#chrom": "chrom",
    "#chr": "chrom",
    "seqnames": "chrom",
    "chromstart": "start",
    "chromend": "end",
    "stop": "end",
}


def read_bed(path: Path) -> tuple[pd.DataFrame, NDArray[np.int64]]:
    """Reads a BED file (also narrowPeak and broadPeak), with or without a line of column names.

    Columns without a name are called chrom, start, end, name, score, strand, and "7", "8", ... behind them. The
    fourth to sixth are called by number as well if the sixth is no strand.

    Args:
        path: The file, compressed or not; tabs or blanks between its columns.

    Returns:
        All columns as text, and the line of each interval, from 1.

    Raises:
        DataError: No intervals, or fewer than three columns.
    """
    rows: list[list[str]] = []
    lines: list[int] = []
    names: list[str] | None = None
    with open_binary(path) as handle, io.TextIOWrapper(handle, encoding="utf-8", errors="replace") as table:
        for number, line in enumerate(table, start=1):
            text = line.rstrip("\r\n")
            fields = text.split("\t") if "\t" in text else text.split()
            if not fields or text.startswith(("track", "browser")):
                continue
            if not rows and names is None and _is_header(fields):
                names = [_ALIASES.get(field.lower(), field).lstrip("#") for field in fields]
                continue
            if text.startswith("#"):
                continue
            rows.append(fields)
            lines.append(number)
    if not rows:
        raise DataError(f"{path}: the file holds no interval")
    width = len(rows[0])
    for fields, number in zip(rows, lines, strict=True):
        if len(fields) != width or width < 3:
            raise DataError(f"{path}, line {number}: found {len(fields)} columns, expected {max(width, 3)}: {fields[:6]}")
    if names is not None and len(names) != width:
        raise DataError(f"{path}: the header names {len(names)} columns, the first interval has {width}")
    frame = pd.DataFrame(rows, columns=pd.Index(names or _default_names(rows, path)), dtype=object)
    return frame, np.array(lines, dtype=np.int64)


def _is_header(fields: list[str]) -> bool:
    # Only a line that names a start column: other comments begin with '#' too.
    lowered = [_ALIASES.get(field.lower(), field.lower()) for field in fields]
    return len(fields) >= 3 and "start" in lowered and lowered[0].lstrip("#") == "chrom"


def _default_names(rows: list[list[str]], path: Path) -> list[str]:
    width = len(rows[0])
    names = [*_STANDARD, *(str(i) for i in range(7, width + 1))][:width]
    if file_format(path) in (".narrowpeak", ".broadpeak"):
        names[6:] = _PEAK_COLUMNS[: max(width - 6, 0)]
    if width >= 6 and not all(row[5] in ("+", "-", ".") for row in rows):
        names[5] = "6"
    return names


def has_interval_columns(frame: pd.DataFrame) -> bool:
    """Whether a table gives intervals: columns chrom, start and end, or a usual synonym of each."""
    return {"chrom", "start", "end"} <= set(interval_names(frame).columns)


def interval_names(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with the usual synonyms (chr, chromStart, stop, ...) renamed to chrom, start and end."""
    renamed = {column: _ALIASES.get(str(column).lower(), str(column)) for column in frame.columns}
    return frame.rename(columns={old: new for old, new in renamed.items() if new not in frame.columns})


def intervals(
    frame: pd.DataFrame, where: Callable[[int], str], genome: Genome, length: int | None
) -> tuple[IntervalSequences, pd.DataFrame]:
    """Checks the intervals of a table against a genome.

    Args:
        frame: Columns chrom, start, end and perhaps strand, as text.
        where: Names row i.
        genome: The genome.
        length: Bases that each interval is resized to around its centre; None leaves them as they are.

    Returns:
        The sequences, and the table with start and end as numbers and a strand column.

    Raises:
        DataError: A start or end is no number, an interval has no bases, lies beyond its chromosome, or its
            chromosome is unknown.
    """
    starts = _whole_numbers(frame["start"].to_numpy(dtype=object), "start", where)
    ends = _whole_numbers(frame["end"].to_numpy(dtype=object), "end", where)
    chroms = frame["chrom"].astype(str).to_numpy(dtype=object)
    codes, unique = pd.factorize(chroms)
    for code, name in enumerate(unique):
        if name not in genome.lengths:
            row = int(np.argmax(codes == code))
            raise DataError(f"{where(row)}: {unknown_chromosome(str(name), genome.names)} ({genome.path})")
    sizes = np.array([genome.lengths[str(name)] for name in unique], dtype=np.int64)[codes]
    for row in np.flatnonzero((starts < 0) | (ends <= starts))[:1]:
        raise DataError(
            f"{where(int(row))}: interval {starts[row]}-{ends[row]} has no bases; BED counts from 0 and the end is exclusive"
        )
    for row in np.flatnonzero(ends > sizes)[:1]:
        raise DataError(
            f"{where(int(row))}: interval {chroms[row]}:{starts[row]}-{ends[row]} lies beyond the chromosome's end at "
            f"{sizes[row]}; is {genome.path} the assembly that the intervals were made for?"
        )
    strands = np.full(len(frame), ".", dtype=object)
    if "strand" in frame:
        strands = frame["strand"].to_numpy(dtype=object)
        for row in np.flatnonzero(~np.isin(strands.astype(str), ["+", "-", "."]))[:1]:
            raise DataError(f"{where(int(row))}: strand {strands[row]!r}, where +, - or . was expected")
    table = frame.assign(chrom=chroms, start=starts, end=ends, strand=strands)
    return IntervalSequences(genome, chroms, starts, ends, strands, length), table


def usable_intervals(frame: pd.DataFrame, where: Callable[[int], str], genome: Genome, bad: BadRows) -> NDArray[np.bool_]:
    """Which rows are intervals of the genome; the others are counted.

    Args:
        frame: Columns chrom, start, end and perhaps strand, as text.
        where: Names row i.
        genome: The genome.
        bad: Counts the others.
    """
    starts, ends = (as_numbers(frame[name]) for name in ("start", "end"))
    sizes = frame["chrom"].astype(str).map(genome.lengths.get).to_numpy(dtype=np.float64, na_value=np.nan)
    whole = np.isfinite(starts) & np.isfinite(ends)
    whole[whole] = (starts[whole] % 1 == 0) & (ends[whole] % 1 == 0)
    usable = whole & np.isfinite(sizes) & (starts >= 0) & (ends > starts) & (ends <= sizes)
    if "strand" in frame:
        usable &= np.isin(frame["strand"].to_numpy(dtype=str), ["+", "-", "."])
    for row in np.flatnonzero(~usable).tolist():
        cells = frame.iloc[row]
        bad.add(f"{where(row)}: {cells['chrom']}:{cells['start']}-{cells['end']} is no interval of {genome.path}")
    return usable


def _whole_numbers(cells: NDArray[Any], name: str, where: Callable[[int], str]) -> NDArray[np.int64]:
    numbers = as_numbers(cells)
    bad = np.flatnonzero(~np.isfinite(numbers) | (numbers != np.round(numbers)))
    if len(bad):
        row = int(bad[0])
        raise DataError(f"{where(row)}: {name} is {cells[row]!r}, where a whole number was expected")
    return numbers.astype(np.int64)
