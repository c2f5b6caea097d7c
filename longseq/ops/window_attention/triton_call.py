"""The launches of window attention's kernels: sizes, options and pointers of one call."""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import math

import torch
from torch import Tensor

from longseq.ops.window_attention.triton_band import band_backward_keys, band_backward_queries, band_forward
from longseq.ops.window_attention.triton_choices import SLOTS, cdiv, power_of_two, tiles
from longseq.ops.window_attention.triton_global import add_parts, find_slots, rows_backward, rows_forward, rows_merge

LOG2_E = math.log2(math.e)


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
        self.batch, self.length, self.heads, self.width = q_BLHP.shape
        self.n_keys = k_BLHP.shape[1]
        self.window, self.scale, self.scale2 = min(window, self.n_keys), scale, scale * LOG2_E
        # A kernel that does not use a pointer still needs one to be handed over.
        self.real = q_BLHP if mask_BL is None else mask_BL.contiguous().view(torch.uint8)
        self.segments = q_BLHP if segment_ids_BL is None else segment_ids_BL.contiguous()
        self.has_global = global_mask_BL is not None
        self.global_mask = q_BLHP if global_mask_BL is None else global_mask_BL.contiguous().view(torch.uint8)
        self.n_slots = count_slots(global_mask_BL, max_global)
        block_p = max(16, power_of_two(self.width))
        self.fp32 = q_BLHP.dtype == torch.float32
        self.tiles = tiles(q_BLHP.device, max(64, block_p), self.fp32)
        self.shape = {"P": self.width, "BLOCK_P": block_p}
        self.flags = {
            "CAUSAL": causal,
            "HAS_MASK": mask_BL is not None,
            "HAS_SEGMENTS": segment_ids_BL is not None,
            # Three TF32 products keep fp32's accuracy; the option says nothing about 16-bit inputs.
            "PRECISION": "tf32x3" if self.fp32 else "tf32",
        }

    def find_slots(self, slot_BG: Tensor) -> None:
        """Writes the positions of the global tokens, (B, G) with -1 where a row has fewer, at the beginning of a tensor."""
        block = min(16384, power_of_two(self.length))
        find_slots[(self.batch,)](
            self.global_mask, self.real, slot_BG, self.length, self.n_slots, self.flags["HAS_MASK"], block, 64,
            num_warps=16 if block > 4096 else 4,
        )  # fmt: skip

    def band_forward(self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor | None, y: Tensor, lse_BHL: Tensor) -> None:
        tile = self.tiles["forward"]
        n_blocks = cdiv(self.length, tile.queries)
        band_forward[(n_blocks * self.batch * self.heads,)](
            q, k, v, y, lse_BHL, self.real, self.segments, self.global_mask, q if slot_BG is None else slot_BG,
            self.scale2, self.length, self.n_keys, self.window, self.n_slots, n_blocks, self.heads,
            *_strides(q), *_strides(k), *_strides(v), *_strides(y),
            **self.shape, QUERIES=tile.queries, KEYS=tile.keys, SLOTS=SLOTS, HAS_GLOBAL=self.has_global, **self.flags,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    def rows_forward(self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor, y: Tensor, lse_BHG: Tensor) -> None:
        """Writes the rows of the global tokens over those of the band."""
        tile = self.tiles["rows"]
        rows = self.batch * self.heads
        # About a thousand programs fill a large GPU, and a part is never less than a block.
        part_length = max(cdiv(self.length * rows, 1024 * tile.keys), 1) * tile.keys
        n_parts = cdiv(self.length, part_length)
        part = torch.empty(rows, self.n_slots, n_parts, self.width, dtype=torch.float32, device=q.device)
        top, total = torch.empty(2, rows, self.n_slots, n_parts, dtype=torch.float32, device=q.device)
        rows_forward[(n_parts * rows,)](
            q, k, v, part, top, total, self.real, self.segments, slot_BG,
            self.scale2, self.length, self.n_slots, n_parts, part_length, self.heads,
            *_strides(q), *_strides(k), *_strides(v),
            **self.shape, KEYS=tile.keys, SLOTS=SLOTS, **self.flags, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        rows_merge[(rows * self.n_slots,)](
            part, top, total, y, lse_BHG, slot_BG, self.n_slots, n_parts, self.heads, *_strides(y), **self.shape,
            PARTS=min(64, power_of_two(n_parts)),
        )  # fmt: skip

    def band_backward(
        self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor | None, y: Tensor, lse_BHL: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dq, dk, dv, and the parts of dk and dv of the global columns."""
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        delta_BHL = torch.empty_like(lse_BHL)
        tile = self.tiles["queries"]
        n_blocks = cdiv(self.length, tile.queries)
        rows = self.batch * self.heads
        shape = (2, rows, self.n_slots, n_blocks, self.width) if self.has_global else (2, 0)
        columns = torch.empty(shape, dtype=torch.float32, device=q.device)
        band_backward_queries[(n_blocks * rows,)](
            q, k, v, y, dy, dq, lse_BHL, delta_BHL, columns[0], columns[1],
            self.real, self.segments, q if slot_BG is None else slot_BG,
            self.scale, self.scale2, self.length, self.n_keys, self.window, self.n_slots, n_blocks, self.heads,
            *_strides(q), *_strides(k), *_strides(v), *_strides(y), *_strides(dy),
            **self.shape, QUERIES=tile.queries, KEYS=tile.keys, SLOTS=SLOTS, HAS_GLOBAL=self.has_global, **self.flags,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        tile = self.tiles["keys"]
        n_key_blocks = cdiv(self.n_keys, tile.keys)
        band_backward_keys[(n_key_blocks * rows,)](
            q, k, v, dy, dk, dv, lse_BHL, delta_BHL, self.real, self.segments,
            self.scale, self.scale2, self.length, self.n_keys, self.window, n_key_blocks, self.heads,
            *_strides(q), *_strides(k), *_strides(v), *_strides(dy), *_strides(dk),
            **self.shape, QUERIES=tile.queries, KEYS=tile.keys, **self.flags,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        return dq, dk, dv, columns

    def rows_backward(
        self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor, y: Tensor, lse_BHG: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dq (still without the rows of the global tokens), dk, dv, and the parts of dq."""
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        tile = self.tiles["rows"]
        n_blocks, rows = cdiv(self.length, tile.keys), self.batch * self.heads
        part = torch.empty(rows, self.n_slots, n_blocks, self.width, dtype=torch.float32, device=q.device)
        rows_backward[(n_blocks * rows,)](
            q, k, v, y, dy, dq, dk, dv, part, lse_BHG, self.real, self.segments, slot_BG,
            self.scale, self.scale2, self.length, self.n_slots, n_blocks, self.heads,
            *_strides(q), *_strides(k), *_strides(v), *_strides(y), *_strides(dy),
            **self.shape, KEYS=tile.keys, SLOTS=SLOTS, **self.flags, num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
        return dq, dk, dv, part

    def add_parts(self, columns: Tensor, part: Tensor, dk: Tensor, dv: Tensor, dq: Tensor, slot_BG: Tensor) -> None:
        n_parts = columns.shape[-2]
        add_parts[(self.batch * self.heads * self.n_slots, 3)](
            columns[0], columns[1], part, dk, dv, dq, slot_BG, self.n_slots, n_parts, part.shape[-2], self.heads,
            *_strides(dq), **self.shape, PARTS=min(64, power_of_two(n_parts)),
        )  # fmt: skip


def count_slots(global_mask_BL: Tensor | None, max_global: int | None) -> int:
    """Room for the global tokens of a row; counting them waits for the GPU."""
    if global_mask_BL is None:
        return 0
    # A row cannot have more global positions than positions.
    return max(1, int(global_mask_BL.sum(1).max()) if max_global is None else min(max_global, global_mask_BL.shape[1]))


def _strides(x_BLHP: Tensor) -> tuple[int, int, int]:
    batch, length, head, _ = x_BLHP.stride()
    return batch, length, head
