"""Block sizes of the diagonal recurrence's kernels, by GPU family; measured figures are in README.md."""

from typing import NamedTuple

import torch

from longseq.ops.gpu import family


class Tile(NamedTuple):
    """Rows (of chunks) that a program runs side by side, its warps, chunks in flight, and at most so many registers."""

    rows: int
    warps: int
    stages: int
    registers: int | None = None


class Choices(NamedTuple):
    """One family's choices for 16-bit inputs; fp32 has twice the bytes and three products for one.

    Attributes:
        passes: first pass.
        outputs: second pass.
        gradients: backward.
        fp32: both passes, for fp32 inputs.
        fp32_gradients: backward, for fp32 inputs.
    """

    passes: Tile
    outputs: Tile
    gradients: Tile
    fp32: Tile
    fp32_gradients: Tile


_SAFE = Choices(Tile(32, 4, 2), Tile(32, 4, 2), Tile(32, 4, 1), Tile(16, 4, 1), Tile(16, 4, 1))
# With 168 registers for 172 three programs of the second pass fit for two, and nothing spills.
_HOPPER = Choices(Tile(64, 4, 3), Tile(64, 4, 4, 168), Tile(64, 4, 2), Tile(16, 4, 2), Tile(16, 4, 1))
# By (major) compute capability: measured on 9; 10 has as much room on the chip. Anything else gets what fits everywhere.
BY_FAMILY = {9: _HOPPER, 10: _HOPPER}
# Positions by channels of a transposed tile.
TRANSPOSE = {"places": 64, "channels": 64, "warps": 8}
# Programs that keep a large GPU busy.
PROGRAMS = 1024
# Rows whose states are read ahead while one is carried to the next.
UNROLL = 8


def tile(kernel: str, device: torch.device, *, fp32: bool, modes: int) -> Tile:
    """How a kernel ("passes", "outputs", "gradients") runs on a device."""
    choices = BY_FAMILY.get(family(device), _SAFE)
    if fp32:
        chosen = choices.fp32_gradients if kernel == "gradients" else choices.fp32
    else:
        chosen = getattr(choices, kernel)
    return chosen if modes <= 32 else chosen._replace(rows=max(16, chosen.rows // 2))


def chunk(largest: int, device: torch.device, *, fp32: bool) -> int:
    """Positions of a chunk: three TF32 products' operands of 64 positions are more than an unknown GPU may have room for."""
    return largest if not fp32 or family(device) in BY_FAMILY else max(16, largest // 2)


def cdiv(total: int, block: int) -> int:
    """How many blocks cover a total; triton's function of this name takes 10 us on the host."""
    return -(-total // block)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
