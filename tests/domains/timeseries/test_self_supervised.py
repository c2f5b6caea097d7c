"""Pretraining on a task's own windows: hidden spans in the task's own layout."""

import pytest
import torch

from longseq.domains.timeseries.datamodule import SeriesData
from longseq.errors import ConfigError


def data(task: str = "forecasting", **options: object) -> SeriesData:
    found = SeriesData(task=task, demo_days=60, lookback=48, horizon=12, patch=12, batch_size=8, **options)  # type: ignore[arg-type]
    found.setup("fit")
    return found


def test_windows_with_covariates_keep_their_layout() -> None:
    whole = data(calendar=["hour"])
    inputs = whole.self_supervised(causal=True)
    batch, own = next(iter(inputs.loader("val"))), next(iter(whole.loader("val")))
    assert batch["inputs"].shape == own["inputs"].shape
    # Covariates stand beside as they were; channels are hidden where the mask says so, and nowhere else.
    assert torch.equal(batch["inputs"][..., 4:], own["inputs"][..., 4:])
    past, hidden = batch["inputs"][:, :48, :4], batch["hidden"]
    assert past[hidden].isnan().all() and torch.equal(past[~hidden], batch["targets"][~hidden])
    assert torch.equal(batch["targets"], own["inputs"][:, :48, :4]) and 0.02 < hidden.float().mean() < 0.5
    assert batch["scale"].shape == (8, 4)
    places = [next(iter(inputs.loader(split, epoch=epoch)))["hidden"] for split in ("val", "train") for epoch in (0, 1)]
    assert torch.equal(places[0], places[1]) and not torch.equal(places[2], places[3])


def test_labelled_series_have_the_deviation_of_train() -> None:
    inputs = data("classification", tokenizer="point").self_supervised(causal=False)
    batch = next(iter(inputs.loader("train")))
    assert inputs.task_options() == {"channels": ["value"], "length": 48}
    assert batch["scale"].unique().numel() == 1 and batch["inputs"].isnan().any()


def test_tasks_without_labels_are_refused() -> None:
    with pytest.raises(ConfigError, match="needs no labels as it is"):
        data("imputation").self_supervised(causal=False)
