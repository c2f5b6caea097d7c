"""VideoMamba: image and video classifiers with the class token in front and the sum of two scans."""

from collections.abc import Collection
from typing import Any

from longseq.pretrained._formats import PretrainedInfo
from longseq.pretrained._renames import Config, Options, Renaming, Weights, find, rename_keys
from longseq.pretrained._vision_mamba import MEAN, RULES, STD, backbone_config, grid_side, has_two_scans, split_positions

CHECKPOINTS = (PretrainedInfo("OpenGVLab/VideoMamba", "videomamba", "vision", "7M to 98M", licence="Apache-2.0"),)
OPTIONS: Options = {}
TOKENS: dict[str, int] = {}


def matches(config: Config, keys: Collection[str]) -> bool:
    """Its layers hold two scans; those of single images have the names of Vim."""
    del config
    return has_two_scans(keys)


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """Sizes from the tensors."""
    del config, options
    patches, head = find(weights, r"patch_embed\.proj\.weight", "patch embedding"), find(weights, r"head\.weight", "classifier")
    side = grid_side(find(weights, "pos_embed", "table of positions"))
    times = weights.get("temporal_pos_embedding")
    tube = patches.shape[2] if patches.ndim == 5 else 1
    clip = {} if times is None else {"frames": times.shape[1] * tube, "tube": tube}
    return {
        "embedding": {
            "name": "patch" if times is None else "tubelet",
            "size": [side * patches.shape[-1]] * 2,
            "patch": patches.shape[-1],
            **clip,
            "n_channels": patches.shape[1],
            "class_token": "front",
            **({"mean": MEAN, "std": STD} if patches.shape[1] == 3 else {}),
        },
        "backbone": backbone_config(weights),
        "head": {"name": "class_token", "n_outputs": head.shape[0], "place": "front"},
    }


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """The scans are summed as they are here."""
    del config, options
    renaming = rename_keys(weights, RULES)
    if "embedding.time_positions" in renaming.tensors:
        renaming.tensors["embedding.time_positions"] = renaming.tensors["embedding.time_positions"].squeeze(0)
    split_positions(renaming, 0)
    return renaming
