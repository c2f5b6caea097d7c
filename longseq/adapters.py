"""Low-rank adapters (LoRA) on linear layers, through peft, and their merging into plain weights."""

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from longseq.layers.marks import MARK

_ADAPTER = "default"


@dataclass(frozen=True)
class Adapted:
    """What has been adapted.

    Attributes:
        layers: names of the linear layers that got adapters.
        n_linear: linear layers that there are.
        trained: names of other parameters that stay trainable.
    """

    layers: list[str]
    n_linear: int
    trained: list[str]

    def __str__(self) -> str:
        also = f", and {len(self.trained)} other parameters trained" if self.trained else ""
        return f"LoRA on {len(self.layers)} of {self.n_linear} linear layers{also}"


def linear_layers(module: nn.Module) -> dict[str, nn.Linear]:
    """Every linear layer by name."""
    return {name: child for name, child in module.named_modules() if isinstance(child, nn.Linear)}


def choose_layers(module: nn.Module, targets: str | Sequence[str]) -> list[str]:
    """Names of the linear layers to adapt.

    Args:
        module: a backbone.
        targets: shell patterns of names such as `*.in_proj`; or `auto`: every linear layer but those inside implicit
            filters, whose weights are marked as not to be decayed and make kernels, not features.

    Raises:
        ValueError: if a pattern matches no linear layer; the message holds the names there are.
    """
    layers = linear_layers(module)
    if targets == "auto":
        chosen = [name for name, layer in layers.items() if getattr(layer.weight, MARK, {}).get("weight_decay") != 0.0]
        if not chosen:
            raise ValueError(f"LoRA finds no linear layer to adapt in this {type(module).__name__}")
        return chosen
    patterns = [targets] if isinstance(targets, str) else list(targets)
    if not patterns:
        raise ValueError("LoRA needs at least one target, such as *.in_proj; found an empty list")
    for pattern in patterns:
        if not any(matches(name, pattern) for name in layers):
            raise ValueError(
                f"the LoRA target {pattern!r} matches none of the {len(layers)} linear layers; "
                f"their names end with {', '.join(sorted({name.rpartition('.')[2] for name in layers}))}"
            )
    return [name for name in layers if any(matches(name, pattern) for pattern in patterns)]


def matches(name: str, pattern: str) -> bool:
    """Whether a name fits a shell pattern, or ends with it after a dot: `in_proj` means `*.in_proj`."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"*.{pattern}")


def add_lora(
    module: nn.Module,
    *,
    r: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    targets: str | Sequence[str] = "auto",
    train_also: Iterable[str] = (),
) -> Adapted:
    """Freezes a network and puts a trainable `W x + (alpha / r) B A x` in the place of its linear layers' `W x`.

    B starts at zero, so the network's outputs do not change until it is trained. All other parameters are frozen.

    Args:
        module: a backbone, changed in place. Its layers must call their linear layers as modules, as all of ours do.
        r: rank of the update.
        alpha: its scale, divided by r.
        dropout: on the adapters' input.
        targets: see `choose_layers`.
        train_also: shell patterns of further parameters to train as they are, such as `*norm*`.

    Raises:
        ImportError: without peft; the message names the extra.
        ValueError: for a rank below 1, or a pattern that matches nothing.

    Paper: LoRA, https://arxiv.org/abs/2106.09685, equation 3.
    """
    if r < 1:
        raise ValueError(f"the rank of LoRA must be at least 1, found {r}")
    n_linear, chosen = len(linear_layers(module)), choose_layers(module, targets)
    _inject(module, chosen, r=r, alpha=alpha, dropout=dropout)
    trained = []
    for pattern in train_also:
        found = [name for name, _ in module.named_parameters() if matches(name, pattern) and "lora_" not in name]
        if not found:
            raise ValueError(f"the pattern {pattern!r} of parameters to train beside LoRA matches none")
        trained += [name for name in found if name not in trained]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(_is_adapter(name) or name in trained)
    return Adapted(chosen, n_linear, trained)


def _inject(module: nn.Module, chosen: list[str], *, r: int, alpha: float, dropout: float) -> None:
    try:
        with warnings.catch_warnings():
            # Of optional packages that it looks for.
            warnings.simplefilter("ignore")
            from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ImportError("LoRA needs peft: pip install 'longseq[finetune]'") from None
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen, bias="none")  # type: ignore[arg-type]
    inject_adapter_in_model(config, module, _ADAPTER)
    adapted = [name for name in chosen if hasattr(module.get_submodule(name), "lora_A")]
    if len(adapted) != len(chosen):
        absent = next(name for name in chosen if name not in adapted)
        raise ValueError(f"peft left {len(chosen) - len(adapted)} of {len(chosen)} layers without an adapter, {absent} first")


def _is_adapter(name: str) -> bool:
    return ".lora_A." in name or ".lora_B." in name


def has_adapters(module: nn.Module) -> bool:
    """Whether any layer has an adapter."""
    return any(_is_adapter(name) for name, _ in module.named_parameters())


@torch.no_grad()
def merge_weights(module: nn.Module, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the network as it was before `add_lora`, with the adapters' products added to its weights.

    Args:
        module: with adapters; only their scales are read.
        weights: a state dict of it.

    Returns:
        The weights under their plain names; `weights` itself if there are no adapters.
    """
    scales = {name: float(scale[_ADAPTER]) for name, child in module.named_modules() if (scale := _scaling(child))}
    if not scales:
        return weights
    merged = {}
    for name, tensor in weights.items():
        if _is_adapter(name):
            continue
        layer, found, last = name.rpartition(".base_layer.")
        if found and last == "weight" and layer in scales:
            A, B = (weights[f"{layer}.lora_{letter}.{_ADAPTER}.weight"].to(tensor.device) for letter in "AB")
            # In float64: the product is small beside the weight, and is added once for good.
            tensor = (tensor.double() + scales[layer] * (B.double() @ A.double())).to(tensor.dtype)
        merged[name.replace(".base_layer.", ".")] = tensor
    return merged


def _scaling(module: nn.Module) -> dict[str, Any]:
    scaling = getattr(module, "scaling", None)
    return scaling if isinstance(scaling, dict) and hasattr(module, "lora_A") else {}
