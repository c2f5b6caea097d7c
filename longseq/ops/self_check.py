"""What the operators' self-checks share: kernels beside the chunked form, outputs and gradients, and the worst error."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from longseq.ops.triton_launch import compiled_ahead

Outputs = Tensor | tuple[Tensor, ...]


def worst(errors: Iterable[float]) -> float:
    """The largest; NaN, which is no maximum to Python, is larger than any."""
    return max(errors, key=lambda error: float("inf") if error != error else error)


def launch_all(
    forward: Callable[..., Any], backward: Callable[..., Any], values: list[Tensor], *, inference: bool = True
) -> None:
    """The launches of a recurrence with step sizes through softplus: forward, forward for training, and backward.

    Args:
        forward: of the values, an initial state, mask, segments, `softplus`, `reverse` and `save`.
        backward: of the outputs' gradients, the values, mask, segments, what was kept, `softplus` and `reverse`.
        values: the positional arguments that are always there.
        inference: False leaves out the first, which the check itself does not run.
    """
    given = (*values, None, None, None, True, False)
    if inference:
        forward(*given, save=False)
    y, state, kept = forward(*given, save=True)
    backward(y, state, *values, None, None, kept, True, False)


def largest_error(
    kernel: Callable[..., Outputs],
    exact: Callable[..., Outputs],
    cases: list[list[Tensor]],
    launches: Callable[[], object] = lambda: None,
) -> float:
    """The largest relative error of an operator's outputs and gradients.

    Args:
        kernel: takes a case's tensors as they are.
        exact: the same in plain PyTorch; takes them in float32, while the kernels are being compiled.
        cases: lists of tensors; the first of each has the first output's shape.
        launches: launches all kernels that will run.
    """
    generator = torch.Generator().manual_seed(1)
    slopes = [torch.randn(values[0].shape, generator=generator).to(values[0]) for values in cases]
    pairs = list(zip(cases, slopes, strict=True))
    with torch.enable_grad():
        with compiled_ahead(launches):
            expected = [_outputs_and_gradients(exact, [v.float() for v in values], dy) for values, dy in pairs]
        found = [_outputs_and_gradients(kernel, values, dy) for values, dy in pairs]
    both = [ab for a, b in zip(found, expected, strict=True) for ab in zip(a, b, strict=True)]
    return worst(((a.float() - b).norm() / b.norm().clamp(min=1e-6)).item() for a, b in both)


def _outputs_and_gradients(run: Callable[..., Outputs], values: list[Tensor], dy: Tensor) -> list[Tensor]:
    """Gradients for that of the first output, and for ones of the others."""
    leaves = [v.detach().clone().requires_grad_() for v in values]
    outputs = run(*leaves)
    y, *others = (outputs,) if isinstance(outputs, Tensor) else outputs
    slopes = [dy.to(y.dtype), *(torch.ones_like(other) for other in others)]
    return [v.detach() for v in (y, *others)] + list(torch.autograd.grad([y, *others], leaves, slopes))
