"""A table written part by part: what an interrupted command has written counts, and nothing is written twice."""

import contextlib
import csv
import gzip
import io
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pandas as pd

from longseq.checkpoint import write_atomically
from longseq.errors import ConfigError

FORMATS = (".csv", ".tsv", ".parquet", ".jsonl", ".bed")
# Columns that BED files have places for.
BED_PLACES = ("chrom", "start", "end", "strand")


class PartialTable:
    """The output under a temporary name, and how far it has come; it takes its place when all parts are there.

    After each part the number of finished parts and of written bytes is noted. Whatever a killed command wrote beyond them is
    cut off by the next one, which goes on with the part that is missing.

    Args:
        path: of the output.
        key: of all options and files that decide the rows; a command with another key does not go on.
        n_parts: of the whole table.
        restart: forget what is there.

    Raises:
        ConfigError: for an unknown format, for a partial output of other options, or if another command is writing it.
    """

    def __init__(self, path: Path, key: dict[str, Any], n_parts: int, *, restart: bool = False) -> None:
        self.path, self.key, self.n_parts = path, key, n_parts
        self.format, self.gzipped = table_format(path)
        self.partial = path.with_name(f".{path.name}.partial")
        self.progress = path.with_name(f".{path.name}.progress.json")
        if restart:
            self._remove()
        found = self._read_progress()
        self.done, self.bytes = int(found.get("done", 0)), int(found.get("bytes", 0))
        self.columns: list[str] | None = found.get("columns")
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)

    def _read_progress(self) -> dict[str, Any]:
        if not self.progress.is_file():
            return {}
        try:
            found = json.loads(self.progress.read_text(encoding="utf-8"))
            if not {"key", "n_parts", "done", "bytes"} <= found.keys() or not isinstance(found["key"], dict):
                raise ValueError
        except (ValueError, AttributeError):
            raise ConfigError(f"{self.progress} is damaged: add restart=true to begin {self.path} anew") from None
        changed = [name for name in {**found["key"], **self.key} if found["key"].get(name) != self.key.get(name)]
        if changed or found["n_parts"] != self.n_parts:
            raise ConfigError(
                f"{self.path} was begun by a command that was interrupted, with other {', '.join(changed) or 'input'}: "
                "repeat that command, or add restart=true to begin anew"
            )
        return found

    @contextlib.contextmanager
    def opened(self) -> Iterator["PartialTable"]:
        """Holds the partial file, so that no other command writes it meanwhile."""
        if self.in_place:
            yield self
            return
        with writing(self.path):
            # Unbuffered: on a full disk, what is left in a buffer would fail once more when the file is closed.
            opened = self.partial.open("r+b" if self.partial.exists() else "w+b", buffering=0)
        with opened as file:
            lock(file, self.path)
            if file.seek(0, os.SEEK_END) < self.bytes:
                raise ConfigError(f"{self.partial} is shorter than {self.progress} says: add restart=true to begin anew")
            file.truncate(self.bytes)
            file.seek(self.bytes)
            self._file = file
            try:
                yield self
            finally:
                if not self.done and self.n_parts:
                    # Nothing in it counts.
                    self.partial.unlink(missing_ok=True)

    @property
    def in_place(self) -> bool:
        """Whether a command was killed behind its very last step but one: all is written, and has its name already."""
        if self.done < self.n_parts or not self.bytes or self.partial.exists() or not self.path.is_file():
            return False
        return self.path.stat().st_size == self.bytes

    def add(self, table: pd.DataFrame) -> None:
        """Writes the next part, then notes that it is there.

        Raises:
            ValueError: if its columns are not those of the parts before.
        """
        columns = [str(name) for name in table.columns]
        if self.columns is not None and len(table) and columns != self.columns:
            raise ValueError(f"part {self.done} has the columns {columns}, those before have {self.columns}")
        first = self.columns is None
        data = self._encoded(table, first) if first or len(table) else b""
        known = (self.columns or columns) if data or first else self.columns
        done, size = self.done + 1, self.bytes + len(data)
        state = {"key": self.key, "n_parts": self.n_parts, "done": done, "bytes": size, "columns": known}
        with writing(self.path, "; what was finished counts: the same command goes on behind it"):
            write_whole(self._file, data)
            os.fsync(self._file.fileno())
            write_atomically(self.progress, json.dumps(state) + "\n")
        self.done, self.bytes, self.columns = done, size, known

    def _encoded(self, table: pd.DataFrame, first: bool) -> bytes:
        if self.format == ".parquet":
            return parquet_part(table)
        if self.format == ".bed":
            text = bed_text(table, header=first)
        elif self.format == ".jsonl":
            lines = table.to_json(orient="records", lines=True, date_format="iso", double_precision=9) if len(table) else ""
            text = (lines or "").rstrip("\n") + "\n" if len(table) else ""
        else:
            separator = "\t" if self.format == ".tsv" else ","
            text = str(table.to_csv(index=False, header=first, sep=separator, lineterminator="\n"))
        data = text.encode()
        # Members of a gzip file stand one behind the other.
        return gzip.compress(data, mtime=0) if self.gzipped and data else data

    def finish(self) -> None:
        """The whole table takes its place."""
        if self.in_place:
            self._remove()
            return
        with writing(self.path, "; what was finished counts: the same command goes on behind it"):
            if self.format == ".parquet":
                joined = self.path.with_name(f".{self.path.name}.joined")
                join_parquet(self.partial, joined)
                joined.replace(self.path)
            else:
                mask = os.umask(0)
                os.umask(mask)
                self.partial.chmod(0o666 & ~mask)
                self.partial.replace(self.path)
        self._remove()

    def _remove(self) -> None:
        # The progress first: without it, what is left of the partial file counts for nothing.
        self.progress.unlink(missing_ok=True)
        self.partial.unlink(missing_ok=True)


