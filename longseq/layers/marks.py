"""Marks that a parameter carries for the optimiser; `longseq.optim` builds the parameter groups from them."""

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
