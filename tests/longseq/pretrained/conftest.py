"""Checkpoints with random weights, written in the published formats."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

Writer = Callable[..., Path]


@pytest.fixture
def write_checkpoint(tmp_path: Path) -> Writer:
    """Writes config.json and weights into a new folder: safetensors, or a pickle for any other file name."""

    def write(config: dict[str, Any] | None, weights: dict[str, Tensor], file: str = "model.safetensors", **extra: Any) -> Path:
        folder = tmp_path / f"checkpoint-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config))
        if file.endswith(".safetensors"):
            save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, folder / file)
        else:
            torch.save({"state_dict": weights, **extra} if extra else weights, folder / file)
        return folder

    return write
