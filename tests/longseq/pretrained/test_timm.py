"""Vision transformers of timm: the same logits as timm's own network, from its file and its hub folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from longseq.errors import CheckpointError
from longseq.pretrained import load_pretrained

SIZES: dict[str, Any] = {"img_size": 32, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
CONFIG = {
    "architecture": "vit_tiny_patch16_224",
    "num_heads": 3,
    "pretrained_cfg": {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]},
}


def theirs(name: str = "vit_tiny_patch16_224", **options: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SIZES, **options}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


def test_equals_timm(write_checkpoint: Callable[..., Path]) -> None:
    network = theirs()
    model, report = load_pretrained(write_checkpoint(CONFIG, network.state_dict()))
    assert report.format == "timm" and not report.unexpected and not report.reinitialized
    image = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(CONFIG["pretrained_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))  # type: ignore[index]
    with torch.no_grad():
        expected = network((image - mean) / std)
        assert expected.abs().max() > 0.5
        assert (model(image) - expected).abs().max() <= 1e-4
    other, report = load_pretrained(write_checkpoint(CONFIG, network.state_dict()), head={"name": "pool", "n_outputs": 2})
    assert other(image).shape == (2, 2) and len(report.reinitialized) == 2


def test_a_file_alone_needs_the_name(write_checkpoint: Callable[..., Path]) -> None:
    file = write_checkpoint(None, theirs(num_heads=1).state_dict(), "vit.pth") / "vit.pth"
    with pytest.raises(CheckpointError, match="option model"):
        load_pretrained(file)
    model, _ = load_pretrained(file, model="vit_tiny_patch16_224")
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 5)


def test_other_transformers_are_refused(write_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="distillation"):
        weights = theirs("deit_tiny_distilled_patch16_224").state_dict()
        load_pretrained(write_checkpoint(CONFIG, weights))
    with pytest.raises(CheckpointError, match="pooled patches"):
        load_pretrained(write_checkpoint(CONFIG, theirs(global_pool="avg").state_dict()))
    with pytest.raises(CheckpointError, match="global_pool='avg'"):
        load_pretrained(write_checkpoint({**CONFIG, "global_pool": "avg"}, theirs().state_dict()))


def test_a_file_alone_is_standardised_as_its_name_says(write_checkpoint: Callable[..., Path]) -> None:
    name, network = "deit_tiny_patch16_224", theirs("deit_tiny_patch16_224", num_heads=1)
    model, _ = load_pretrained(write_checkpoint(None, network.state_dict(), "deit.pth"), model=name)
    known = timm.get_pretrained_cfg(name)
    assert known is not None and known.mean != (0.5, 0.5, 0.5)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (known.mean, known.std))
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert (model(image) - network((image - mean) / std)).abs().max() <= 1e-4
