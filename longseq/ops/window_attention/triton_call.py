"""The launches of window attention's kernels: sizes, options and pointers of one call."""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.ops.triton_launch import Launch
from longseq.ops.window_attention.triton_band import band_backward_keys, band_backward_queries, band_forward
from longseq.ops.window_attention.triton_choices import SLOTS, Tile, cdiv, power_of_two, tiles
from longseq.ops.window_attention.triton_global import add_parts, find_slots, rows_backward, rows_forward, rows_merge

LOG2_E = math.log2(math.e)
Strides = tuple[int, ...]


class Sizes(NamedTuple):
    """What the launches of a call depend on, beside strides."""

    batch: int
    length: int
    heads: int
    width: int
    n_keys: int
    window: int
    n_slots: int
    scale: float
    causal: bool
    has_mask: bool
    has_segments: bool
    has_global: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def rows(self) -> int:
        return self.batch * self.heads

    def tile(self, kernel: str) -> Tile:
        return tiles(self.device, max(64, self.shape[1]), self.dtype == torch.float32)[kernel]

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of a head, and of its padded block."""
        return self.width, max(16, power_of_two(self.width))

    @property
    def flags(self) -> tuple[bool, bool, bool]:
        return self.causal, self.has_mask, self.has_segments

    @property
    def precision(self) -> str:
        # Three TF32 products keep fp32's accuracy; the option says nothing about 16-bit inputs.
        return "tf32x3" if self.dtype == torch.float32 else "tf32"

    @property
    def whole(self) -> Strides:
        """Strides of a contiguous (B, L, H, P)."""
        return self.length * self.heads * self.width, self.heads * self.width, self.width

    @property
    def scales(self) -> tuple[float, float]:
        return self.scale, self.scale * LOG2_E

    @property
    def row_parts(self) -> tuple[int, int]:
        """Positions of a part of the keys that the global rows' programs share, and parts."""
        block = self.tile("rows").keys
        # About a thousand programs fill a large GPU, and a part is never less than a block.
        length = max(cdiv(self.length * self.rows, 1024 * block), 1) * block
        return length, cdiv(self.length, length)


# Launches are made once for sizes and strides: nothing in them belongs to a call's data.
_prepared = functools.lru_cache(256)


@_prepared
def _find_slots(at: Sizes) -> Launch:
    block = min(16384, power_of_two(at.length))
    return Launch(
        find_slots, (at.batch,), (at.length, at.n_slots), (at.has_mask, block, 64), warps=16 if block > 4096 else 4
    )  # fmt: skip


@_prepared
def _band_forward(at: Sizes, strides: Strides) -> Launch:
    tile = at.tile("forward")
    n_blocks = cdiv(at.length, tile.queries)
    numbers = (at.scales[1], at.length, at.n_keys, at.window, at.n_slots, n_blocks, at.heads, *strides, *at.whole)
    constants = (*at.shape, tile.queries, tile.keys, SLOTS, *at.flags, at.has_global, at.precision)
    return Launch(band_forward, (n_blocks * at.rows,), numbers, constants, *tile[2:])


@_prepared
def _rows_forward(at: Sizes, strides: Strides) -> Launch:
    tile, (part_length, n_parts) = at.tile("rows"), at.row_parts
    numbers = (at.scales[1], at.length, at.n_slots, n_parts, part_length, at.heads, *strides)
    constants = (*at.shape, tile.keys, SLOTS, *at.flags, at.precision)
    return Launch(rows_forward, (n_parts * at.rows,), numbers, constants, *tile[2:])


@_prepared
def _rows_merge(at: Sizes) -> Launch:
    n_parts = at.row_parts[1]
    numbers, constants = (at.n_slots, n_parts, at.heads, *at.whole), (*at.shape, min(64, power_of_two(n_parts)))
    return Launch(rows_merge, (at.rows * at.n_slots,), numbers, constants)


@_prepared
def _band_backward_queries(at: Sizes, strides: Strides) -> Launch:
    tile = at.tile("queries")
    n_blocks = cdiv(at.length, tile.queries)
    numbers = (*at.scales, at.length, at.n_keys, at.window, at.n_slots, n_blocks, at.heads, *strides)
    constants = (*at.shape, tile.queries, tile.keys, SLOTS, *at.flags, at.has_global, at.precision)
    return Launch(band_backward_queries, (n_blocks * at.rows,), numbers, constants, *tile[2:])


@_prepared
def _band_backward_keys(at: Sizes, strides: Strides) -> Launch:
    tile = at.tile("keys")
    n_blocks = cdiv(at.n_keys, tile.keys)
    whole = (at.n_keys * at.heads * at.width, *at.whole[1:])
    numbers = (*at.scales, at.length, at.n_keys, at.window, n_blocks, at.heads, *strides, *whole)
    constants = (*at.shape, tile.queries, tile.keys, *at.flags, at.precision)
    return Launch(band_backward_keys, (n_blocks * at.rows,), numbers, constants, *tile[2:])


@_prepared
def _rows_backward(at: Sizes, strides: Strides) -> Launch:
    tile = at.tile("rows_backward")
    n_blocks = cdiv(at.length, tile.keys)
    numbers = (*at.scales, at.length, at.n_slots, n_blocks, at.heads, *strides)
    constants = (*at.shape, tile.keys, SLOTS, *at.flags, at.precision)
    return Launch(rows_backward, (n_blocks * at.rows,), numbers, constants, *tile[2:])


