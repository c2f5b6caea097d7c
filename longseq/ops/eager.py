"""Operators without torch's dispatcher, which takes 0.1 ms of host time a call: as long as many kernels run."""

from collections.abc import Callable
from typing import Any

import torch
from torch.autograd.function import once_differentiable


def without_dispatcher(
    forward: Callable[..., Any], save: Callable[..., None], differentiate: Callable[..., Any]
) -> Callable[..., Any]:
    """What a custom operator of these three parts does, called directly; for where `tracing.runs_eagerly`.

    Args:
        forward: the operator itself.
        save: its `setup_context`, called with the context, the inputs and the output.
        differentiate: its backward pass, called with the context and the outputs' gradients.
    """

    class Eager(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            save(ctx, inputs, output)
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *cotangents: Any) -> Any:
            return differentiate(ctx, *cotangents)

    return Eager.apply
