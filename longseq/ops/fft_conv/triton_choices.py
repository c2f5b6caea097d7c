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
# Around transforms of one program signals are real and bf16: tiles of as many bytes hold more of them.
_SHORT_TILE = Choice(64, 64, 8, 1024)
# By (major) compute capability: measured on 9; 10 has as much room on the chip. Anything else gets what fits everywhere.
BY_FAMILY = {9: _HOPPER, 10: _HOPPER}
# Complex numbers of one spectrum of a group of channels: half a gigabyte if that is all of them, else half of that. Twice as
# much is 1 % faster, half as much 20 % slower.
_ONE_GROUP, _GROUP = 1 << 26, 1 << 25


@functools.lru_cache
def _family(device: torch.device) -> int:
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0


def choose(device: torch.device, short: bool) -> Choice:
    """The choice for a device, around transforms of one program or cuFFT's."""
    return _SHORT_TILE if short else BY_FAMILY.get(_family(device), _SAFE)


def group_width(batch: int, width: int, n: int) -> int:
    """Channels whose transforms are in memory together."""
    return width if batch * width * n <= _ONE_GROUP else max(1, _GROUP // (batch * n))


# Lengths that one program transforms, positions to a warp, and how many warps at most (rows of 64 are a group of four's): bf16
# only, since products have 11 bits. Less than half of the first is left to cuFFT.
SHORT = {"first": 256, "last": 4096, "per_warp": 512, "warps": 4}
# Families with room for it; on compute capability 8 the compiler runs out of registers.
SHORT_FAMILIES = {9, 10}


def short_factors(needed: int, dtype: torch.dtype, device: torch.device) -> tuple[int, int] | None:
    """The sides of the matrix of positions, if a sequence of this length is transformed by one program, else None."""
    if dtype != torch.bfloat16 or not SHORT["first"] // 2 < needed <= SHORT["last"]:
        return None
    if _family(device) not in SHORT_FAMILIES:
        return None
    bits = max(SHORT["first"], power_of_two(needed)).bit_length() - 1
    return 1 << (bits + 1) // 2, 1 << bits // 2


def short_warps(n: int) -> int:
    return max(1, min(SHORT["warps"], n // SHORT["per_warp"]))


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()


def cdiv(total: int, block: int) -> int:
    """How many blocks cover a total; triton's function of this name takes 10 us on the host."""
    return -(-total // block)
