"""Text files and tables: the part of predict.py that DNA and time series share."""

import csv
import gzip
import io
import zlib
from dataclasses import dataclass
from pathlib import Path

from longseq.pipelines.predict_scripts.shared import InputError

# -- behind this line goes into predict.py


# A byte-order mark says which; without one, UTF-8 fails on almost any text of another encoding.
BYTE_ORDER_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
# Cells may hold whole chromosomes.
csv.field_size_limit(2**31 - 1)


@dataclass
class Table:
    """A text file's rows.

    Attributes:
        path: the file.
        header: names of the columns.
        rows: cells as text, as many in each row as there are columns.
        lines: the line of the file on which each row begins, from 1.
    """

    path: Path
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def place(self, name: str, option: str) -> int:
        """Where the column of a name stands, or the one of that number, from 1."""
        if name in self.header:
            return self.header.index(name)
        if name.isdigit() and 1 <= int(name) <= len(self.header):
            return int(name) - 1
        raise InputError(f"{self.path}: there is no column {name!r}, it has {', '.join(self.header)}; name it with {option}")


def read_text(path: Path) -> str:
    """A text file, gzipped or not, in any usual encoding."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    data = path.read_bytes()
    try:
        data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the compressed data are cut off or damaged ({error}); copy it again") from None
    if not data.strip():
        raise InputError(f"{path}: the file is empty")
    if data[:4] == b"PAR1":
        raise InputError(f"{path}: a parquet file, which `longseq predict` reads and this script does not; save it as csv")
    for mark, name in BYTE_ORDER_MARKS:
        if data.startswith(mark):
            return data.decode(name, "replace")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def read_table(path: Path, header: bool = True) -> Table:
    """A csv, tsv or semicolon-separated file; without a header the columns are called 1, 2 and so on."""
    text = read_text(path)
    first = text.lstrip().split("\n", 1)[0]
    separator = "\t" if ".tsv" in path.suffixes else max(",\t;", key=first.count)
    if not header and separator not in first:
        # The oldest files of the UCR archive have blanks between the values.
        text, separator = "\n".join(" ".join(line.split()) for line in text.splitlines()), " "
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    rows, lines, before = [], [], 0
    try:
        for cells in reader:
            # A quoted cell may run over several lines; the row begins behind the one before.
            if any(cell.strip() for cell in cells):
                rows.append([cell.strip() for cell in cells])
                lines.append(before + 1)
            before = reader.line_num
    except csv.Error as error:
        raise InputError(f"{path}, line {before + 1}: not a row of a table ({error})") from None
    # Trailing separators, as spreadsheets leave them, are no columns.
    while header and len(rows[0]) > 1 and not rows[0][-1]:
        rows[0].pop()
    names = rows[0] if header else [str(i + 1) for i in range(max(map(len, rows)))]
    body, lines = (rows[1:], lines[1:]) if header else (rows, lines)
    for cells, line in zip(body, lines, strict=True):
        if any(cells[len(names) :]):
            raise InputError(f"{path}, line {line}: {len(cells)} cells, the header has {len(names)} ({', '.join(names[:10])})")
    return Table(path, names, [(cells + [""] * len(names))[: len(names)] for cells in body], lines)
