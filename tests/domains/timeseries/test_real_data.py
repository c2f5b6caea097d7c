"""Real files: published numbers of windows and baselines, files as they come, and a model that is better than ridge on UCR."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longseq.domains.timeseries.datamodule import SeriesData
from longseq.domains.timeseries.tasks import Forecasting

pytestmark = pytest.mark.data

REPEAT_LAST = {96: (1.294, 0.713), 192: (1.325, 0.733), 336: (1.330, 0.746), 720: (1.335, 0.755)}
RIDGE = {96: (0.370, 0.391), 192: (0.403, 0.411), 336: (0.426, 0.424), 720: (0.422, 0.443)}


def ltsf(real_data: Path, name: str, **options) -> SeriesData:
    data = SeriesData(task="forecasting", train=str(real_data / "timeseries" / "ltsf" / f"{name}.csv.gz"), **options)
    data.setup("fit")
    return data


@pytest.mark.parametrize("horizon", [96, 192, 336, 720])
def test_etth1_baselines_are_the_published_ones(real_data: Path, horizon: int) -> None:
    data = ltsf(real_data, "ETTh1", split="ett_hour", lookback=336, horizon=horizon)
    assert len(data.splits["test"]) == 2880 - horizon + 1
    found = data.baselines(Forecasting(**data.task_options()))
    last, ridge = found["repeat-last"], found["ridge (lookback 336)"]
    assert (last["mse"], last["mae"]) == pytest.approx(REPEAT_LAST[horizon], abs=6e-4)
    assert (ridge["mse"], ridge["mae"]) == pytest.approx(RIDGE[horizon], abs=1.1e-3)


def test_etth1_scale_and_units(real_data: Path) -> None:
    data = ltsf(real_data, "ETTh1", split="ett_hour", lookback=336, horizon=96)
    values = data.parts["train"].series.values_TC[:8640].astype(np.float64)
    np.testing.assert_allclose(data.parts["test"].scale.mean_SC[0], values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(data.parts["test"].scale.std_SC[0], values.std(0), rtol=1e-6)
    facts = data.summary()["test"]
    assert (facts["from"], facts["to"]) == ("2017-10-24T00:00:00", "2018-02-20T23:00:00")


def test_ettm1_takes_no_more_memory_than_its_table(real_data: Path) -> None:
    data = ltsf(real_data, "ETTm1", split="ett_minute", lookback=720, horizon=96)
    series, rows = data.parts["train"].series, data.splits["train"]
    assert series.memory == 69_680 * 7 * 4 and len(rows) == 34_560 - 720 - 96 + 1
    assert all(np.shares_memory(rows[i]["past"], series.values_TC) for i in range(0, len(rows), 5000))
    assert len(data.splits["test"]) == 11_520 - 96 + 1


def test_weather_just_works(real_data: Path) -> None:
    data = ltsf(real_data, "weather", lookback=336, horizon=96)
    series = data.parts["train"].series
    assert len(series.channels) == 21 and series.frequency.name == "10 min"
    # One row stands there twice, and one step is an hour and a half late.
    assert "5 letters of the header were lost" in str(data.counts["encoding of weather.csv.gz"])
    assert data.counts["rows that repeat a time, left out"] == 1
    assert data.counts["steps missing in time, filled"] == 9
    ignored = ltsf(real_data, "weather", lookback=336, horizon=96, gaps="ignore")
    assert ignored.parts["train"].series.lengths.tolist() == [52_695]


def test_exchange_rates(real_data: Path) -> None:
    data = ltsf(real_data, "exchange_rate", lookback=96, horizon=96)
    found = data.baselines(Forecasting(**data.task_options()))
    assert len(data.splits["test"]) == 1517 - 96 + 1
    assert (found["repeat-last"]["mse"], found["repeat-last"]["mae"]) == pytest.approx((0.081, 0.196), abs=2e-3)


@pytest.mark.parametrize(
    ("name", "rows", "steps", "neighbour"), [("HouseTwenty", 119, 2000, 0.6639), ("Lightning2", 61, 637, 0.7541)]
)
def test_ucr_nearest_neighbour_is_that_of_the_archive(
    real_data: Path, name: str, rows: int, steps: int, neighbour: float
) -> None:
    folder = real_data / "timeseries" / "ucr" / name
    files: dict[str, Any] = {part: str(folder / f"{name}_{part.upper()}.tsv.gz") for part in ("train", "test")}
    # The archive has no validation part: its baselines learn from all of train.
    data = SeriesData(task="classification", **files, val=files["test"], lookback=steps)
    data.setup("fit")
    assert len(data.splits["test"]) == rows and data.splits["test"][0]["values"].shape == (steps, 1)
    train: Any = data.splits["train"]
    test: Any = data.splits["test"]
    from longseq.domains.timeseries.baselines import classification_baselines

    found = classification_baselines(train.series.values_NL1, train.labels, test.series.values_NL1, 2)
    accuracy = float((found["1-nearest neighbour (Euclidean)"].argmax(1) == test.labels).mean())
    assert accuracy == pytest.approx(neighbour, abs=0.04)
