"""Reads people's sound collections into one table: a folder per class, a folder of telling names, or a manifest."""

from __future__ import annotations

import difflib
import glob
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd

from longseq.domains.audio.files import SUFFIXES, find_sound
from longseq.domains.text_tables import bare_suffix, decode, read_bytes, read_text_table
from longseq.errors import ConfigError, DataError

Source: TypeAlias = str | Path | Sequence[str | Path]
MANIFESTS = (".csv", ".tsv", ".parquet", ".jsonl", ".json")
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "eval"), "test"),
}
PATH_NAMES = ("path", "file", "filename", "file_name", "audio", "audio_filepath", "audio_path", "wav")


@dataclass(frozen=True)
class ReadOptions:
    """How to read a sound collection.

    Attributes:
        path_column: of a manifest; None for the first of the usual names.
        start_column: seconds at which a row's clip begins; need not be there.
        duration_column: its seconds; need not be there.
        audio_dir: where a manifest's relative paths start; None for the manifest's own folder.
        path_pattern: regular expression on paths whose named groups become columns.
    """

    path_column: str | None = None
    start_column: str = "start"
    duration_column: str = "duration"
    audio_dir: str | None = None
    path_pattern: str | None = None


def read_source(source: Source, options: ReadOptions) -> pd.DataFrame:
    """The rows of a folder, a manifest, a pattern of file names, or a list of these.

    Returns:
        Columns `path`, `where`, `id`, `start_s`, `duration_s`, and what manifest, class folders and path pattern add. Split
        folders (train/, val/, test/) around class folders give the column `split`.

    Raises:
        DataError: naming what is missing or does not fit.
    """
    if not isinstance(source, (str, Path)):
        parts = [read_source(item, options) for item in source]
        if not parts:
            raise DataError("the list of files is empty")
        return pd.concat(parts, ignore_index=True)
    path = Path(source).expanduser()
    if path.is_dir():
        frame = read_folder(path)
    elif not path.exists() and glob.has_magic(str(path)):
        matches = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207  Path.glob takes no absolute pattern
        if not matches:
            raise DataError(f"{path}: no file matches this pattern")
        frame = files_table(matches, path.parent)
    elif bare_suffix(path) in MANIFESTS:
        frame = read_manifest(path, options)
    elif path.is_file() and path.suffix.lower() in SUFFIXES:
        frame = files_table([path], path.parent)
    else:
        known = f"a folder, a manifest ({', '.join(MANIFESTS)}) or sound files ({', '.join(SUFFIXES)})"
        raise DataError(f"{path}: there is no such file or folder" if not path.exists() else f"{path}: expected {known}")
    return frame if options.path_pattern is None else add_pattern(frame, options.path_pattern)


# -- folders


def read_folder(folder: Path) -> pd.DataFrame:
    """A folder of class folders, of split folders around these, or of sound files."""
    files = find_sound(folder)
    if not files:
        raise DataError(f"{folder}: holds no sound file; supported are {', '.join(SUFFIXES)}")
    frame = files_table(files, folder)
    parts = [file.relative_to(folder).parts[:-1] for file in files]
    if all(len(part) >= 1 and part[0].lower() in SPLIT_NAMES for part in parts):
        frame["split"] = [part[0] for part in parts]
        parts = [part[1:] for part in parts]
    depth = {len(part) > 0 for part in parts}
    if depth == {True}:
        frame["label"] = [part[0] for part in parts]
    elif depth == {True, False}:
        loose = files[next(i for i, part in enumerate(parts) if not part)]
        raise DataError(f"{folder}: holds class folders and, beside them, files such as {loose.name}; move those into folders")
    return frame


def files_table(files: Sequence[Path], folder: Path) -> pd.DataFrame:
    """Rows of whole files, named by their paths below a folder."""
    names = [str(file.relative_to(folder)) if file.is_relative_to(folder) else str(file) for file in files]
    frame = pd.DataFrame({"path": list(files), "where": [str(file) for file in files], "id": names})
    return frame.assign(start_s=np.nan, duration_s=np.nan)


def add_pattern(frame: pd.DataFrame, pattern: str) -> pd.DataFrame:
    """Columns from the named groups of a regular expression, searched in the whole path."""
    try:
        expression = re.compile(pattern)
    except re.error as error:
        raise ConfigError(f"data.path_pattern={pattern!r} is not a regular expression: {error}") from None
    if not expression.groupindex:
        raise ConfigError(
            rf"data.path_pattern={pattern!r} has no named group; write for example (?P<label>\w+)_(?P<speaker>\w+)"
        )
    found = [expression.search(path.as_posix()) for path in frame["path"]]
    for row, match in enumerate(found):
        if match is None:
            raise DataError(f"{frame['where'].iloc[row]}: data.path_pattern={pattern!r} does not match this path")
    for group in expression.groupindex:
        values = [match[group] or "" for match in found if match is not None]
        # Transcripts in file names are written with underscores for blanks.
        frame[group] = [value.replace("_", " ").strip() for value in values] if group == "text" else values
    return frame


