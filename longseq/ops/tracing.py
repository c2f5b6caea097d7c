"""What torch is tracing for, asked in one place."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_for_onnx = False


def is_exporting() -> bool:
    """Whether torch.export traces now; within torch.compile torch's own answer is always true as well (torch 2.11)."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def is_exporting_onnx() -> bool:
    """Whether the graph that is being exported will be ONNX: in `torch.onnx.export`, or where `exporting_onnx` says so."""
    return is_exporting() and (_for_onnx or torch.onnx.is_in_onnx_export())


@contextmanager
def exporting_onnx(wanted: bool = True) -> Iterator[None]:
    """Says to operators that what torch.export traces inside will become ONNX.

    onnxruntime is fast at other operators than torch is, and a traced graph no longer knows where it came from.

    Args:
        wanted: False changes nothing.
    """
    global _for_onnx
    before = _for_onnx
    _for_onnx = wanted or before
    try:
        yield
    finally:
        _for_onnx = before


def runs_eagerly(x: torch.Tensor) -> bool:
    """Whether a call runs now, on plain tensors: then kernels may be called directly, without the dispatcher's 0.1 ms.

    Under torch.compile, for fake tensors, subclasses and function transforms an operator registered with torch is needed.
    """
    if torch.compiler.is_compiling() or type(x) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())
