"""Tables in text files, csv and tsv, whatever program wrote them: any usual encoding and separator, told by the text itself."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from longseq.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

# A byte-order mark says which; without one, UTF-8 fails on almost any text of another encoding.
BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
FALLBACK = "cp1252"
# Cells may hold whole chromosomes.
csv.field_size_limit(2**31 - 1)


@dataclass(frozen=True)
class TextTable:
    """A text file's rows.

    Attributes:
        frame: all columns as text, empty cells as empty text.
        lines: the line of the file on which each row begins, from 1.
    """

    frame: pd.DataFrame
    lines: list[int]


def bare_suffix(path: Path) -> str:
    """The suffix in lower case, without .gz: .csv of table.csv.gz."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def read_bytes(path: Path) -> bytes:
    """A file's bytes, uncompressed if they are gzipped, whatever its name says.

    Raises:
        DataError: the file is missing, empty, or its compressed data are damaged.
    """
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file") from None
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: the compressed data are cut off or damaged: {error}; copy or download it again") from None
    if not data.strip():
        raise DataError(f"{path}: the file is empty, it holds no table")
    return data


def decode(data: bytes) -> str:
    """Bytes as text: by the byte-order mark, else UTF-8, else Windows-1252."""
    for mark, name in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data.decode(name)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode(FALLBACK, errors="replace")


def find_separator(path: Path, first_line: str) -> str:
    """Tabs for .tsv, else the comma, the tab or the semicolon, whichever the first line has most of."""
    if bare_suffix(path) == ".tsv":
        return "\t"
    return max(",\t;", key=first_line.count)


def read_text_table(path: Path, *, header: bool = True) -> TextTable:
    """Reads a csv or tsv file, also gzipped.

    Args:
        path: the file.
        header: whether the first line names the columns; without, they are called "1", "2" and so on.

    Raises:
        DataError: naming the line whose number of cells is not that of the others.
    """
    import pandas as pd

    text = decode(read_bytes(path))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=find_separator(path, text.lstrip().split("\n", 1)[0]))
    rows, lines, before = [], [], 0
    try:
        for cells in reader:
            # A quoted cell may run over several lines; the row begins behind the one before.
            if any(cell.strip() for cell in cells):
                rows.append(cells)
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        raise DataError(f"{path}, line {before + 1}: not a row of a table: {error}") from None
    names = [name.strip() for name in rows[0]] if header else [str(i + 1) for i in range(len(rows[0]))]
    # Trailing separators, as spreadsheets leave them, are no columns.
    while len(names) > 1 and not names[-1]:
        names.pop()
    body, lines = (rows[1:], lines[1:]) if header else (rows, lines)
    width = len(names)
    for i, (cells, line) in enumerate(zip(body, lines, strict=True)):
        if len(cells) > width and any(cell.strip() for cell in cells[width:]):
            raise DataError(
                f"{path}, line {line}: found {len(cells)} cells, expected {width} ({', '.join(names[:10])}); quote cells that "
                "hold the separator"
            )
        body[i] = cells[:width] + [""] * (width - len(cells))
    return TextTable(pd.DataFrame(body, columns=pd.Index(unique(names)), dtype=str), lines)


def unique(names: list[str]) -> list[str]:
    """Names of which none occurs twice: the second `a` is `a.1`."""
    found: list[str] = []
    for name in names:
        again = 1
        new = name
        while new in found:
            new, again = f"{name}.{again}", again + 1
        found.append(new)
    return found
