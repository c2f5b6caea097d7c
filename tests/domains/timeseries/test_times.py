"""Times as people's files hold them: either order of day and month, zones with summer time, months and seconds as numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from writing import wide_frame, write

from longseq.domains.timeseries.frequency import infer_frequency
from longseq.domains.timeseries.grid import ReadOptions
from longseq.domains.timeseries.series import SeriesSet
from longseq.domains.timeseries.sources import read_series
from longseq.domains.timeseries.splits import split_series


def read(path: Path | str, **options: Any) -> SeriesSet:
    return read_series(str(path), ReadOptions(**options))


def dated(times: Any, folder: Path) -> str:
    return write(pd.DataFrame({"date": times, "x": np.arange(len(times)) % 7}), folder / "x.csv")


@pytest.mark.parametrize("freq", ["D", "MS", "6h"])
@pytest.mark.parametrize("form", ["%d/%m/%Y %H:%M", "%d.%m.%Y %H:%M", "%m/%d/%Y %H:%M", "%Y-%m-%d %H:%M"])
def test_the_order_of_day_and_month_is_found(tmp_path: Path, freq: str, form: str) -> None:
    times = pd.date_range("2020-01-01", periods=60, freq=freq)
    series = read(dated(times.strftime(form), tmp_path))
    assert (pd.DatetimeIndex(series.times(0, 0, 60)) == times).all()
    assert ("dates" in series.counts) == form.startswith("%d")


def test_a_year_in_front_leaves_no_choice(tmp_path: Path) -> None:
    times = pd.date_range("2020-01-01", periods=40, freq="D")
    assert (pd.DatetimeIndex(read(dated(times.strftime("%Y-%m-%d"), tmp_path), day_first=True).times(0, 0, 40)) == times).all()


def test_days_of_a_zone_with_summer_time_stay_days(tmp_path: Path) -> None:
    times = pd.date_range("2022-02-01", periods=100, freq="D", tz="Europe/Berlin")
    pd.DataFrame({"x": np.arange(100.0)}, index=times).to_parquet(tmp_path / "x.parquet")
    for path in (tmp_path / "x.parquet", dated(times, tmp_path)):
        series = read(path)
        assert series.frequency.name == "1 d" and str(series.time(0, 99))[:13] == "2022-05-11T00"
        assert "as they stand there" in series.counts["time zone"] and len(series.values_TC) == 100
    hours = pd.date_range("2022-03-26", periods=100, freq="h", tz="Europe/Berlin")
    series = read(dated(hours, tmp_path))
    assert series.counts["time zone"] == "read as UTC" and str(series.time(0, 0))[:13] == "2022-03-25T23"
    assert len(series.values_TC) == 100 and not np.isnan(series.values_TC).any()


def test_a_date_with_hyphens_has_no_offset(tmp_path: Path) -> None:
    series = read(dated(["01-02-2024", "02-02-2024", "03-02-2024"], tmp_path))
    assert str(series.time(0, 2))[:10] == "2024-02-03" and "time zone" not in series.counts


def test_month_ends_go_on_as_month_ends() -> None:
    times = pd.date_range("2023-02-28", periods=14, freq="ME").to_numpy()
    found = infer_frequency(times, "x")
    assert [str(t)[:10] for t in found.after(times[0], np.arange(3))] == ["2023-02-28", "2023-03-31", "2023-04-30"]
    assert str(infer_frequency(times, "x", "month").after(times[0], np.array([1]))[0])[:10] == "2023-03-31"
    # The 30th of every month is no month's end.
    times = np.array(["2023-04-30", "2023-05-30", "2023-06-30"], dtype="datetime64[ns]")
    assert str(infer_frequency(times, "x").after(times[0], np.array([1]))[0])[:10] == "2023-05-30"


def test_whole_numbers_that_are_times(tmp_path: Path) -> None:
    months = pd.date_range("2000-01-01", periods=30, freq="MS")
    series = read(dated(months.strftime("%Y%m").astype(int), tmp_path))
    assert series.frequency.name == "month" and str(series.time(0, 29))[:7] == "2002-06" and len(series.values_TC) == 30
    seconds = 1_700_000_000 + 3600 * np.arange(30)
    for unit in (1, 1000):
        series = read(dated(seconds * unit, tmp_path))
        assert series.frequency.name == "1 h" and str(series.time(0, 0)) == "2023-11-14T22:13:20.000000000"
    assert read(dated(np.arange(1990, 2020), tmp_path)).frequency.name == "steps of 1"


def test_a_year_alone_bounds_a_split(tmp_path: Path) -> None:
    series = read(write(wide_frame(400, freq="D", start="2023-06-01"), tmp_path / "d.csv"))
    borders = split_series(series, "dates", horizon=3, val_start=2024, test_start="2024-03-01")  # type: ignore[arg-type]
    assert borders.edges[0].tolist() == [0, 214, 274, 400]
