"""S4 and S4D: state dicts of the authors' training code (versions 3 and 4) and of their minimal S4D example.

These files come without a config: sizes are read from the tensors. What those do not say are options: `dt_transform`
(`exp`, or `softplus` for later runs), `discretization` for S4D (`zoh`, or `bilinear`), and the backbone's own, such as
`prenorm`. An output layer after a token embedding is one for each token where it has as many outputs as the embedding has
rows; others see the mean.
"""

import re
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor

from longseq.errors import CheckpointError
from longseq.ops.dplr_ssm import undo_length_correction
from longseq.pretrained._formats import PretrainedInfo
from longseq.pretrained._renames import Config, Options, Renaming, Weights, add_zero_bias, count, find, rename_keys

CHECKPOINTS: tuple[PretrainedInfo, ...] = ()
OPTIONS: Options = {"dt_transform": "exp", "discretization": None}
TOKENS: dict[str, int] = {}

_LAYER = r"(?:model\.)?(?:s4_)?layers\.(\d+)\."
_INNER = _LAYER + r"(?:layer\.){0,2}"
_KERNEL = _INNER + r"kernel\.(?:kernel\.)?"
# Of version 4; of the minimal example; of version 3 for S4D; of versions 3 and 2 for S4.
REAL_PART = r"(?:A_real|log_A_real|inv_A_real|inv_w_real|log_w_real)"
_UNSUPPORTED = (
    (r"\.norm\.(norm\.)?running_mean$|^norms\.\d+\.running_mean$", "batch norm, which a stack does not have"),
    (r"layers\.\d+\.layer\.ff\.", "feed-forward layers between the state-space layers"),
    (r"weight_g$", "weight norm"),
    (r"output_gate|input_gate|input_linear", "a gated or bottlenecked layer"),
    (r"^encoder\..*(emb_layers|emb_projs)", "an embedding of several widths, for frequent and rare words"),
)


def matches(config: Config, keys: Collection[str]) -> bool:
    """Its layers have kernels with a C."""
    del config
    return any(re.search(r"(^|\.)(s4_)?layers\.\d+\..*kernel\.C$", key) for key in keys)


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """Sizes from the tensors."""
    del config
    for pattern, what in _UNSUPPORTED:
        for name in weights:
            if re.search(pattern, name):
                raise CheckpointError(f"the checkpoint has {name}, of {what}: it cannot be loaded")
    d_model = find(weights, r"kernel\.C", "kernel").shape[-3]
    n_directions = _directions(weights)
    minimal = any(re.search(r"kernel\.log_A_real$", name) for name in weights)
    low_rank = any(re.search(r"kernel\.P$", name) for name in weights)
    final_norm = any(re.fullmatch(r"(?:model\.)?norm\.(norm\.)?(weight|s)", name) for name in weights)
    poles = find(weights, r"(A_real|w_real)", "diagonal of A")
    embedding = _embedding(weights)
    return {
        "embedding": embedding,
        "backbone": {
            "name": "s4" if low_rank else "s4d",
            "d_model": d_model,
            "n_layers": count(weights, _LAYER),
            "d_state": 2 * poles.shape[-1],
            "n_ssm": d_model if minimal else poles.shape[0],
            "causal": n_directions == 1,
            "norm": norm_name(weights),
            "mlp_ratio": 0.0,
            "prenorm": final_norm,
            **chosen_discretization(options),
        },
        "head": _head(weights, embedding),
    }


def _directions(weights: Weights) -> int:
    C, D = find(weights, r"kernel\.C", "kernel"), find(weights, r"layers\.0\.(layer\.){0,2}D", "skip term D")
    n_models = C.shape[0] if C.ndim == 4 else 1
    channels = D.shape[0] if D.ndim == 2 else 1
    low_rank = any(name.endswith("kernel.P") for name in weights)
    if channels != 1 or n_models > 2 or (n_models == 2 and low_rank):
        raise CheckpointError(
            f"the kernels have {n_models} sets of C for {channels} output channels: expected one channel, and both "
            "directions for S4D alone"
        )
    return n_models


def _embedding(weights: Weights) -> dict[str, Any]:
    for name, tensor in weights.items():
        if re.fullmatch(r"encoder\.(\d+\.)?weight", name) and tensor.ndim == 2:
            if name.replace("weight", "bias") in weights:
                return {"name": "linear", "n_channels": tensor.shape[1]}
            return {"name": "token", "vocab_size": tensor.shape[0]}
    return {"name": "linear", "n_channels": 1}


