"""Small pictures for the tests of vision."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from longseq.domains.vision.datamodule import VisionData
from tests.domains.vision.pictures import pictures


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """30 PNG files of 12 x 12 pixels in the folders left and right."""
    images, labels = pictures(30)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "images" / ("left", "right")[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    return tmp_path / "images"


@pytest.fixture
def image_npz(tmp_path: Path) -> Path:
    """60 training and 20 test pictures of three classes."""
    train, test = pictures(60, 3), pictures(21, 3, seed=1)
    path = tmp_path / "pictures.npz"
    np.savez(path, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
    return path


@pytest.fixture
def read() -> Callable[..., VisionData]:
    """A data module that has read its files."""

    def build(train: Any, task: str = "classification", **options: Any) -> VisionData:
        source = train if train is None or isinstance(train, dict) else str(train)
        data = VisionData(task=task, train=source, **{"batch_size": 8, **options})
        data.setup("fit")
        return data

    return build
