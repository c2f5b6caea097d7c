"""Labels as they stand in files, and as a model wants them: class numbers, quantities, or 0/1 per label."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longseq.domains.dna.bad_rows import BadRows
from longseq.domains.dna.sequences import SequenceTable
from longseq.errors import DataError

_MISSING = frozenset({"", "nan", "na", "n/a", "<na>", "null"})


def label_text(values: Iterable[Any]) -> NDArray[Any]:
    """Labels of any kind as text, whole numbers without a fraction ("1.0" and 1 are both "1").

    Args:
        values: Texts, numbers or booleans, (N,).

    Returns:
        Text, object, (N,); missing values are empty.
    """
    # Few values stand in many rows: each is looked at once.
    codes, found = pd.factorize(np.asarray(pd.Series(list(values), dtype=object)), use_na_sentinel=False)
    return _distinct_text(found)[codes]


def _distinct_text(values: Iterable[Any]) -> NDArray[Any]:
    text = np.array(["" if value is None or value is pd.NA else str(value).strip() for value in values], dtype=object)
    missing = np.array([cell.lower() in _MISSING for cell in text], dtype=bool)
    text[missing] = ""
    numbers = as_numbers(text)
    whole = np.isfinite(numbers) & (np.abs(numbers) < 2**53)
    whole[whole] = numbers[whole] == np.round(numbers[whole])
    if whole.any() and (whole | missing).all():
        # A column such as 0, 1, NaN reaches pandas as floats; its classes are still 0 and 1.
        text[whole] = numbers[whole].astype(np.int64).astype(str)
    return text


def as_numbers(values: Iterable[Any]) -> NDArray[np.float64]:
    """Texts as numbers, NaN where a text is none."""
    return np.asarray(pd.to_numeric(pd.Series(list(values), dtype=object), errors="coerce"), dtype=np.float64)


def check_labels_present(labels: NDArray[Any], where: Callable[[int], str], names: tuple[str, ...]) -> None:
    """Refuses missing labels.

    Args:
        labels: Text, (N,) or (N, K).
        where: Names row i.
        names: The label columns.

    Raises:
        DataError: A label is missing; names the first such row and counts them.
    """
    missing = (labels == "").reshape(len(labels), -1)
    rows = np.flatnonzero(missing.any(axis=1))
    if len(rows):
        column = names[int(np.argmax(missing[rows[0]]))] if names else "label"
        raise DataError(
            f"{where(int(rows[0]))}: no label in {column!r} (empty or NaN); {len(rows)} of {len(labels)} rows lack one. "
            "Remove these rows or fill the labels in"
        )


def class_names(table: SequenceTable) -> tuple[str, ...]:
    """The classes of a training table, whole numbers in numerical order, everything else in alphabetical order.

    Args:
        table: The training part; the class of index c is entry c of the answer.

    Raises:
        DataError: There are no labels, one class only, or so many that they must be quantities.
    """
    labels = _single_labels(table)
    names = {str(name) for name in pd.unique(labels)}
    if len(names) < 2:
        raise DataError(
            f"{_files(table)}: all {len(table)} labels are {next(iter(names), '')!r}, but a classifier needs two classes "
            "or more; give sequences of the other class, or another label column"
        )
    if len(names) > max(20, len(table) // 2):
        raise DataError(
            f"{_files(table)}: {len(names)} different labels in {len(table)} rows are too many for classes; "
            "if they are quantities, choose task=regression"
        )
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def encode_classes(table: SequenceTable, names: tuple[str, ...]) -> NDArray[np.int64]:
    """Class numbers of a table's labels.

    Args:
        table: Any part of the data.
        names: The classes of the training part.

    Returns:
        Class numbers, int64, (N,).

    Raises:
        DataError: A label is not among the classes of train.
    """
    labels = _single_labels(table)
    codes = pd.Index(names).get_indexer(pd.Index(labels))
    unknown = np.flatnonzero(codes < 0)
    if len(unknown):
        row = int(unknown[0])
        raise DataError(
            f"{table.where(row)}: label {labels[row]!r} is not among the classes of train, {_shown(names)}; "
            f"{len(unknown)} of {len(table)} rows have such a label"
        )
    return codes.astype(np.int64)


def numeric_labels(table: SequenceTable) -> NDArray[np.float32]:
    """Quantities to regress, float32, (N,) or (N, K) for several label columns.

    Raises:
        DataError: A label is no finite number.
    """
    labels = _labels(table)
    columns = labels.reshape(len(labels), -1)
    numbers = np.stack([as_numbers(column) for column in columns.T], axis=1)
    bad = np.argwhere(~np.isfinite(numbers))
    if len(bad):
        row, column = map(int, bad[0])
        raise DataError(f"{table.where(row)}: {columns[row, column]!r} in {table.label_names[column]!r} is not a finite number")
    return numbers.astype(np.float32).reshape(labels.shape)


def multilabel_names(table: SequenceTable, separator: str = ";") -> tuple[str, ...]:
    """The labels a row may have several of: the label columns, or every name in one column of joined names.

    Args:
        table: The training part.
        separator: What joins names in a single column ("kinase;membrane"); an empty cell has none of them.
    """
    labels = _labels(table, allow_empty=True)
    if labels.ndim == 2:
        return table.label_names
    names = {name.strip() for cell in pd.unique(labels) for name in str(cell).split(separator)} - {""}
    if not names:
        raise DataError(f"{_files(table)}: no row has any label in {table.label_names[0]!r}")
    return tuple(sorted(names))


def encode_multilabel(table: SequenceTable, names: tuple[str, ...], separator: str = ";") -> NDArray[np.float32]:
    """0/1 per row and label, float32, (N, K).

    Args:
        table: Any part of the data.
        names: What `multilabel_names` found in train.
        separator: What joins names in a single column.

    Raises:
        DataError: A cell is neither 0 nor 1, or names a label that train does not have.
    """
    labels = _labels(table, allow_empty=True)
    if labels.ndim == 2:
        bad = np.argwhere((labels != "0") & (labels != "1"))
        if len(bad):
            row, column = map(int, bad[0])
            found = labels[row, column]
            raise DataError(f"{table.where(row)}: {found!r} in {table.label_names[column]!r}, where 0 or 1 was expected")
        return (labels == "1").astype(np.float32)
    index = {name: column for column, name in enumerate(names)}
    encoded = np.zeros((len(labels), len(names)), dtype=np.float32)
    for row, cell in enumerate(labels):
        for name in filter(None, (part.strip() for part in str(cell).split(separator))):
            if name not in index:
                raise DataError(f"{table.where(row)}: label {name!r} is not among those of train, {_shown(names)}")
            encoded[row, index[name]] = 1.0
    return encoded


def drop_unusable(table: SequenceTable, task: str, bad: BadRows) -> SequenceTable:
    """Leaves out rows whose label the task cannot use: missing, no number, neither 0 nor 1.

    Args:
        table: Any part of the data.
        task: "classification", "multilabel" or "regression"; others keep all rows.
        bad: Counts them.
    """
    if table.labels is None or task not in ("classification", "multilabel", "regression"):
        return table
    columns = table.labels.reshape(len(table), -1)
    if task == "regression":
        usable = np.stack([np.isfinite(as_numbers(column)) for column in columns.T], axis=1)
    elif task == "multilabel" and table.labels.ndim == 2:
        usable = (columns == "0") | (columns == "1")
    else:
        usable = (columns != "") | (task == "multilabel")
    return _kept(table, usable, lambda i, j: f"{columns[i, j]!r} in {table.label_names[j]!r} is no label", bad)


def drop_unknown_classes(table: SequenceTable, names: tuple[str, ...], task: str, bad: BadRows) -> SequenceTable:
    """Leaves out rows with a label that train does not have."""
    if table.labels is None or table.labels.ndim != 1 or task not in ("classification", "multilabel"):
        return table
    known = set(names)
    cells = [[str(cell)] if task == "classification" else str(cell).split(";") for cell in table.labels]
    usable = np.array([all(name.strip() in known | {""} for name in cell) for cell in cells], dtype=bool).reshape(-1, 1)
    return _kept(table, usable, lambda i, _: f"label {table.labels[i]!r} is not among those of train", bad)  # type: ignore[index]


def _kept(table: SequenceTable, usable: NDArray[np.bool_], problem: Callable[[int, int], str], bad: BadRows) -> SequenceTable:
    good = usable.all(axis=1)
    for i in np.flatnonzero(~good).tolist():
        bad.add(f"{table.where(i)}: {problem(i, int(np.argmin(usable[i])))}")
    return table if good.all() else table.select(np.flatnonzero(good))


def _labels(table: SequenceTable, allow_empty: bool = False) -> NDArray[Any]:
    if table.labels is None:
        raise DataError(
            f"{_files(table)}: the data have no labels; name the label column, or give one file or folder per class"
        )
    if not allow_empty or table.labels.ndim == 2:
        check_labels_present(table.labels, table.where, table.label_names)
    return table.labels


def _single_labels(table: SequenceTable) -> NDArray[Any]:
    labels = _labels(table)
    if labels.ndim == 2:
        raise DataError(
            f"{_files(table)}: {labels.shape[1]} label columns ({', '.join(table.label_names)}), where classes need one; "
            "name one label column, or choose task=multilabel"
        )
    return labels


def _files(table: SequenceTable) -> str:
    files = table.files or ("the data",)
    return ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")


def _shown(names: tuple[str, ...], most: int = 12) -> str:
    return "[" + ", ".join(names[:most]) + (f", ... {len(names)} in all" if len(names) > most else "") + "]"
