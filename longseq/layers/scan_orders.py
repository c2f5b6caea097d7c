"""Orders in which a one-dimensional mixer reads an image or a video, as permutations that can be undone."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from longseq.backbone import Mixer, State

# The four reads of VMamba's cross scan, one per layer here.
CROSS = ("raster", "column", "raster-reversed", "column-reversed")
SCAN_ORDERS = ("raster", "column", "time", "snake", "hilbert")
_REVERSED = "-reversed"


def scan_order(name: str, grid: Sequence[int]) -> Tensor:
    """The permutation p such that `x[:, p]` reads a row-major grid in the named order.

    `raster` is row by row (the identity); `column` runs down the columns, frame by frame in 3-D; `time` (3-D only) runs
    through the frames at each pixel; `snake` is raster with every second line backwards; `hilbert` fills the grid along a
    Hilbert curve. `snake` steps between touching cells only; `hilbert` does so on squares and cubes whose side is a power
    of two, and elsewhere is the curve of the enclosing power of two with the outside left out. `<name>-reversed` reads
    the same path from its end.

    Args:
        name: `raster`, `column`, `time`, `snake` or `hilbert`, optionally with `-reversed`.
        grid: (H, W) or (T, H, W), each 1 or more.

    Returns:
        int64 (H * W) or (T * H * W).

    Raises:
        ValueError: for an unknown name, or a grid without two or three positive sizes.

    Cost: O(L log L), once; the result is remembered.

    Paper: Mamba-ND, https://arxiv.org/abs/2402.05892, section 3.2 (axis orders, one per layer); the curve by Skilling's
    transposition, https://doi.org/10.1063/1.1751381.
    """
    return _order(name, tuple(int(size) for size in grid)).clone()


def inverse_order(order_L: Tensor) -> Tensor:
    """The permutation that undoes another: `x[:, p][:, inverse_order(p)] = x`."""
    place_L = torch.arange(order_L.shape[0], device=order_L.device)
    return torch.empty_like(order_L).scatter(0, order_L, place_L)


@lru_cache(maxsize=256)
def _order(name: str, grid: tuple[int, ...]) -> Tensor:
    if len(grid) not in (2, 3) or min(grid) < 1:
        raise ValueError(f"grid must be (H, W) or (T, H, W) with sizes of 1 or more, found {grid}")
    base = name.removesuffix(_REVERSED)
    if base not in SCAN_ORDERS or (base == "time" and len(grid) == 2):
        known = ", ".join(order for order in SCAN_ORDERS if len(grid) == 3 or order != "time")
        raise ValueError(f"scan order {name!r} for the grid {grid}: expected one of {known}, optionally with {_REVERSED!r}")
    cells = torch.arange(math.prod(grid)).view(grid)
    if base == "column":
        cells = cells.transpose(-1, -2)
    elif base == "time":
        cells = cells.movedim(0, -1)
    elif base == "snake":
        cells = _snake(cells)
    order_L = _hilbert(grid) if base == "hilbert" else cells.flatten()
    return order_L.flip(0) if name.endswith(_REVERSED) else order_L


def _snake(cells: Tensor) -> Tensor:
    """Flips every second line along the last axis, then every second plane along the axis before it."""
    cells = cells.clone()
    cells[..., 1::2, :] = cells[..., 1::2, :].flip(-1)
    if cells.dim() == 3:
        # A frame with its lines in the opposite order starts where the frame before it ended.
        cells[1::2] = cells[1::2].flatten(1).flip(1).view_as(cells[1::2])
    return cells


def _hilbert(grid: tuple[int, ...]) -> Tensor:
    """Cells sorted by their distance along the curve through the enclosing cube."""
    n_bits = max(1, (max(grid) - 1).bit_length())
    axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
    return _hilbert_distance([axis.flatten() for axis in axes], n_bits).argsort(stable=True)


def _hilbert_distance(axes: list[Tensor], n_bits: int) -> Tensor:
    """Distance along the curve for integer coordinates below 2^n_bits, one tensor per axis."""
    axes = [axis.clone() for axis in axes]
    # Undo the reflections and rotations of each level, from the coarsest down.
    for level in range(n_bits - 1, 0, -1):
        bit, low = 1 << level, (1 << level) - 1
        for i in range(len(axes)):
            reflect = (axes[i] & bit) != 0
            swap = torch.where(reflect, 0, (axes[0] ^ axes[i]) & low)
            axes[0] = torch.where(reflect, axes[0] ^ low, axes[0] ^ swap)
            axes[i] = axes[i] ^ swap if i > 0 else axes[0]
    # Gray code across the axes.
    for i in range(1, len(axes)):
        axes[i] = axes[i] ^ axes[i - 1]
    flips = torch.zeros_like(axes[0])
    for level in range(n_bits - 1, 0, -1):
        flips = torch.where((axes[-1] & (1 << level)) != 0, flips ^ ((1 << level) - 1), flips)
    axes = [axis ^ flips for axis in axes]
    # The distance's bits are the axes' bits in turn, the highest first.
    distance = torch.zeros_like(axes[0])
    for level in range(n_bits - 1, -1, -1):
        for axis in axes:
            distance = (distance << 1) | ((axis >> level) & 1)
    return distance


class Reordered(Mixer):
    """A mixer that reads the grid in a given order: permute, mix, and put every position back.

    Positions of the sequence are the grid's cells in raster order, after `n_prefix` tokens that stay in front. Layers
    with different orders in turn give a causal mixer all directions over depth, at the cost of one.

    Args:
        mixer: any mixer over (B, L, D).
        order: see `scan_order`.
        grid: (H, W) or (T, H, W).
        n_prefix: tokens in front of the cells, such as a class token.
        token: place in the sequence of one token that is no cell, where it stays in every order; None for none.

    Raises:
        ValueError: when the sequence is not as long as the grid with its prefix.

    Cost: the mixer's, and two gathers of (B, L, D).

    Paper: Mamba-ND, https://arxiv.org/abs/2402.05892, section 3.2.
    """

    permutation: Tensor
    inverse: Tensor

    def __init__(self, mixer: Mixer, order: str, grid: Sequence[int], n_prefix: int = 0, token: int | None = None) -> None:
        super().__init__()
        self.mixer = mixer
        self.order = order
        self.grid = tuple(int(size) for size in grid)
        prefix_L = torch.arange(n_prefix)
        order_L = torch.cat((prefix_L, scan_order(order, self.grid) + n_prefix))
        if token is not None:
            order_L = order_L + (order_L >= token)
            order_L = torch.cat((order_L[:token], torch.tensor([token]), order_L[token:]))
        # Both follow from the options, so a checkpoint need not hold them.
        self.register_buffer("permutation", order_L, persistent=False)
        self.register_buffer("inverse", inverse_order(order_L), persistent=False)
        in_place = bool((order_L[1:] > order_L[:-1]).all())
        self.causal = mixer.causal and in_place
        self.can_step = mixer.can_step and in_place
        self.state_grows = mixer.state_grows
        self.max_length = mixer.max_length

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        if x_BLD.shape[1] != self.permutation.shape[0]:
            cells = " x ".join(str(size) for size in self.grid)
            raise ValueError(
                f"scan order {self.order!r}: a grid of {cells} has {self.permutation.shape[0]} positions with its prefix, "
                f"found a sequence of {x_BLD.shape[1]}; set grid to the input's sizes"
            )
        mask_BL, segment_ids_BL = (None if x is None else x[:, self.permutation] for x in (mask_BL, segment_ids_BL))
        return self.mixer(x_BLD[:, self.permutation], mask_BL, segment_ids_BL)[:, self.inverse]

    def init_state(self, batch_size: int) -> State:
        if not self.can_step:
            raise self.cannot_step()
        return self.mixer.init_state(batch_size)

    def forward_chunk(self, x_BLD: Tensor, state: State, mask_BL: Tensor | None = None) -> tuple[Tensor, State]:
        if not self.can_step:
            raise self.cannot_step()
        return self.mixer.forward_chunk(x_BLD, state, mask_BL)

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        if not self.can_step:
            raise self.cannot_step()
        return self.mixer.step(x_BD, state)

    def extra_repr(self) -> str:
        return f"order={self.order!r}, grid={self.grid}"


def alternate_orders(
    mixers: Sequence[Mixer], orders: Sequence[str], grid: Sequence[int], n_prefix: int = 0, token: int | None = None
) -> list[Mixer]:
    """Gives successive mixers the orders in turn; `cross` stands for the four reads of `CROSS`."""
    names = [name for order in orders for name in (CROSS if order == "cross" else (order,))]
    if not names:
        raise ValueError("scan_orders is empty: name at least one order, such as raster")
    return [Reordered(mixer, names[i % len(names)], grid, n_prefix, token) for i, mixer in enumerate(mixers)]
