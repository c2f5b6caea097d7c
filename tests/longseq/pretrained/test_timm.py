"""Vision transformers of timm: the same logits as timm's own network, from its file and its hub folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from longseq.errors import CheckpointError
from longseq.pretrained import load_pretrained, open_pretrained

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
    network, name = theirs(), "vit_tiny_patch16_224"
    file = write_checkpoint(None, network.state_dict(), "vit.pth.tar") / "vit.pth.tar"
    with pytest.raises(CheckpointError, match="option model"):
        load_pretrained(file)
    # Heads have no tensors, and the named network is of another width.
    with pytest.raises(CheckpointError, match=r"24 wide, and vit_tiny_patch16_224 of timm's is 192.*n_heads"):
        load_pretrained(file, model=name)
    model, _ = load_pretrained(file, model=name, n_heads=3)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert (model(image) - network((image - 0.5) / 0.5)).abs().max() <= 1e-4


def test_heads_are_those_of_the_named_network(write_checkpoint: Callable[..., Path]) -> None:
    # 16 heads of 80 channels, where most have 64.
    network = timm.create_model("vit_huge_patch14_224", img_size=28, depth=1, num_classes=2, mlp_ratio=0.1).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    config = {"architecture": "vit_huge_patch14_224", "pretrained_cfg": CONFIG["pretrained_cfg"]}
    opened = open_pretrained(write_checkpoint(config, network.state_dict()))
    assert opened.config["backbone"]["n_heads"] == network.get_submodule("blocks.0.attn").num_heads == 16
    named = {**config, "model_args": {"num_heads": 20}}
    assert open_pretrained(write_checkpoint(named, network.state_dict())).config["backbone"]["n_heads"] == 20
    with pytest.raises(CheckpointError, match="no model of timm's"):
        open_pretrained(write_checkpoint({**config, "architecture": "vit_enormous"}, network.state_dict()))


def test_inside_another_module_and_without_a_bias(write_checkpoint: Callable[..., Path]) -> None:
    network = theirs()
    torch.nn.init.zeros_(network.head.bias)
    weights = {f"net.{name}": x for name, x in network.state_dict().items() if name != "head.bias"}
    folder = write_checkpoint(CONFIG, {**weights, "loss.weight": torch.ones(5)}, "vit.ckpt", epoch=3)
    model, report = load_pretrained(folder)
    assert list(report.unexpected) == ["loss.weight"] and not report.reinitialized
    assert report.renamed["backbone.norm.weight"] == "net.norm.weight" and "without a bias" in str(report)
    image = torch.rand(2, 3, 32, 32)
    mean, std = (torch.tensor(CONFIG["pretrained_cfg"][key]).view(3, 1, 1) for key in ("mean", "std"))  # type: ignore[index]
    with torch.no_grad():
        assert (model(image) - network((image - mean) / std)).abs().max() <= 1e-4
    both = {**weights, **{f"ema.{name}": x for name, x in network.state_dict().items()}}
    with pytest.raises(CheckpointError, match=r"2 networks \(net\.patch_embed.*ema\.patch_embed"):
        load_pretrained(write_checkpoint(CONFIG, both, "vit.ckpt", epoch=3))


def test_other_transformers_are_refused(write_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="distillation"):
        weights = theirs("deit_tiny_distilled_patch16_224").state_dict()
        load_pretrained(write_checkpoint(CONFIG, weights))
    with pytest.raises(CheckpointError, match="pooled patches"):
        load_pretrained(write_checkpoint(CONFIG, theirs(global_pool="avg").state_dict()))
    with pytest.raises(CheckpointError, match="global_pool='avg'"):
        load_pretrained(write_checkpoint({**CONFIG, "global_pool": "avg"}, theirs().state_dict()))
    stem = {**theirs().state_dict(), "patch_embed.backbone.conv.weight": torch.zeros(2, 2)}
    with pytest.raises(CheckpointError, match="convolutional network before the patches"):
        load_pretrained(write_checkpoint(CONFIG, stem))


def test_a_file_alone_is_standardised_as_its_name_says(write_checkpoint: Callable[..., Path]) -> None:
    name, network = "deit_tiny_patch16_224", theirs("deit_tiny_patch16_224")
    model, _ = load_pretrained(write_checkpoint(None, network.state_dict(), "deit.pth"), model=name, n_heads=3)
    known = timm.get_pretrained_cfg(name)
    assert known is not None and known.mean != (0.5, 0.5, 0.5)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (known.mean, known.std))
    image = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert (model(image) - network((image - mean) / std)).abs().max() <= 1e-4
