"""What Vision Mamba and VideoMamba share: two scans between one input and one output projection, and patches."""

import math
import re
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor

from longseq.errors import CheckpointError
from longseq.pretrained._renames import Renaming, Rules, Weights, add_prefix, add_zero_bias, count, find, rename_keys

# Means and standard deviations of ImageNet, which both were trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MIXER = r"layers\.(\d+)\.mixer\."
RULES: Rules = (
    (_MIXER + r"(in_proj|out_proj)\.(weight|bias)", r"backbone.blocks.\1.mixer.\2.\3"),
    (_MIXER + r"A_log", r"backbone.blocks.\1.mixer.forward_ssm.A_log"),
    (_MIXER + r"A_b_log", r"backbone.blocks.\1.mixer.reverse_ssm.A_log"),
    (_MIXER + r"D", r"backbone.blocks.\1.mixer.forward_ssm.D"),
    (_MIXER + r"D_b", r"backbone.blocks.\1.mixer.reverse_ssm.D"),
    (_MIXER + r"(conv1d|x_proj|dt_proj)\.(weight|bias)", r"backbone.blocks.\1.mixer.forward_ssm.\2.\3"),
    (_MIXER + r"(conv1d|x_proj|dt_proj)_b\.(weight|bias)", r"backbone.blocks.\1.mixer.reverse_ssm.\2.\3"),
    (r"layers\.(\d+)\.norm\.weight", r"backbone.blocks.\1.norm1.weight"),
    # As `norm` in files of VideoMamba's masked pretraining.
    (r"norm(?:_f)?\.weight", "backbone.final_norm.weight"),
    (r"patch_embed\.proj\.(weight|bias)", r"embedding.projection.\1"),
    (r"cls_token", "embedding.class_vector"),
    (r"pos_embed", "embedding.space_positions"),
    (r"temporal_pos_embedding", "embedding.time_positions"),
    (r"head\.(weight|bias)", r"head.projection.\1"),
)
_PATCHES = "patch_embed.proj.weight"
# Tensors that change what the network computes, and have no place in the one that is built.
_UNSUPPORTED = (
    (r"(layers\.\d+\.norm|norm_f|norm)\.bias", "layer norms, where the backbone has norms by the root mean square"),
    (r"layers\.\d+\.(mixer\.)?gamma(_\d)?", "a scale of each layer's output, which the backbone does not have"),
    (r"rope\..+", "rotary positions, which the backbone does not have"),
    (r"cls_token_(head|tail)|dist_token", "two class tokens"),
)


def network_prefix(names: Iterable[str]) -> str:
    """What stands before the network's own names, as in a Lightning module's `model.patch_embed.proj.weight`.

    Raises:
        CheckpointError: if the file holds several such networks.
    """
    found = [name.removesuffix(_PATCHES) for name in names if name == _PATCHES or name.endswith("." + _PATCHES)]
    if len(found) > 1:
        shown = ", ".join(prefix + _PATCHES for prefix in found[:3])
        raise CheckpointError(f"the file holds {len(found)} networks ({shown}): save the one to load as a file of its own")
    return found[0] if found else ""


def rename_network(weights: Weights, rules: Rules = RULES) -> Renaming:
    """By rules for the network's own names, whatever module it stands in."""
    return rename_keys(weights, add_prefix(rules, network_prefix(weights)))


def find_part(weights: Weights, name: str, what: str) -> Tensor:
    """A tensor of the network by its whole name, whatever module the network stands in.

    Raises:
        CheckpointError: if there is none.
    """
    whole = network_prefix(weights) + name
    if whole not in weights:
        raise CheckpointError(f"the checkpoint has no {what} ({whole}); it begins with {', '.join(list(weights)[:4])}")
    return weights[whole]


def n_classes(weights: Weights) -> int:
    """Outputs of the classifier; 1 for a file without one, whose head starts anew."""
    head = weights.get(network_prefix(weights) + "head.weight")
    return 1 if head is None else head.shape[0]


def refuse(weights: Weights, unsupported: Iterable[tuple[str, str]]) -> None:
    """Raises CheckpointError for a network with parts that cannot be built."""
    prefix = network_prefix(weights)
    for pattern, what in unsupported:
        for name in weights:
            if name.startswith(prefix) and re.fullmatch(pattern, name.removeprefix(prefix)):
                raise CheckpointError(f"the checkpoint has {name}, of {what}: it cannot be loaded")


def has_two_scans(keys: Collection[str]) -> bool:
    """Whether the layers hold a second scan beside the first."""
    return any(re.search(r"layers\.\d+\.mixer\.A_b_log$", key) for key in keys)


def backbone_config(weights: Weights) -> dict[str, Any]:
    """Sizes from the tensors, since the files come without a config.

    Raises:
        CheckpointError: for a network with parts that the backbone does not have.
    """
    refuse(weights, _UNSUPPORTED)
    A_EN, in_proj = (
        find(weights, r"mixer\.A_b_log", "second scan"),
        find(weights, r"mixer\.in_proj\.weight", "input projection"),
    )
    d_model = in_proj.shape[1]
    return {
        "name": "caduceus",
        "rcps": False,
        "d_model": d_model,
        "n_layers": count(weights, r"layers\.(\d+)\.mixer\."),
        "d_state": A_EN.shape[1],
        "d_conv": find(weights, r"conv1d\.weight", "convolution").shape[-1],
        "expand": A_EN.shape[0] // d_model,
        "dt_rank": find(weights, r"dt_proj\.weight", "step sizes' projection").shape[1],
    }


def grid_side(pos_embed: Tensor) -> int:
    """Patches along a side, from a table of positions with one row more for the class token.

    Raises:
        CheckpointError: if they form no square.
    """
    side = math.isqrt(pos_embed.shape[1] - 1)
    if side * side != pos_embed.shape[1] - 1:
        raise CheckpointError(f"pos_embed has {pos_embed.shape[1]} rows, expected a square number of patches and a class token")
    return side


def split_positions(renaming: Renaming, class_place: int) -> None:
    """The class token's position goes into its vector; patches lie in a plane, as rows of a linear map's weight.

    Raises:
        CheckpointError: if one of them is absent or of another width.
    """
    tensors = renaming.tensors
    for name in ("embedding.projection.weight", "embedding.space_positions", "embedding.class_vector"):
        if name not in tensors:
            raise CheckpointError(f"the checkpoint lacks {name}: expected patch_embed.proj, pos_embed and cls_token")
    d_model = tensors["embedding.projection.weight"].shape[0]
    for name in ("embedding.space_positions", "embedding.class_vector"):
        rows = tensors[name].shape[1] if name == "embedding.space_positions" else 1
        if tensors[name].shape != (1, rows, d_model):
            found = f"{renaming.sources[name]} {tuple(tensors[name].shape)}"
            raise CheckpointError(f"{found}: expected {(1, rows, d_model)}, as wide as its patches are embedded")
    # A sum of two 16-bit numbers is none.
    table_LD = _at_least_float32(tensors["embedding.space_positions"])[0]
    side = grid_side(tensors["embedding.space_positions"])
    tensors["embedding.class_vector"] = tensors["embedding.class_vector"].flatten() + table_LD[class_place]
    patches_LD = torch.cat([table_LD[:class_place], table_LD[class_place + 1 :]])
    tensors["embedding.space_positions"] = patches_LD.unflatten(0, (side, side))
    tensors["embedding.projection.weight"] = tensors["embedding.projection.weight"].flatten(1)
    add_zero_bias(renaming, "head.projection")


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
