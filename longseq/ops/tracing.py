"""What torch is tracing for, asked in one place."""

import torch


def is_exporting() -> bool:
    """Whether torch.export traces now; within torch.compile torch's own answer is always true as well (torch 2.11)."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()


def runs_eagerly(x: torch.Tensor) -> bool:
    """Whether a call runs now, on plain tensors: then kernels may be called directly, without the dispatcher's 0.1 ms.

    Under torch.compile, for fake tensors, subclasses and function transforms an operator registered with torch is needed.
    """
    if torch.compiler.is_compiling() or type(x) not in (torch.Tensor, torch.nn.Parameter):
        return False
    return not (torch._C._len_torch_dispatch_stack() or torch._C._are_functorch_transforms_active())
