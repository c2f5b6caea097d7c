"""VideoMamba: image and video classifiers with the class token in front and the sum of two scans."""

from collections.abc import Collection
from typing import Any

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
    network_prefix,
    rename_network,
    split_positions,
)

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
    backbone = backbone_config(weights)
    patches = find_part(weights, "patch_embed.proj.weight", "patch embedding")
    side = grid_side(find_part(weights, "pos_embed", "table of positions"))
    times = weights.get(network_prefix(weights) + "temporal_pos_embedding")
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
        "backbone": backbone,
        "head": {"name": "class_token", "n_outputs": n_classes(weights), "place": "front"},
    }


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """The scans are summed as they are here."""
    del config, options
    renaming = rename_network(weights)
    split_positions(renaming, 0)
    if "embedding.time_positions" in renaming.tensors:
        _place_times(renaming)
    return renaming


def _place_times(renaming: Renaming) -> None:
    """Positions in time as a table, or, for clips of one step, within those in space."""
    tensors, name = renaming.tensors, "embedding.time_positions"
    tensors[name] = tensors[name].squeeze(0)
    if tensors[name].shape == (1, tensors["embedding.class_vector"].shape[0]):
        tensors["embedding.space_positions"] = tensors["embedding.space_positions"] + tensors.pop(name)
        renaming.dropped[renaming.sources.pop(name)] = "of a single step: added to the positions in space"
