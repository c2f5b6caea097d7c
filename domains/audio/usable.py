"""Rows whose labels cannot be used, left out and counted where the user asks for it (`data.on_bad=skip`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from longseq.domains.audio.clips import Clips
from longseq.domains.audio.labels import absent, class_names, tag_names, text_labels
from longseq.errors import DataError


def leave_out(
    clips: Mapping[str, Clips],
    task: str,
    *,
    label_columns: Sequence[str],
    text_column: str,
    tag_separator: str,
    counts: dict[str, Any],
) -> dict[str, Clips]:
    """The clips with labels that train knows; how many others there are, and why the first, goes into `counts`.

    Args:
        clips: by split; `predict` stays as it is.
        task: the task's name; tasks that read no label column keep all rows.
        label_columns: of classes, tags or quantities.
        text_column: of transcripts (ctc).
        tag_separator: between the tags of one clip.
        counts: takes up what was left out.

    Raises:
        DataError: if a column is missing, or no row of a split is left.
    """
    found = dict(clips)
    if task not in ("classification", "multilabel", "regression", "ctc"):
        return found
    columns = [text_column] if task == "ctc" else list(label_columns)
    if task != "multilabel":
        found = {name: kept(name, part, unreadable(part, columns, task), counts) for name, part in found.items()}
    if task in ("classification", "multilabel"):
        separator = tag_separator if task == "multilabel" else None
        column = columns[0]
        train = found["train"]
        known = class_names(train, column) if separator is None else tag_names(train, column, separator)
        for name in ("val", "test"):
            found[name] = kept(name, found[name], strangers(found[name], column, known, separator), counts)
    return found


def unreadable(clips: Clips, columns: Sequence[str], task: str) -> dict[int, str]:
    """Rows without a label, and of quantities those that are no finite number; with what is wrong."""
    found: dict[int, str] = {}
    option = "data.text_column" if task == "ctc" else "data.label_column"
    for column in columns:
        texts = text_labels(clips, column, option=option, empty=True)
        bad = texts == ""
        if task == "regression":
            values = np.asarray(pd.to_numeric(pd.Series(texts), errors="coerce"), dtype=float)
            bad |= ~np.isfinite(values)
        for row in np.flatnonzero(bad):
            found.setdefault(int(row), f"{clips.where(int(row))}: {texts[row]!r} in {column!r}")
    return found


def strangers(clips: Clips, column: str, known: Sequence[str], separator: str | None) -> dict[int, str]:
    """Rows with a class or a tag that train does not have."""
    found = {}
    for row, cell in enumerate(text_labels(clips, column, empty=True)):
        names = [cell] if separator is None else [part.strip() for part in cell.split(separator) if part.strip()]
        unknown = [name for name in names if name not in known]
        if unknown:
            found[row] = str(absent(clips, row, unknown[0], known)).split(";")[0]
    return found


def kept(name: str, clips: Clips, problems: Mapping[int, str], counts: dict[str, Any]) -> Clips:
    """A split without the rows that have a problem."""
    if not problems or name == "predict":
        return clips
    first = next(iter(problems.values()))
    if len(problems) == len(clips):
        raise DataError(f"no clip of {name} has a label that can be used; the first: {first}")
    key = f"skipped in {name}, label"
    before = f"{counts[key]}; " if key in counts else ""
    counts[key] = f"{before}{len(problems)} of {len(clips)} rows; the first: {first}"
    return clips.select(np.setdiff1d(np.arange(len(clips)), list(problems)))
