"""Where automatic mixed precision must not reach."""

import contextlib

import torch


def without_autocast(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Switches autocast off where it is on: decays and states lose what they remember in 16 bits.

    Nothing otherwise, so that exported graphs hold no such region; and nothing on the meta device, which knows no autocast.
    """
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()
