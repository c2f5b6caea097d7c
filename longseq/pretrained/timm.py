"""Vision transformers of timm (ViT, DeiT), as its hub repositories and `timm.create_model(...).state_dict()` hold them.

The baseline for images: the encoder's blocks are timm's own, patches, positions, class token and classifier are ours. A file
without timm's config.json needs the option `model`, timm's name of the architecture; one of another width than that
architecture needs the option `n_heads`, which no tensor tells.
"""

import re
from collections.abc import Collection
from typing import Any

import torch

from longseq.errors import CheckpointError
from longseq.pretrained._formats import PretrainedInfo
from longseq.pretrained._renames import Config, Options, Renaming, Weights, count, require
from longseq.pretrained._vision_mamba import (
    find_part,
    grid_side,
    n_classes,
    network_prefix,
    refuse,
    rename_network,
    split_positions,
)

CHECKPOINTS = tuple(
    PretrainedInfo(f"timm/{name}", "timm", "vision", parameters, 197, "Apache-2.0")
    for name, parameters in (
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", "5.7M"),
        ("vit_small_patch16_224.augreg_in21k_ft_in1k", "22M"),
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", "87M"),
        ("deit_tiny_patch16_224.fb_in1k", "5.7M"),
        ("deit_small_patch16_224.fb_in1k", "22M"),
    )
)
OPTIONS: Options = {"model": None, "n_heads": None}
TOKENS: dict[str, int] = {}
_UNSUPPORTED = (
    (r"patch_embed\.backbone\..+", "a convolutional network before the patches"),
    (r"(dist_token|head_dist\..+)", "a distillation token"),
    (r"reg_token", "register tokens"),
    (r"norm_pre\..+", "a norm before the first block"),
    (r"fc_norm\..+|attn_pool\..+", "a classifier on pooled patches"),
    (r"blocks\.\d+\.attn\.(q|k)_norm\..+|rope\..+", "attention that the encoder here does not have"),
)


def matches(config: Config, keys: Collection[str]) -> bool:
    """Its blocks have timm's fused attention behind a patch embedding."""
    del config
    return any(
        key.endswith("patch_embed.proj.weight")
        and key.removesuffix("patch_embed.proj.weight") + "blocks.0.attn.qkv.weight" in keys
        for key in keys
    )


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """Sizes from the tensors; the architecture's name, and with it its number of heads, from config.json."""
    refuse(weights, _UNSUPPORTED)
    prefix = network_prefix(weights)
    find_part(weights, "blocks.0.attn.qkv.weight", "attention of timm's blocks")
    model = options["model"] or config.get("architecture")
    if model is None:
        raise CheckpointError(
            "no config.json with an `architecture` stands beside the weights: say timm's name of the network with the format's "
            "option model, such as model=vit_tiny_patch16_224"
        )
    if prefix + "head.weight" in weights:
        require(config, "global_pool", ("token", ""), "the classifier here reads the class token")
    patches = find_part(weights, "patch_embed.proj.weight", "patch embedding")
    side = grid_side(find_part(weights, "pos_embed", "table of positions"))
    published = _published(config, str(model))
    return {
        "embedding": {
            "name": "patch",
            "size": [side * patches.shape[-1]] * 2,
            "patch": patches.shape[-1],
            "n_channels": patches.shape[1],
            "class_token": "front",
            "mean": list(published.get("mean", (0.5,) * patches.shape[1])),
            "std": list(published.get("std", (0.5,) * patches.shape[1])),
        },
        "backbone": {
            "name": "timm",
            "model": str(model).split(".")[0],
            "d_model": patches.shape[0],
            "n_layers": count(weights, rf"^{re.escape(prefix)}blocks\.(\d+)\."),
            "n_heads": _n_heads(config, options, str(model).split(".")[0], patches.shape[0]),
        },
        "head": {"name": "class_token", "n_outputs": n_classes(weights), "place": "front"},
    }


def _n_heads(config: Config, options: Options, model: str, width: int) -> int:
    """Heads of the attention, which have no tensors of their own: as said, or as the architecture of that width has."""
    arguments = config.get("model_args") or {}
    said = options["n_heads"] or config.get("num_heads") or arguments.get("num_heads")
    if said is not None:
        return int(said)
    import timm

    if model not in timm.list_models():
        raise CheckpointError(f"model={model!r} is no model of timm's; timm.list_models() names them")
    with torch.device("meta"):
        named = timm.create_model(model)
    first = getattr(next(iter(getattr(named, "blocks", ())), None), "attn", None)
    if getattr(named, "embed_dim", None) != width or first is None:
        raise CheckpointError(
            f"the weights are {width} wide, and {model} of timm's is {getattr(named, 'embed_dim', 'no vision transformer')}: "
            f"say how many heads its attention has with the format's option n_heads, such as n_heads={max(1, width // 64)}"
        )
    return int(first.num_heads)


def _published(config: Config, model: str) -> Config:
    """What says the means and deviations of the training images: the config, or timm for a file without one."""
    found = config.get("pretrained_cfg") or config
    if "mean" in found:
        return found
    import timm

    known = timm.get_pretrained_cfg(model)
    return {} if known is None else {"mean": known.mean, "std": known.std}


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """Blocks and the last norm keep their names."""
    del config, options
    rules = [
        (r"(blocks\.\d+\..+)", r"backbone.\1"),
        (r"norm\.(weight|bias)", r"backbone.norm.\1"),
        (r"patch_embed\.proj\.(weight|bias)", r"embedding.projection.\1"),
        (r"cls_token", "embedding.class_vector"),
        (r"pos_embed", "embedding.space_positions"),
        (r"head\.(weight|bias)", r"head.projection.\1"),
    ]
    renaming = rename_network(weights, rules)
    split_positions(renaming, 0)
    return renaming
