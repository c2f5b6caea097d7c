"""Splits and windows: what counts, what is a view, what is padded, and what backtests and hidden spans choose."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from writing import long_frame, wide_frame, write

from longseq.domains.timeseries import demo
from longseq.domains.timeseries.grid import ReadOptions
from longseq.domains.timeseries.parts import Part, WindowOptions, forecast_rows, matched_scale, span_rows
from longseq.domains.timeseries.series import SeriesSet, measure_scale
from longseq.domains.timeseries.sources import read_series
from longseq.domains.timeseries.splits import split_series
from longseq.errors import ConfigError, DataError


def series_of(n: int, channels: int = 1) -> SeriesSet:
    series = demo.make_series(n_series=channels, n_days=-(-n // 24), seed=0)
    return SeriesSet(**{**vars(series), "offsets": np.array([0, n]), "values_TC": series.values_TC[:n]})


def part_of(series: SeriesSet, name: str, rule: str = "ratio", horizon: int = 5) -> Part:
    borders = split_series(series, rule, horizon=horizon)
    return Part(series, measure_scale(series, borders.edges[:, 1], 24), *borders.part(name))


@pytest.mark.parametrize(("horizon", "windows"), [(96, 2785), (192, 2689), (336, 2545), (720, 2161)])
def test_published_numbers_of_test_windows(horizon: int, windows: int) -> None:
    part = part_of(series_of(17_420), "test", "ett_hour", horizon)
    assert len(forecast_rows(part, "test", WindowOptions(336, horizon), {})) == windows
    quarter = part_of(series_of(69_680), "test", "ett_minute", horizon)
    assert len(forecast_rows(quarter, "test", WindowOptions(336, horizon), {})) == 4 * 2880 - horizon + 1


def test_ratio_is_that_of_the_published_code() -> None:
    for n in (7588, 52696, 17420, 1000, 10):
        edges = split_series(series_of(n), "ratio", horizon=1).edges[0]
        n_train, n_test = int(round(n * 0.7, 6)), int(n * 0.2)
        assert edges.tolist() == [0, n_train, n - n_test, n]


def test_targets_stay_in_their_split_and_history_may_reach_back() -> None:
    series = series_of(1000)
    seen = {}
    for name in ("train", "val", "test"):
        part = part_of(series, name)
        rows = forecast_rows(part, name, WindowOptions(50, 5), {})
        places = [rows.place(i)[1] for i in range(len(rows))]
        seen[name] = {step for place in places for step in range(place, place + 5)}
        assert min(seen[name]) == (50 if name == "train" else part.begin[0]) and max(seen[name]) == part.end[0] - 1
    assert not seen["train"] & seen["val"] and not seen["val"] & seen["test"]


def test_windows_are_views_of_the_table() -> None:
    series = series_of(69_680, 7)
    part = part_of(series, "train", "ett_minute", 96)
    tracemalloc.start()
    rows = forecast_rows(part, "train", WindowOptions(720, 96), {})
    kept = [rows[i] for i in (0, 1000, len(rows) - 1)]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(rows) == 34_560 - 720 - 96 + 1
    assert all(np.shares_memory(row["past"], series.values_TC) for row in kept)
    assert peak < 0.02 * series.memory
    np.testing.assert_array_equal(kept[1]["past"], series.values_TC[1000:1720])
    np.testing.assert_array_equal(kept[1]["future"], series.values_TC[1720:1816])


def test_short_series_are_padded_in_front_or_refused(tmp_path: Path) -> None:
    series = read_series(write(long_frame({"a": 60, "b": 24, "c": 11}), tmp_path / "s.csv"), ReadOptions())
    part = part_of(series, "train", "last", 4)
    options = WindowOptions(20, 4, min_lookback=6)
    with pytest.raises(DataError, match=r"series 'c'.*train has 3 of its 11 steps.*data.min_lookback \+ data.horizon = 6 \+ 4"):
        forecast_rows(part, "train", options, {})
    counts: dict = {}
    rows = forecast_rows(part, "train", WindowOptions(20, 4, min_lookback=6, on_bad="skip"), counts)
    # a: 52 steps of training data, whole windows only; b: 16, from 6 known steps on.
    assert len(rows) == (52 - 20 - 4 + 1) + (16 - 6 - 4 + 1)
    assert counts["series too short for a window in train, left out"] == 1
    first = rows[29]
    assert first["series"] == 1 and np.isnan(first["past"][:14]).all() and not np.isnan(first["past"][14:]).any()
    np.testing.assert_array_equal(first["past"][14:], series.values_TC[60:66])


def test_a_horizon_longer_than_the_series() -> None:
    with pytest.raises(DataError, match=r"val has 10 of its 100 steps, but a window needs data.horizon=200"):
        forecast_rows(part_of(series_of(100), "val"), "val", WindowOptions(20, 200), {})
    with pytest.raises(DataError, match=r"data.split=ett_hour needs 20 months of 30 days = 14400 steps"):
        split_series(series_of(1000), "ett_hour", horizon=1)


def test_backtests_choose_the_last_origins() -> None:
    part, counts = part_of(series_of(1000), "test"), {}
    rows = forecast_rows(part, "test", WindowOptions(50, 5, backtest_windows=8, backtest_step=10), counts)
    assert [rows.place(i)[1] for i in range(len(rows))] == [995 - 10 * k for k in range(7, -1, -1)]
    assert "8 origins" in counts["backtest"]
    few = forecast_rows(part, "test", WindowOptions(50, 5, backtest_windows=1000), {})
    assert len(few) == 40


def test_dates_split_where_they_say(tmp_path: Path) -> None:
    series = read_series(write(wide_frame(200), tmp_path / "d.csv"), ReadOptions())
    edges = split_series(series, "dates", horizon=5, val_start="2024-01-05", test_start="2024-01-07 12:00").edges
    assert edges.tolist() == [[0, 96, 156, 200]]
    with pytest.raises(ConfigError, match="must lie before"):
        split_series(series, "dates", horizon=5, val_start="2024-01-05", test_start="2024-01-02")
    with pytest.raises(ConfigError, match=r"needs data.val_start and data.test_start"):
        split_series(series, "dates", horizon=5)


def test_the_scale_is_that_of_the_training_part_alone() -> None:
    series = series_of(1000, 2)
    series.values_TC[700:] = 1e6
    series.values_TC[:, 1] = 3.0
    scale = measure_scale(series, np.array([700]), 24)
    assert scale.mean_SC[0, 0] == pytest.approx(series.values_TC[:700, 0].astype(float).mean())
    assert scale.std_SC[0, 0] == pytest.approx(series.values_TC[:700, 0].astype(float).std())
    # A constant channel has the unit 1 and no MASE.
    assert scale.std_SC[0, 1] == 1.0 and scale.constant == 1 and np.isnan(scale.mase_SC[0, 1])
    x = series.values_TC[:700, 0].astype(float)
    assert scale.mase_SC[0, 0] == pytest.approx(np.abs(x[24:] - x[:-24]).mean())


def test_scales_are_matched_by_name(tmp_path: Path) -> None:
    train = read_series(write(long_frame({"a": 40, "b": 40}), tmp_path / "t.csv"), ReadOptions())
    other = read_series(write(long_frame({"b": 20, "new": 20}), tmp_path / "o.csv"), ReadOptions())
    scale = measure_scale(train, train.lengths, 7)
    matched = matched_scale(other, train, scale)
    assert matched.std_SC[0] == scale.std_SC[1]
    assert matched.std_SC[1] == pytest.approx(scale.channel_options()["std"])


@pytest.mark.parametrize("together", [True, False])
def test_spans_are_hidden_reproducibly_and_about_as_many_as_asked(together: bool) -> None:
    part = part_of(series_of(3000, 3), "train")
    spans = {"seed": 1, "hide": 0.25, "span": 5, "together": together}
    rows = span_rows(part, "train", WindowOptions(100, 1, stride=10), {}, **spans)
    hidden = np.stack([rows[i]["hidden"] for i in range(len(rows))])
    assert 0.15 < hidden.mean() < 0.3
    assert (hidden == hidden[:, :, :1]).all() == together
    np.testing.assert_array_equal(rows[3]["hidden"], hidden[3])
    rows.epoch = 1
    assert not np.array_equal(rows[3]["hidden"], hidden[3])


def test_windows_side_by_side_score_every_step_once() -> None:
    part = part_of(series_of(1010), "test")
    rows = span_rows(part, "test", WindowOptions(64, 1), {}, seed=1, hide=0.2, span=5, together=True)
    seen = []
    for i in range(len(rows)):
        _, first, scored = rows.start(i)
        seen += range(first + scored, first + 64)
    assert sorted(seen) == list(range(part.begin[0], part.end[0]))
