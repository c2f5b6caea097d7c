"""Block sizes of the selective scan's kernels: one table, by GPU family, size of the state and how many channels there are."""

from typing import NamedTuple

# Steps between the states that the forward pass keeps for the backward pass: N / KEEP numbers for each input element.
KEEP = 8
# Whole tiles of steps: the longest that a program takes at a time.
LONGEST = 16
# The largest state for which a program's registers suffice.
MAX_STATES = 256


class Choice(NamedTuple):
    """How one kernel is run.

    Attributes:
        values: states a thread holds; with 32 * warps threads this sets the tile of channels.
        warps: warps of a program.
        steps: time steps of a tile: in forward KEEP or twice as many, in backward a divisor of KEEP.
        programs: the sequence is cut into stretches until there are this many programs; 0 never cuts it.
        registers: the most a thread may use; 0 leaves it to the compiler.
        dot: backward only, bfloat16 inputs: add over channels on the tensor cores, in bfloat16.
        touch: read what the next tile needs into the first-level cache.
        stages: backward only, with `dot`: tiles whose B and C are in shared memory at a time; 1 reads them when needed.
    """

    values: int
    warps: int
    steps: int
    programs: int
    registers: int = 0
    dot: bool = False
    touch: bool = True
    stages: int = 1

    def block_width(self, n_states: int) -> int:
        """Channels of a program, for a number of states that is a power of two."""
        return max(self.warps, self.values * 32 * self.warps // n_states)

    def stretches(self, batch: int, length: int, width: int, n_states: int) -> int:
        """Into how many stretches of time the sequence is cut."""
        tiles = batch * -(-width // self.block_width(n_states))
        # Cutting costs the recurrence a second time, so a little too few programs are better than two stretches.
        if self.programs == 0 or 3 * tiles >= 2 * self.programs:
            return 1
        return max(1, min(-(-self.programs // tiles), length // (16 * LONGEST)))


# What is known to work anywhere.
_SAFE = (Choice(4, 4, 8, 512), Choice(4, 4, 8, 512))
# By (major) compute capability: forward, backward. Measured on an H200 on 2026-11-22 before tiles were touched ahead, when 8
# values were the fastest where batch and channels fill the GPU, and 2 where time is cut into stretches.
_BY_FAMILY = {
    8: _SAFE,
    9: (Choice(8, 4, 16, 256), Choice(4, 4, 8, 512, dot=True)),
    10: _SAFE,
    12: _SAFE,
}
# The forward choice where the other one would cut time into stretches.
_LONG = {9: Choice(2, 4, 16, 1024)}


def padded_states(n_states: int) -> int:
    """The states a kernel works with: a power of two, at least 4."""
    return max(4, 1 << (n_states - 1).bit_length())


def choose(capability: int, batch: int, length: int, width: int, n_states: int) -> tuple[Choice, Choice]:
    """Forward and backward choice for a major compute capability; anything unknown gets what works everywhere."""
    forward, backward = _BY_FAMILY.get(capability, _SAFE)
    if capability in _LONG and forward.stretches(batch, length, width, padded_states(n_states)) > 1:
        forward = _LONG[capability]
    return forward, backward
