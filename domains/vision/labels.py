"""Labels as numbers: classes, and several labels per record; those that train does not have are an error or skipped."""

from collections.abc import Sequence

import numpy as np

from longseq.domains.vision.sources import Records
from longseq.errors import DataError

SEPARATOR = ";"


def class_names(train: Records) -> tuple[str, ...]:
    """The classes of train, numbers in their order and names alphabetically.

    Raises:
        DataError: if there are no labels, only one, or so many that they are no classes.
    """
    names = {str(label) for label in single_labels(train).tolist()} - {""}
    if len(names) < 2:
        raise DataError(
            f"{train.where(0)} and the others: all {len(train)} records of train have the label {next(iter(names), '')!r}; a "
            "classifier needs two classes or more"
        )
    if len(names) > max(20, len(train) // 2):
        raise DataError(
            f"{train.where(0)} and the others: {len(names)} different labels in {len(train)} records are too many; "
            "name another column with data.label_column"
        )
    if all(name.removeprefix("-").isdecimal() for name in names):
        return tuple(sorted(names, key=int))
    return tuple(sorted(names))


def single_labels(records: Records) -> np.ndarray:
    """One label per record as text.

    Raises:
        DataError: if there are none, or several.
    """
    if records.labels is None:
        raise DataError(
            f"{records.where(0)} and the others have no labels; expected a folder per class, a label column, or an array "
            "of labels (tasks without labels: task=lm, task=masked_patch)"
        )
    if records.labels.ndim == 2:
        raise DataError(
            f"{records.where(0)}: {records.labels.shape[1]} label columns, where classes need one; or choose task=multilabel"
        )
    return records.labels


def encode_classes(records: Records, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Class numbers (N,), -1 where a label is unknown, and the rows that are so."""
    index = {name: i for i, name in enumerate(names)}
    codes = np.array([index.get(str(label), -1) for label in single_labels(records).tolist()], dtype=np.int64)
    return codes, np.flatnonzero(codes < 0)


def unknown_label(records: Records, row: int, names: Sequence[str], n_unknown: int, names_classes: bool = True) -> DataError:
    """The error of a label that train does not have, or of what is no number where `names_classes` is false."""
    assert records.labels is not None
    label = records.labels[row] if records.labels.ndim == 1 else records.labels[row].tolist()
    if not names_classes:
        return DataError(
            f"{records.where(row)}: {label!r} is no finite number; {n_unknown} of {len(records)} records are so; correct them, "
            "or set data.on_bad=skip"
        )
    shown = ", ".join(names[:12]) + (f", ... {len(names)} in all" if len(names) > 12 else "")
    return DataError(
        f"{records.where(row)}: label {label!r} is not among those of train ({shown}); {n_unknown} of {len(records)} records "
        "are so; correct them, or set data.on_bad=skip"
    )


def multilabel_names(train: Records) -> tuple[str, ...]:
    """The labels a record may have several of: the label columns, or every name in one column of names joined by `;`."""
    if train.labels is None:
        raise DataError(
            f"{train.where(0)} and the others have no labels; expected label columns of 0 and 1, or names "
            f"joined by {SEPARATOR!r}"
        )
    if train.labels.ndim == 2:
        return train.label_names
    names = {name.strip() for cell in train.labels.tolist() for name in str(cell).split(SEPARATOR)} - {""}
    if not names:
        raise DataError(f"{train.where(0)} and the others: no record has any label")
    return tuple(sorted(names))


def encode_multilabel(records: Records, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """0/1 per record and label (N, K) float32, and the rows with something else."""
    if records.labels is None:
        raise DataError(f"{records.where(0)} and the others have no labels")
    if records.labels.ndim == 2:
        text = np.array(
            [[str(cell).strip().removesuffix(".0") for cell in row] for row in records.labels.tolist()], dtype=object
        )
        text = np.where(text == "True", "1", np.where(text == "False", "0", text))
        if text.shape[1] != len(names):
            raise DataError(f"{records.where(0)}: {text.shape[1]} label columns, but train has {len(names)}")
        return (text == "1").astype(np.float32), np.flatnonzero(~np.isin(text, ("0", "1")).all(1))
    index = {name: k for k, name in enumerate(names)}
    encoded, bad = np.zeros((len(records), len(names)), dtype=np.float32), []
    for row, cell in enumerate(records.labels.tolist()):
        found = [name for name in (part.strip() for part in str(cell).split(SEPARATOR)) if name]
        if any(name not in index for name in found):
            bad.append(row)
            continue
        encoded[row, [index[name] for name in found]] = 1.0
    return encoded, np.array(bad, dtype=np.int64)


def encode_numbers(records: Records, names: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Quantities (N, K) float32, and the rows with something that is no finite number."""
    if records.labels is None:
        raise DataError(f"{records.where(0)} and the others have no labels; expected numbers to predict")
    cells = records.labels.reshape(len(records), -1)
    if cells.shape[1] != len(names):
        raise DataError(f"{records.where(0)}: {cells.shape[1]} label columns, but train has {len(names)}")
    numbers = np.full(cells.shape, np.nan, dtype=np.float32)
    for row, values in enumerate(cells.tolist()):
        try:
            numbers[row] = [float(value) for value in values]
        except (TypeError, ValueError):
            continue
    return numbers, np.flatnonzero(~np.isfinite(numbers).all(1))
