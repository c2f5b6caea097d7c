"""Metrics against plain sums, additivity over batches, conformal offsets, losses and baselines."""

import numpy as np
import pytest
import torch
from scipy import stats

from longseq.domains.timeseries import baselines, demo
from longseq.domains.timeseries.conformal import ConformityScores
from longseq.domains.timeseries.metrics import forecast_sums, mean_metrics, metric_names, quantile_weights
from longseq.domains.timeseries.parts import Part, WindowOptions, forecast_rows, span_rows
from longseq.domains.timeseries.series import measure_scale
from longseq.domains.timeseries.splits import split_series
from longseq.domains.timeseries.tasks import QUANTILES, AnomalyDetection, Forecasting, Imputation, student_t_log_density
from longseq.errors import ConfigError

LEVELS = [0.1, 0.25, 0.5, 0.75, 0.9]


def random_forecast(n: int = 6) -> dict[str, torch.Tensor]:
    truth = 20 + 5 * torch.randn(n, 4, 3)
    truth[0, 1, 2] = truth[2, :, 0] = torch.nan
    return {
        "forecast": (20 + 5 * torch.randn(n, 4, 3, 5)).sort(-1).values,
        "truth": truth,
        "scale": torch.rand(n, 3) + 0.5,
        "mase": torch.tensor([2.0, 4.0, torch.nan]).expand(n, 3),
    }


def compute(*batches: dict[str, torch.Tensor]) -> dict[str, float]:
    metrics = mean_metrics(metric_names(LEVELS))
    for b in batches:
        metrics.update(*forecast_sums(b["forecast"], b["truth"], b["scale"], b["mase"], LEVELS))
    return {name: float(value) for name, value in metrics.compute().items()}


def test_metrics_are_what_their_names_say() -> None:
    b = random_forecast()
    found = compute(b)
    seen = ~torch.isnan(b["truth"])
    truth, point = b["truth"].double(), b["forecast"][..., 2].double()
    scale, unit = b["scale"].double().unsqueeze(1), b["mase"].double().unsqueeze(1)
    error = (point - truth).abs()
    expected = {
        "mse": (error / scale)[seen].square().mean(),
        "mae": (error / scale)[seen].mean(),
        "rmse": (error / scale)[seen].square().mean().sqrt(),
        "smape": (200 * error / (truth.abs() + point.abs()))[seen].mean(),
        "mase": (error / unit).nanmean(),
        "mse_original": error[seen].square().mean(),
        "mae_original": error[seen].mean(),
        "rmse_original": error[seen].square().mean().sqrt(),
        "coverage_50": ((truth >= b["forecast"][..., 1]) & (truth <= b["forecast"][..., 3]))[seen].double().mean(),
        "coverage_80": ((truth >= b["forecast"][..., 0]) & (truth <= b["forecast"][..., 4]))[seen].double().mean(),
    }
    assert set(found) == {*expected, "crps"}
    for name, value in expected.items():
        assert found[name] == pytest.approx(float(value), rel=1e-5), name


def test_crps_comes_near_the_exact_one_of_a_normal_forecast() -> None:
    levels = [round(0.02 * i - 0.01, 4) for i in range(1, 51)]
    levels = sorted({*levels, 0.5})
    quantiles = torch.tensor(stats.norm.ppf(levels)).expand(400, 1, 1, -1)
    truth = torch.randn(400, 1, 1, dtype=torch.float64)
    sums, counts = forecast_sums(quantiles, truth, torch.ones(400, 1), torch.ones(400, 1), levels)
    place = metric_names(levels).index("crps")
    z = truth.numpy().ravel()
    exact = (z * (2 * stats.norm.cdf(z) - 1) + 2 * stats.norm.pdf(z) - 1 / np.sqrt(np.pi)).mean()
    assert float(sums[place] / counts[place]) == pytest.approx(exact, rel=0.02)
    assert float(quantile_weights(levels).sum()) == pytest.approx(1.0)


def test_sums_do_not_depend_on_the_batches() -> None:
    b = random_forecast(10)
    parts = [{key: value[rows] for key, value in b.items()} for rows in (slice(0, 1), slice(1, 7), slice(7, 10))]
    whole, cut = compute(b), compute(*parts)
    assert cut == pytest.approx(whole, rel=1e-6)


