"""Parameter groups from the marks that parameters carry, and the learning-rate schedules."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

from longseq.layers.marks import MARK


def parameter_options(model: nn.Module, *, lr: float, weight_decay: float) -> dict[str, dict[str, float]]:
    """Learning rate and weight decay of every trainable parameter, by name.

    Biases and other vectors are not decayed. A mark (`longseq.layers.marks.mark`) overrides the weight decay and caps
    the learning rate.

    Args:
        model: its parameters are read, not changed.
        lr: the run's peak learning rate.
        weight_decay: the run's.
    """
    options = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        found = getattr(parameter, MARK, {})
        decay = 0.0 if parameter.ndim < 2 else weight_decay
        options[name] = {"lr": min(lr, found.get("max_lr", lr)), "weight_decay": min(decay, found.get("weight_decay", decay))}
    return options


def parameter_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], options: dict[str, dict[str, float]]
) -> list[dict[str, Any]]:
    """Groups of equal options for a torch optimiser; each parameter stands in exactly one.

    Args:
        named_parameters: of the model, perhaps by now wrapped; frozen ones are left out.
        options: from `parameter_options`.

    Returns:
        Dicts with `params`, `names`, `lr` and `weight_decay`, largest rate first.
    """
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        found = options[name]
        group = groups.setdefault((found["lr"], found["weight_decay"]), {"params": [], "names": [], **found})
        group["params"].append(parameter)
        group["names"].append(name)
    return sorted(groups.values(), key=lambda group: (-group["lr"], -group["weight_decay"]))


def cosine_schedule(total_steps: int, warmup_steps: int, min_ratio: float = 0.0) -> Callable[[int], float]:
    """Factor on the peak learning rate: linear from 0 over `warmup_steps`, then half a cosine down to `min_ratio`."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / max(1, warmup_steps)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return min_ratio + (1.0 - min_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return factor


def linear_schedule(total_steps: int, warmup_steps: int, min_ratio: float = 0.0) -> Callable[[int], float]:
    """Factor on the peak learning rate: linear from 0 over `warmup_steps`, then linear down to `min_ratio`."""

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / max(1, warmup_steps)
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return 1.0 - (1.0 - min_ratio) * progress

    return factor


def constant_schedule(total_steps: int, warmup_steps: int, min_ratio: float = 0.0) -> Callable[[int], float]:
    """Factor on the peak learning rate: linear from 0 over `warmup_steps`, then 1."""
    del total_steps, min_ratio
    return lambda step: min(1.0, (step + 1) / max(1, warmup_steps))


SCHEDULES: dict[str, Callable[[int, int, float], Callable[[int], float]]] = {
    "cosine": cosine_schedule,
    "linear": linear_schedule,
    "constant": constant_schedule,
}
