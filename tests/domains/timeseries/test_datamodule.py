"""The whole way from files to a trained, saved and reloaded model, for every task and tokenizer."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
from writing import long_frame, wide_frame, write

from longseq.checkpoint import load_model, save_model
from longseq.domains.tasks import Classification, Task
from longseq.domains.timeseries.datamodule import SeriesData
from longseq.domains.timeseries.module import SeriesModule, roll_out
from longseq.domains.timeseries.tasks import AnomalyDetection, Forecasting, Imputation
from longseq.errors import ConfigError, DataError
from longseq.model import SequenceModel, build_model
from longseq.registry import create_backbone

TASKS: dict[str, type[Task]] = {
    "forecasting": Forecasting,
    "imputation": Imputation,
    "anomaly": AnomalyDetection,
    "classification": Classification,
}
SMALL: dict[str, Any] = {
    "lookback": 24,
    "horizon": 6,
    "patch": 8,
    "patch_stride": 4,
    "batch_size": 16,
    "stride": 8,
    "demo_days": 40,
    "demo_series": 2,
}
BACKBONE = {"name": "gru", "d_model": 8, "n_layers": 1}


def make(task: str = "forecasting", backbone: dict[str, Any] | None = None, task_options: dict | None = None, **options: Any):
    data = SeriesData(task=task, **{**SMALL, **options})
    data.setup("fit")
    built = TASKS[task](**data.task_options(), **(task_options or {}))
    network = create_backbone(**(backbone or BACKBONE))
    config = {**built.config(), **data.model_options(network), "backbone": backbone or BACKBONE}
    config["head"] = data.head_options(network, built.head())
    return data, SeriesModule(task=built, model=build_model(config, network), optimizer={"lr": 3e-3})


def train(data: SeriesData, module: SeriesModule, folder: Path, epochs: int = 1) -> dict[str, float]:
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.fit(module, data)
        return dict(trainer.test(module, data, verbose=False)[0])


@pytest.mark.parametrize("tokenizer", ["patch", "channel_mixing", "variate", "point"])
def test_every_tokenizer_trains_saves_and_loads(tmp_path: Path, tokenizer: str) -> None:
    data, module = make(tokenizer=tokenizer)
    found = train(data, module, tmp_path)
    assert all(np.isfinite(list(found.values())))
    folder = save_model(module.model, tmp_path / "model")
    batch = next(iter(data.test_dataloader()))
    module.eval()
    again: SequenceModel = load_model(folder)
    with torch.no_grad():
        forecast = again(batch["inputs"])
        torch.testing.assert_close(forecast, module(batch), rtol=1e-5, atol=1e-4)
    # In original units: near the window, tens to hundreds, not near zero.
    level = batch["inputs"].mean()
    assert abs(forecast[..., 3].mean() - level) < 0.5 * level
    assert module.model.config["series"]["targets"] == ["demand_1", "demand_2"]


@pytest.mark.parametrize("output", ["point", "student_t"])
def test_outputs_are_calibrated_on_validation(tmp_path: Path, output: str) -> None:
    data, module = make(task_options={"output": output}, stride=2)
    found = train(data, module, tmp_path, epochs=2)
    head: Any = module.model.head
    assert head.offset_FCQ.abs().max() > 0
    assert found["test/coverage_80"] == pytest.approx(0.8, abs=0.15)
    assert found["test/coverage_50"] < found["test/coverage_80"] < found["test/coverage_95"]


def test_predictions_name_series_times_and_steps(tmp_path: Path) -> None:
    data, module = make(prediction_rows=200)
    train(data, module, tmp_path)
    batches = module.test_predictions
    index = np.concatenate([batch["index"] for batch in batches])
    frame = pd.DataFrame({**data.row_names("test", index), **{k: np.concatenate([b[k] for b in batches]) for k in batches[0]}})
    # Every so manyth of the windows, each with 6 steps of 2 channels.
    assert len(frame) % 12 == 0 and 96 <= len(frame) <= 200
    assert list(frame.columns[:5]) == ["id", "channel", "last_observed", "step", "time"]
    assert "q0.025" in frame and "truth" in frame
    hours: Any = (frame["time"] - frame["last_observed"]) / pd.Timedelta("1h")
    assert bool((hours == frame["step"]).all())
    series = data.parts["test"].series
    row = frame.iloc[17]
    place = int((row["time"] - pd.Timestamp(series.starts[0])) / pd.Timedelta("1h"))
    assert row["truth"] == pytest.approx(series.values_TC[place, series.channels.index(row["channel"])])


def test_covariates_reach_the_model(tmp_path: Path) -> None:
    frame = wide_frame(300, 1)
    price = np.random.default_rng(2).normal(0, 1, 300)
    frame["price"], frame["c0"] = price, 100 + 10 * price
    path = write(frame, tmp_path / "p.csv")
    options = {"train": path, "known_covariates": ["price"], "calendar": ["hour"], "stride": 1, "targets": ["c0"]}
    data, module = make(**options, task_options={"linear_skip": False})
    assert module.model.config["embedding"]["n_covariates"] == 3
    assert module.model.config["series"]["covariates"] == ["price", "hour_sin", "hour_cos"]
    found = train(data, module, tmp_path, epochs=12)
    # All of it is price: without that nothing beats an error of about 1.
    assert found["test/mse"] < 0.7


@pytest.mark.parametrize("covariates", [False, True])
def test_longer_forecasts_are_rolled_out(tmp_path: Path, covariates: bool) -> None:
    options: dict[str, Any] = {"calendar": ["hour"]} if covariates else {}
    _, module = make(**options)
    longer, _ = make(**options, horizon=15)
    batch = next(iter(longer.test_dataloader()))
    module.eval()
    with torch.no_grad():
        found = module(batch)
        assert found.shape[1] == 15
        inputs = batch["inputs"]
        first = module.model(inputs[:, :30] if covariates else inputs)
        torch.testing.assert_close(found[:, :6], first)
        window = torch.cat([inputs[:, 6:24, :2], first[..., 3]], 1)
        if covariates:
            window = torch.cat([torch.cat([window, torch.full((len(window), 6, 2), torch.nan)], 1), inputs[:, 6:36, 2:]], -1)
        torch.testing.assert_close(found[:, 6:12], module.model(window))
        torch.testing.assert_close(roll_out(module.model, inputs, 4), first[:, :4])


def test_past_covariates_are_read_and_not_forecast(tmp_path: Path) -> None:
    path = write(wide_frame(200, 3), tmp_path / "p.csv")
    data, module = make(train=path, targets=["c1"], past_covariates=["c0", "c2"], tokenizer="variate")
    train(data, module, tmp_path)
    batch = next(iter(data.test_dataloader()))
    assert batch["inputs"].shape[-1] == 3 and module(batch).shape == (len(batch["inputs"]), 6, 1, 7)
    with pytest.raises(ConfigError, match="past_covariates have no effect on the others"):
        make(train=path, targets=["c1"], past_covariates=["c0"], tokenizer="patch")


def test_many_series_with_gaps_and_short_ones(tmp_path: Path) -> None:
    frame = long_frame({"a": 120, "b": 80, "c": 45}).drop(index=[5, 6, 130])
    frame.loc[40:44, "y"] = np.nan
    data, module = make(train=write(frame, tmp_path / "l.csv"), split="last", stride=1, season=7)
    assert str(data.counts["missing values"]).startswith("8,")
    found = train(data, module, tmp_path)
    assert np.isfinite(found["test/mse"]) and len(data.splits["test"]) == 3
    assert float(data.baselines(module.task)["repeat-last"]["mse"]) > 0


def test_new_series_are_forecast_from_their_ends(tmp_path: Path) -> None:
    frame = wide_frame(100)
    data, module = make(train=write(wide_frame(300), tmp_path / "t.csv"), predict=write(frame, tmp_path / "new.csv"))
    batch = next(iter(data.predict_dataloader()))
    np.testing.assert_allclose(batch["inputs"][0], frame[["c0", "c1"]].iloc[-24:], rtol=1e-6)
    with torch.no_grad():
        rows = module.predict_step(batch, 0)
    assert "truth" not in rows and len(rows["forecast"]) == 12
    names = data.row_names("predict", rows["index"])
    assert str(names["last_observed"][0])[:19] == "2024-01-05T03:00:00"
    alone = SeriesData(task="forecasting", **SMALL, predict=str(tmp_path / "new.csv"))
    alone.setup("predict")
    assert list(alone.splits) == ["predict"]


@pytest.mark.parametrize("task", ["imputation", "anomaly"])
def test_filling_in(tmp_path: Path, task: str) -> None:
    data, module = make(task, stride=4)
    found = train(data, module, tmp_path, epochs=6)
    assert np.isfinite(found["test/mse"])
    if task == "anomaly":
        assert found["test/auroc"] > 0.55
        assert set(data.baselines(module.task)) == {"distance from the training mean", "difference to the step before"}
    else:
        assert set(data.baselines(module.task)) == {"last value", "linear interpolation", "training mean"}
    index = module.test_predictions[0]["index"]
    assert len(data.row_names("test", index)["time"]) == len(index)


def test_a_steps_own_value_does_not_explain_it() -> None:
    data, module = make("anomaly")
    batch = next(iter(data.test_dataloader()))
    module.eval()
    with torch.no_grad():
        before = module.evaluate_batch(batch)
        batch["targets"] = batch["targets"].clone()
        batch["targets"][:, 3] += 1000
        after = module.evaluate_batch(batch)
    torch.testing.assert_close(after[:, 3], before[:, 3])
    assert not torch.allclose(after[:, 12], before[:, 12])


def write_ucr(folder: Path, n: int = 40) -> tuple[str, str]:
    rng = np.random.default_rng(0)
    paths = []
    for part in ("TRAIN", "TEST"):
        labels = np.arange(n) % 2 * 2 - 1
        values = np.sin(np.linspace(0, 9, 24) * np.where(labels > 0, 2, 1)[:, None]) + rng.normal(0, 0.1, (n, 24))
        path = folder / f"X_{part}.tsv"
        pd.DataFrame(np.column_stack([labels, values])).to_csv(path, sep="\t", header=False, index=False)
        paths.append(str(path))
    return paths[0], paths[1]


def test_classification_of_ucr_files(tmp_path: Path) -> None:
    train_file, test_file = write_ucr(tmp_path)
    data, module = make("classification", train=train_file, test=test_file, val_fraction=0.25)
    assert data.labels == ["-1", "1"] and len(data.splits["test"]) == 40 and len(data.splits["val"]) == 10
    found = train(data, module, tmp_path, epochs=15)
    assert found["test/accuracy"] > 0.9
    assert data.baselines(module.task)["1-nearest neighbour (Euclidean)"]["accuracy"] == 1.0
    assert data.row_names("test", np.array([0]))["id"][0].endswith("X_TEST.tsv, line 1")


def test_labels_that_train_lacks(tmp_path: Path) -> None:
    train_file, test_file = write_ucr(tmp_path)
    lines = Path(test_file).read_text().splitlines()
    lines[4] = "7" + lines[4][lines[4].index("\t") :]
    Path(test_file).write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"X_TEST.tsv, line 5: label '7' is in test, but not in train, which has -1, 1"):
        make("classification", train=train_file, test=test_file)
    data, _ = make("classification", train=train_file, test=test_file, on_bad="skip")
    assert len(data.splits["test"]) == 39 and data.counts["series of unknown classes left out of test"] == 1


def test_constant_channels_do_not_break_anything(tmp_path: Path) -> None:
    frame = wide_frame(300)
    frame["c1"] = 5.0
    data, module = make(train=write(frame, tmp_path / "c.csv"))
    assert "1 do not vary" in str(data.counts["constant channels"])
    found = train(data, module, tmp_path)
    assert np.isfinite(found["test/mse"]) and np.isfinite(found["test/mase"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokenizer": "word"}, "data.tokenizer must be one of patch, channel_mixing, variate, point"),
        ({"patch": 50}, "data.patch <= data.lookback"),
        ({"horizon": 0}, "data.horizon must be at least 1"),
        ({"split": "random"}, "data.split must be one of"),
        ({"val_fraction": 0.7, "test_fraction": 0.4}, "must leave a share for train"),
        ({"horizon": 5000}, "fewer|a window needs"),
        ({"test": "x.csv"}, "data.test is given without data.train"),
    ],
)
def test_options_that_make_no_sense(options: dict, message: str) -> None:
    with pytest.raises((ConfigError, DataError), match=message):
        make(**options)


def test_the_task_must_be_one_of_series() -> None:
    with pytest.raises(ConfigError, match="domain=timeseries has no task=lm"):
        SeriesData(task="lm")
