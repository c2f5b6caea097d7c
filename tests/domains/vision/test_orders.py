"""Scan orders beside class tokens, other sizes and permutations: they go together or are refused before training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from longseq.checkpoint import save_model
from longseq.domains.vision.datamodule import VisionData
from longseq.errors import ConfigError
from longseq.layers.scan_orders import Reordered
from longseq.model import SequenceModel, build_model
from longseq.pipelines.cli import main
from longseq.registry import create_backbone

Read = Callable[..., VisionData]


def network(data: VisionData, orders: list[str], **options: Any) -> SequenceModel:
    options = {"name": "s4d", "d_model": 8, "n_layers": len(orders), "scan_orders": orders, **options}
    options |= {"grid": list(data.grid), "grid_token": data.grid_token}
    backbone = create_backbone(**options)
    head: dict[str, Any] = {"name": "pool", "n_outputs": 3, "pool": "mean", "dropout": 0.0}
    if data.task_name == "masked_patch":
        head = {"name": "token", "n_outputs": 4, "bias": True}
    head = data.head_options(backbone, head)
    config = {"domain": "vision", "task": data.task_name, **data.model_options(backbone), "backbone": options, "head": head}
    return build_model(config, backbone)


@pytest.mark.parametrize("place", ["front", "middle", "end"])
def test_a_class_token_keeps_its_place_in_every_order(place: str, image_npz: Path, read: Read) -> None:
    data = read(image_npz, class_token=place)
    model = network(data, ["raster", "column", "hilbert"], bidirectional=True).eval()
    assert model(torch.rand(2, 1, 12, 12)).shape == (2, 3)
    token, n_cells = data.grid_token, 36
    assert token is not None
    for layer in (layer for layer in model.modules() if isinstance(layer, Reordered)):
        order = layer.permutation.tolist()
        assert order[token] == token and sorted(order) == list(range(n_cells + 1))
        cells = [place - (place > token) for place in order if place != token]
        if layer.order == "column":
            assert cells[:3] == [0, 6, 12]


def test_what_a_token_in_front_could_never_see_is_refused(image_npz: Path, read: Read) -> None:
    data = read(image_npz, class_token="front")
    with pytest.raises(ConfigError, match="class_token=front sees only what stands before it"):
        network(data, ["raster", "column"])
    assert network(data, ["raster", "column"], bidirectional=True)


def test_another_size_at_test_is_refused_before_training(image_npz: Path, read: Read) -> None:
    with pytest.raises(ConfigError, match=r"images of test have 8 x 8 cells, but .* orders of 6 x 6: leave data.test_size"):
        network(read(image_npz, test_size=16), ["raster", "column"])


def test_permuted_pixels_have_no_rows_and_columns(image_npz: Path, read: Read) -> None:
    with pytest.raises(ConfigError, match="permutation_seed puts the pixels into an order of its own"):
        network(read(image_npz, tokenizer="pixel", permutation_seed=1), ["raster", "column"])


def test_pretrained_orders_are_made_anew_around_a_class_token(
    image_npz: Path, tmp_path: Path, read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = network(read(image_npz, task="masked_patch"), ["raster", "column"], bidirectional=True)
    save_model(model, tmp_path / "pretrained")
    options = ["domain=vision", "trainer=cpu", f"data.train={image_npz}", "trainer.max_epochs=1", "report=false", "logger=csv"]
    options += ["callbacks=[checkpoint]", "baselines=false", "data.class_token=middle", "data.size=16", "data.patch=2"]
    with pytest.raises(SystemExit) as exit_info:
        main(["finetune", *options, "pretrained=pretrained", "run_dir=run"])
    assert int(exit_info.value.code or 0) == 0
    backbone = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["backbone"]
    assert backbone["grid"] == [8, 8] and backbone["grid_token"] == 32