@_prepared
def _add_parts(at: Sizes) -> Launch:
    n_parts, n_row_parts = cdiv(at.length, at.tile("queries").queries), cdiv(at.length, at.tile("rows_backward").keys)
    numbers = (at.n_slots, n_parts, n_row_parts, at.heads, *at.whole)
    return Launch(add_parts, (at.rows * at.n_slots, 3), numbers, (*at.shape, min(64, power_of_two(n_parts))))


class Call:
    """Sizes, options and launches of one call."""

    def __init__(
        self,
        q_BLHP: Tensor,
        k_BLHP: Tensor,
        global_mask_BL: Tensor | None,
        mask_BL: Tensor | None,
        segment_ids_BL: Tensor | None,
        window: int,
        causal: bool,
        scale: float,
        max_global: int | None,
    ) -> None:
        batch, length, heads, width = q_BLHP.shape
        n_keys = k_BLHP.shape[1]
        self.has_global = global_mask_BL is not None
        self.at = Sizes(
            batch, length, heads, width, n_keys, min(window, n_keys), count_slots(global_mask_BL, max_global), scale, causal,
            mask_BL is not None, segment_ids_BL is not None, self.has_global, q_BLHP.dtype, q_BLHP.device,
        )  # fmt: skip
        # A kernel that does not use a pointer still needs one to be handed over.
        self.real = q_BLHP if mask_BL is None else mask_BL.contiguous().view(torch.uint8)
        self.segments = q_BLHP if segment_ids_BL is None else segment_ids_BL.contiguous()
        self.global_mask = q_BLHP if global_mask_BL is None else global_mask_BL.contiguous().view(torch.uint8)

    def find_slots(self, slot_BG: Tensor) -> None:
        """Writes the positions of the global tokens, (B, G) with -1 where a row has fewer, at the beginning of a tensor."""
        _find_slots(self.at)(self.global_mask, self.real, slot_BG)

    def band_forward(self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor | None, y: Tensor, lse_BHL: Tensor) -> None:
        launch = _band_forward(self.at, _strides(q, k, v))
        launch(q, k, v, y, lse_BHL, self.real, self.segments, self.global_mask, q if slot_BG is None else slot_BG)

    def rows_forward(self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor, y: Tensor, lse_BHG: Tensor) -> None:
        """Writes the rows of the global tokens over those of the band."""
        at = self.at
        # The parts' sums of values, then their maxima, then their sums of weights.
        part = _fp32(at.rows * at.n_slots * at.row_parts[1] * (at.width + 2), q)
        _rows_forward(at, _strides(q, k, v))(q, k, v, part, self.real, self.segments, slot_BG)
        _rows_merge(at)(part, y, lse_BHG, slot_BG)

    def band_backward(
        self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor | None, y: Tensor, lse_BHL: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dq, dk, dv, and the parts of dk and dv of the global columns."""
        at = self.at
        dq, dk, dv = _like(q), _like(k), _like(v)
        delta_BHL = torch.empty_like(lse_BHL)
        n_parts = cdiv(at.length, at.tile("queries").queries)
        columns = _fp32(2 * at.rows * at.n_slots * n_parts * at.width, q)
        _band_backward_queries(at, _strides(q, k, v, y, dy))(
            q, k, v, y, dy, dq, lse_BHL, delta_BHL, columns, self.real, self.segments, q if slot_BG is None else slot_BG
        )
        launch = _band_backward_keys(at, _strides(q, k, v, dy))
        launch(q, k, v, dy, dk, dv, lse_BHL, delta_BHL, self.real, self.segments)
        return dq, dk, dv, columns

    def rows_backward(
        self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor, y: Tensor, lse_BHG: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dq (still without the rows of the global tokens), dk, dv, and the parts of dq."""
        at = self.at
        dq, dk, dv = _like(q), _like(k), _like(v)
        part = _fp32(at.rows * at.n_slots * cdiv(at.length, at.tile("rows_backward").keys) * at.width, q)
        launch = _rows_backward(at, _strides(q, k, v, y, dy))
        launch(q, k, v, y, dy, dq, dk, dv, part, lse_BHG, self.real, self.segments, slot_BG)
        return dq, dk, dv, part

    def add_parts(self, columns: Tensor, part: Tensor, dk: Tensor, dv: Tensor, dq: Tensor, slot_BG: Tensor) -> None:
        _add_parts(self.at)(columns, part, dk, dv, dq, slot_BG)


def count_slots(global_mask_BL: Tensor | None, max_global: int | None) -> int:
    """Room for the global tokens of a row; counting them waits for the GPU."""
    if global_mask_BL is None:
        return 0
    # A row cannot have more global positions than positions.
    return max(1, int(global_mask_BL.sum(1).max()) if max_global is None else min(max_global, global_mask_BL.shape[1]))


def _strides(*tensors: Tensor) -> Strides:
    found: list[Any] = []
    for x in tensors:
        found += x.stride()[:3]
    return tuple(found)


def _like(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


def _fp32(n: int, x: Tensor) -> Tensor:
    return torch.empty(n, dtype=torch.float32, device=x.device)
