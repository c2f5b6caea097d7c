"""Reads a user's series, or the embedded demo data, and gives batches of windows in original units."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from longseq.backbone import Backbone
from longseq.domains.base import DomainData, Row
from longseq.domains.tasks import Batch, Task
from longseq.domains.timeseries import baselines, demo
from longseq.domains.timeseries.batches import Collate, window_facts, window_names
from longseq.domains.timeseries.grid import ReadOptions
from longseq.domains.timeseries.labelled import (
    LabelledRows,
    LabelledSeries,
    check_classes,
    class_names,
    encode_labels,
    labelled_splits,
    padded,
)
from longseq.domains.timeseries.linear_start import start_linear_skip
from longseq.domains.timeseries.parts import (
    Part,
    WindowOptions,
    covariate_scale,
    forecast_rows,
    matched_scale,
    predict_rows,
    span_rows,
)
from longseq.domains.timeseries.prediction_series import (
    check_model,
    model_options,
    model_scale,
    read_unlabelled,
    static_names,
)
from longseq.domains.timeseries.self_supervised import HiddenSpans
from longseq.domains.timeseries.series import measure_scale
from longseq.domains.timeseries.series_parts import check_channels, cut_parts, demo_sets, read_sets
from longseq.domains.timeseries.sources import Source, read_series
from longseq.domains.timeseries.tasks import Forecasting
from longseq.domains.timeseries.tokenizer import SeriesTokenizer
from longseq.domains.timeseries.windows import ForecastRows, SpanRows, WindowRows
from longseq.embeddings_timeseries import ForecastHead, SeriesEmbedding
from longseq.errors import ConfigError, DataError
from longseq.model import SequenceModel

TASKS = ("forecasting", "imputation", "anomaly", "classification")
# Values of validation windows that calibration keeps in memory.
CALIBRATION_VALUES = 2_000_000
# Offsets of calibration: above, the channels share theirs.
OFFSETS = 500_000


class SeriesData(DomainData):
    """Series from wide (`date, col...`) or long (`unique_id, ds, y`) csv, tsv or parquet; UCR files for classification.

    Args:
        task: `forecasting`, `imputation`, `anomaly` or `classification`.
        train: file(s) with all data, cut in the order of time; with `val` and `test`, the training data alone. None for the
            embedded synthetic demo data.
        val: a file of its own.
        test: a file of its own.
        predict: a file whose series are forecast from their ends on.
        batch_size: windows per process and step.
        max_tokens: if set, batches hold at most so many steps.
        num_workers: loader processes.
        seed: of splits, shuffling and hidden spans.
        format: `wide`, `long`, or `auto`: long if there is the id column.
        time_column: None looks for ds, date, datetime, timestamp, time, then takes the first column.
        id_column: names the series of long files.
        targets: columns to forecast; None for all numbers of wide files, y of long ones.
        past_covariates: columns that are read and not forecast, unknown ahead.
        known_covariates: columns that are known ahead; files to predict hold them for the steps to come, with empty targets.
        static_covariates: columns of long files that belong to a whole series; text becomes one column per value.
        calendar: covariates from the time: minute, hour, weekday, monthday, yearday, month.
        frequency: 1h, 15min, 7d, business, month, quarter or year; None infers it.
        gaps: `fill` makes missing steps missing values, `ignore` takes rows as equally spaced, `error` refuses.
        missing: `mask` shows missing values to the model as such, `forward` repeats the last value, `error` refuses.
        on_bad: `error` refuses bad cells, rows and series, `skip` leaves them out and counts them.
        encoding: of text files; None finds out.
        decimal: the decimal point.
        day_first: 3/4/2024 is the third of April.
        split: `ratio`, `ett_hour`, `ett_minute`, `dates` or `last`, see `split_series`.
        val_fraction: for `ratio`, and for the labelled series of `train` without a val file.
        test_fraction: likewise.
        val_start: for `dates`.
        test_start: for `dates`.
        lookback: steps that the model reads.
        horizon: steps that it forecasts; longer than a trained model's, the forecast is rolled out.
        stride: steps between training windows. Every val and test window counts.
        min_lookback: history that windows of short series must have; None for a quarter of `lookback`.
        backtest_windows: test on so many last origins of each series; None for all that are `backtest_step` apart.
        backtest_step: steps between them; None for the horizon with `backtest_windows`, else 1.
        season: steps of the season of MASE and of the seasonal naive forecast; None by the frequency.
        tokenizer: `patch`, `channel_mixing`, `variate` or `point`.
        patch: steps of a patch.
        patch_stride: steps between patches.
        instance: `revin`, `revin_last`, `last` or `none`.
        affine: a learned scale and shift per channel behind it.
        hide: share of the values that imputation hides.
        span: mean length of hidden spans, in steps.
        anomaly_column: 1 at anomalous steps, to compare scores with.
        label_column: of labelled series with a header; None for the first column.
        prediction_rows: predictions.csv holds evenly spread windows with about so many rows in all.
        demo_series: channels of the demo data.
        demo_days: its length.
    """

    domain = "timeseries"

    def __init__(
        self,
        *,
        task: str,
        train: Source | None = None,
        val: Source | None = None,
        test: Source | None = None,
        predict: Source | None = None,
        batch_size: int = 32,
        max_tokens: int | None = None,
        num_workers: int = 0,
        seed: int = 1,
        format: str = "auto",
        time_column: str | None = None,
        id_column: str = "unique_id",
        targets: Sequence[str] | None = None,
        past_covariates: Sequence[str] = (),
        known_covariates: Sequence[str] = (),
        static_covariates: Sequence[str] = (),
        calendar: Sequence[str] = (),
        frequency: str | None = None,
        gaps: str = "fill",
        missing: str = "mask",
        on_bad: str = "error",
        encoding: str | None = None,
        decimal: str = ".",
        day_first: bool = False,
        split: str = "ratio",
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
        val_start: str | None = None,
        test_start: str | None = None,
        lookback: int = 168,
        horizon: int = 24,
        stride: int = 1,
        min_lookback: int | None = None,
        backtest_windows: int | None = None,
        backtest_step: int | None = None,
        season: int | None = None,
        tokenizer: str = "patch",
        patch: int = 24,
        patch_stride: int = 12,
        instance: str = "revin",
        affine: bool = False,
        hide: float = 0.15,
        span: int = 8,
        anomaly_column: str | None = None,
        label_column: str | None = None,
        prediction_rows: int = 50_000,
        demo_series: int = 4,
        demo_days: int = 300,
    ) -> None:
        super().__init__(task=task, batch_size=batch_size, max_tokens=max_tokens, num_workers=num_workers, seed=seed)
        if task not in TASKS:
            raise ConfigError(f"domain=timeseries has no task={task}; it has {', '.join(TASKS)}")
        if task in ("imputation", "anomaly") and not 0.0 < hide < 1.0:
            raise ConfigError(f"data.hide must lie between 0 and 1, found {hide}")
        self._check_covariates(
            known_covariates=known_covariates,
            static_covariates=static_covariates,
            calendar=calendar,
            past_covariates=past_covariates if task == "classification" else (),
        )
        for name, number in (("span", span), ("season", season), ("prediction_rows", prediction_rows)):
            if number is not None and number < 1:
                raise ConfigError(f"data.{name} must be at least 1, found {number}")
        self.sources = {"train": train, "val": val, "test": test, "predict": predict}
        self.read_options = ReadOptions(
            format=format,
            time_column=time_column,
            id_column=id_column,
            targets=targets,
            past_covariates=tuple(past_covariates),
            known_covariates=tuple(known_covariates),
            static_covariates=tuple(static_covariates),
            anomaly_column=anomaly_column,
            calendar=tuple(calendar),
            frequency=frequency,
            gaps=gaps,
            missing=missing,
            on_bad=on_bad,
            encoding=encoding,
            decimal=decimal,
            day_first=day_first,
        )
        self.split_options: dict[str, Any] = {
            "rule": split,
            "val_fraction": val_fraction,
            "test_fraction": test_fraction,
            "val_start": val_start,
            "test_start": test_start,
        }
        self.window_options = WindowOptions(lookback, horizon, stride, min_lookback, backtest_windows, backtest_step, on_bad)
        self.tokenizer = SeriesTokenizer(tokenizer, lookback, patch, patch_stride, instance, affine)
        self.spans: dict[str, Any] = {"hide": hide, "span": span, "together": task == "anomaly", "seed": seed}
        self.label_column, self.prediction_rows = label_column, prediction_rows
        self.demo = {"n_series": demo_series, "n_days": demo_days, "seed": seed}
        self.season = season
        self.parts: dict[str, Part] = {}
        self.labels: list[str] = []

    def _check_covariates(self, **given: Sequence[str]) -> None:
        for name, columns in given.items():
            if len(columns) and self.task_name != "forecasting":
                raise ConfigError(
                    f"data.{name}={list(columns)}: task={self.task_name} reads the series alone; set data.{name}=[], or "
                    "name the columns in data.targets"
                )

    # -- reading

    @property
    def horizon(self) -> int:
        """Steps that a window answers for: the forecast's, or all of a window to be filled in."""
        return self.window_options.horizon if self.task_name == "forecasting" else self.window_options.lookback

    def setup(self, stage: str | None = None) -> None:
        """Reads the files once; later calls do nothing. `predict` reads the file to predict alone."""
        if self.splits:
            return
        if self.task_name == "classification":
            self._setup_labelled(stage)
            return
        if stage != "predict" or self.sources["predict"] is None:
            self._setup_parts()
            self._setup_windows(stage)
        if self.sources["predict"] is not None:
            self._setup_predict()

    def _setup_parts(self) -> None:
        if self.sources["train"] is None:
            sets = demo_sets(
                self.sources, self.demo, self.counts, calendar=self.read_options.calendar, anomalies=self.task_name == "anomaly"
            )
        else:
            sets = read_sets(self.sources, self.read_options, self.counts)
        self.season = self.season or sets["train"].frequency.season
        self.parts |= cut_parts(sets, self.split_options, self.window_options.horizon, self.season, self.counts)

    def _setup_windows(self, stage: str | None) -> None:
        for name, part in self.parts.items():
            if self.task_name == "forecasting":
                try:
                    self.splits[name] = forecast_rows(part, name, self.window_options, self.counts)
                except DataError:
                    # A trained model is rolled out over more steps than val may have.
                    if stage != "test" or name == "test":
                        raise
            else:
                self.splits[name] = span_rows(part, name, self.window_options, self.counts, **self.spans)
        options = self.window_options
        ahead = f", {options.horizon} ahead" if self.task_name == "forecasting" else ""
        self.counts["window"] = f"{options.lookback} steps read{ahead}"
        rows, shown = self.splits["test"], self.report_every("test")
        if self.task_name == "forecasting" and shown > 1:
            self.counts["predictions.csv"] = (
                f"one in {shown} of {len(rows):,} test windows (data.prediction_rows={self.prediction_rows})"
            )

    def _setup_predict(self) -> None:
        source = self.sources["predict"]
        assert source is not None
        trained = self.parts["train"].series.static_names if "train" in self.parts else None
        series = read_series(source, self.read_options, trained)
        if "train" in self.parts:
            train = self.parts["train"]
            check_channels(series, train.series, "predict")
            scale = matched_scale(series, train.series, train.scale)
        else:
            self.season = self.season or series.frequency.season
            scale = measure_scale(series, series.lengths, self.season)
        part = Part(series, scale, 0 * series.lengths, series.lengths)
        if self.task_name == "forecasting":
            self.splits["predict"] = predict_rows(series, self.window_options)
        else:
            # Nothing is hidden on purpose: what is missing is to be filled in.
            self.splits["predict"] = span_rows(part, "predict", self.window_options, self.counts, **{**self.spans, "hide": 0.0})
        self.parts["predict"] = part

    def _setup_labelled(self, stage: str | None) -> None:
        if self.sources["train"] is None and self.sources["predict"] is None:
            self.counts["synthetic"] = demo.LABELLED_DESCRIPTION
            found = demo.labelled_splits(self.tokenizer.lookback, self.demo["seed"])
        else:
            shares = {name: float(self.split_options[f"{name}_fraction"]) for name in ("val", "test")}
            found = labelled_splits(self.sources, self.read_options, self.counts, self.label_column, shares, self.seed)
        if stage == "predict" and "predict" in found:
            found = {"predict": found["predict"]}
        self.labels = class_names(
            [str(label) for name, part in found.items() if name in ("train", "predict") for label in part.labels]
        )
        longest = max(part.values_NL1.shape[1] for part in found.values())
        if longest > self.tokenizer.lookback:
            self.counts[f"cropped to {self.tokenizer.lookback} steps"] = f"{longest} in the longest series; raise data.lookback"
        for name, part in found.items():
            values = padded(part.values_NL1, self.tokenizer.lookback)[:, : self.tokenizer.lookback]
            part = LabelledSeries(values, part.labels, part.where)
            if name == "predict":
                self.splits[name] = LabelledRows(part, None)
                continue
            part, codes = encode_labels(part, self.labels, name, self.read_options.on_bad, self.counts)
            self.splits[name] = LabelledRows(part, codes)
        if "train" in found:
            check_classes(self.labels)

    def self_supervised(self, causal: bool) -> DomainData:
        """The windows of train and val with spans to be filled in; a causal backbone fills them from the past."""
        del causal
        return HiddenSpans(self)

    # -- predicting

    @classmethod
    def options_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        return model_options(config)

    def setup_predict(self, config: Mapping[str, Any]) -> None:
        """Reads `data.predict` alone: forecasts begin behind its ends; what is missing is filled in; labels are not needed."""
        source = self.sources["predict"]
        if source is None:
            raise ConfigError("data.predict must name the series to predict: a file, a folder, a list or a pattern")
        if self.task_name == "classification":
            self.labels = list(config.get("labels", []))
            part = read_unlabelled(
                source, self.read_options, self.counts, self.label_column, self.labels, self.tokenizer.lookback
            )
            self.splits["predict"] = LabelledRows(part, None)
            return
        series = read_series(source, self.read_options, static_names(config, self.read_options))
        self.counts |= series.counts
        check_model(series, config, self.task_name)
        self.season = self.season or series.frequency.season
        # The scale is the model's own: scores of different files mean the same.
        part = Part(series, model_scale(series, config), 0 * series.lengths, series.lengths)
        if self.task_name == "forecasting":
            self.splits["predict"] = predict_rows(series, self.window_options)
        else:
            self.splits["predict"] = span_rows(part, "predict", self.window_options, self.counts, **{**self.spans, "hide": 0.0})
        self.parts["predict"] = part

    # -- what the model and the report need

    def _part(self) -> Part:
        """Train, or what there is to predict."""
        return self.parts["train" if "train" in self.parts else "predict"]

    @property
    def n_inputs(self) -> tuple[int, int]:
        """Channels that the model reads, and covariates."""
        if self.task_name == "classification":
            return 1, 0
        series = self._part().series
        return len(series.channels), series.n_covariates if self.task_name == "forecasting" else 0

    @property
    def max_length(self) -> int:
        """Tokens of a window."""
        return self.tokenizer.n_tokens(self.horizon, *self.n_inputs)

    def task_options(self) -> dict[str, Any]:
        if self.task_name == "classification":
            train = self.splits.get("train")
            codes = train.labels if isinstance(train, LabelledRows) and train.labels is not None else np.empty(0, np.int64)
            return {"labels": self.labels, "class_counts": np.bincount(codes, minlength=len(self.labels)).tolist()}
        series = self._part().series
        if self.task_name == "forecasting":
            return {"channels": series.targets, "horizon": self.horizon}
        options: dict[str, Any] = {"channels": series.channels, "length": self.horizon}
        if self.task_name == "anomaly":
            options["labelled"] = self.parts["test"].series.labels_T is not None if "test" in self.parts else False
        return options

    def model_options(self, backbone: Backbone) -> dict[str, Any]:
        n_channels, n_covariates = self.n_inputs
        options: dict[str, Any] = {"n_channels": n_channels}
        if n_covariates:
            mean, std = covariate_scale(self._part())
            options |= {"n_covariates": n_covariates, "horizon": self.horizon, "covariate_mean": mean, "covariate_std": std}
        if self.has_missing:
            options["flags"] = True
        if self.tokenizer.kind == "variate" and backbone.causal and n_channels > 1:
            self.counts["channels"] = (
                "with a causal backbone a channel only sees those before it; backbone.bidirectional=true lets all see all"
            )
        found: dict[str, Any] = {"tokenizer": self.tokenizer.to_dict()}
        if self.task_name == "classification":
            values = self._labelled("train").series.values_NL1
            options |= {"mean": [float(np.nanmean(values))], "std": [float(np.nanstd(values)) or 1.0]}
        else:
            part = self._part()
            options |= part.scale.channel_options()
            found["series"] = {
                "channels": part.series.channels,
                "targets": part.series.targets,
                "covariates": part.series.covariates if n_covariates else [],
                "frequency": part.series.frequency.name,
                "season": self.season,
            }
        return {"embedding": self.tokenizer.embedding(**options), **found}

    @property
    def has_missing(self) -> bool:
        """Whether the model must be told which values are missing."""
        if self.task_name in ("imputation", "anomaly"):
            return True
        if self.task_name == "classification":
            return any(
                np.isnan(rows.series.values_NL1).any() for rows in self.splits.values() if isinstance(rows, LabelledRows)
            )
        observed = [part.series.values_TC[int(b) : int(e)] for part, b, e in self._observed()]
        padded_windows = any(key.startswith("series with windows padded") for key in self.counts)
        reads_only = any(part.series.n_targets < len(part.series.channels) for part in self.parts.values())
        return padded_windows or reads_only or any(bool(np.isnan(x).any()) for x in observed)

    def _observed(self) -> list[tuple[Part, int, int]]:
        found = []
        for part in {id(p.series): p for p in self.parts.values()}.values():
            series = part.series
            found += [(part, int(b), int(b + n)) for b, n in zip(series.offsets[:-1], series.lengths, strict=True)]
        return found

    def head_options(self, backbone: Backbone, head: dict[str, Any]) -> dict[str, Any]:
        if head["name"] != "forecast":
            return head
        n_channels, _n_covariates = self.n_inputs
        if self.task_name == "forecasting":
            n_channels = self._part().series.n_targets
            if self.tokenizer.kind == "patch" and n_channels < self.n_inputs[0]:
                raise ConfigError(
                    "data.tokenizer=patch sends each channel through the network by itself, so data.past_covariates have no "
                    "effect on the others; choose data.tokenizer=channel_mixing, variate or point"
                )
        options = {**head, "n_channels": n_channels, "layout": self.tokenizer.layout(backbone)}
        options["n_tokens"] = self.tokenizer.n_tokens(head["horizon"], *self.n_inputs)
        options["lookback"] = self.tokenizer.lookback
        shared = head["horizon"] * n_channels * len(head.get("quantiles", [0.5])) > OFFSETS
        return {**options, "calibrated_channels": 1 if shared else n_channels}

    # -- batches

    def report_every(self, split: str) -> int:
        """Every how manyth window goes into predictions.csv, or in val into calibration."""
        rows, n_channels = self.splits[split], max(1, self.n_inputs[0])
        if self.task_name == "classification":
            return 1
        limit = CALIBRATION_VALUES if split == "val" else self.prediction_rows
        keep = max(8, limit // (self.horizon * n_channels))
        return 1 if split == "predict" else -(-len(rows) // keep)

    def loader(self, split: str, *, shuffle: bool = False, epoch: int = 0) -> Any:
        loader = super().loader(split, shuffle=shuffle, epoch=epoch)
        loader.collate_fn = self._collate(split)
        return loader

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        return self._collate("train")(rows)

    def _collate(self, split: str) -> Collate:
        scale = self.parts[split].scale if split in self.parts else None
        every = self.report_every(split) if split in self.splits else 1
        return Collate(scale, forecast=self.task_name == "forecasting", every=every, unknown=split == "predict")

    # -- the report

    def summary(self) -> dict[str, Any]:
        found = {}
        for name, rows in self.splits.items():
            if isinstance(rows, LabelledRows):
                facts: dict[str, Any] = {"rows": len(rows), "steps": rows.series.values_NL1.shape[1]}
                if rows.labels is not None:
                    counts = np.bincount(rows.labels, minlength=len(self.labels))
                    facts["labels"] = dict(zip(self.labels, counts.tolist(), strict=True))
            else:
                facts = window_facts(rows, self.parts[name])
            found[name] = facts
        return found

    def start(self, model: SequenceModel, task: Task) -> None:
        """The linear part of a forecast begins as the ridge regression that is also the strongest simple baseline."""
        train = self.splits.get("train")
        if not isinstance(task, Forecasting) or not task.ridge_start or not isinstance(train, ForecastRows):
            return
        assert isinstance(model.head, ForecastHead) and isinstance(model.embedding, SeriesEmbedding)
        # Of all training windows, also where training steps over some.
        every = forecast_rows(self.parts["train"], "train", replace(self.window_options, stride=1), {})
        start_linear_skip(model.head, model.embedding, every, self.parts["train"].scale)

    def baselines(self, task: Task) -> dict[str, Row]:
        if self.task_name == "classification":
            return self._classification_baselines(task)
        test, part = self.splits["test"], self.parts["test"]
        if isinstance(test, ForecastRows):
            # Of all training windows, also where the model only sees some: a baseline should be as good as it can be.
            options = replace(self.window_options, stride=1, on_bad="skip")
            try:
                train = forecast_rows(self.parts["train"], "train", options, {})
            except DataError:
                # No series of train is as long as the forecast that is asked for.
                train = None
            return dict(baselines.forecast_baselines(train, test, self.parts["train"].scale, part.scale, self.season or 1))
        assert isinstance(test, SpanRows)
        if self.task_name == "imputation":
            return dict(baselines.imputation_baselines(test, part.scale))
        return dict(baselines.anomaly_baselines(part.series, part.scale, part.begin, part.end))

    def _classification_baselines(self, task: Task) -> dict[str, Row]:
        train, test = self._labelled("train"), self._labelled("test")
        assert train.labels is not None and test.labels is not None
        found = baselines.classification_baselines(
            train.series.values_NL1, train.labels, test.series.values_NL1, len(self.labels)
        )
        truth = torch.from_numpy(test.labels)
        return {name: task.score_predictions(torch.from_numpy(p).float(), truth) for name, p in found.items()}

    def _labelled(self, split: str) -> LabelledRows:
        rows = self.splits[split if split in self.splits else "predict"]
        assert isinstance(rows, LabelledRows)
        return rows

    def row_names(self, split: str, index: np.ndarray) -> dict[str, Sequence[Any]]:
        rows = self.splits[split]
        if isinstance(rows, LabelledRows):
            return {"id": [rows.series.where[i] for i in index]}
        assert isinstance(rows, WindowRows)
        names = window_names(rows, index, self.horizon, self.task_name, self._targets(split))
        if split != "predict":
            return names
        # The names that forecasting tools share.
        own = {"id": self.read_options.id_column, "time": self.read_options.time_column or "ds"}
        return {own.get(name, name): values for name, values in names.items()}

    def _targets(self, split: str) -> list[str]:
        series = self.parts[split].series
        return series.targets if self.task_name == "forecasting" else series.channels
