"""What torch is tracing for, asked in one place."""

import torch


def is_exporting() -> bool:
    """Whether torch.export traces now; within torch.compile torch's own answer is always true as well (torch 2.11)."""
    return torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling()
