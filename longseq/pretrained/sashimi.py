"""SaShiMi: state dicts of the authors' training code and of their standalone file, of the form without layers on the way down.

Unlike the backbone's own default, the published networks add each resolution's input to its output (`skips`). Their linear
maps of pools order positions within channels; ours order channels within positions, so weights are reordered.
"""

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from longseq.errors import CheckpointError
from longseq.pretrained import s4
from longseq.pretrained._formats import PretrainedInfo
from longseq.pretrained._renames import Config, Options, Renaming, Weights, count, find, rename_keys

CHECKPOINTS: tuple[PretrainedInfo, ...] = ()
# As for S4 and S4D.
OPTIONS: Options = s4.OPTIONS
TOKENS: dict[str, int] = {}
_MODEL = r"(?:model\.)?"
_UNSUPPORTED = (
    (r"output_gate|input_gate|input_linear|gate\.", "a gated or bottlenecked layer"),
    (r"running_mean$", "batch norm, which the backbone does not have"),
    (r"weight_g$", "weight norm"),
)


def matches(config: Config, keys: Collection[str]) -> bool:
    """It has layers on the way up."""
    del config
    return any(re.match(_MODEL + r"u_layers\.0\.0\.linear\.", key) for key in keys)


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """Sizes from the tensors."""
    del config
    for pattern, what in _UNSUPPORTED:
        for name in weights:
            if re.search(pattern, name):
                raise CheckpointError(f"the checkpoint has {name}, of {what}: it cannot be loaded")
    if any(re.match(_MODEL + r"d_layers\.\d+\.layer\.", name) for name in weights):
        raise CheckpointError("the checkpoint has layers on the way down (unet=true), whose skips are not built")
    n_pools = count(weights, _MODEL + r"d_layers\.(\d+)\.")
    per_resolution = count(weights, _MODEL + r"c_layers\.(\d+)\.")
    feedforward = find(weights, r"c_layers\.1\.layer\.ff\.0\.(?:0\.)?weight", "feed-forward layer")
    widths = [_down(weights, i) for i in range(n_pools)]
    d_model = widths[0][1]
    poles = find(weights, r"(A_real|w_real)", "diagonal of A")
    expand, pools = widths[0][0] // d_model, [width_in // d_own for _, d_own, width_in in widths]
    vocabulary = find(weights, r"encoder\.(\d+\.)?weight", "token embedding").shape[0]
    head = find(weights, r"decoder\.(\d+\.)?(output_transform\.)?weight", "output layer")
    return {
        "embedding": {"name": "token", "vocab_size": vocabulary},
        "backbone": {
            "name": "sashimi",
            "d_model": d_model,
            "n_layers": per_resolution // 2,
            "pool": pools,
            "expand": expand,
            "skips": True,
            "mixer": "s4" if any(name.endswith("kernel.P") for name in weights) else "s4d",
            "d_state": 2 * poles.shape[-1],
            "mixer_options": {**_sets(weights), **s4.chosen_discretization(options)},
            "mlp_ratio": feedforward.shape[0] / feedforward.shape[1],
            "norm": s4.norm_name(weights),
        },
        "head": {"name": "token", "n_outputs": head.shape[0], "bias": _has_bias(weights)},
    }


def _down(weights: Weights, i: int) -> tuple[int, int, int]:
    """Width of the coarser resolution, own width, and inputs of the map between them."""
    weight = find(weights, rf"d_layers\.{i}\.linear\.(?:0\.)?weight", f"pooling {i}")
    n_pools = count(weights, _MODEL + r"d_layers\.(\d+)\.")
    skip = find(weights, rf"u_layers\.{n_pools - 1 - i}\.1\.layer\.(?:layer\.)?D", f"layers of resolution {i}")
    return weight.shape[0], skip.shape[-1], weight.shape[1]


def _sets(weights: Weights) -> dict[str, int]:
    """Sets of poles, which the channels share: as many in all layers, or one for each channel of each layer."""
    real_part = rf"(.+kernel\.(?:kernel\.)?){s4.REAL_PART}"
    # Of sets and channels, one pair for each kind of layer.
    found = {
        (tensor.shape[0], find(weights, re.escape(match.group(1) + "C"), "kernel").shape[-3])
        for name, tensor in weights.items()
        if (match := re.fullmatch(real_part, name))
    }
    sets = {n_sets for n_sets, _ in found}
    if len(sets) == 1:
        return {"n_ssm": sets.pop()}
    if all(n_sets == width for n_sets, width in found):
        return {}
    raise CheckpointError(
        f"the layers have {sorted(sets)} sets of poles: expected the same number in all resolutions, or one for each channel"
    )


