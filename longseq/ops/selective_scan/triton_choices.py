"""Block sizes of the selective scan's kernels: one table, by GPU family, size of the state and how many channels there are."""

from typing import NamedTuple

# Steps that the kernels read ahead, and between the states that the forward pass usually keeps for the backward pass.
KEEP = 8
# Whole tiles of steps: the longest that a program takes at a time.
LONGEST = 16
# The largest state for which a program's registers suffice.
MAX_STATES = 256


class Choice(NamedTuple):
    """How one kernel is run.

    Attributes:
        values: states a thread holds; with 32 * warps threads this sets the tile of channels. Where a thread holds all of a
            channel's, time is walked step by step (`triton_steps.py`), else in tiles of steps. Backward 16, with one warp,
            is the kernel of `triton_gradients.py`.
        warps: warps of a program.
        steps: time steps of a tile: in forward a multiple of `keep`, in backward a divisor of it.
        programs: the sequence is cut into stretches until there are this many programs; 0 never cuts it.
        registers: the most a thread may use; 0 leaves it to the compiler, which may save them for more
            programs at once.
        dot: backward only, bfloat16 inputs: add over channels on the tensor cores, in bfloat16.
        touch: read what the next tile needs into the first-level cache.
        stored: backward only, where a thread holds all states: steps of a tile whose decays stay in registers.
        keep: steps between the states that the forward pass keeps for this backward pass: N / keep numbers for each element of
            x. Where a thread holds all states these steps are unrolled, and 8 of them compile for 12 s.
        walk_programs: programs that the first pass is cut into.
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
    stored: int = 3
    keep: int = KEEP
    walk_programs: int = 512

    def holds(self, n_states: int) -> bool:
        """Whether a thread holds all states of a channel, for a number of states that is a power of two."""
        return self.values >= n_states

    def block_width(self, n_states: int) -> int:
        """Channels of a program."""
        return max(self.warps, min(self.values, n_states) * 32 * self.warps // n_states)

    def stretches(self, batch: int, length: int, width: int, n_states: int) -> int:
        """Into how many stretches of time the sequence is cut."""
        tiles = batch * -(-width // self.block_width(n_states))
        # Cutting costs the recurrence a second time, so a little too few programs are better than two stretches.
        if self.programs == 0 or 3 * tiles >= 2 * self.programs:
            return 1
        return max(1, min(-(-self.programs // tiles), length // (16 * LONGEST)))


# The kernel that walks step by step holds at most this many states in a thread, and unrolls this many steps.
WALKED_STATES, UNROLL = 16, 2
# Warps of a program of the first pass over stretches of time.
WALK_WARPS = 4

# What works anywhere: forward, forward for many states, backward.
_SAFE = (Choice(16, 4, 8, 190), Choice(4, 4, 8, 512), Choice(4, 4, 8, 512))
# By (major) compute capability; that of 9 was measured on an H100 (README.md).
_BY_FAMILY = {
    8: _SAFE,
    9: (
        Choice(8, 4, 16, 256, 255, keep=16),
        Choice(8, 4, 16, 256, keep=16),
        Choice(16, 1, 4, 1024, stored=4, keep=4, walk_programs=2048),
    ),
    10: _SAFE,
    12: _SAFE,
}
# Backward where a lane does not have a channel: its kernel takes up to 16 states, and bfloat16. It saves a quarter of the time
# and compiles for 4 s, for every width anew: worth it from so many elements of x on, where it saves half a millisecond a call.
_BACKWARD_TILES = Choice(4, 4, 8, 512, dot=True)
LANES_FROM = 1 << 25
# Forward where batch and channels do not fill the GPU: time is cut into twice as many stretches as all schedulers hold warps.
_LONG = Choice(16, 4, 8, 1056)


def padded_states(n_states: int) -> int:
    """The states a kernel works with: a power of two, at least 4."""
    return max(4, 1 << (n_states - 1).bit_length())


def choose(
    capability: int, batch: int, length: int, width: int, n_states: int, is_bfloat16: bool = True
) -> tuple[Choice, Choice]:
    """Forward and backward choice for a major compute capability; anything unknown gets what works everywhere."""
    steps, tiles, _ = _BY_FAMILY.get(capability, _SAFE)
    backward = choose_backward(capability, batch * length * width, n_states, is_bfloat16)
    padded = padded_states(n_states)
    if padded > WALKED_STATES:
        return tiles, backward
    return (_LONG if steps.stretches(batch, length, width, padded) > 1 else steps), backward


def choose_backward(capability: int, elements: int, n_states: int, is_bfloat16: bool) -> Choice:
    """The backward choice for as many elements of x."""
    backward = _BY_FAMILY.get(capability, _SAFE)[2]
    if backward.values != WALKED_STATES:
        return backward
    if not is_bfloat16 or padded_states(n_states) > WALKED_STATES:
        return _BACKWARD_TILES
    # The same states are kept, so that the forward pass and the tiles are compiled once for all sizes.
    return backward if elements >= LANES_FROM else tiles_for(backward)


def tiles_for(lanes: Choice) -> Choice:
    """The kernel of tiles that begins at the states which were kept for that of lanes."""
    return _BACKWARD_TILES._replace(steps=lanes.keep, keep=lanes.keep)
