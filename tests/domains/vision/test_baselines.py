"""Baselines by hand and on pictures that a linear model can tell apart; metrics of the tasks."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longseq.domains.tasks import LanguageModel, MultiLabel, Regression
from longseq.domains.vision.baselines import constant_prediction, linear_predictions
from longseq.domains.vision.datamodule import VisionData
from longseq.domains.vision.tasks import ImageClassification, MaskedPatch
from tests.domains.vision.pictures import pictures

Read = Callable[..., VisionData]


def test_majority_and_logistic_regression(image_npz: Path, read: Read) -> None:
    data = read(image_npz)
    found = data.baselines(ImageClassification(data.labels))
    assert found["majority class"]["accuracy"] == pytest.approx(1 / 3)
    assert found["logistic regression on 12 x 12 pixels"]["accuracy"] == 1.0


def test_large_images_are_averaged_down_and_videos_over_time(tmp_path: Path, read: Read) -> None:
    images, labels = pictures(40, size=48)
    np.savez(tmp_path / "v.npz", videos=np.repeat(images[:, None], 4, 1), labels=labels)
    data = read(tmp_path / "v.npz", tokenizer="tubelet", frames=4, val_fraction=0.2, test_fraction=0.2)
    found = data.baselines(ImageClassification(data.labels))
    assert found["logistic regression on the mean frame's 24 x 24 pixels"]["accuracy"] == 1.0


def test_top5_is_there_for_more_than_five_classes() -> None:
    task = ImageClassification([str(i) for i in range(7)])
    probabilities = torch.arange(7.0).expand(2, 7).softmax(-1)
    top5 = task.metrics()["top5_accuracy"]
    top5.update(probabilities, torch.tensor([2, 1]))
    assert top5.compute() == 0.5
    assert "top5_accuracy" not in ImageClassification(["a", "b", "c"]).metrics()


def test_the_majoritys_top_five_are_the_five_most_frequent() -> None:
    train, test = np.repeat(np.arange(7), [1, 1, 5, 6, 7, 8, 9]), np.arange(7)
    answer = constant_prediction(train, 7, "classification").expand(7, -1)
    found = ImageClassification([str(i) for i in range(7)]).score_predictions(answer, torch.from_numpy(test))
    assert found["accuracy"] == pytest.approx(1 / 7) and found["top5_accuracy"] == pytest.approx(5 / 7)


def test_a_class_that_no_fitted_row_has_keeps_its_place() -> None:
    rng = np.random.default_rng(0)
    features = {name: rng.random((20, 3)).astype(np.float32) for name in ("train", "val", "test")}
    predicted = linear_predictions(features, dict.fromkeys(features, np.arange(20) % 2), "classification", 7)
    assert predicted is not None and predicted.shape == (20, 7) and not predicted[:, 2:].any()


def test_pixel_histograms(tmp_path: Path, read: Read) -> None:
    # Rows of equal pixels, light and dark alike: one bit alone, nearly none after the pixel before.
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 2, (300, 4, 1)) * 255).astype(np.uint8).repeat(16, 2)
    np.save(tmp_path / "x.npy", images)
    data = read(tmp_path / "x.npy", task="lm", tokenizer="pixel", levels=2)
    found = data.baselines(LanguageModel(**data.task_options()))
    assert found["all values alike"]["bits_per_dim"] == 1
    assert found["histogram of values"]["bits_per_dim"] == pytest.approx(1, abs=0.02)
    # A new row begins every 16 pixels, half of the time with the other value.
    share = 1 / 32
    expected = -share * math.log2(share) - (1 - share) * math.log2(1 - share)
    assert found["histogram given the last pixel"]["bits_per_dim"] == pytest.approx(expected, rel=0.2)


def masked(data: VisionData, **options: Any) -> MaskedPatch:
    return MaskedPatch(**data.task_options(), **options)


def test_masked_error_counts_hidden_cells_only(image_npz: Path, read: Read) -> None:
    data = read(image_npz, task="masked_patch", patch=3)
    task = masked(data)
    batch = next(iter(data.loader("test")))
    outputs = task.standardised(batch["targets"])
    outputs[~batch["hidden"]] = 1e6
    assert task.loss(outputs, batch) == 0
    metrics = task.metrics()
    task.update(metrics, outputs + 0.5, batch)
    assert float(metrics.compute()["mse"]) == pytest.approx((0.5 * float(task.std)) ** 2, rel=1e-4)
    assert float(metrics.compute()["psnr"]) == pytest.approx(-20 * math.log10(0.5 * float(task.std)), rel=1e-4)
    torch.testing.assert_close(task.pixels(task.standardised(batch["targets"])), batch["targets"])


def test_neighbours_fill_in_better_than_the_mean(image_npz: Path, read: Read) -> None:
    data = read(image_npz, task="masked_patch", patch=2, mask_fraction=0.3)
    found = data.baselines(masked(data))
    assert float(found["mean of neighbours"]["mse"]) < 0.7 * float(found["mean pixel"]["mse"])
    assert data.baselines(masked(data, normalize_cells=True)) == {}


@pytest.mark.filterwarnings("ignore:Metric `SpearmanCorrcoef`", "ignore:The variance of predictions")
def test_several_labels_and_quantities_have_baselines(image_folder: Path, tmp_path: Path, read: Read) -> None:
    paths = sorted(image_folder.rglob("*.png"))
    right = [p.parent.name == "right" for p in paths]
    lines = [
        f"{p},{'r;x' if r else 'x' if i % 4 else ''},{5 + 10 * r}" for i, (p, r) in enumerate(zip(paths, right, strict=True))
    ]
    (tmp_path / "t.csv").write_text("\n".join(["path,tags,age", *lines]) + "\n")
    options: dict[str, Any] = {"val_fraction": 0.2, "test_fraction": 0.2}
    data = read(tmp_path / "t.csv", task="multilabel", label_column="tags", **options)
    assert "label frequencies" in data.baselines(MultiLabel(data.labels))
    data = read(tmp_path / "t.csv", task="regression", label_column="age", **options)
    found = data.baselines(Regression(**data.task_options()))
    assert float(found["ridge regression on 12 x 12 pixels"]["mse"]) < 0.3 * float(found["mean"]["mse"])