def test_offsets_reach_the_promised_coverage_on_new_windows() -> None:
    rng = torch.Generator().manual_seed(0)
    truth, new = (torch.randn(1500, 3, 2, generator=rng) * torch.tensor([1.0, 4.0]) for _ in range(2))
    narrow = torch.zeros(1500, 3, 2, 5)
    scores = ConformityScores(LEVELS, channels=2)
    scores.update(narrow[:700], truth[:700], torch.ones(700, 1, 2))
    scores.update(narrow[700:], truth[700:], torch.ones(800, 1, 2))
    offsets = scores.compute()
    assert offsets.shape == (3, 2, 5)
    for i, level in ((1, 0.5), (0, 0.8)):
        inside = (new >= offsets[..., i]) & (new <= offsets[..., -1 - i])
        assert inside.float().mean(0) == pytest.approx(np.full((3, 2), level), abs=0.05)
    assert (offsets[..., 2] == 0).all()


def test_offsets_with_few_or_missing_windows() -> None:
    scores = ConformityScores(LEVELS, channels=1)
    truth = torch.tensor([[[1.0, torch.nan]], [[-3.0, torch.nan]], [[2.0, torch.nan]]])
    scores.update(torch.zeros(3, 1, 2, 5), truth, torch.full((3, 1, 2), 2.0))
    # Three windows cannot promise 80 %: the largest score, -3 / 2, stands in.
    assert scores.compute()[0, 0].tolist() == [-1.5, -1.0, 0.0, 1.0, 1.5]


@pytest.mark.parametrize("output", ["point", "quantiles", "student_t"])
def test_losses_ignore_missing_values_and_fall_towards_the_truth(output: str) -> None:
    task = Forecasting(["a"], 4, output=output, quantiles=LEVELS)
    truth = torch.randn(8, 4, 1) * 3
    batch = {"targets": truth, "scale": torch.full((8, 1), 3.0)}
    spread = torch.tensor([-1.0, -0.5, 0, 0.5, 1.0])
    more = torch.tensor([1.0, 5.0]).expand(8, 4, 1, 2)

    def outputs(shift: float) -> torch.Tensor:
        middle = truth.nan_to_num().unsqueeze(-1) + shift
        quantiles = middle + spread
        return torch.cat([quantiles, middle, more], -1) if output == "student_t" else quantiles

    losses = [float(task.loss(outputs(shift), batch)) for shift in (0.0, 1.0, 3.0)]
    assert losses == sorted(losses) and losses[0] < losses[1]
    missing = {**batch, "targets": truth.clone()}
    missing["targets"][3] = torch.nan
    wild = outputs(1.0)
    wild[3] = 1e6
    wild.requires_grad_()
    loss = task.loss(wild, missing)
    assert float(loss.detach()) < 10
    loss.backward()
    assert wild.grad is not None
    assert torch.isfinite(wild.grad).all() and not wild.grad[3].any()


def test_student_t_density() -> None:
    error = torch.linspace(-3, 3, 7, dtype=torch.float64)
    found = student_t_log_density(error, torch.tensor(1.5, dtype=torch.float64), torch.tensor(4.0, dtype=torch.float64))
    assert found.numpy() == pytest.approx(stats.t.logpdf(error.numpy(), 4.0, scale=1.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "normal"}, "task.output must be one of point, quantiles, student_t"),
        ({"point_loss": "r2"}, "task.point_loss must be"),
        ({"quantiles": [0.1, 0.5, 0.95]}, "task.quantiles must rise"),
    ],
)
def test_bad_task_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Forecasting(["a"], 2, **options)


def test_a_point_forecast_without_calibration_has_no_intervals() -> None:
    assert Forecasting(["a"], 2, output="point", calibrate=False).quantiles == [0.5]
    assert Forecasting(["a"], 2, output="point").quantiles == list(QUANTILES)


def test_anomaly_scores_rank_what_stands_out() -> None:
    task = AnomalyDetection(["a", "b"], 10, labelled=True)
    targets = torch.zeros(2, 10, 2)
    targets[0, 4] = 50.0
    labels = torch.zeros(2, 10)
    labels[0, 4] = 1
    fresh = torch.ones(2, 10, dtype=torch.bool)
    fresh[1, :5] = False
    batch = {"targets": targets, "scale": torch.ones(2, 2), "mase": torch.ones(2, 2), "labels": labels, "fresh": fresh}
    batch["index"] = torch.arange(2)
    metrics = task.metrics()
    task.update(metrics, 0.1 * torch.randn(2, 10, 2, 1), batch)
    found = metrics.compute()
    assert float(found["auroc"]) == 1.0 and float(found["auprc"]) == 1.0
    rows = task.predictions(torch.zeros(2, 10, 2, 1), batch)
    assert rows["index"].tolist() == [*range(10), *range(15, 20)]
    assert rows["score"][4] == 2500.0 and rows["anomaly"].sum() == 1


