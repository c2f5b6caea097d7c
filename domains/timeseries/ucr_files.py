"""The UCR archive's own text formats, .ts and .arff, as tables with the label in front."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from longseq.errors import DataError

SUFFIXES = (".ts", ".arff")


def read_ucr(path: Path, text: str) -> tuple[pd.DataFrame, int]:
    """One series per row: the label, then the values; and the line of the first of them.

    Args:
        path: whose suffix says which of the formats it is.
        text: its content.

    Raises:
        DataError: for series of several dimensions, with timestamps, or of no class.
    """
    header, rows, first_line = split_header(path, text)
    parse = parse_ts if ".ts" in [suffix.lower() for suffix in path.suffixes] else parse_arff
    frame = pd.DataFrame(parse(path, header, rows, first_line))
    frame.columns = [str(name) for name in frame.columns]
    return frame, first_line


def split_header(path: Path, text: str) -> tuple[list[str], list[str], int]:
    """The lines of the header that say something, those of the data, and the number of the first of these."""
    header: list[str] = []
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        word = line.strip()
        if word.lower() == "@data":
            rows = [row.strip() for row in lines[number:]]
            skipped = next((i for i, row in enumerate(rows) if row and row[0] not in "#%"), len(rows))
            while rows and not rows[-1]:
                rows.pop()
            if skipped >= len(rows):
                raise DataError(f"{path}: no series behind @data")
            return header, rows[skipped:], number + skipped + 1
        if word.startswith("@"):
            header.append(word)
    raise DataError(f"{path}: no line @data, where a {path.suffix} file has its series behind one")


def parse_ts(path: Path, header: list[str], rows: list[str], first_line: int) -> list[list[str | float | None]]:
    """`1.2,1.3,?:label` per line, the dimensions between colons."""
    said = {line.split()[0].lower(): line.split()[1:] for line in header}
    if (said.get("@timestamps") or ["false"])[0].lower() == "true":
        raise DataError(f"{path}: series with timestamps are not read; expected @timeStamps false")
    labelled = (said.get("@classlabel") or ["true"])[0].lower() == "true"
    found: list[list[str | float | None]] = []
    for number, row in enumerate(rows, start=first_line):
        *dimensions, last = row.split(":")
        dimensions, label = (dimensions, last) if labelled else ([*dimensions, last], None)
        if len(dimensions) != 1:
            raise DataError(
                f"{path}, line {number}: {len(dimensions)} dimensions, where one and a label were expected; series of several "
                "channels are not classified here"
            )
        found.append([label, *values(path, number, dimensions[0])])
    return found


def parse_arff(path: Path, header: list[str], rows: list[str], first_line: int) -> list[list[str | float | None]]:
    """Values and the label between commas; the last attribute holds the classes in braces."""
    attributes = [line for line in header if line.lower().startswith("@attribute")]
    if not attributes or "{" not in attributes[-1]:
        raise DataError(f"{path}: the last @attribute must list the classes in braces, such as {{1,2}}")
    found: list[list[str | float | None]] = []
    for number, row in enumerate(rows, start=first_line):
        cells, _, label = row.rpartition(",")
        found.append([label.strip().strip("'\""), *values(path, number, cells)])
    return found


def values(path: Path, line: int, text: str) -> list[float]:
    """Numbers between commas; `?` and NaN are missing."""
    try:
        return [float("nan") if cell.strip() in ("?", "") else float(cell) for cell in text.split(",")]
    except ValueError as error:
        raise DataError(f"{path}, line {line}: {error}, where the values of a series were expected") from None
