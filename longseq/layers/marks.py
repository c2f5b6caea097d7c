"""Marks that a parameter carries for the optimiser; `longseq.optim` builds the parameter groups from them."""

import copy
from typing import Any, Self

from torch import nn

MARK = "optimizer_mark"


def mark(parameter: nn.Parameter, *, weight_decay: float | None = None, max_lr: float | None = None) -> nn.Parameter:
    """Says how a parameter wants to be trained, and returns it.

    Args:
        parameter: marked in place.
        weight_decay: its own weight decay; None keeps the run's.
        max_lr: the highest peak learning rate it tolerates; a run whose rate is lower keeps its own. The S4 family's
            A, B and dt want 1e-3, also when the rest of the network is trained faster.
    """
    found = {"weight_decay": weight_decay, "max_lr": max_lr}
    setattr(parameter, MARK, {name: value for name, value in found.items() if value is not None})
    return parameter


def mark_all(module: nn.Module, *, weight_decay: float | None = None, max_lr: float | None = None) -> nn.Module:
    """Marks every parameter of a module, and returns the module."""
    for parameter in module.parameters():
        mark(parameter, weight_decay=weight_decay, max_lr=max_lr)
    return module


class KeepsMarks(nn.Module):
    """A module whose copies by `copy.deepcopy` keep the marks: torch copies a parameter without its attributes."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = type(self).__new__(type(self))
        memo[id(self)] = new
        new.__dict__.update(copy.deepcopy(self.__dict__, memo))
        for own, copied in zip(self.parameters(), new.parameters(), strict=True):
            if hasattr(own, MARK):
                setattr(copied, MARK, dict(getattr(own, MARK)))
        return new
