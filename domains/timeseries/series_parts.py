"""Train, val and test along time: from files of their own, or cut from one table in the order of time."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from longseq.domains.timeseries import demo
from longseq.domains.timeseries.grid import ReadOptions
from longseq.domains.timeseries.parts import Part, matched_scale
from longseq.domains.timeseries.series import SeriesSet, measure_scale
from longseq.domains.timeseries.sources import Source, read_series
from longseq.domains.timeseries.splits import split_series
from longseq.errors import ConfigError, DataError

Sets = dict[str, SeriesSet]


def demo_sets(
    sources: Mapping[str, Source | None],
    options: Mapping[str, Any],
    counts: dict[str, Any],
    *,
    calendar: Sequence[str],
    anomalies: bool,
) -> Sets:
    """The embedded series; files for val or test make no sense beside them."""
    for name in ("val", "test"):
        if sources[name] is not None:
            raise ConfigError(f"data.{name} is given without data.train")
    series = demo.make_series(**options, calendar=tuple(calendar), anomalies=anomalies)
    counts |= series.counts
    return {"train": series}


def read_sets(sources: Mapping[str, Source | None], options: ReadOptions, counts: dict[str, Any]) -> Sets:
    """The series of `train` and, where they are files of their own, of `val` and `test`."""
    found: Sets = {}
    for name in ("train", "val", "test"):
        source = sources[name]
        if source is not None:
            trained = found["train"].static_names if "train" in found else None
            found[name] = read_series(source, options, trained)
            prefix = "" if name == "train" else f"{name}: "
            counts |= {f"{prefix}{key}": value for key, value in found[name].counts.items()}
    return found


def cut_parts(sets: Sets, rules: Mapping[str, Any], horizon: int, season: int, counts: dict[str, Any]) -> dict[str, Part]:
    """Where each split lies, with the scale of train.

    Args:
        sets: `train`, and those that are files of their own.
        rules: `rule`, `val_fraction` and the like, see `split_series`.
        horizon: steps ahead, for the rule `last`.
        season: steps of the season of MASE.
        counts: takes up how the data were split.

    Raises:
        ConfigError: for a rule that cannot be joined with files of their own.
        DataError: for files whose columns are not those of train.
    """
    train = sets["train"]
    if "val" in sets and "test" in sets:
        edges = np.stack([0 * train.lengths, train.lengths, train.lengths, train.lengths], 1)
        counts["split"] = "files of their own"
    else:
        # A share of the whole, also where one of the parts is a file of its own.
        shares = {f"{name}_fraction": 0.0 if name in sets else rules[f"{name}_fraction"] for name in ("val", "test")}
        if len(sets) > 1 and rules["rule"] != "ratio":
            raise ConfigError(f"data.split={rules['rule']} cuts one table; give either both data.val and data.test or neither")
        borders = split_series(train, **{**rules, **shares}, horizon=horizon)
        edges, counts["split"] = borders.edges, borders.rule
    scale = measure_scale(train, edges[:, 1], season)
    if scale.constant:
        counts["constant channels"] = f"{scale.constant} do not vary in train; their unit is 1"
    parts = {}
    for i, name in enumerate(("train", "val", "test")):
        if name in sets and name != "train":
            own = sets[name]
            check_channels(own, train, name)
            parts[name] = Part(own, matched_scale(own, train, scale), 0 * own.lengths, own.lengths)
        else:
            parts[name] = Part(train, scale, edges[:, i], edges[:, i + 1])
    return parts


def check_channels(series: SeriesSet, train: SeriesSet, name: str) -> None:
    """Raises DataError if the columns or the frequency of another file are not those of train."""
    for what in ("channels", "covariates", "frequency"):
        found, expected = getattr(series, what), getattr(train, what)
        if found != expected:
            raise DataError(f"{series.source} ({name}): its {what} are {found}, those of train are {expected}")
