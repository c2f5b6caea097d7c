"""The report's figures from made-up predictions, and the demo data."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from longseq.domains.plots import to_svg
from longseq.domains.sections import RunFiles
from longseq.domains.timeseries import demo, plots


def forecasts(n_channels: int = 3, n_series: int = 1, horizon: int = 8, windows: int = 12) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for s in range(n_series):
        for c in range(n_channels):
            for w in range(windows):
                origin = pd.Timestamp("2024-01-01") + pd.Timedelta(hours=w * 5)
                truth = 50 + 10 * np.sin(np.arange(w * 5, w * 5 + horizon) / 4)
                forecast = truth + rng.normal(0, c + 1, horizon) * np.sqrt(np.arange(1, horizon + 1))
                rows += [
                    {
                        "id": f"s{s}",
                        "channel": f"c{c}",
                        "last_observed": str(origin),
                        "step": k + 1,
                        "time": str(origin + pd.Timedelta(hours=k + 1)),
                        "forecast": forecast[k],
                        "q0.1": forecast[k] - 3,
                        "q0.5": forecast[k],
                        "q0.9": forecast[k] + 3,
                        "truth": truth[k],
                    }
                    for k in range(horizon)
                ]
    return pd.DataFrame(rows)


def draw(frame: Any) -> dict[str, str]:
    run = RunFiles(Path("run"), {}, {}, pd.DataFrame(), frame)
    return {
        section.title: to_svg(section.figure, section.alt) if section.figure else section.html for section in plots.figures(run)
    }


def test_forecasts_give_all_five_pictures() -> None:
    found = draw(forecasts())
    assert list(found) == ["Forecasts", "Error by horizon", "Error by series", "Coverage", "Residual autocorrelation"]
    assert all(svg.startswith("<svg") for svg in found.values())
    assert "c0" in found["Error by series"] and "forecast" in found["Forecasts"]


def test_captions_say_what_was_reached() -> None:
    frame = forecasts()
    run = RunFiles(Path("run"), {}, {}, pd.DataFrame(), frame)
    sections = {section.title: section for section in plots.figures(run)}
    inside = frame["truth"].between(frame["q0.1"], frame["q0.9"]).mean()
    assert f"80 %: {inside:.1%}" in sections["Coverage"].alt
    order = sections["Error by series"].alt
    assert order.index("c0") < order.index("c1") < order.index("c2")


def test_many_series_become_a_table() -> None:
    assert draw(forecasts(n_channels=2, n_series=15))["Error by series"].startswith("<div")


@pytest.mark.parametrize("keep", [1, 2])
def test_one_step_and_one_window_are_drawn_too(keep: int) -> None:
    frame = forecasts(windows=1)
    assert "Forecasts" in draw(frame[frame["step"] <= keep])


def test_plain_numbers_as_time_and_nothing_at_all() -> None:
    frame = forecasts()
    frame["time"] = frame.groupby(["channel", "last_observed"]).cumcount()
    assert "Forecasts" in draw(frame)
    assert draw(None) == {} and draw(pd.DataFrame({"prediction": ["a"]})) == {}
    frame["truth"] = np.nan
    assert draw(frame) == {}


def test_scores_over_time() -> None:
    times = pd.date_range("2024-01-01", periods=3000, freq="h").astype(str)
    frame = pd.DataFrame({"id": "a", "time": times, "score": np.random.default_rng(0).gamma(1, 1, 3000) + 0.01})
    frame["anomaly"] = (np.arange(3000) % 500 == 0).astype(float)
    frame.loc[1500, "score"] = 1e4
    found = draw(frame)
    assert list(found) == ["Anomaly scores", "Highest scores"]
    assert "labelled anomaly" in found["Anomaly scores"] and str(times[1500]) in found["Highest scores"]
    # Powers of ten as numbers, not as the source of a formula.
    assert "mathdefault" not in found["Anomaly scores"] and ">0.1<" in found["Anomaly scores"]


def test_correlation_by_lag_finds_a_season() -> None:
    steps = np.arange(60)
    errors = np.stack([np.sin(2 * np.pi * (steps + shift) / 12) for shift in range(12)])
    values = plots.correlation_by_lag(errors, 20)
    assert np.argmax(values[5:]) + 6 == 12 and values[5] < -0.9


def test_demo_series_are_reproducible_and_hold_no_linear_rule() -> None:
    a, b = (demo.make_series(n_series=2, n_days=200, seed=5) for _ in range(2))
    np.testing.assert_array_equal(a.values_TC, b.values_TC)
    assert "synthetic" in a.counts
    noon = a.values_TC.reshape(200, 24, 2)[:, 12].astype(float)
    midnight = a.values_TC.reshape(200, 24, 2)[:, 0]
    height = (noon - midnight)[:, 0]
    # Tomorrow's height is a parabola of today's: nearly all of it explained by a square, little by a line.
    line, square = (np.polyval(np.polyfit(height[:-1], height[1:], degree), height[:-1]) for degree in (1, 2))
    explained = [1 - ((height[1:] - fit) ** 2).mean() / height[1:].var() for fit in (line, square)]
    assert explained[0] < 0.3 and explained[1] > 0.7


def test_demo_anomalies_and_labels() -> None:
    series = demo.make_series(n_series=2, n_days=100, seed=1, anomalies=True)
    assert series.labels_T is not None and 0 < series.labels_T.mean() < 0.3 and not series.labels_T[:1600].any()
    labelled = demo.make_labelled(n=50, length=96, seed=1)
    assert set(labelled.labels) == {"up first", "down first"} and labelled.values_NL1.shape == (50, 96, 1)


def test_filled_in_values_beside_the_truth() -> None:
    frame = forecasts(n_channels=2).drop(columns=["step", "last_observed", "q0.1", "q0.5", "q0.9"])
    found = draw(frame)
    assert list(found) == ["Filled in", "Error by series"]
    assert all(word in found["Filled in"] for word in ("truth", "filled in", "c0", "c1"))
