"""Whole runs through the command line: the demo, every task, class tokens, mixup, and models that load without the domain."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from longseq.checkpoint import load_model
from longseq.pipelines.cli import main

TINY = [
    "domain=vision",
    "trainer=cpu",
    "backbone=s4d",
    "backbone.d_model=16",
    "backbone.n_layers=1",
    "backbone.bidirectional=false",
    "trainer.max_epochs=1",
    "data.batch_size=16",
    "callbacks=[checkpoint]",
    "logger=csv",
]


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs `longseq fit` in a folder of its own and returns metrics.json."""
    monkeypatch.chdir(tmp_path)

    def run(*overrides: str) -> dict[str, Any]:
        with pytest.raises(SystemExit) as exit_info:
            main(["fit", *TINY, "run_dir=run", *overrides])
        assert int(exit_info.value.code or 0) == 0
        return json.loads((tmp_path / "run" / "metrics.json").read_text())

    return run


def test_a_run_on_a_file_and_the_model_without_the_domain(fit: Callable[..., Any], image_npz: Path, tmp_path: Path) -> None:
    found = fit(f"data.train={image_npz}", "trainer.max_epochs=3", "optimizer.lr=1e-2")
    assert set(found["baselines"]) == {"majority class", "logistic regression on 12 x 12 pixels"}
    assert found["training"]["tokens"] == 3 * found["data"]["splits"]["train"]["rows"] * 36
    predictions = pd.read_csv(tmp_path / "run" / "predictions.csv")
    model = load_model(tmp_path / "run" / "model")
    with np.load(image_npz) as arrays, torch.no_grad():
        outputs = model(torch.from_numpy(arrays["x_test"][:, None])).softmax(-1).numpy()
    np.testing.assert_allclose(predictions[["p_0", "p_1", "p_2"]].to_numpy(), outputs, atol=1e-5)
    html = (tmp_path / "run" / "report.html").read_text()
    assert "data:image/png;base64," in html and "could not" not in html


def test_class_token_mixup_and_another_size_at_test(fit: Callable[..., Any], image_npz: Path, tmp_path: Path) -> None:
    options = [
        "backbone.bidirectional=true",
        "data.class_token=middle",
        "module.mixup=0.8",
        "module.cutmix=1.0",
        "data.test_size=16",
    ]
    found = fit(f"data.train={image_npz}", *options, "baselines=false")
    assert found["data"]["splits"]["test"]["positions"] == 65 and found["data"]["splits"]["train"]["positions"] == 37
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["head"]["name"] == "class_token" and config["embedding"]["class_token"] == "middle"
    assert load_model(tmp_path / "run" / "model")(torch.rand(2, 1, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "metric", "baseline"),
    [
        (["task=lm", "data.tokenizer=pixel", "data.levels=4"], "bits_per_dim", "histogram of values"),
        (["task=masked_patch", "backbone.bidirectional=true"], "psnr", "mean of neighbours"),
    ],
)
def test_tasks_without_labels(fit: Callable[..., Any], image_npz: Path, options: list[str], metric: str, baseline: str) -> None:
    found = fit(f"data.train={image_npz}", *options)
    assert np.isfinite(found["test"][metric]) and np.isfinite(found["baselines"][baseline][metric])


def test_videos(fit: Callable[..., Any], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    videos = (rng.random((40, 6, 8, 8)) * 80).astype(np.uint8)
    videos[labels == 1, :, :4] += 150
    np.savez(tmp_path / "v.npz", videos=videos, labels=labels)
    found = fit("data.train=v.npz", "data.tokenizer=tubelet", "data.frames=4", "module.mixup=0.2", "report=true")
    assert found["data"]["splits"]["test"]["positions"] == 2 * 4 * 4
    assert "logistic regression on the mean frame's 8 x 8 pixels" in found["baselines"]
    assert load_model(tmp_path / "run" / "model")(torch.rand(1, 4, 1, 8, 8)).shape == (1, 2)


def test_pixels_in_two_orders(fit: Callable[..., Any], image_npz: Path) -> None:
    options = ["data.patch=3", "backbone.scan_orders=[raster,column]", "backbone.grid=[4,4]", "baselines=false", "report=false"]
    assert fit(f"data.train={image_npz}", *options)["data"]["splits"]["train"]["positions"] == 16
    assert fit(f"data.train={image_npz}", "data.tokenizer=pixel", "data.permutation_seed=0", "baselines=false", "run_dir=run")


@pytest.mark.slow
def test_the_demo_beats_its_baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_info:
        main(["fit", "domain=vision", "trainer=cpu", "run_dir=run", "report=false"])
    assert int(exit_info.value.code or 0) == 0
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert not found["synthetic"] and "1,797 real" in found["data"]["counts"]["demo"]
    assert found["test"]["accuracy"] > max(row["accuracy"] for row in found["baselines"].values())
