"""Series to predict with a trained model: what its config.json says of them, and labelled files without labels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.domains.timeseries.files import Table, numbers, read_table
from longseq.domains.timeseries.grid import ReadOptions
from longseq.domains.timeseries.labelled import LabelledSeries, is_number, label_text, padded
from longseq.domains.timeseries.series import Scale, SeriesSet
from longseq.domains.timeseries.sources import Source, find_files
from longseq.errors import DataError

# Columns that are labels by their names.
LABEL_NAMES = ("label", "class", "target", "y")


def model_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """The data options that a model's config.json decides: windows, tokens and channels."""
    tokenizer, series = config.get("tokenizer", {}), config.get("series", {})
    renamed = {"kind": "tokenizer", "stride": "patch_stride"}
    found: dict[str, Any] = {renamed.get(name, str(name)): value for name, value in tokenizer.items() if name != "type"}
    if config.get("task") == "forecasting":
        found["horizon"] = config["horizon"]
    if series:
        n_targets = len(series["targets"]) if config.get("task") == "forecasting" else len(series["channels"])
        found["targets"], found["past_covariates"] = series["channels"][:n_targets], series["channels"][n_targets:]
        found["season"] = series["season"]
    return found


def static_names(config: Mapping[str, Any], options: ReadOptions) -> list[str] | None:
    """Names of the model's static covariates, which stand behind those that are known ahead and the calendar's."""
    covariates = config.get("series", {}).get("covariates")
    ahead = len(options.known_covariates) + 2 * len(options.calendar)
    return None if covariates is None else list(covariates)[ahead:]


def check_model(series: SeriesSet, config: Mapping[str, Any], task: str) -> None:
    """Raises DataError if a file's channels, covariates or time steps are not those of the model."""
    known = config.get("series", {})
    if known.get("frequency", series.frequency.name) != series.frequency.name:
        raise DataError(
            f"{series.source}: a step is {series.frequency.name}, but the model was trained on steps of {known['frequency']}: "
            "resample the file (or set data.frequency, if its step was inferred wrongly)"
        )
    wanted = config["embedding"].get("n_channels", len(series.channels))
    if len(series.channels) != wanted:
        raise DataError(
            f"{series.source}: {len(series.channels)} channels ({', '.join(series.channels[:10])}), the model reads {wanted} "
            f"({', '.join(known.get('channels', []))}); name them in data.targets"
        )
    covariates = int(config["embedding"].get("n_covariates", 0))
    found = series.n_covariates if task == "forecasting" else 0
    if covariates != found:
        raise DataError(
            f"{series.source}: {found} covariates ({', '.join(series.covariates)}), the model reads {covariates} "
            f"({', '.join(known.get('covariates', []))}); set data.known_covariates, data.static_covariates and data.calendar "
            "as in training"
        )


def model_scale(series: SeriesSet, config: Mapping[str, Any]) -> Scale:
    """Mean and deviation of the channels in training, as the model holds them, for every series of a file."""
    embedding, shape = config["embedding"], (len(series), len(series.channels))
    mean = np.broadcast_to(np.asarray(embedding.get("mean", 0.0), dtype=np.float64), shape)
    std = np.broadcast_to(np.asarray(embedding.get("std", 1.0), dtype=np.float64), shape)
    return Scale(mean, std, np.full(shape, np.nan), 0)


# -- series to classify


def read_unlabelled(
    source: Source,
    options: ReadOptions,
    counts: dict[str, Any],
    label_column: str | None,
    labels: Sequence[str],
    length: int,
) -> LabelledSeries:
    """One series per line, whether or not a label stands in front of it.

    Args:
        source: a file, a list, a folder or a pattern.
        options: encoding, decimal point and what to do with bad cells.
        counts: takes up what was changed.
        label_column: of files with a header that hold labels all the same.
        labels: of the model; a first column of nothing else is one of labels, unless a line has just `length` numbers.
        length: steps that the model reads; longer series lose their ends.

    Raises:
        DataError: naming the line of a series without values.
    """
    parts = [_read_file(path, options, counts, label_column, labels, length) for path in find_files(source)]
    longest = max(values.shape[1] for values, _ in parts)
    if longest > length:
        counts[f"cropped to {length} steps"] = f"{longest} in the longest series"
    values_NL1 = np.concatenate([padded(values[..., None], length)[:, :length] for values, _ in parts])
    where = [place for _, places in parts for place in places]
    return LabelledSeries(values_NL1, np.full(len(where), "", dtype=object), where)


def _read_file(
    path: Path, options: ReadOptions, counts: dict[str, Any], label_column: str | None, labels: Sequence[str], length: int
) -> tuple[np.ndarray, list[str]]:
    table = read_table(path, encoding=options.encoding, decimal=options.decimal, header=False)
    first = [table.frame.iloc[0, column] for column in range(min(2, table.frame.shape[1]))]
    header = any(isinstance(cell, str) and not is_number(cell) for cell in first[-1:])
    if header:
        table = read_table(path, encoding=options.encoding, decimal=options.decimal)
    counts |= table.notes
    dropped = _label_column(table, header, label_column, labels, length)
    names = [str(name) for name in table.frame.columns if name != dropped]
    if not names:
        raise DataError(f"{path}: no column of values; expected the values of a series in each line")
    values = np.stack([numbers(table, name, options.on_bad, counts) for name in names], 1).astype(np.float32)
    empty = np.flatnonzero(np.isnan(values).all(1))
    if len(empty):
        raise DataError(f"{table.where(int(empty[0]))}: no value ({len(empty)} such lines); remove them")
    return values, [table.where(i) for i in range(len(values))]


def _label_column(table: Table, header: bool, given: str | None, labels: Sequence[str], length: int) -> Any:
    """The column that holds labels, or None."""
    columns = list(table.frame.columns)
    if header:
        usual = [name for name in columns if str(name).lower() in LABEL_NAMES]
        return given if given in columns else next(iter(usual), None)
    cells = table.frame[columns[0]]
    texts = {label_text(cell) for cell in cells if not pd.isna(cell)}
    # What is no number is no value. As many numbers as the model reads steps are a series, whatever they look like.
    words = bool(texts) and not any(is_number(text) for text in texts)
    return columns[0] if words or (len(columns) != length and texts <= set(labels)) else None
