"""From tables to series: wide (`date, col...`) and long (`unique_id, ds, y`), checked, sorted and put on a regular grid."""

import glob
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.domains.timeseries.calendar_features import calendar_features, calendar_names
from longseq.domains.timeseries.files import Table, numbers, read_table, require_columns
from longseq.domains.timeseries.frequency import infer_frequency
from longseq.domains.timeseries.grid import Piece, ReadOptions, in_order, on_grid
from longseq.domains.timeseries.series import SeriesSet
from longseq.domains.timeseries.times import parse_times
from longseq.errors import ConfigError, DataError

Source = str | Sequence[str]
TIME_COLUMNS = ("ds", "date", "datetime", "timestamp", "time")
LONG_VALUE = "y"


def find_files(source: Source) -> list[Path]:
    """The files that a path, a list of paths or a pattern names."""
    if not isinstance(source, str):
        return [path for item in source for path in find_files(str(item))]
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.iterdir() if {".csv", ".tsv", ".parquet", ".pq"} & {s.lower() for s in p.suffixes})
    elif glob.has_magic(source) and not path.exists():
        found = [Path(match) for match in sorted(glob.glob(str(path)))]  # noqa: PTH207  Path.glob takes no absolute pattern
    else:
        return [path]
    if not found:
        raise DataError(f"{source}: no csv, tsv or parquet file is there")
    return found


def read_series(source: Source, options: ReadOptions, static_names: Sequence[str] | None = None) -> SeriesSet:
    """Reads all series of the files.

    Args:
        source: a file, a list, a folder or a pattern; of several wide files each is a series.
        options: see `ReadOptions`.
        static_names: of the static covariates in train, whose values this file need not hold in full; None for train itself.

    Raises:
        DataError: naming file and record for whatever cannot be used.
    """
    counts: dict[str, Any] = {}
    files = find_files(source)
    tables = [read_table(path, encoding=options.encoding, decimal=options.decimal) for path in files]
    for table in tables:
        counts |= table.notes
    long = is_long(tables[0], options)
    time_column = find_time_column(tables[0], options)
    channels = find_channels(tables[0], options, long, time_column, counts)
    columns = [*channels, *options.known_covariates, *([options.anomaly_column] if options.anomaly_column else [])]
    pieces = []
    for table in tables:
        wanted = [time_column, *columns, *([options.id_column, *options.static_covariates] if long else [])]
        require_columns(table, wanted, "data.targets, data.time_column, data.*_covariates")
        pieces += split_table(table, time_column, columns, options, long, counts)
    name = str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more"
    return assemble(pieces, channels, options, long, name, counts, static_names)


def is_long(table: Table, options: ReadOptions) -> bool:
    """Whether rows are (series, time) pairs; `auto` decides by the id column."""
    if options.format == "long":
        require_columns(table, [options.id_column], "data.id_column")
        return True
    return options.format == "auto" and options.id_column in table.frame.columns


def find_time_column(table: Table, options: ReadOptions) -> str:
    """The column named in `data.time_column`, or one of the usual names, or the first whose cells are times."""
    if options.time_column is not None:
        require_columns(table, [options.time_column], "data.time_column")
        return options.time_column
    usual = {str(column).lower(): str(column) for column in reversed(list(table.frame.columns))}
    for name in TIME_COLUMNS:
        if name in usual:
            return usual[name]
    first = str(table.frame.columns[0])
    if not pd.api.types.is_float_dtype(table.frame[first]):
        return first
    found = ", ".join(map(str, table.frame.columns[:20]))
    raise DataError(f"{table.path}: no column of times: expected {', '.join(TIME_COLUMNS)} among {found}; set data.time_column")


def find_channels(table: Table, options: ReadOptions, long: bool, time_column: str, counts: dict[str, Any]) -> list[str]:
    """Forecast channels, then those that are only read."""
    if options.targets is None and long:
        targets = [LONG_VALUE]
        named = (*options.past_covariates, *options.known_covariates, *options.static_covariates)
        used = {time_column, options.id_column, LONG_VALUE, options.anomaly_column, *named}
        others = [str(c) for c in table.frame.columns if str(c) not in used and not str(c).startswith("Unnamed: ")]
        if others:
            counts["columns not read"] = f"{', '.join(others)}; data.known_covariates and the like name what is to be read"
    elif options.targets is None:
        used = {time_column, options.anomaly_column, *options.past_covariates, *options.known_covariates}
        candidates = [str(c) for c in table.frame.columns if str(c) not in used]
        # Separators at the ends of lines make a column without name or values.
        candidates = [c for c in candidates if not (c.startswith("Unnamed: ") and np.all(table.frame[c].isna()))]
        index = [c for c in candidates if counts_rows(c, table.frame[c])]
        if index:
            counts["columns that number the rows, not read"] = ", ".join(index)
        candidates = [c for c in candidates if c not in index]
        # A column of nothing but text is no series; one with a bad cell among numbers is, and its cell gets reported.
        text = [c for c in candidates if holds_text(table.frame[c])]
        if text:
            counts["columns of text, not read"] = ", ".join(text)
        targets = [c for c in candidates if c not in text]
    else:
        targets = [options.targets] if isinstance(options.targets, str) else list(options.targets)
    if not targets:
        texts = [str(c) for c in table.frame.columns if str(c) != time_column and holds_text(table.frame[c])]
        found = f", found {str(table.frame[texts[0]].dropna().iloc[0])!r} in {texts[0]!r}" if texts else ""
        cells = [str(table.frame[name].dropna().iloc[0]) for name in texts]
        hint = "name them in data.targets"
        if any("," in cell and "." in cell for cell in cells):
            hint = "numbers are read without marks between the thousands"
        elif any("," in cell for cell in cells):
            hint = "write \"data.decimal=','\" for numbers with a decimal comma"
        raise DataError(f"{table.path}: no column of numbers beside {time_column!r}{found}; {hint}")
    repeated = [name for name in options.past_covariates if name in targets]
    if repeated:
        raise ConfigError(f"data.past_covariates and data.targets both hold {', '.join(repeated)}")
    return [*targets, *options.past_covariates]


