"""The pictures of a finished run: what is drawn, and what stands in its place when the images are gone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from longseq.checkpoint import save_model
from longseq.domains.sections import RunFiles
from longseq.domains.vision.datamodule import VisionData
from longseq.domains.vision.plots import figures, input_gradient
from longseq.domains.vision.tasks import ImageClassification, MaskedPatch
from longseq.model import SequenceModel, build_model
from longseq.registry import create_backbone

Read = Callable[..., VisionData]


def make_model(data: VisionData, task: Any) -> SequenceModel:
    options = {"name": "s4d", "d_model": 8, "n_layers": 1, "bidirectional": True}
    backbone = create_backbone(**options)
    head = data.head_options(backbone, task.head())
    return build_model({**task.config(), **data.model_options(backbone), "backbone": options, "head": head}, backbone)


def make_run(folder: Path, source: Path, task: str, predictions: pd.DataFrame | None, **options: Any) -> RunFiles:
    config = {"seed": 1, "data": {"_target_": "x", "train": str(source), **options}, "task": {"monitor": "mcc", "mode": "max"}}
    return RunFiles(folder, config, {"task": task, "test": {"mcc": 0.5}}, pd.DataFrame(), predictions)


def test_errors_and_saliency(image_npz: Path, tmp_path: Path, read: Read) -> None:
    data = read(image_npz)
    task = ImageClassification(data.labels)
    save_model(make_model(data, task), tmp_path / "model")
    n = len(data.splits["test"])
    outputs = torch.randn(n, 3)
    columns = task.predictions(outputs, {"labels": torch.from_numpy(data.rows("test").labels)})
    predictions = pd.DataFrame({**data.row_names("test", np.arange(n)), **columns}).astype({"label": str, "prediction": str})
    sections = figures(make_run(tmp_path, image_npz, "classification", predictions))
    assert [section.title for section in sections] == ["Worst errors", "What the model looks at"]
    n_wrong = int(np.sum(np.asarray(predictions["label"] != predictions["prediction"])))
    assert sections[0].html.count("data:image/png;base64,") == n_wrong
    assert sections[1].html.count("data:image/png;base64,") == 8
    assert "pictures.npz:x_test[" in sections[0].html or "[0]" in sections[0].html


def test_reconstructions(image_npz: Path, tmp_path: Path, read: Read) -> None:
    data = read(image_npz, task="masked_patch")
    save_model(make_model(data, MaskedPatch(**data.task_options())), tmp_path / "model")
    sections = figures(make_run(tmp_path, image_npz, "masked_patch", None))
    assert [section.title for section in sections] == ["Hidden cells filled in"]
    assert sections[0].html.count("data:image/png") == 6


def test_images_that_are_gone_leave_a_note(image_npz: Path, tmp_path: Path) -> None:
    sections = figures(make_run(tmp_path, tmp_path / "gone<b>.npz", "classification", None))
    assert "could not be read again" in sections[0].html and "gone&lt;b&gt;.npz" in sections[0].html


def test_saliency_is_where_the_class_is(image_npz: Path, read: Read) -> None:
    data = read(image_npz, patch=3)
    model = make_model(data, ImageClassification(data.labels))

    # A model that reads the first patch alone.
    class FirstPatch(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[:, :, :3, :3].sum().expand(1, 3)

    strength = input_gradient(FirstPatch(), torch.zeros(1, 12, 12))  # type: ignore[arg-type]
    assert strength[:3, :3].min() == 1 and strength[3:].max() == 0 and strength[:, 3:].max() == 0
    assert input_gradient(model, torch.zeros(1, 12, 12, dtype=torch.uint8)).shape == (12, 12)
