"""Block sizes of SSD's kernels: one table, by GPU family and by how wide the products are."""

from typing import NamedTuple

# The largest head and state, and the most elements of a state, whose tiles fit into registers and shared memory.
MAX_WIDTH, MAX_STATES, MAX_STATE_ELEMENTS = 128, 256, 16384


class Choice(NamedTuple):
    """How the kernels are run.

    Attributes:
        chunk: positions of a chunk, at least 16; one state is kept for each chunk when a backward pass will follow.
        warps: warps of a program that walks through the chunks of a head.
        stages: chunks whose inputs are on their way at a time.
        walk_stages: the same where states alone are made.
        programs: the sequence is cut into stretches of chunks until there are this many programs.
        heads: heads whose inputs' gradients a program makes, one after another.
        grad_warps: its warps.
        grad_stages: heads whose inputs are on their way at a time.
        again: makes the scores anew for each head instead of holding them.
        map_warps: warps of a program that makes the gradients of B and C.
        map_stages: heads whose inputs are on their way at a time.
        map_programs: it takes all heads of a group one after another where there are this many programs, else fewer.
        least: the smallest block of a head's or state's dimension; smaller ones are filled with zeros.
    """

    chunk: int
    warps: int = 4
    stages: int = 2
    programs: int = 256
    heads: int = 8
    grad_warps: int = 8
    grad_stages: int = 1
    again: bool = False
    map_warps: int = 8
    map_stages: int = 2
    map_programs: int = 256
    walk_stages: int = 1
    least: int = 16

    def fitted(self, elements: int) -> "Choice":
        """The same for states of this many elements: large ones leave no shared memory for inputs that are on their way."""
        if elements <= MAX_STATE_ELEMENTS // 2:
            return self
        return self._replace(grad_stages=1, map_stages=1, again=False)

    def stretches(self, batch: int, n_heads: int, n_chunks: int) -> int:
        """Into how many stretches of time the sequence is cut."""
        tiles = batch * n_heads
        # A second stretch costs a pass over the inputs, so a little too few programs are better.
        if 3 * tiles >= 2 * self.programs:
            return 1
        return max(1, min(-(-self.programs // tiles), n_chunks // 8))


# What fits the smallest shared memory: bfloat16 inputs, wider ones.
_SAFE = (Choice(32, stages=1, map_stages=1), Choice(16, stages=1, map_stages=1))
# Warp groups multiply 64 rows at a time. With fewer the compiler takes the older instructions, whose operands overflow the
# registers: 14,600 bytes of spills in the gradients of float32 at 32 rows, 4,140 at 64.
# Smaller blocks than 64 went wrong on an H100 in float32: inf at 16 x 16, where the compiler lets a product read what another
# thread has just written, with the fence on the wrong side of the barrier; an illegal address at 32 x 256 (see the README).
_HOPPER = (
    Choice(64, heads=16, grad_warps=4, grad_stages=2, again=True, walk_stages=2, least=64),
    Choice(64, stages=1, map_stages=1, least=64),
)
_BY_FAMILY = {9: _HOPPER}


def choose(capability: int, wide: bool) -> Choice:
    """The choice for a major compute capability; `wide` inputs are float32 or float16."""
    return _BY_FAMILY.get(capability, _SAFE)[wide]


def block_of(size: int, least: int = 16) -> int:
    """The power of two, at least `least`, that holds a dimension of a product."""
    return max(least, 1 << (size - 1).bit_length())