def counts_rows(name: str, cells: Any) -> bool:
    """Whether a column is the index of a table that was saved with it: without a name of its own, and rising whole numbers."""
    unnamed = name.startswith("Unnamed: ") or name in ("index", "level_0")
    return unnamed and pd.api.types.is_integer_dtype(cells) and bool(np.all(np.diff(cells.to_numpy(np.int64)) > 0))


def holds_text(cells: Any) -> bool:
    """Whether no cell of a column is a number, and some are not empty."""
    parsed: Any = pd.to_numeric(cells, errors="coerce")
    return bool(parsed.isna().all() and cells.notna().any())


def split_table(
    table: Table, time_column: str, columns: Sequence[str], options: ReadOptions, long: bool, counts: dict[str, Any]
) -> list[Piece]:
    """One piece per series of a table, in the order of their first rows."""
    times = parse_times(table, time_column, options, counts)
    values = np.stack([numbers(table, column, options.on_bad, counts) for column in columns], 1)
    if not long:
        rows = np.flatnonzero(~pd.isna(times))
        return [Piece(Path(table.path.name).name.split(".")[0], table, rows, times[rows], values[rows])]
    cells = table.frame[options.id_column]
    empty = np.flatnonzero(cells.isna().to_numpy())
    if len(empty) and options.on_bad == "error":
        raise DataError(f"{table.where(int(empty[0]))}: no {options.id_column}; set data.on_bad=skip to leave such rows out")
    codes, names = pd.factorize(cells)
    order = np.argsort(codes, kind="stable")
    order = order[(codes[order] >= 0) & ~pd.isna(times[order])]
    edges = np.flatnonzero(np.diff(codes[order], prepend=-2))
    return [
        Piece(str(names[codes[rows[0]]]), table, rows, times[rows], values[rows])
        for rows in np.split(order, edges[1:])
        if len(rows)
    ]


def assemble(
    pieces: list[Piece],
    channels: list[str],
    options: ReadOptions,
    long: bool,
    source: str,
    counts: dict[str, Any],
    trained: Sequence[str] | None,
) -> SeriesSet:
    """One table of all series."""
    names = [piece.id for piece in pieces]
    twice = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else set()
    if twice:
        raise DataError(
            f"{source}: the series {sorted(twice)[0]!r} stands in two files; give each series one file, or another id"
        )
    if not pieces:
        raise DataError(f"{source}: no row is left")
    pieces = [in_order(piece, options.on_bad, counts) for piece in pieces]
    longest = max(pieces, key=lambda piece: len(piece.times))
    frequency = infer_frequency(longest.times, f"{source}, series {longest.id!r}", options.frequency)
    counts["frequency"] = frequency.name
    pieces = [on_grid(piece, frequency, options, counts) for piece in pieces]
    for piece in pieces:
        check_precision(piece, channels, options.on_bad, counts)
    n_channels, n_known = len(channels), len(options.known_covariates)
    everything = np.concatenate([piece.values for piece in pieces]).astype(np.float32)
    n_targets = n_channels - len(options.past_covariates)
    lengths = np.array([len(piece.times) for piece in pieces])
    ahead = np.array([rows_ahead(piece.values[:, :n_targets]) if n_known else 0 for piece in pieces])
    known = everything[:, n_channels : n_channels + n_known]
    if options.calendar:
        # Of all series at once: there may be a hundred thousand.
        features = calendar_features(np.concatenate([piece.times for piece in pieces]), options.calendar)
        known = np.concatenate([known, features], 1)
    if options.anomaly_column:
        check_flags(pieces, options.anomaly_column)
    static, static_names = static_table(pieces, options, long, trained)
    series = SeriesSet(
        ids=names,
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        starts=[piece.times[0] for piece in pieces],
        frequency=frequency,
        values_TC=np.ascontiguousarray(everything[:, :n_channels]),
        known_TK=np.ascontiguousarray(known),
        static_SK=static,
        channels=channels,
        n_targets=n_targets,
        covariates=[*options.known_covariates, *calendar_names(options.calendar), *static_names],
        ahead=ahead,
        calendar=tuple(options.calendar),
        labels_T=everything[:, -1] if options.anomaly_column else None,
        source=source,
        counts=counts,
    )
    fill_missing(series, options.missing)
    return series


