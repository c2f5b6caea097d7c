"""What the operators' self-checks share: kernels beside the chunked form, outputs and gradients, and the worst error."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


def worst(errors: Iterable[float]) -> float:
    """The largest; NaN, which is no maximum to Python, is larger than any."""
    return max(errors, key=lambda error: float("inf") if error != error else error)


def launch_all(forward: Callable[..., Any], backward: Callable[..., Any], values: list[Tensor]) -> None:
    """The launches of a recurrence with step sizes through softplus: forward, forward for training, and backward.

    Args:
        forward: of the values, an initial state, mask, segments, `softplus`, `reverse` and `save`.
        backward: of the outputs' gradients, the values, mask, segments, what was kept, `softplus` and `reverse`.
        values: the positional arguments that are always there.
    """
    given = (*values, None, None, None, True, False)
    forward(*given, save=False)
    y, state, kept = forward(*given, save=True)
    backward(y, state, *values, None, None, kept, True, False)


def largest_error(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    chunked: Callable[..., tuple[Tensor, Tensor]],
    cases: list[list[Tensor]],
    generator: torch.Generator,
    **options: Any,
) -> float:
    """The largest relative error of an operator's outputs, last state and gradients.

    Args:
        kernel: runs on the cases as they are.
        chunked: runs on them in float32.
        cases: positional arguments; the first has the outputs' shape.
        generator: of the outputs' gradients.
        options: arguments by name.
    """
    errors: list[float] = []
    for values in cases:
        results = []
        dy = torch.randn(values[0].shape, generator=generator).to(values[0])
        with torch.enable_grad():
            for run in (kernel, chunked):
                leaves = [(v if run is kernel else v.float()).clone().requires_grad_() for v in values]
                y, state = run(*leaves, **options)
                results.append([y, state, *torch.autograd.grad([y, state.sum()], leaves, [dy.to(y.dtype), None])])
        pairs = zip(*results, strict=True)
        errors += [((ours.float() - expected).norm() / expected.norm()).item() for ours, expected in pairs]
    return worst(errors)
