"""Series with one label each, as the UCR archive has them: a label, then the values, one series per line."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.domains.base import Rows
from longseq.domains.loading import stratified_split
from longseq.domains.timeseries.files import numbers, read_table
from longseq.domains.timeseries.grid import ReadOptions
from longseq.domains.timeseries.sources import Source, find_files
from longseq.errors import DataError

# The archive keeps each data set in a folder, the same series in several formats.
ARCHIVE_SUFFIXES = (".tsv", ".ts", ".arff", ".csv", ".txt")


@dataclass(frozen=True)
class LabelledSeries:
    """N series of one channel.

    Attributes:
        values_NL1: fp32, NaN behind the end of shorter series and where nothing was observed.
        labels: (N,) as text; "1.0" is "1".
        where: file and line of each series.
    """

    values_NL1: np.ndarray
    labels: np.ndarray
    where: list[str]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def lengths(self) -> np.ndarray:
        """(N,) steps up to the last observed one."""
        seen = ~np.isnan(self.values_NL1[..., 0])
        return np.where(seen, np.arange(1, seen.shape[1] + 1), 0).max(1)

    def select(self, rows: np.ndarray) -> "LabelledSeries":
        """Some of the series."""
        return LabelledSeries(self.values_NL1[rows], self.labels[rows], [self.where[i] for i in rows])


def read_labelled(
    source: Source, options: ReadOptions, counts: dict[str, Any], label_column: str | None = None
) -> LabelledSeries:
    """Reads all files of a source.

    Args:
        source: a file, a list, a folder or a pattern.
        options: encoding, decimal point and what to do with bad cells.
        counts: takes up what was skipped.
        label_column: name of the label's column in files with a header; None for the first column.

    Raises:
        DataError: naming the line of a series without label or values.
    """
    parts = [_read_file(path, options, counts, label_column) for path in find_files(source)]
    longest = max(part.values_NL1.shape[1] for part in parts)
    return LabelledSeries(
        np.concatenate([padded(part.values_NL1, longest) for part in parts]),
        np.concatenate([part.labels for part in parts]),
        [where for part in parts for where in part.where],
    )


def padded(values_NL1: np.ndarray, length: int) -> np.ndarray:
    """Series with NaN behind their ends up to a length."""
    missing = length - values_NL1.shape[1]
    return np.pad(values_NL1, ((0, 0), (0, max(0, missing)), (0, 0)), constant_values=np.nan)


def _read_file(path: Any, options: ReadOptions, counts: dict[str, Any], label_column: str | None) -> LabelledSeries:
    table = read_table(path, encoding=options.encoding, decimal=options.decimal, header=False)
    # A header is a first line whose second cell is no number.
    second: Any = table.frame.iloc[0, 1] if table.frame.shape[1] > 1 else None
    if isinstance(second, str) and not is_number(second):
        table = read_table(path, encoding=options.encoding, decimal=options.decimal)
    counts |= table.notes
    column = table.frame.columns[0] if label_column is None else label_column
    if column not in table.frame.columns:
        raise DataError(f"{path}: there is no column {column!r} (data.label_column); the label is the first column otherwise")
    if table.frame.shape[1] < 2:
        raise DataError(f"{path}: one column, where a label and then the values of a series were expected in each line")
    others = [str(name) for name in table.frame.columns if name != column]
    values = np.stack([numbers(table, name, options.on_bad, counts) for name in others], 1).astype(np.float32)
    labels = table.frame[column]
    empty = labels.isna().to_numpy() | np.isnan(values).all(1)
    if empty.any() and options.on_bad == "error":
        row = int(np.argmax(empty))
        what = "no label" if pd.isna(labels.iloc[row]) else "no value"
        raise DataError(f"{table.where(row)}: {what}; correct it, or set data.on_bad=skip to leave such series out")
    if empty.any():
        counts["series without label or values, left out"] = int(empty.sum())
    kept = np.flatnonzero(~empty)
    names = np.array([label_text(labels.iloc[i]) for i in kept], dtype=object)
    return LabelledSeries(values[kept][..., None], names, [table.where(int(i)) for i in kept])


def is_number(text: str) -> bool:
    """Whether a text can be read as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def label_text(label: Any) -> str:
    """A label as people write it: 1.0 is 1."""
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)


def class_names(labels: Sequence[str]) -> list[str]:
    """All classes, numbers in the order of numbers."""
    found = sorted(set(labels))
    try:
        return sorted(found, key=float)
    except ValueError:
        return found


