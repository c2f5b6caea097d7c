"""Which kind of GPU a tensor is on."""

import functools

import torch


@functools.lru_cache
def family(device: torch.device) -> int:
    """The major compute capability, which kernels' sizes are chosen by: 9 is Hopper; 0 where kernels are interpreted."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