def test_imputation_scores_hidden_values_only() -> None:
    task = Imputation(["a"], 6)
    hidden = torch.zeros(1, 6, 1, dtype=torch.bool)
    hidden[0, 2:4] = True
    batch = {"targets": torch.arange(6.0).reshape(1, 6, 1), "hidden": hidden, "scale": torch.full((1, 1), 2.0)}
    batch |= {"mase": torch.ones(1, 1), "report": torch.ones(1, dtype=torch.bool), "index": torch.tensor([3])}
    outputs = torch.full((1, 6, 1, 1), 4.0)
    assert float(task.loss(outputs, batch)) == pytest.approx(((2 / 2) ** 2 + (1 / 2) ** 2) / 2)
    metrics = task.metrics()
    task.update(metrics, outputs, batch)
    assert float(metrics.compute()["mae"]) == pytest.approx(0.75)
    assert task.predictions(outputs, batch)["index"].tolist() == [20, 21]


# -- baselines


def demo_parts(n_days: int = 60, lookback: int = 48, horizon: int = 12):
    series = demo.make_series(n_series=2, n_days=n_days, seed=3)
    borders = split_series(series, "ratio", horizon=horizon)
    scale = measure_scale(series, borders.edges[:, 1], 24)
    options = WindowOptions(lookback, horizon)
    parts = {name: Part(series, scale, *borders.part(name)) for name in ("train", "test")}
    return {name: forecast_rows(part, name, options, {}) for name, part in parts.items()}, scale, parts


def test_forecast_baselines_against_plain_loops() -> None:
    rows, scale, _ = demo_parts()
    found = baselines.forecast_baselines(rows["train"], rows["test"], scale, scale, 24)
    std = scale.std_SC[0]
    last, seasonal = [], []
    for i in range(len(rows["test"])):
        row = rows["test"][i]
        last.append(((row["past"][-1] - row["future"]) / std) ** 2)
        seasonal.append(((row["past"][-24:][np.arange(12) % 24] - row["future"]) / std) ** 2)
    assert found["repeat-last"]["mse"] == pytest.approx(np.mean(last), rel=1e-5)
    assert found["seasonal naive (24 steps)"]["mse"] == pytest.approx(np.mean(seasonal), rel=1e-5)
    assert found["repeat-last"]["rmse"] == pytest.approx(np.mean(last) ** 0.5, rel=1e-5)


def test_ridge_is_the_closed_form_solution() -> None:
    rows, scale, _ = demo_parts(n_days=20)
    ridge = baselines.RidgeForecast(rows["train"], scale, penalty=0.5)
    x, y = [], []
    for i in range(len(rows["train"])):
        row = rows["train"][i]
        for c in range(2):
            x.append((row["past"][:, c] - row["past"][-1, c]) / scale.std_SC[0, c])
            y.append((row["future"][:, c] - row["past"][-1, c]) / scale.std_SC[0, c])
    x, y = np.array(x, dtype=np.float64), np.array(y, dtype=np.float64)
    expected = np.linalg.solve(x.T @ x + 0.5 * np.eye(48), x.T @ y)
    assert np.abs(x @ ridge.weight_LF - x @ expected).max() < 1e-2


def test_filling_baselines() -> None:
    values = np.array([[1.0], [2.0], [9.0], [9.0], [5.0], [6.0]])
    hidden = np.array([[False], [False], [True], [True], [False], [False]])
    assert baselines.fill_linear(values, hidden).ravel().tolist() == [1, 2, 3, 4, 5, 6]
    assert baselines.fill_last(values, hidden).ravel().tolist() == [1, 2, 2, 2, 5, 6]
    assert baselines.fill_last(values, ~hidden).ravel().tolist() == [9, 9, 9, 9, 9, 9]
    _, scale, parts = demo_parts()
    rows = span_rows(parts["test"], "test", WindowOptions(48, 1), {}, seed=1, hide=0.2, span=4, together=False)
    found = baselines.imputation_baselines(rows, scale)
    assert found["linear interpolation"]["mse"] < min(found["last value"]["mse"], found["training mean"]["mse"])


def test_classification_baselines_know_shapes() -> None:
    rng = np.random.default_rng(0)
    steps = np.linspace(0, 6, 80)
    labels = rng.integers(0, 2, 60)
    values = np.stack([np.sin(steps * (2 if label else 5)) for label in labels]) + rng.normal(0, 0.2, (60, 80))
    values[::7, 70:] = np.nan
    found = baselines.classification_baselines(values[:40, :, None], labels[:40], values[40:, :, None], 2)
    accuracy = {name: float((p.argmax(1) == labels[40:]).mean()) for name, p in found.items()}
    assert accuracy["1-nearest neighbour (Euclidean)"] == 1.0 and accuracy["ridge on features"] >= 0.95
    assert accuracy["most frequent class"] < 0.8
