"""A few hundred real MNIST digits: pixels and patches learn, and digits that move survive a video file."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longseq.domains.base import DomainModule
from longseq.domains.tasks import LanguageModel
from longseq.domains.vision.datamodule import VisionData
from longseq.domains.vision.demo import moving
from longseq.domains.vision.module import VisionModule
from longseq.domains.vision.tasks import ImageClassification
from longseq.model import build_model
from longseq.registry import create_backbone
from tests.domains.vision.test_video import encode

Read = Callable[..., VisionData]
pytestmark = pytest.mark.data


@pytest.fixture
def digits(real_data: Path, tmp_path: Path) -> Path:
    """400 training and 150 test digits."""
    with np.load(real_data / "image" / "mnist" / "mnist_subset_20k_5k.npz") as arrays:
        parts = {key: arrays[key][: 400 if "train" in key else 150] for key in arrays.files}
    np.savez(tmp_path / "mnist.npz", **parts)
    return tmp_path / "mnist.npz"


def train(data: VisionData, task: Any, steps: int, **backbone: Any) -> DomainModule:
    options = {"name": "s4d", "d_model": 32, "n_layers": 2, **backbone}
    built = create_backbone(**options)
    config = {**task.config(), **data.model_options(built), "backbone": options, "head": data.head_options(built, task.head())}
    module = VisionModule(task=task, model=build_model(config, built))
    optimizer = torch.optim.AdamW(module.model.parameters(), lr=3e-3)
    done, epoch = 0, 0
    while done < steps:
        for batch in data.loader("train", shuffle=True, epoch=epoch):
            loss = task.loss(module(batch), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
        epoch += 1
    module.model.eval()
    return module


def scores(data: VisionData, module: DomainModule) -> dict[str, float]:
    metrics = module.task.metrics()
    with torch.no_grad():
        for batch in data.loader("test"):
            module.task.update(metrics, module(batch), batch)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_patches_of_mnist_are_learned(digits: Path, read: Read) -> None:
    data = read(digits, patch=4, batch_size=32, positions="sincos")
    assert data.grid == (7, 7) and data.labels == tuple("0123456789")
    module = train(data, ImageClassification(data.labels), 100, bidirectional=True)
    # Chance is 0.1; it is 0.65 with this seed.
    assert scores(data, module)["accuracy"] > 0.5


def test_pixels_of_mnist_are_learned(digits: Path, read: Read) -> None:
    data = read(digits, tokenizer="pixel", size=14, batch_size=32)
    assert data.max_length == 196
    module = train(data, ImageClassification(data.labels), 80)
    assert scores(data, module)["accuracy"] > 0.22


def test_bits_per_dimension_beat_the_histogram(digits: Path, read: Read) -> None:
    data = read(digits, task="lm", tokenizer="pixel", size=14, levels=16, batch_size=32)
    task = LanguageModel(**data.task_options())
    found = scores(data, train(data, task, 60))["bits_per_dim"]
    baselines = data.baselines(task)
    assert found < float(baselines["histogram of values"]["bits_per_dim"]) < 4


def test_digits_that_move_in_an_mp4(digits: Path, tmp_path: Path, read: Read) -> None:
    with np.load(digits) as arrays:
        chosen = np.concatenate([np.flatnonzero(arrays["y_train"] == label)[:6] for label in (0, 1)])
        images, labels = arrays["x_train"][chosen], arrays["y_train"][chosen]
    videos = moving(images, 24, np.random.default_rng(0), size=48)
    for i, (video, label) in enumerate(zip(videos, labels, strict=True)):
        (tmp_path / "videos" / str(label)).mkdir(parents=True, exist_ok=True)
        encode(tmp_path / "videos" / str(label) / f"{i}.mp4", video)
    options: dict[str, Any] = {"frames": 8, "frame_stride": 2, "patch": 8, "val_fraction": 0.17, "test_fraction": 0.17}
    data = read(tmp_path / "videos", tokenizer="tubelet", channels=1, **options)
    assert {name: len(rows) for name, rows in data.splits.items()} == {"train": 8, "val": 2, "test": 2}
    assert data.labels == ("0", "1") and data.grid == (4, 6, 6)
    assert set(data.rows("train").records.sizes[:, 0].tolist()) == {24}
    for name, rows in data.splits.items():
        for i, file in enumerate(data.row_names(name, np.arange(len(rows)))["id"]):
            number = int(Path(file).stem)
            row = rows[i]
            assert data.labels[row["label"]] == str(labels[number]) == Path(file).parent.name
            assert row["inputs"].shape == (8, 1, 48, 48)
            if name != "train":
                # From the middle: 15 of 24 frames, every second one.
                expected = videos[number, 4:19:2].astype(int)
                assert np.abs(row["inputs"][:, 0].astype(int) - expected).mean() < 6