def _head(weights: Weights, embedding: dict[str, Any]) -> dict[str, Any]:
    """A language model's, or a classifier of the mean over positions, which is the training code's default."""
    for key, tensor in weights.items():
        if re.fullmatch(r"decoder\.(\d+\.)?(output_transform\.)?weight", key) and tensor.ndim == 2:
            n_outputs, bias = tensor.shape[0], key.replace("weight", "bias") in weights
            if embedding.get("vocab_size") == n_outputs:
                return {"name": "token", "n_outputs": n_outputs, "bias": bias}
            return {"name": "pool", "n_outputs": n_outputs}
    return {"name": "token" if embedding["name"] == "token" else "pool", "n_outputs": 1}


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """Version 3 names become those of version 4, and those ours, with the sign and transform that each has."""
    del config
    mixer = r"backbone.blocks.\1.mixer."
    rules = [
        (r"encoder\.(?:\d+\.)?(weight|bias)", _encoder(weights)),
        (_KERNEL + r"(?:inv_dt|log_dt)", mixer + "log_dt"),
        (_KERNEL + REAL_PART, mixer + "log_A_real"),
        (_KERNEL + r"(?:A_imag|w_imag)", mixer + "A_imag"),
        (_KERNEL + r"([BCP])", mixer + r"\2"),
        (_INNER + r"D", mixer + "D"),
        (_LAYER + r"(?:layer\.)?output_linear\.0\.(weight|bias)", mixer + r"output.linear.\2"),
        (_LAYER + r"norm\.(?:norm\.)?(weight|bias)", r"backbone.blocks.\1.norm1.\2"),
        *scalar_norm_rules(_LAYER, r"backbone.blocks.\1.norm1."),
        *scalar_norm_rules(r"(?:model\.)?", "backbone.final_norm."),
        (r"norms\.(\d+)\.(weight|bias)", r"backbone.blocks.\1.norm1.\2"),
        (r"(?:model\.)?norm\.(?:norm\.)?(weight|bias)", r"backbone.final_norm.\1"),
        (r"decoder\.(?:\d+\.)?(?:output_transform\.)?(weight|bias)", r"head.projection.\1"),
    ]
    drops = [(_KERNEL + r"(?:L|l_kernel)", "kernels have any length here"), (_KERNEL + r"(?:omega|z)", "computed")]
    renaming = rename_keys(weights, rules, drops)
    for layer in range(count(weights, _LAYER)):
        convert_layer(renaming, f"backbone.blocks.{layer}.mixer.", _kernel_length(weights, layer), str(options["dt_transform"]))
    add_notes(renaming, weights, options)
    if _head(weights, _embedding(weights))["name"] == "pool":
        add_zero_bias(renaming, "head.projection")
    return renaming


def scalar_norm_rules(place: str, new: str) -> list[tuple[str, str]]:
    """Of the norm with one weight `s` and one bias `m` for all channels."""
    return [(place + r"norm\.(?:norm\.)?s", new + "weight"), (place + r"norm\.(?:norm\.)?m", new + "bias")]


def norm_name(weights: Weights) -> str:
    """The kind of norm, one for all layers."""
    return "scalar" if any(re.search(r"norm\.(norm\.)?s$", name) for name in weights) else "layer"


def chosen_discretization(options: Options) -> dict[str, Any]:
    """The mixer's option, where the caller chose one."""
    chosen = options["discretization"]
    return {} if chosen is None else {"discretization": chosen}


def add_notes(renaming: Renaming, weights: Weights, options: Options) -> None:
    """What was taken for granted where the tensors do not tell."""
    low_rank = any(name.endswith("kernel.P") for name in weights)
    # The minimal example knows no other.
    minimal = any(name.endswith("kernel.log_A_real") for name in weights)
    if not low_rank and not minimal and options["discretization"] is None:
        renaming.notes.append(
            "the file does not say how S4D was discretized: zoh was taken; runs of version 3 may need the format's option "
            "discretization=bilinear"
        )
    if low_rank and not any(name.endswith(("kernel.L", "kernel.l_kernel")) for name in weights):
        renaming.notes.append("the file has no kernel length (l_kernel): C was taken as it is, without undoing its correction")


def _encoder(weights: Weights) -> str:
    return r"embedding.embedding.\1" if _embedding(weights)["name"] == "token" else r"embedding.projection.\1"


def _kernel_length(weights: Weights, layer: int) -> int:
    pattern = _KERNEL.replace(r"(\d+)", str(layer)) + r"(?:L|l_kernel)"
    return next((int(tensor) for name, tensor in weights.items() if re.fullmatch(pattern, name)), 0)