def encode_labels(
    series: LabelledSeries, classes: Sequence[str], part: str, on_bad: str, counts: dict[str, Any]
) -> tuple[LabelledSeries, np.ndarray]:
    """The series with their class numbers; labels that train does not have are an error, or left out and counted.

    Raises:
        DataError: naming the first series with an unknown label.
    """
    number = {name: i for i, name in enumerate(classes)}
    codes = np.array([number.get(label, -1) for label in series.labels], dtype=np.int64)
    unknown = np.flatnonzero(codes < 0)
    if len(unknown):
        row = int(unknown[0])
        if on_bad == "error":
            raise DataError(
                f"{series.where[row]}: label {series.labels[row]!r} is in {part}, but not in train, which has "
                f"{', '.join(classes[:20])}; add such series to train, or set data.on_bad=skip to leave them out"
            )
        counts[f"series of unknown classes left out of {part}"] = len(unknown)
        kept = np.flatnonzero(codes >= 0)
        series, codes = series.select(kept), codes[kept]
    if not len(series):
        raise DataError(f"no series is left for {part}")
    return series, codes


class LabelledRows(Rows):
    """Series and their classes.

    Args:
        series: padded to one length.
        labels: (N,) classes; None to predict.
    """

    def __init__(self, series: LabelledSeries, labels: np.ndarray | None) -> None:
        self.series, self.labels = series, labels
        self.lengths = np.broadcast_to(np.int64(series.values_NL1.shape[1]), (len(series),))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row: dict[str, Any] = {"index": index, "values": self.series.values_NL1[index]}
        return row if self.labels is None else {**row, "label": int(self.labels[index])}


def labelled_splits(
    sources: Mapping[str, Source | None],
    options: ReadOptions,
    counts: dict[str, Any],
    label_column: str | None,
    shares: Mapping[str, float],
    seed: int,
) -> dict[str, LabelledSeries]:
    """The series of every source; val and test are drawn from train where they have no file.

    Args:
        sources: files by split.
        options: how they are read.
        counts: takes up what was skipped, and how the data were split.
        label_column: see `read_labelled`.
        shares: of train for val and test.
        seed: of the draw.

    Raises:
        DataError: if no series is left for a split, or the labels are no classes.
    """
    sources = in_archive_folder(sources, counts)
    found = {
        name: read_labelled(source, options, counts, label_column) for name, source in sources.items() if source is not None
    }
    if "train" not in found:
        return found
    shares = {name: 0.0 if name in found else share for name, share in shares.items()}
    everything = found["train"]
    check_number_of_classes(everything)
    if any(shares.values()):
        rows = stratified_split(
            everything.labels.astype(str), len(everything), val=shares["val"], test=shares["test"], seed=seed
        )
        for name, chosen in rows.items():
            if name == "train" or name not in found:
                if not len(chosen):
                    raise DataError(f"no series is left for {name}; give data.{name}= a file, or a larger data.{name}_fraction")
                found[name] = everything.select(chosen)
        taken = " and ".join(name for name, share in shares.items() if share)
        counts["split"] = f"{taken} drawn from train at random, every class in proportion"
    return found


def in_archive_folder(sources: Mapping[str, Source | None], counts: dict[str, Any]) -> dict[str, Source | None]:
    """A folder of the UCR archive, given as train, as its files X_TRAIN and X_TEST; other sources as they are.

    Raises:
        DataError: for a folder with several data sets.
    """
    found, train = dict(sources), sources.get("train")
    folder = Path(train).expanduser() if isinstance(train, str) else None
    if folder is None or not folder.is_dir():
        return found
    for suffix in ARCHIVE_SUFFIXES:
        trains = sorted(p for p in folder.iterdir() if p.name.lower().endswith(f"_train{suffix}"))
        if not trains:
            continue
        if len(trains) > 1:
            names = ", ".join(p.name for p in trains[:5])
            raise DataError(f"{folder}: several data sets ({names}); give data.train and data.test a file each")
        found["train"] = str(trains[0])
        tests = [p for p in folder.iterdir() if p.name.lower() == trains[0].name.lower().replace("_train", "_test")]
        if tests and sources.get("test") is None:
            found["test"] = str(tests[0])
        counts["files"] = ", ".join(Path(str(found[name])).name for name in ("train", "test") if found.get(name) is not None)
        return found
    return found


def check_classes(classes: Sequence[str]) -> None:
    """Raises DataError if there is nothing to tell apart."""
    if len(classes) < 2:
        raise DataError(
            f"train has one class only, {classes[0]!r}: there is nothing to tell apart; is the label the first column?"
        )


def check_number_of_classes(train: LabelledSeries) -> None:
    """Raises DataError where the labels are so many that they are no classes: times, ids or values."""
    found = len(set(train.labels.tolist()))
    if found > max(20, len(train) // 2):
        raise DataError(
            f"{train.where[0]} and the others: {found} different labels in {len(train)} series, such as {train.labels[0]!r}, "
            "are no classes; expected one series per line with its label in the first column (data.label_column names another)"
        )
