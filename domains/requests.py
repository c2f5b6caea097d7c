"""What the server is asked, turned into the model's inputs; each domain adds a file `requests.py` with a class `Requests`.

Nothing in a request names a file to open: uploaded bytes stand in a file that the server itself names, and kinds of files
that hold paths (manifests, tables of images) are not among `suffixes`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longseq.domains.base import DomainData
from longseq.errors import DataError

# Of an uploaded table.
MOST_COLUMNS = 10_000
# Builds the data module for one file that the server wrote, and reads it.
OpenFile = Callable[[Path, Mapping[str, Any]], DomainData]


@dataclass
class Asked:
    """The rows of a request.

    Attributes:
        rows: each as the model takes it, without the batch axis.
        names: what identifies each answer, and what belongs into it besides the model's outputs.
    """

    rows: list[np.ndarray]
    names: list[dict[str, Any]] = field(default_factory=list)


class Requests(ABC):
    """Reads what clients of a model send.

    Args:
        config: the model's config.json.
        open_file: reads a file through the domain's data module.
        max_length: the longest input in tokens or samples; read before anything large is built.
        max_rows: of one request.
    """

    # JSON keys, each with what it holds; the first is the input itself.
    keys: ClassVar[Mapping[str, str]]
    # Endings of files that may be uploaded.
    suffixes: Sequence[str] = ()
    # Data options beside `predict` for uploaded files.
    file_options: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, config: Mapping[str, Any], open_file: OpenFile, max_length: int, max_rows: int) -> None:
        self.config, self.open_file = config, open_file
        self.max_length, self.max_rows = max_length, max_rows

    @abstractmethod
    def read(self, body: Mapping[str, Any]) -> Asked:
        """The rows of a JSON body, whose keys are known to be among `keys`.

        Raises:
            DataError: naming the key, and the place in it.
        """

    @abstractmethod
    def example(self) -> dict[str, Any]:
        """A small JSON body that the model answers."""

    def facts(self) -> dict[str, Any]:
        """What a client must know of the input."""
        return {}

    def read_file(self, path: Path) -> Asked:
        """The rows of an uploaded file.

        Raises:
            DataError: if the file cannot be read, or holds too much.
        """
        self.check_file(path)
        data = self.open_file(path, self.file_options)
        rows = data.splits["predict"]
        self.check_rows(len(rows))
        collate: Any = data.loader("predict").collate_fn
        inputs = [collate([rows[index]])["inputs"][0].numpy() for index in range(len(rows))]
        return Asked(inputs, self.file_names(data, len(rows)))

    def check_file(self, path: Path) -> None:
        """Raises DataError if a file would become larger in memory than the server allows; its header is enough."""
        with path.open("rb") as file:
            if file.read(2) == b"\x1f\x8b":
                raise DataError("compressed files are not taken: unpack it first")

    def check_table(self, path: Path, most_lines: int) -> None:
        """Raises DataError for tables with more columns or lines than any that makes sense; parsers take minutes for such."""
        with path.open("rb") as file:
            first = file.readline()
            columns = 1 + max(first.count(separator) for separator in (b",", b"\t", b";"))
            if columns > MOST_COLUMNS:
                raise DataError(f"{path.name}: {columns} columns in the first line, at most {MOST_COLUMNS} are allowed")
            lines = 1 + sum(block.count(b"\n") for block in iter(lambda: file.read(2**20), b""))
        if lines > most_lines:
            raise DataError(f"{path.name}: {lines} lines, at most {most_lines} are allowed: send several files")

    def file_names(self, data: DomainData, count: int) -> list[dict[str, Any]]:
        """What identifies each row of a file."""
        columns = data.row_names("predict", np.arange(count))
        return [{name: plain_name(values[index]) for name, values in columns.items()} for index in range(count)]

    def chunk(self, message: Mapping[str, Any] | bytes | str) -> np.ndarray:
        """The next piece (n,) of a streamed input: a JSON object, bytes, or text that is no JSON.

        Raises:
            DataError: if the domain cannot stream, or the piece is wrong.
        """
        del message
        raise DataError("this model takes whole inputs: use /predict")

    def more(self, outputs: np.ndarray, names: Mapping[str, Any]) -> dict[str, Any]:
        """What the domain adds to the answer for a row, such as the text of a transcript.

        Args:
            outputs: the answer, without the batch axis.
            names: of the row.
        """
        del outputs, names
        return {}

    def check_rows(self, count: int) -> None:
        """Raises DataError for too many rows, or none."""
        if count > self.max_rows:
            raise DataError(f"{count} inputs in one request, at most {self.max_rows} are allowed: send several requests")
        if not count:
            raise DataError("the request holds no input")

    def check_length(self, count: int, name: str, unit: str) -> None:
        """Raises DataError if an input is empty or longer than allowed."""
        if not count:
            raise DataError(f"{name} is empty")
        if count > self.max_length:
            raise DataError(f"{name} has {count} {unit}, at most {self.max_length} are allowed")


def plain_name(value: Any) -> Any:
    """A name as a JSON value."""
    if isinstance(value, np.generic):
        value = value.item() if not isinstance(value, np.datetime64) else str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def numbers(value: Any, name: str, *, missing: bool = False) -> np.ndarray:
    """A JSON value as float64 numbers of any shape.

    Args:
        value: a number, or nested lists of them.
        name: for messages.
        missing: null and NaN are missing values; else they are refused.

    Raises:
        DataError: for anything else, naming the first wrong place.
    """
    if isinstance(value, (str, bytes, Mapping)) or value is None:
        raise DataError(f"{name} must be a list of numbers, found {kind(value)}")
    try:
        found = np.asarray(value)
        # One text among numbers makes numpy turn all of them into text.
        if found.dtype.kind not in "iuf":
            check_kinds(value, name)
            found = np.asarray(value, dtype=np.float64)
    except DataError:
        raise
    except (ValueError, OverflowError, TypeError) as error:
        raise DataError(f"{name} must be a list of numbers of one shape: {str(error)[:120]}") from None
    found = found.astype(np.float64)
    # Models compute in float32.
    bad = np.abs(found) > np.finfo(np.float32).max
    bad |= np.zeros_like(bad) if missing else np.isnan(found)
    if bad.any():
        place = np.unravel_index(int(np.argmax(bad)), found.shape)
        where = "".join(f"[{int(index)}]" for index in place)
        raise DataError(f"{name}{where} is {'NaN' if np.isnan(found[place]) else 'too large'} ({int(bad.sum())} such values)")
    return found


def check_kinds(value: Any, name: str) -> None:
    """Raises DataError for the first entry that is neither a number nor null."""
    pending = [(value, name)]
    while pending:
        item, place = pending.pop()
        if isinstance(item, list):
            pending += [(entry, f"{place}[{index}]") for index, entry in reversed([*enumerate(item)])]
        elif item is not None and (isinstance(item, bool) or not isinstance(item, (int, float))):
            raise DataError(f"{place} must be a number, found {kind(item)}")


def kind(value: Any) -> str:
    """What a JSON value is, in JSON's own words."""
    names = {str: "text", dict: "an object", list: "a list", bool: "true or false", type(None): "null", bytes: "bytes"}
    return names.get(type(value), "a number")