def _has_bias(weights: Weights) -> bool:
    return any(re.fullmatch(r"decoder\.(\d+\.)?(output_transform\.)?bias", name) for name in weights)


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """Pairs of a state-space and a feed-forward layer become one block; maps of pools are reordered."""
    del config
    n_pools = count(weights, _MODEL + r"d_layers\.(\d+)\.")
    rules, drops, mixers = [], [], []
    places = [(rf"{_MODEL}c_layers\.", 0, "backbone.outer" + ".inner" * n_pools)]
    for i in range(n_pools):
        here, up = "backbone.outer" + ".inner" * i, rf"{_MODEL}u_layers\.{n_pools - 1 - i}\."
        rules += [
            (rf"{_MODEL}d_layers\.{i}\.linear\.(?:0\.)?(weight|bias)", rf"{here}.down.\1"),
            (up + r"0\.linear\.(?:0\.)?(weight|bias)", rf"{here}.up.\1"),
        ]
        places.append((up, 1, f"{here}.after"))
    for prefix, first, place in places:
        for j in range(count(weights, prefix + r"(\d+)\.") // 2):
            ssm, mlp, block = prefix + rf"{first + 2 * j}\.", prefix + rf"{first + 2 * j + 1}\.", f"{place}.blocks.{j}."
            rules += _block_rules(ssm, mlp, block)
            drops.append((ssm + r"layer\.(?:layer\.)?kernel\.(?:kernel\.)?(?:omega|z)", "computed"))
            drops.append((ssm + r"layer\.(?:layer\.)?kernel\.(?:kernel\.)?(?:L|l_kernel)", "kernels have any length here"))
            mixers.append((ssm, block + "mixer."))
    rules += [
        (_MODEL + r"norm\.(?:norm\.)?(weight|bias)", r"backbone.final_norm.\1"),
        *s4.scalar_norm_rules(_MODEL, "backbone.final_norm."),
        (r"encoder\.(?:\d+\.)?weight", "embedding.embedding.weight"),
        (r"decoder\.(?:\d+\.)?(?:output_transform\.)?(weight|bias)", r"head.projection.\1"),
    ]
    renaming = rename_keys(weights, rules, drops)
    for ssm, mixer in mixers:
        s4.convert_layer(renaming, mixer, _kernel_length(weights, ssm), str(options["dt_transform"]))
    _reorder_pools(renaming, n_pools)
    s4.add_notes(renaming, weights, options)
    return renaming


def _block_rules(ssm: str, mlp: str, block: str) -> list[tuple[str, str]]:
    inner = ssm + r"layer\.(?:layer\.)?"
    kernel = inner + r"kernel\.(?:kernel\.)?"
    return [
        (kernel + r"(?:inv_dt|log_dt)", f"{block}mixer.log_dt"),
        (kernel + s4.REAL_PART, f"{block}mixer.log_A_real"),
        (kernel + r"(?:A_imag|w_imag)", f"{block}mixer.A_imag"),
        (kernel + r"([BCP])", rf"{block}mixer.\1"),
        (inner + "D", f"{block}mixer.D"),
        (ssm + r"layer\.output_linear\.0\.(weight|bias)", rf"{block}mixer.output.linear.\1"),
        (ssm + r"norm\.(?:norm\.)?(weight|bias)", rf"{block}norm1.\1"),
        *s4.scalar_norm_rules(ssm, f"{block}norm1."),
        *s4.scalar_norm_rules(mlp, f"{block}norm2."),
        (mlp + r"layer\.ff\.0\.(?:0\.)?(weight|bias)", rf"{block}mlp.fc1.\1"),
        (mlp + r"layer\.ff\.[1-3]\.(?:0\.)?(weight|bias)", rf"{block}mlp.fc2.\1"),
        (mlp + r"norm\.(?:norm\.)?(weight|bias)", rf"{block}norm2.\1"),
    ]


def _kernel_length(weights: Weights, layer: str) -> int:
    pattern = layer + r"layer\.(?:layer\.)?kernel\.(?:kernel\.)?(?:L|l_kernel)"
    return next((int(tensor) for name, tensor in weights.items() if re.fullmatch(pattern, name)), 0)


def _reorder_pools(renaming: Renaming, n_pools: int) -> None:
    """From (channel, position) to (position, channel) among the inputs of `down` and the outputs of `up`; flat biases."""
    tensors = renaming.tensors
    for i in range(n_pools):
        here = "backbone.outer" + ".inner" * i
        names = [f"{here}.{part}" for part in ("down.weight", "up.weight", "up.bias")]
        absent = [name for name in names if name not in tensors]
        if absent:
            raise CheckpointError(f"the checkpoint lacks {absent[0]}: expected maps of {n_pools} pools")
        down, up, bias = (tensors[name].squeeze(-1) if tensors[name].ndim == 3 else tensors[name] for name in names)
        width = tensors[f"{here}.after.blocks.0.mixer.D"].shape[-1]
        pool = down.shape[1] // width
        tensors[names[0]] = down.unflatten(1, (width, pool)).transpose(1, 2).flatten(1)
        tensors[names[1]] = up.unflatten(0, (width, pool)).transpose(0, 1).flatten(0, 1)
        tensors[names[2]] = bias.flatten().unflatten(0, (width, pool)).T.flatten()
    for name, tensor in tensors.items():
        tensors[name] = _plain_shape(name, tensor)


def _plain_shape(name: str, tensor: Tensor) -> Tensor:
    """Maps of transposed layers have a last axis of one."""
    if name.endswith((".fc1.weight", ".fc2.weight")) and tensor.ndim == 3:
        return tensor.squeeze(-1)
    return torch.flatten(tensor) if name.endswith((".fc1.bias", ".fc2.bias", ".down.bias")) else tensor
