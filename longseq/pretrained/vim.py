"""Vision Mamba (Vim): image classifiers with the class token in the middle and the mean of two scans."""

import re
from collections.abc import Collection
from typing import Any

from longseq.errors import CheckpointError
from longseq.pretrained._formats import PretrainedInfo
from longseq.pretrained._renames import Config, Options, Renaming, Weights
from longseq.pretrained._vision_mamba import (
    MEAN,
    STD,
    backbone_config,
    find_part,
    grid_side,
    has_two_scans,
    n_classes,
    rename_network,
    split_positions,
)

CHECKPOINTS = tuple(
    PretrainedInfo(f"hustvl/Vim-{size}-midclstok", "vim", "vision", parameters, 197, "Apache-2.0")
    for size, parameters in (("tiny", "7M"), ("small", "26M"), ("base", "98M"))
)
OPTIONS: Options = {}
TOKENS: dict[str, int] = {}
# Fine-tuned variants cut patches every 8 pixels of images of 224, 384, 448 or 512, which an embedding of whole patches cannot.
_OVERLAPPING_GRIDS = (27, 47, 55, 63)


def matches(config: Config, keys: Collection[str]) -> bool:
    """Its layers hold two scans, and its patches are of single images."""
    del config
    return has_two_scans(keys) and not any(key.endswith("temporal_pos_embedding") for key in keys)


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """Sizes from the tensors."""
    del config, options
    backbone = backbone_config(weights)
    patches = find_part(weights, "patch_embed.proj.weight", "patch embedding")
    side = grid_side(find_part(weights, "pos_embed", "table of positions"))
    if side in _OVERLAPPING_GRIDS and patches.shape[-1] == 16:
        raise CheckpointError("the checkpoint cuts overlapping patches (stride 8), which the patch embedding does not do")
    return {
        "embedding": {
            "name": "patch",
            "size": [side * patches.shape[-1]] * 2,
            "patch": patches.shape[-1],
            "n_channels": patches.shape[1],
            "class_token": "middle",
            **({"mean": MEAN, "std": STD} if patches.shape[1] == 3 else {}),
        },
        "backbone": backbone,
        "head": {"name": "class_token", "n_outputs": n_classes(weights), "place": "middle"},
    }


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """The halved sum of the two scans is a halved output projection."""
    del config, options
    renaming = rename_network(weights)
    for name in renaming.tensors:
        if re.fullmatch(r"backbone\.blocks\.\d+\.mixer\.out_proj\.weight", name):
            renaming.tensors[name] = renaming.tensors[name] / 2
    split_positions(renaming, (find_part(weights, "pos_embed", "table of positions").shape[1] - 1) // 2)
    return renaming
