"""Block sizes of the long convolution's kernels, by GPU family; measured figures are in README.md."""

import functools
from typing import NamedTuple

import torch


class Choice(NamedTuple):
    """How the kernels around the transforms run.

    Attributes:
        places: positions of a transposed tile.
        channels: channels of a transposed tile.
        warps: warps that share it.
        block: complex numbers of a program that works along one signal.
    """

    places: int
    channels: int
    warps: int
    block: int


_SAFE = Choice(64, 32, 4, 1024)
_HOPPER = Choice(32, 32, 4, 1024)
# By (major) compute capability. Nothing here needs much memory on the chip: what is not in the table has not been measured.
BY_FAMILY = {9: _HOPPER, 10: _HOPPER}
# Complex numbers of one spectrum of a group of channels: half a gigabyte if that is all of them, else half of that. Twice as
# much is 1 % faster, half as much 20 % slower.
_ONE_GROUP, _GROUP = 1 << 26, 1 << 25


@functools.lru_cache
def choose(device: torch.device) -> Choice:
    """The choice for a device."""
    family = torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
    return BY_FAMILY.get(family, _SAFE)


def group_width(batch: int, width: int, n: int) -> int:
    """Channels whose transforms are in memory together."""
    return width if batch * width * n <= _ONE_GROUP else max(1, _GROUP // (batch * n))
