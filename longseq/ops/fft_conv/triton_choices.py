"""Block sizes of the long convolution's kernels, by GPU family; measured figures are in README.md."""

from typing import NamedTuple

import torch

from longseq.ops.gpu import family


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


def choose(device: torch.device, short: bool) -> Choice:
    """The choice for a device, around transforms of one program or cuFFT's."""
    return _SHORT_TILE if short else BY_FAMILY.get(family(device), _SAFE)


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
    if family(device) not in SHORT_FAMILIES:
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


# Sequences too long for one program, in three passes, bf16 only as above: bits of the shortest and the longest transform, and
# how many times the positions it may have at most (it is a power of two, cuFFT's is not). "last" below "first" is off. Up to
# "fused" batch rows each transforms the taps' rows by itself.
LONG = {"first": 14, "last": 20, "waste": 1.5, "fused": 1}
# Families that it was measured on.
LONG_FAMILIES = {9}
# Positions of a row, a power of two, by the bits of the transform; the columns have the rest, 16 to 128.
LONG_ROWS = {14: 1024, 15: 2048, 16: 4096, 17: 4096, 18: 4096, 19: 8192, 20: 8192}
# Packed numbers of one signal of a group of channels.
LONG_GROUP = {"size": 1 << 26}


class LongTile(NamedTuple):
    """How the columns are transformed.

    Attributes:
        channels: channels of a tile.
        places: places of a row in a tile; 8 are a sector of memory, as are 16 channels in bf16.
        warps: warps that share it on the way in.
        warps_back: and on the way back, with half as many sums.
    """

    channels: int
    places: int
    warps: int
    warps_back: int


# Registers of a thread at most, so that another program fits beside, by the positions of a row or column
# and what it is for.
LONG_REGISTERS = {(8192, "taps"): 128, (8192, "back"): 128}
# By the positions of a column.
LONG_TILES = {
    16: LongTile(32, 8, 4, 4),
    32: LongTile(16, 8, 4, 4),
    64: LongTile(16, 8, 4, 4),
    128: LongTile(16, 8, 8, 8),
}


def long_factors(needed: int, dtype: torch.dtype, device: torch.device) -> tuple[int, int, int] | None:
    """N1, NA and NB, if a sequence of this length is transformed in three passes, else None."""
    if dtype != torch.bfloat16 or family(device) not in LONG_FAMILIES:
        return None
    n = power_of_two(needed)
    bits = n.bit_length() - 1
    if not LONG["first"] <= bits <= LONG["last"] or n > LONG["waste"] * needed:
        return None
    row_bits = LONG_ROWS[bits].bit_length() - 1
    return n >> row_bits, 1 << (row_bits + 1) // 2, 1 << row_bits // 2


def long_group(batch: int, width: int, n: int, channels: int) -> int:
    """Channels whose packed numbers are in memory together: whole tiles."""
    return width if batch * width * n <= LONG_GROUP["size"] else max(1, LONG_GROUP["size"] // (batch * n * channels)) * channels


def long_warps(row: int) -> int:
    return max(1, min(8, row // SHORT["per_warp"])) if row > 4096 else short_warps(row)
