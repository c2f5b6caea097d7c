"""Block sizes of window attention's kernels, by GPU family; measured figures are in README.md."""

import functools
from typing import NamedTuple

import torch

from longseq.ops.gpu import family

# Global tokens handled at once: the smallest side of a tensor-core product.
SLOTS = 16


class Tile(NamedTuple):
    """Queries and keys of a block, warps that share it, key (or query) blocks in flight, and at most so many registers."""

    queries: int
    keys: int
    warps: int
    stages: int
    registers: int | None = None


# For heads of up to 64, 128 and 256 numbers, by kernel, for 16-bit inputs. The safe one fits in 64 KiB of shared memory.
_SAFE = {
    "forward": {64: Tile(64, 32, 4, 2), 128: Tile(32, 32, 4, 2), 256: Tile(32, 16, 4, 1)},
    "queries": {64: Tile(32, 32, 4, 2), 128: Tile(32, 32, 4, 1), 256: Tile(16, 16, 4, 1)},
    "keys": {64: Tile(32, 32, 4, 2), 128: Tile(32, 32, 4, 1), 256: Tile(16, 16, 4, 1)},
    "rows": {64: Tile(SLOTS, 64, 4, 2), 128: Tile(SLOTS, 32, 4, 1), 256: Tile(SLOTS, 16, 4, 1)},
    "rows_backward": {64: Tile(SLOTS, 64, 4, 1), 128: Tile(SLOTS, 32, 4, 1), 256: Tile(SLOTS, 16, 4, 1)},
}
_HOPPER = {
    "forward": {64: Tile(64, 64, 4, 3), 128: Tile(128, 64, 8, 3), 256: Tile(64, 32, 8, 2)},
    "queries": {64: Tile(64, 64, 4, 2), 128: Tile(64, 64, 8, 2), 256: Tile(32, 32, 8, 2)},
    # 168 registers for the 172 that it would take: three programs fit for two, and nothing spills.
    "keys": {64: Tile(32, 64, 4, 2, 168), 128: Tile(64, 64, 8, 2), 256: Tile(32, 32, 8, 2)},
    "rows": {64: Tile(SLOTS, 64, 4, 3), 128: Tile(SLOTS, 64, 4, 2), 256: Tile(SLOTS, 32, 4, 2)},
    "rows_backward": {64: Tile(SLOTS, 64, 4, 1), 128: Tile(SLOTS, 64, 8, 1), 256: Tile(SLOTS, 32, 8, 1)},
}
# By (major) compute capability: measured on 9; 10 has as much room on the chip. Anything else gets what fits everywhere.
BY_FAMILY = {9: _HOPPER, 10: _HOPPER}
# Four bytes a number and three products for one leave less room.
_FP32 = {64: Tile(64, 32, 4, 2), 128: Tile(32, 32, 4, 2), 256: Tile(16, 16, 4, 1)}
_FP32_SAFE = {64: Tile(32, 16, 4, 1), 128: Tile(16, 16, 4, 1), 256: Tile(16, 16, 4, 1)}


@functools.lru_cache
def tiles(device: torch.device, size: int, fp32: bool) -> dict[str, Tile]:
    """The tile of each kernel on a device, for heads of up to `size` numbers."""
    if fp32:
        return dict.fromkeys(_SAFE, (_FP32 if family(device) in BY_FAMILY else _FP32_SAFE)[size])
    return {kernel: sizes[size] for kernel, sizes in BY_FAMILY.get(family(device), _SAFE).items()}


def cdiv(total: int, block: int) -> int:
    """How many blocks cover a total; triton's function of this name takes 10 us on the host."""
    return -(-total // block)


def power_of_two(n: int) -> int:
    """The smallest power of two that is at least n."""
    return 1 << (n - 1).bit_length()