# -- manifests


def read_manifest(path: Path, options: ReadOptions) -> pd.DataFrame:
    """A csv, tsv, parquet or jsonl file with a column of paths."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    frame, where = read_table(path)
    if frame.empty:
        raise DataError(f"{path}: the table has columns {list(frame.columns)} but no rows")
    column = path_column(frame, options.path_column, path)
    folder = path.parent if options.audio_dir is None else Path(options.audio_dir).expanduser()
    names = frame[column].astype(str)
    empty = np.flatnonzero((names.str.strip() == "").to_numpy() | frame[column].isna().to_numpy())
    if len(empty):
        raise DataError(f"{where[empty[0]]}: no path in column {column!r}")
    own = pd.DataFrame({"path": [folder / name for name in names], "where": where, "id": names})
    usual = ReadOptions()
    for name, source, default in (
        ("start_s", options.start_column, usual.start_column),
        ("duration_s", options.duration_column, usual.duration_column),
    ):
        # A column that was asked for by name must be there; without it whole files would be read.
        if source != default:
            find_column(frame, source, str(path), f"data.{name.removesuffix('_s')}_column")
        own[name] = seconds(pd.Series(frame[source]), where) if source in frame else np.nan
    rest = frame.drop(columns=[name for name in (column, *own.columns) if name in frame])
    return pd.concat([own, rest.reset_index(drop=True)], axis=1)


def read_table(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """The table as it stands, text columns of csv and tsv as text, and file and line (parquet: row) of each entry."""
    suffix = bare_suffix(path)
    if suffix in (".csv", ".tsv"):
        found = read_text_table(path)
        return found.frame, [f"{path}, line {line}" for line in found.lines]
    if suffix in (".jsonl", ".json"):
        return read_json(path)
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a readable {suffix} table: {str(error).strip()}") from None
    return frame, [f"{path}, row {i + 1}" for i in range(len(frame))]


def read_json(path: Path) -> tuple[pd.DataFrame, list[str]]:
    """An object per line, or one list of objects."""
    text = decode(read_bytes(path))
    if text.lstrip().startswith("["):
        try:
            rows = json.loads(text)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}: not valid JSON: {error}") from None
        places = [f"{path}, entry {i}" for i in range(1, len(rows) + 1)]
        strange = next((i for i, row in enumerate(rows) if not isinstance(row, dict)), None)
        if strange is not None:
            raise DataError(f"{places[strange]}: expected a JSON object, found {type(rows[strange]).__name__}")
        return pd.DataFrame(rows), places
    lines = [(i, line) for i, line in enumerate(text.splitlines(), start=1) if line.strip()]
    return pd.DataFrame([json_row(path, i, line) for i, line in lines]), [f"{path}, line {i}" for i, _ in lines]


def json_row(path: Path, line: int, text: str) -> dict[str, object]:
    """One line of a jsonl manifest."""
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {line}: not valid JSON: {error}") from None
    if not isinstance(row, dict):
        raise DataError(f"{path}, line {line}: expected a JSON object, found {type(row).__name__}")
    return row


def path_column(frame: pd.DataFrame, wanted: str | None, path: Path) -> str:
    """The column that holds the paths."""
    names = [str(name) for name in frame.columns]
    if wanted is not None:
        return find_column(frame, wanted, str(path), "data.path_column")
    found = [name for name in PATH_NAMES if name in names]
    if not found:
        raise DataError(
            f"{path}: no column of paths; expected {', '.join(PATH_NAMES)}, or set data.path_column to one of {names}"
        )
    return found[0]


def find_column(frame: pd.DataFrame, name: str, place: str, option: str) -> str:
    """The column of that name.

    Raises:
        DataError: there is none; holds the nearest names.
    """
    names = [str(column) for column in frame.columns if column not in ("where", "start_s", "duration_s")]
    if name in frame.columns:
        return name
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {option}={near[0]}?" if near else f"; set {option} to one of them, or data.path_pattern"
    raise DataError(f"{place}: no column {name!r}; found {names}{hint}")


def seconds(values: pd.Series, where: Sequence[str]) -> np.ndarray:
    """Numbers, NaN for empty cells.

    Raises:
        DataError: naming the line of what is no number of seconds.
    """
    texts = values.where(values.notna(), "").astype(str).str.strip()
    numbers = np.asarray(pd.to_numeric(texts.where(texts != "", None), errors="coerce"), dtype=float)
    bad = np.flatnonzero((np.isnan(numbers) & (texts != "").to_numpy()) | (numbers < 0))
    if len(bad):
        raise DataError(f"{where[bad[0]]}: {texts.iloc[bad[0]]!r} in {values.name!r} is no number of seconds")
    return numbers