def check_precision(piece: Piece, channels: Sequence[str], on_bad: str, counts: dict[str, Any]) -> None:
    """Raises DataError if a channel's values are so large beside their changes that single precision loses these."""
    x = piece.values[:, : len(channels)]
    lost = np.nansum((x - x.astype(np.float32)) ** 2, 0)
    change = np.nansum(np.diff(x, axis=0) ** 2, 0)
    # Rounding of more than a tenth of the usual step from row to row.
    coarse = np.flatnonzero(lost > 0.01 * change)
    coarse = coarse[change[coarse] > 0]
    if not len(coarse):
        return
    c = int(coarse[0])
    text = (
        f"{piece.table.path}, series {piece.id!r}, column {channels[c]!r}: values such as {np.nanmax(np.abs(x[:, c])):.10g} "
        f"change by about {np.sqrt(change[c] / len(x)):.3g} from step to step, which single precision does not hold"
    )
    if on_bad == "error":
        raise DataError(f"{text}; take a constant off them, or their differences (of a counter), or set data.on_bad=skip")
    counts["columns whose changes are rounded away"] = text


def rows_ahead(targets: np.ndarray) -> int:
    """Rows at the end in which no target was observed."""
    seen = np.flatnonzero(~np.isnan(targets).all(1))
    return len(targets) - (int(seen[-1]) + 1 if len(seen) else 0)


def check_flags(pieces: Sequence[Piece], column: str) -> None:
    """Raises DataError for a label of anomalies that is neither 0 nor 1."""
    for piece in pieces:
        flags = piece.values[:, -1]
        bad = np.flatnonzero(~np.isnan(flags) & (flags != 0) & (flags != 1))
        if len(bad):
            raise DataError(
                f"{piece.where(int(bad[0]))}: {flags[bad[0]]:g} in {column!r} (data.anomaly_column), where 1 says that a step "
                "is anomalous and 0 that it is not"
            )


def static_table(
    pieces: list[Piece], options: ReadOptions, long: bool, trained: Sequence[str] | None = None
) -> tuple[np.ndarray, list[str]]:
    """Static covariates as numbers, text as one column per value, those of train where there is one before.

    Raises:
        DataError: for a text that no series of train has.
    """
    if not options.static_covariates:
        return np.zeros((len(pieces), 0), dtype=np.float32), []
    if not long:
        raise ConfigError("data.static_covariates belong to long files (unique_id, ds, y); these are wide")
    groups = (list(group) for _, group in itertools.groupby(pieces, key=lambda piece: id(piece.table)))
    rows = [group[0].table.frame[list(options.static_covariates)].iloc[[int(p.rows[0]) for p in group]] for group in groups]
    firsts: pd.DataFrame = pd.concat(rows, ignore_index=True)
    columns, names = [], []
    for name in options.static_covariates:
        values: Any = pd.to_numeric(firsts[name], errors="coerce")
        if values.notna().all() if trained is None else name in trained:
            columns, names = [*columns, values.to_numpy(np.float32)], [*names, name]
            continue
        texts, prefix = firsts[name].astype(str), f"{name}="
        levels = sorted(texts.unique())
        if trained is not None:
            levels = [known.removeprefix(prefix) for known in trained if known.startswith(prefix)]
            strange = np.flatnonzero(~texts.isin(levels).to_numpy())
            if len(strange):
                piece = pieces[int(strange[0])]
                raise DataError(
                    f"{piece.where(0)}: {texts.iloc[strange[0]]!r} in {name!r} (data.static_covariates) is absent from train, "
                    f"which has {', '.join(levels[:20])}"
                )
        for level in levels:
            columns.append((texts == level).to_numpy(np.float32))
            names.append(f"{prefix}{level}")
    return np.stack(columns, 1), names


def fill_missing(series: SeriesSet, how: str) -> None:
    """Counts missing values, and with `forward` replaces them by the last value before; the future is never used."""
    observed = np.concatenate(
        [np.arange(series.offsets[i], series.offsets[i + 1] - series.ahead[i]) for i in range(len(series))]
    )
    missing = (
        int(np.isnan(series.values_TC[observed]).sum())
        if len(observed) < len(series.values_TC)
        else int(np.isnan(series.values_TC).sum())
    )
    if missing:
        what = {"mask": "shown to the model as missing, not scored", "forward": "replaced by the last value before"}
        if how == "error":
            raise DataError(f"{series.source}: {missing} values are missing; set data.missing=mask or forward")
        series.counts["missing values"] = f"{missing:,}, {what[how]}"
    if missing and how == "forward":
        for i in range(len(series)):
            part = slice(series.offsets[i], series.offsets[i + 1] - series.ahead[i])
            series.values_TC[part] = pd.DataFrame(series.values_TC[part]).ffill().to_numpy()
    gaps = int(np.isnan(series.known_TK).sum())
    if gaps:
        series.counts["missing values of known covariates"] = f"{gaps:,}, read as their mean"