def table_format(path: Path) -> tuple[str, bool]:
    """The format of a file's name, and whether it is to be compressed.

    Raises:
        ConfigError: for an unknown one.
    """
    gzipped = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix.lower() if gzipped else path.suffix.lower()
    if suffix in (".wav", ".fa", ".fasta", ".png"):
        raise ConfigError(
            f"output={path}: predictions are a table; what a language model makes up is written by longseq generate"
        )
    if suffix not in FORMATS or (gzipped and suffix == ".parquet"):
        raise ConfigError(f"output={path}: the name must end in {', '.join(FORMATS)}, or in one of the text formats and .gz")
    return suffix, gzipped


def check_place(path: Path) -> None:
    """Raises ConfigError if no file can be written at a path; nothing is made yet.

    Called before a model is loaded, so that nobody waits for an answer that has no place.
    """
    if path.is_dir():
        raise ConfigError(f"output={path}: there is a folder of that name; name a file")
    folder = path.absolute().parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise ConfigError(f"output={path}: {folder} is a file, so nothing can be written into it")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"output={path}: there is no permission to write into {folder}")


@contextlib.contextmanager
def writing(path: Path, hint: str = "") -> Iterator[None]:
    """Turns what the system says against writing a file into a ConfigError that names the output."""
    try:
        yield
    except OSError as error:
        raise ConfigError(f"output={path} cannot be written: {error.strerror or error}{hint}") from error


def write_whole(file: BinaryIO, data: bytes) -> None:
    """Writes bytes to an unbuffered file, which may take them in pieces."""
    left = memoryview(data)
    while left:
        left = left[file.write(left) :]


def lock(file: BinaryIO, path: Path) -> None:
    """Makes a second command that writes the same output fail at once, where the system can."""
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ConfigError(f"{path} is being written by another command: wait for it, or choose another output") from None


# -- parquet: parts that are whole files, with their lengths, joined at the end


def parquet_part(table: pd.DataFrame) -> bytes:
    """A part as a parquet file with its length in front."""
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    data = buffer.getvalue()
    return len(data).to_bytes(8, "little") + data


def join_parquet(partial: Path, output: Path) -> None:
    """One parquet file of all parts, which are read one after the other."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.unify_schemas([pq.read_schema(part) for part in parquet_parts(partial)], promote_options="permissive")
    with pq.ParquetWriter(output, schema) as writer:
        for part in parquet_parts(partial):
            table = pq.read_table(part)
            writer.write_table(table.cast(schema) if table.schema != schema else table)


def parquet_parts(partial: Path) -> Iterator[io.BytesIO]:
    """The parts of a partial file."""
    with partial.open("rb") as file:
        while size := file.read(8):
            yield io.BytesIO(file.read(int.from_bytes(size, "little")))


# -- BED


def bed_text(table: pd.DataFrame, *, header: bool) -> str:
    """Intervals: chrom, start, end, name, score, strand, and all other columns behind them.

    The name is the prediction, where there is one, else the id; the score is 1000 times the prediction's probability, else 0.

    Raises:
        ConfigError: if the rows have no place.
    """
    places = bed_places(table)
    own = {*BED_PLACES, "prediction", *([] if "chrom" in table else ["id"])}
    other = [name for name in table.columns if name not in own]
    named = next((name for name in ("prediction", "id") if name in table), None)
    names = ["."] * len(table) if named is None else table[named].tolist()
    chances = [name for name in table.columns if str(name).startswith("p_") or name == "probability"]
    score = np.zeros(len(table), dtype=np.int64)
    if chances and len(table):
        score = np.rint(1000 * table[chances].to_numpy(float).max(1)).astype(np.int64)
    columns = {**places, "name": names, "score": score}
    columns["strand"] = table["strand"].to_numpy() if "strand" in table else ["."] * len(table)
    frame = pd.DataFrame({**columns, **{f"{name}": table[name].to_numpy() for name in other if name not in columns}})
    # Readers of BED know no quotes: a tab or the end of a line within a name would make another interval of it.
    frame = frame.replace(r"[\t\r\n]+", " ", regex=True)
    text = frame.to_csv(index=False, header=False, sep="\t", lineterminator="\n", quoting=csv.QUOTE_NONE)
    return "#" + "\t".join(map(str, frame.columns)) + "\n" + text if header else text


def bed_places(table: pd.DataFrame) -> dict[str, Any]:
    """Where rows lie: in the genome, in their own sequence, or all over it."""
    if "chrom" in table and "start" in table:
        chrom: Sequence[Any] = table["chrom"].tolist()
    elif "id" in table and ("length" in table or "start" in table):
        chrom = table["id"].tolist()
    else:
        raise ConfigError(
            "output=….bed: these rows are no intervals (they have the columns "
            f"{', '.join(map(str, table.columns))}); write .csv, .parquet or .jsonl"
        )
    start = table["start"].to_numpy() if "start" in table else np.zeros(len(table), dtype=np.int64)
    return {"chrom": chrom, "start": start, "end": table["end"].to_numpy() if "end" in table else table["length"].to_numpy()}
