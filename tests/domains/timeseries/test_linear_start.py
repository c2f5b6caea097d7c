"""The linear part of a forecast begins as a ridge regression in the model's own normalised space."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.domains.timeseries.baselines import RidgeForecast
from longseq.domains.timeseries.datamodule import SeriesData
from longseq.domains.timeseries.tasks import Forecasting
from longseq.model import SequenceModel, build_model
from longseq.registry import create_backbone

LOOKBACK, HORIZON = 12, 4


def data_of(table: dict[str, Any], folder: Path, **options: Any) -> SeriesData:
    frame = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=len(next(iter(table.values()))), freq="h"), **table})
    frame.to_csv(folder / "series.csv", index=False)
    given: dict[str, Any] = {"lookback": LOOKBACK, "horizon": HORIZON, "patch": 4, "patch_stride": 4} | options
    data = SeriesData(train=str(folder / "series.csv"), task="forecasting", **given)
    data.setup("fit")
    return data


def started(data: SeriesData, **options: Any) -> SequenceModel:
    task = Forecasting(**data.task_options(), **options)
    backbone = create_backbone("cnn", d_model=8, n_layers=1)
    config = {**data.model_options(backbone), "backbone": {"name": "cnn", "d_model": 8, "n_layers": 1}}
    model = build_model({**config, "head": data.head_options(backbone, task.head())}, backbone).eval()
    data.start(model, task)
    return model


@pytest.mark.parametrize("instance", ["revin", "revin_last", "last", "none"])
def test_a_linear_series_is_forecast_before_any_training(instance: str, tmp_path: Path) -> None:
    """Sines obey a linear recurrence. With a window's own scale the map is linear in what it is divided by, so exact too."""
    t = np.arange(600)
    data = data_of({"a": np.sin(t), "b": 50 + 9 * np.cos(1.7 * t)}, tmp_path, instance=instance)
    model = started(data, output="point", calibrate=False)
    batch = data.collate([data.splits["test"][i] for i in range(20)])
    with torch.no_grad():
        error_BFC = (model(batch["inputs"])[..., 0] - batch["targets"]) / batch["scale"].unsqueeze(1)
    assert error_BFC.abs().max() < 0.05
    torch.manual_seed(0)
    assert started(data, output="point", calibrate=False, ridge_start=False).head.skip.weight.abs().max() == 0  # type: ignore


def test_with_the_last_value_taken_off_it_is_the_baseline(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).normal(size=(2, 500)).cumsum(1)
    data = data_of({"a": noise[0], "b": 3 + 7 * noise[1]}, tmp_path, instance="last")
    model = started(data, output="quantiles")
    rows = [data.splits["test"][i] for i in range(10)]
    batch = data.collate(rows)
    baseline = RidgeForecast(data.splits["train"], data.parts["train"].scale)  # type: ignore[arg-type]
    wanted = baseline(np.stack([row["past"] for row in rows]), data.parts["train"].scale.std_SC[:1, None])
    with torch.no_grad():
        found = model(batch["inputs"])[..., 3].numpy()
    # The baseline has no constant, and its penalty counts in the same units.
    assert np.abs(found - wanted).max() < 0.05 * np.abs(wanted).max()


def test_gaps_and_channels_that_are_only_read_change_nothing_of_it(tmp_path: Path) -> None:
    t = np.arange(400.0)
    wave = np.where(t % 97 == 5, np.nan, np.sin(t / 3))
    data = data_of(
        {"a": wave, "b": np.where(t % 2 == 0, np.nan, t)},
        tmp_path,
        targets=["a"],
        past_covariates=["b"],
        tokenizer="channel_mixing",
    )
    head = started(data, output="point").head
    assert torch.isfinite(head.skip.weight).all() and head.skip.weight.abs().sum() > 0  # type: ignore[union-attr,operator]
