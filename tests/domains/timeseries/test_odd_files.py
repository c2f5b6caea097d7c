"""What stands in people's tables beside the series: saved indices, counters, flags, static texts, archive folders."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from writing import long_frame, wide_frame, write

from longseq.domains.timeseries import baselines
from longseq.domains.timeseries.datamodule import SeriesData
from longseq.domains.timeseries.grid import ReadOptions
from longseq.domains.timeseries.series import SeriesSet, measure_scale
from longseq.domains.timeseries.sources import read_series
from longseq.domains.timeseries.tasks import Imputation
from longseq.domains.timeseries.windows import ForecastRows, SpanRows
from longseq.errors import ConfigError, DataError

SMALL: dict[str, Any] = {"lookback": 24, "horizon": 6, "patch": 6, "patch_stride": 6}


def read(path: Path | str, **options: Any) -> SeriesSet:
    return read_series(str(path), ReadOptions(**options))


def test_an_index_that_was_saved_is_no_channel(tmp_path: Path) -> None:
    wide_frame().to_csv(tmp_path / "a.csv")
    wide_frame().set_axis(np.r_[:100, 300:400]).to_parquet(tmp_path / "b.parquet")
    wide_frame().rename_axis("index").reset_index().to_csv(tmp_path / "c.csv", index=False)
    for name in ("a.csv", "b.parquet", "c.csv"):
        series = read(tmp_path / name)
        assert series.channels == ["c0", "c1"]
        assert series.counts["columns that number the rows, not read"] in ("Unnamed: 0", "index")
    # A named column of numbers is one, and an index of times is the time.
    frame = wide_frame().assign(number=np.arange(200))
    assert read(write(frame, tmp_path / "d.csv")).channels == ["c0", "c1", "number"]
    frame.set_index("date").rename_axis(None).to_csv(tmp_path / "e.csv")
    assert read(tmp_path / "e.csv").channels == ["c0", "c1", "number"]


def test_a_counter_whose_steps_are_rounded_away(tmp_path: Path) -> None:
    frame = wide_frame().assign(meter=1e9 + 0.7 * np.arange(200))
    path = write(frame, tmp_path / "m.csv")
    with pytest.raises(
        DataError, match=r"m.csv, series 'm', column 'meter': values such as 1000000139.* change by about 0.698"
    ):
        read(path)
    assert "'meter'" in read(path, on_bad="skip").counts["columns whose changes are rounded away"]
    assert read(write(frame.assign(meter=1e6 + 0.7 * np.arange(200)), tmp_path / "n.csv")).channels[-1] == "meter"


def test_columns_of_long_files_that_nothing_names_are_told(tmp_path: Path) -> None:
    path = write(long_frame({"a": 40, "b": 40}).assign(promo=1, region="N"), tmp_path / "l.csv")
    assert read(path).counts["columns not read"].startswith("promo, region; data.known_covariates")
    assert "columns not read" not in read(path, known_covariates=("promo",), static_covariates=("region",)).counts


def test_flags_of_anomalies_are_0_or_1(tmp_path: Path) -> None:
    path = write(wide_frame().assign(flag=[0] * 150 + [-1] * 50), tmp_path / "f.csv")
    with pytest.raises(DataError, match=r"f.csv, line 152, .*-1 in 'flag' \(data.anomaly_column\)"):
        read(path, anomaly_column="flag")


def test_static_texts_mean_what_they_mean_in_train(tmp_path: Path) -> None:
    frame = long_frame({"a": 60, "b": 60, "c": 60})
    regions = frame.assign(region=[{"a": "N", "b": "S", "c": "E"}[name] for name in frame["unique_id"]])
    train = write(regions, tmp_path / "train.csv")
    one = write(regions.query("unique_id == 'b'"), tmp_path / "one.csv")
    options: dict[str, Any] = {"static_covariates": ["region"], "split": "last", **SMALL}
    data = SeriesData(task="forecasting", train=train, predict=one, **options)
    data.setup("fit")
    found = data.parts["predict"].series
    assert found.covariates == ["region=E", "region=N", "region=S"]
    assert found.static_SK.tolist() == [[0.0, 0.0, 1.0]]
    strange = write(regions.assign(region="W"), tmp_path / "strange.csv")
    with pytest.raises(DataError, match=r"strange.csv, line 2, series 'a': 'W' in 'region' .* absent from train, .* E, N, S"):
        SeriesData(task="forecasting", train=train, predict=strange, **options).setup("fit")


def test_covariates_of_tasks_that_read_none() -> None:
    refused: tuple[tuple[str, dict[str, Any]], ...] = (
        ("imputation", {"calendar": ["hour"]}),
        ("anomaly", {"known_covariates": ["price"]}),
        ("classification", {"past_covariates": ["wind"]}),
    )
    for task, options in refused:
        with pytest.raises(ConfigError, match=f"data.{next(iter(options))}=.*task={task} reads the series alone"):
            SeriesData(task=task, **options)


def test_a_folder_of_the_archive_is_train_and_test(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, n in (("TRAIN", 20), ("TEST", 12)):
        rows = np.c_[np.arange(n) % 2 + 1, rng.standard_normal((n, 30))]
        for suffix, separator in ((".tsv", "\t"), (".txt", " ")):
            np.savetxt(tmp_path / f"Toy_{name}{suffix}", rows, delimiter=separator)
    data = SeriesData(task="classification", train=str(tmp_path), lookback=30)
    data.setup("fit")
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 18, "val": 2, "test": 12}
    assert data.counts["files"] == "Toy_TRAIN.tsv, Toy_TEST.tsv"
    np.savetxt(tmp_path / "More_TRAIN.tsv", rows, delimiter="\t")
    with pytest.raises(DataError, match=r"several data sets \(More_TRAIN.tsv, Toy_TRAIN.tsv\)"):
        SeriesData(task="classification", train=str(tmp_path), lookback=30).setup("fit")


def test_backtest_by_its_step_alone(tmp_path: Path) -> None:
    path = write(wide_frame(400), tmp_path / "w.csv")

    def origins(**options: Any) -> tuple[list[int], str]:
        data = SeriesData(task="forecasting", train=path, **SMALL, **options)
        data.setup("fit")
        rows = data.splits["test"]
        assert isinstance(rows, ForecastRows)
        return [rows.place(i)[1] for i in range(len(rows))], str(data.counts["backtest"])

    assert origins(backtest_step=20) == ([334, 354, 374, 394], "the last 4 origins of each series, 20 steps apart")
    places, words = origins(backtest_step=20, backtest_windows=9)
    assert places == [334, 354, 374, 394] and words.endswith("test has no more, of data.backtest_windows=9")


def test_only_the_test_has_to_hold_a_longer_horizon(tmp_path: Path) -> None:
    path = write(wide_frame(400), tmp_path / "w.csv")
    options: dict[str, Any] = {**SMALL, "horizon": 60}
    with pytest.raises(DataError, match="val has 40 of its 400 steps"):
        SeriesData(task="forecasting", train=path, **options).setup("fit")
    data = SeriesData(task="forecasting", train=path, **options)
    data.setup("test")
    assert sorted(data.splits) == ["test", "train"] and len(data.splits["test"]) == 21
    found = data.baselines(None)  # type: ignore[arg-type]
    assert list(found) == ["repeat-last", "seasonal naive (24 steps)", "ridge (lookback 24)"]
    short = SeriesData(task="forecasting", train=path, **options, val_fraction=0.1, test_fraction=0.8)
    short.setup("test")
    assert list(short.baselines(None)) == ["repeat-last", "seasonal naive (24 steps)"]  # type: ignore[arg-type]


def test_a_series_without_train_has_the_scale_of_the_others(tmp_path: Path) -> None:
    frame = pd.concat([long_frame({"a": 60, "b": 60}), long_frame({"new": 30}, start="2024-02-20")])
    series = read(write(frame, tmp_path / "l.csv"))
    scale = measure_scale(series, np.array([40, 40, 0]), 7)
    known = measure_scale(series.select([0, 1]), np.array([40, 40]), 7)
    np.testing.assert_allclose(scale.mean_SC[2], known.channel_mean)
    np.testing.assert_allclose(scale.std_SC[2], known.channel_std)
    np.testing.assert_allclose(scale.mase_SC[2], known.mase_SC.mean(0))
    whole = measure_scale(series, np.zeros(3, dtype=np.int64), 7)
    np.testing.assert_allclose(whole.mean_SC[2], series.values_TC[120:].mean(0), rtol=1e-6)


def test_where_windows_share_steps_a_value_is_filled_in_once(tmp_path: Path) -> None:
    series = read(write(wide_frame(60), tmp_path / "w.csv"))
    spans: dict[str, Any] = {"length": 24, "stride": None, "seed": 1, "hide": 0.5, "span": 3, "together": False}
    rows = SpanRows(series, np.array([0]), np.array([60]), **spans)
    data = SeriesData(task="imputation", train=str(tmp_path / "w.csv"), lookback=24, patch=6, patch_stride=6)
    collate = data._collate("test")
    collate.scale = measure_scale(series, np.array([60]), 24)
    batch = collate([rows[i] for i in range(3)])
    batch["report"] = torch.ones(3, dtype=torch.bool)
    task = Imputation(series.channels, 24)
    outputs = torch.zeros(3, 24, 2, 1)
    index = task.predictions(outputs, batch)["index"]
    window, rest = np.divmod(index, 48)
    # The last window was moved back by 12 steps, which belong to the one before.
    places = list(zip(np.array([0, 24, 36])[window] + rest // 2, rest % 2, strict=True))
    assert len(set(places)) == len(places) and (rest[window == 2] // 2 >= 12).all()
    truth = np.array([series.values_TC[step, channel] for step, channel in places]) / collate.scale.std_SC[0][rest % 2]
    metrics = task.metrics()
    task.update(metrics, outputs, batch)
    assert float(metrics.compute()["mse"]) == pytest.approx(float((truth**2).mean()), rel=1e-5)
    zeros = baselines._score_filled(rows, collate.scale, lambda row: np.zeros_like(row["values"]))
    assert zeros["mse"] == pytest.approx(float((truth**2).mean()), rel=1e-5)