def convert_layer(renaming: Renaming, mixer: str, length: int, dt_transform: str) -> None:
    """One layer's tensors in our shapes, with C as it is without a kernel length."""
    tensors = renaming.tensors
    absent = [name for name in ("log_dt", "log_A_real", "A_imag", "C", "D") if mixer + name not in tensors]
    if absent:
        raise CheckpointError(f"the checkpoint lacks {', '.join(absent)} of the layer {_layer(mixer)}")
    if length < 0:
        raise CheckpointError(f"the kernel of the layer {_layer(mixer)} has a length of {length}: expected 0 or more taps")
    dt = tensors[mixer + "log_dt"]
    if dt.ndim == 2 and dt.shape[1] != 1:
        name = renaming.sources[mixer + "log_dt"]
        raise CheckpointError(f"{name} {tuple(dt.shape)}: expected one step size per channel, (d_model, 1)")
    if dt_transform not in ("exp", "softplus"):
        raise CheckpointError(f"dt_transform must be exp or softplus, found {dt_transform!r}")
    log_dt = dt.flatten().double()
    tensors[mixer + "log_dt"] = log_dt if dt_transform == "exp" else torch.nn.functional.softplus(log_dt).log()
    # In version 4 the published A is -exp(A_real) - i A_imag; before, and in the minimal example, the sign was ours.
    if renaming.sources[mixer + "log_A_real"].endswith(".A_real"):
        tensors[mixer + "A_imag"] = -tensors[mixer + "A_imag"]
    C = tensors[mixer + "C"]
    tensors[mixer + "C"] = C.unsqueeze(0) if C.ndim == 3 else C
    tensors[mixer + "D"] = tensors[mixer + "D"].flatten()
    if mixer + "output.linear.weight" in tensors:
        tensors[mixer + "output.linear.weight"] = tensors[mixer + "output.linear.weight"].flatten(1)
    if mixer + "B" in tensors:
        # (1, sets, N, 2), but for S4D in version 3, whose first axis is the sets.
        B = tensors[mixer + "B"]
        tensors[mixer + "B"] = B.squeeze(0) if B.ndim == 4 else B
    else:
        A = tensors[mixer + "A_imag"]
        tensors[mixer + "B"] = torch.stack([torch.ones_like(A), torch.zeros_like(A)], dim=-1)
        renaming.sources[mixer + "B"] = renaming.sources[mixer + "A_imag"]
    if mixer + "P" in tensors:
        _convert_low_rank(tensors, mixer, length)
    if C.ndim == 4 and C.shape[0] == 2:
        _move_second_direction(tensors, mixer)


def _layer(mixer: str) -> str:
    """What a message calls a layer: its number, or its place where layers stand in one another."""
    parts = mixer.removesuffix(".mixer.").split(".")
    return parts[2] if parts[:2] == ["backbone", "blocks"] else ".".join(parts)


def _convert_low_rank(tensors: dict[str, Tensor], mixer: str, length: int) -> None:
    """P of rank one, and C from `C (I - A^length)`, which the authors store for kernels of one length."""
    P = tensors[mixer + "P"]
    if P.shape[0] != 1:
        raise CheckpointError(f"the low-rank term has rank {P.shape[0]}, expected 1")
    tensors[mixer + "P"] = P.squeeze(0)
    if length > 0:
        dt_D, real_DN, imag_DN, P_DN2 = _system(tensors, mixer)
        C_DN2 = tensors[mixer + "C"][0].double()
        tensors[mixer + "C"] = undo_length_correction(dt_D, -real_DN.exp(), imag_DN, P_DN2, C_DN2, length).unsqueeze(0)


def _system(tensors: dict[str, Tensor], mixer: str, last: str = "P") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dt_D = tensors[mixer + "log_dt"].exp()
    sets = tensors[mixer + "log_A_real"].shape[0]
    copies = len(dt_D) // max(1, sets)
    real_DN, imag_DN, last_DN2 = (
        tensors[mixer + name].double().repeat(copies, *[1] * (tensors[mixer + name].ndim - 1))
        for name in ("log_A_real", "A_imag", last)
    )
    return dt_D, real_DN, imag_DN, last_DN2


def _move_second_direction(tensors: dict[str, Tensor], mixer: str) -> None:
    """The published second direction begins at the next position, ours at the present one.

    With `C' = C / exp(dt A)` ours has the published tap at every lag from 1 on; what it has at lag 0 goes from D.
    """
    dt_D, real_DN, imag_DN, B_DN2 = _system(tensors, mixer, "B")
    A_DN = torch.complex(-real_DN.exp(), imag_DN)
    step_DN = A_DN * dt_D.unsqueeze(1)
    C_DN = torch.view_as_complex(tensors[mixer + "C"][1].double().contiguous()) * torch.exp(-step_DN)
    B_DN = torch.view_as_complex(B_DN2.contiguous()) * torch.expm1(step_DN) / A_DN
    now_D = 2 * (C_DN * B_DN).real.sum(1)
    tensors[mixer + "C"] = torch.stack([tensors[mixer + "C"][0].double(), torch.view_as_real(C_DN)])
    tensors[mixer + "D"] = tensors[mixer + "D"].double() - now_D
    # In the 32 bits of the model, not in the 64 of this sum.
    if not all(bool(tensors[mixer + name].float().isfinite().all()) for name in ("C", "D")):
        raise CheckpointError(f"the second direction of the layer {_layer(mixer)} decays too fast to be represented")
