"""Window attention on a GPU: Triton kernels behind one custom operator that autograd and torch.compile see as a whole."""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from longseq.ops.window_attention.triton_band import band_backward_keys, band_backward_queries, band_forward
from longseq.ops.window_attention.triton_global import add_parts, find_slots, rows_backward, rows_forward, rows_merge

# Global tokens handled at once: the smallest side of a tensor-core product.
SLOTS = 16
_LARGEST_WIDTH = 256
_LOG2_E = math.log2(math.e)


class Tile(NamedTuple):
    """Queries and keys of a block, warps that share it, and key (or query) blocks in flight."""

    queries: int
    keys: int
    warps: int
    stages: int


# For heads of up to 64, 128 and 256 numbers, by kernel; measured for 16-bit inputs on an H100 (README.md).
TILES = {
    "forward": {64: Tile(128, 64, 4, 3), 128: Tile(128, 64, 8, 3), 256: Tile(64, 32, 8, 2)},
    "queries": {64: Tile(128, 64, 8, 3), 128: Tile(64, 64, 8, 2), 256: Tile(32, 32, 8, 2)},
    "keys": {64: Tile(64, 128, 8, 3), 128: Tile(64, 64, 8, 2), 256: Tile(32, 32, 8, 2)},
    "rows": {64: Tile(SLOTS, 128, 4, 3), 128: Tile(SLOTS, 64, 4, 2), 256: Tile(SLOTS, 32, 4, 2)},
}
# Four bytes a number and three products for one leave less room.
_TILE_FP32 = {64: Tile(64, 32, 4, 2), 128: Tile(32, 32, 4, 2), 256: Tile(16, 16, 4, 1)}


def window_attention_triton(
    q_BLHP: Tensor,
    k_BLHP: Tensor,
    v_BLHP: Tensor,
    *,
    window: int,
    causal: bool,
    dilation: int,
    global_mask_BL: Tensor | None,
    q_global_BLHP: Tensor,
    k_global_BLHP: Tensor,
    v_global_BLHP: Tensor,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    scale: float,
    max_global: int | None = None,
) -> Tensor:
    """Triton form of `longseq.ops.window_attention.window_attention`; see there for the arguments.

    Cost: O(L (w + G) P) time; beyond the inputs and the output, 8 bytes a query and head for backward.
    """
    reason = supports(
        q_BLHP,
        k_BLHP,
        v_BLHP,
        window=window,
        causal=causal,
        dilation=dilation,
        global_mask_BL=global_mask_BL,
        q_global_BLHP=q_global_BLHP,
        k_global_BLHP=k_global_BLHP,
        v_global_BLHP=v_global_BLHP,
        mask_BL=mask_BL,
        segment_ids_BL=segment_ids_BL,
        scale=scale,
        max_global=max_global,
    )
    if reason is not None:
        raise ValueError(f"implementation='triton': {reason}; use 'auto' or 'chunked'")
    has_global = global_mask_BL is not None
    y_BLHP, *_ = torch.ops.longseq.window_attention(
        q_BLHP,
        k_BLHP,
        v_BLHP,
        q_global_BLHP if has_global else None,
        k_global_BLHP if has_global else None,
        v_global_BLHP if has_global else None,
        global_mask_BL,
        mask_BL,
        segment_ids_BL,
        # Beyond the keys a window reaches nothing, and kernels add to it.
        min(window, 1 << 30),
        causal,
        scale,
        max_global,
    )
    return y_BLHP


def supports(q_BLHP: Tensor, *_: Any, dilation: int = 1, scale: float = 1.0, **__: Any) -> str | None:
    """Why these arguments of `window_attention_triton` cannot be run, or None."""
    if q_BLHP.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"window_attention has no kernel for {q_BLHP.dtype}"
    if dilation != 1:
        return f"window_attention has no kernel for dilation={dilation}"
    if q_BLHP.shape[-1] > _LARGEST_WIDTH:
        return f"window_attention has kernels for heads of up to {_LARGEST_WIDTH} numbers, found {q_BLHP.shape[-1]}"
    if scale <= 0:
        return f"window_attention has no kernel for scale={scale}"
    return None


def self_check() -> float:
    """The largest relative error of output and gradients against the chunked form, on a tiny input."""
    from longseq.ops.window_attention.chunked import window_attention_chunked

    generator = torch.Generator().manual_seed(0)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    leaves = [torch.randn(1, 70, 2, 16, generator=generator).to(device).requires_grad_() for _ in range(6)]
    names = ("q_global_BLHP", "k_global_BLHP", "v_global_BLHP")
    global_mask_BL = torch.zeros(1, 70, dtype=torch.bool, device=device)
    global_mask_BL[:, 3] = True
    options: dict[str, Any] = {"window": 9, "causal": False, "dilation": 1, "scale": 0.25, "max_global": 1}
    options |= {"global_mask_BL": global_mask_BL, "mask_BL": None, "segment_ids_BL": None}
    options |= dict(zip(names, leaves[3:], strict=True))
    results = []
    for run in (window_attention_triton, window_attention_chunked):
        y = run(*leaves[:3], **options)
        results.append([y.detach(), *torch.autograd.grad(y.square().sum(), leaves)])
    pairs = zip(*results, strict=True)
    return max(float((found - expected).norm() / expected.norm().clamp(min=1e-6)) for found, expected in pairs)


class _Call:
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
        self.window, self.scale, self.scale2 = min(window, self.n_keys), scale, scale * _LOG2_E
        # A kernel that does not use a pointer still needs one to be handed over.
        self.real = q_BLHP if mask_BL is None else mask_BL.contiguous().view(torch.uint8)
        self.segments = q_BLHP if segment_ids_BL is None else segment_ids_BL.contiguous()
        self.has_global = global_mask_BL is not None
        self.global_mask = q_BLHP if global_mask_BL is None else global_mask_BL.contiguous().view(torch.uint8)
        self.n_slots = _n_slots(global_mask_BL, max_global)
        block_p = max(16, triton.next_power_of_2(self.width))
        self.size = max(64, block_p)
        self.fp32 = q_BLHP.dtype == torch.float32
        self.shape = {"P": self.width, "BLOCK_P": block_p}
        self.flags = {
            "CAUSAL": causal,
            "HAS_MASK": mask_BL is not None,
            "HAS_SEGMENTS": segment_ids_BL is not None,
            # Three TF32 products keep fp32's accuracy; the option says nothing about 16-bit inputs.
            "PRECISION": "tf32x3" if self.fp32 else "tf32",
        }

    def tile(self, kernel: str) -> Tile:
        return _TILE_FP32[self.size] if self.fp32 else TILES[kernel][self.size]

    def slots(self) -> Tensor:
        """Positions of the global tokens, (B, G) with -1 where a row has fewer."""
        slot_BG = torch.empty(self.batch, self.n_slots, dtype=torch.int32, device=self.global_mask.device)
        block = min(16384, triton.next_power_of_2(self.length))
        find_slots[(self.batch,)](
            self.global_mask, self.real, slot_BG, self.length, self.n_slots, self.flags["HAS_MASK"], block, 64,
            num_warps=16 if block > 4096 else 4,
        )  # fmt: skip
        return slot_BG

    def band_forward(self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor | None, y: Tensor, lse_BHL: Tensor) -> None:
        tile = self.tile("forward")
        n_blocks = triton.cdiv(self.length, tile.queries)
        band_forward[(n_blocks * self.batch * self.heads,)](
            q, k, v, y, lse_BHL, self.real, self.segments, self.global_mask, q if slot_BG is None else slot_BG,
            self.scale2, self.length, self.n_keys, self.window, self.n_slots, self.n_slots, n_blocks, self.heads,
            *_strides(q), *_strides(k), *_strides(v), *_strides(y),
            **self.shape, QUERIES=tile.queries, KEYS=tile.keys, SLOTS=SLOTS, HAS_GLOBAL=self.has_global, **self.flags,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip

    def rows_forward(self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor, y: Tensor) -> Tensor:
        """Writes the rows of the global tokens over those of the band."""
        tile = self.tile("rows")
        rows = self.batch * self.heads
        # About a thousand programs fill a large GPU, and a part is never less than a block.
        part_length = max(triton.cdiv(self.length * rows, 1024 * tile.keys), 1) * tile.keys
        n_parts = triton.cdiv(self.length, part_length)
        part = torch.empty(rows, self.n_slots, n_parts, self.width, dtype=torch.float32, device=q.device)
        top, total = (torch.empty(rows, self.n_slots, n_parts, dtype=torch.float32, device=q.device) for _ in range(2))
        lse_BHG = torch.empty(self.batch, self.heads, self.n_slots, dtype=torch.float32, device=q.device)
        rows_forward[(n_parts * rows,)](
            q, k, v, part, top, total, self.real, self.segments, slot_BG,
            self.scale2, self.length, self.n_slots, n_parts, part_length, self.heads,
            *_strides(q), *_strides(k), *_strides(v),
            **self.shape, KEYS=tile.keys, SLOTS=SLOTS, **self.flags, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        rows_merge[(rows * self.n_slots,)](
            part, top, total, y, lse_BHG, slot_BG, self.n_slots, n_parts, self.heads, *_strides(y), **self.shape,
            PARTS=min(64, triton.next_power_of_2(n_parts)),
        )  # fmt: skip
        return lse_BHG

    def band_backward(
        self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor | None, y: Tensor, lse_BHL: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dq, dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
        delta_BHL = torch.empty_like(lse_BHL)
        tile = self.tile("queries")
        n_blocks = triton.cdiv(self.length, tile.queries)
        rows = self.batch * self.heads
        shape = (2, rows, self.n_slots, n_blocks, self.width) if self.has_global else (2, 0)
        column_dk, column_dv = torch.empty(shape, dtype=torch.float32, device=q.device)
        band_backward_queries[(n_blocks * rows,)](
            q, k, v, y, dy, dq, lse_BHL, delta_BHL, column_dk, column_dv,
            self.real, self.segments, q if slot_BG is None else slot_BG,
            self.scale, self.scale2, self.length, self.n_keys, self.window, self.n_slots, self.n_slots, n_blocks, self.heads,
            *_strides(q), *_strides(k), *_strides(v), *_strides(y), *_strides(dy),
            **self.shape, QUERIES=tile.queries, KEYS=tile.keys, SLOTS=SLOTS, HAS_GLOBAL=self.has_global, **self.flags,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        tile = self.tile("keys")
        n_key_blocks = triton.cdiv(self.n_keys, tile.keys)
        band_backward_keys[(n_key_blocks * rows,)](
            q, k, v, dy, dk, dv, lse_BHL, delta_BHL, self.real, self.segments,
            self.scale, self.scale2, self.length, self.n_keys, self.window, n_key_blocks, self.heads,
            *_strides(q), *_strides(k), *_strides(v), *_strides(dy), *_strides(dk),
            **self.shape, QUERIES=tile.queries, KEYS=tile.keys, **self.flags,
            num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
        if slot_BG is not None:
            self.add_parts(column_dk, dk, slot_BG)
            self.add_parts(column_dv, dv, slot_BG)
        return dq, dk, dv

    def rows_backward(
        self, q: Tensor, k: Tensor, v: Tensor, slot_BG: Tensor, y: Tensor, lse_BHG: Tensor, dy: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        dk, dv = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (k, v))
        dq = torch.zeros(q.shape, dtype=q.dtype, device=q.device)
        tile = self.tile("rows")
        n_blocks, rows = triton.cdiv(self.length, tile.keys), self.batch * self.heads
        part = torch.empty(rows, self.n_slots, n_blocks, self.width, dtype=torch.float32, device=q.device)
        rows_backward[(n_blocks * rows,)](
            q, k, v, y, dy, dk, dv, part, lse_BHG, self.real, self.segments, slot_BG,
            self.scale, self.scale2, self.length, self.n_slots, n_blocks, self.heads,
            *_strides(q), *_strides(k), *_strides(v), *_strides(y), *_strides(dy),
            **self.shape, KEYS=tile.keys, SLOTS=SLOTS, **self.flags, num_warps=tile.warps, num_stages=1,
        )  # fmt: skip
        self.add_parts(part, dq, slot_BG)
        return dq, dk, dv

    def add_parts(self, part: Tensor, out: Tensor, slot_BG: Tensor) -> None:
        n_parts = part.shape[-2]
        add_parts[(self.batch * self.heads * self.n_slots,)](
            part, out, slot_BG, self.n_slots, n_parts, self.heads, *_strides(out), **self.shape,
            PARTS=min(64, triton.next_power_of_2(n_parts)),
        )  # fmt: skip


def _n_slots(global_mask_BL: Tensor | None, max_global: int | None) -> int:
    if global_mask_BL is None:
        return 0
    # A row cannot have more global positions than positions.
    return max(1, int(global_mask_BL.sum(1).max()) if max_global is None else min(max_global, global_mask_BL.shape[1]))


def _strides(x_BLHP: Tensor) -> tuple[int, int, int]:
    return x_BLHP.stride()[:3]


def _rows_whole(x: Tensor | None) -> Any:
    """Kernels read a head's numbers side by side."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


@torch.library.custom_op("longseq::window_attention", mutates_args=())
def _forward(
    q_BLHP: Tensor,
    k_BLHP: Tensor,
    v_BLHP: Tensor,
    q_global_BLHP: Tensor | None,
    k_global_BLHP: Tensor | None,
    v_global_BLHP: Tensor | None,
    global_mask_BL: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    window: int,
    causal: bool,
    scale: float,
    max_global: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the base-2 log-sum-exps of the band (B, H, L) and of the global rows (in the first places of a (B H L,))."""
    call = _Call(q_BLHP, k_BLHP, global_mask_BL, mask_BL, segment_ids_BL, window, causal, scale, max_global)
    q, k, v = (_rows_whole(x) for x in (q_BLHP, k_BLHP, v_BLHP))
    y_BLHP, lse_BHL, row_lse = _empty(q_BLHP, global_mask_BL)
    slot_BG = call.slots() if call.has_global else None
    call.band_forward(q, k, v, slot_BG, y_BLHP, lse_BHL)
    if slot_BG is not None:
        rows = (_rows_whole(x) for x in (q_global_BLHP, k_global_BLHP, v_global_BLHP))
        lse_BHG = call.rows_forward(*rows, slot_BG, y_BLHP)
        row_lse[: lse_BHG.numel()] = lse_BHG.flatten()
    return y_BLHP, lse_BHL, row_lse


def _empty(q_BLHP: Tensor, global_mask_BL: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, _ = q_BLHP.shape
    y_BLHP = torch.empty(q_BLHP.shape, dtype=q_BLHP.dtype, device=q_BLHP.device)
    lse_BHL = torch.empty((batch, heads, length), dtype=torch.float32, device=q_BLHP.device)
    # How many global tokens there are may be data: room for all of them keeps the shape a matter of shapes.
    n_rows = 0 if global_mask_BL is None else batch * heads * length
    return y_BLHP, lse_BHL, torch.empty((n_rows,), dtype=torch.float32, device=q_BLHP.device)


@_forward.register_fake
def _forward_fake(
    q_BLHP: Tensor,
    k_BLHP: Tensor,
    v_BLHP: Tensor,
    q_global_BLHP: Tensor | None,
    k_global_BLHP: Tensor | None,
    v_global_BLHP: Tensor | None,
    global_mask_BL: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    window: int,
    causal: bool,
    scale: float,
    max_global: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty(q_BLHP, global_mask_BL)


@torch.library.custom_op("longseq::window_attention_backward", mutates_args=())
def _backward(
    dy_BLHP: Tensor,
    y_BLHP: Tensor,
    lse_BHL: Tensor,
    row_lse: Tensor,
    q_BLHP: Tensor,
    k_BLHP: Tensor,
    v_BLHP: Tensor,
    q_global_BLHP: Tensor | None,
    k_global_BLHP: Tensor | None,
    v_global_BLHP: Tensor | None,
    global_mask_BL: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    window: int,
    causal: bool,
    scale: float,
    max_global: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the six projections; those of the global ones are empty without global tokens."""
    call = _Call(q_BLHP, k_BLHP, global_mask_BL, mask_BL, segment_ids_BL, window, causal, scale, max_global)
    q, k, v, dy = (_rows_whole(x) for x in (q_BLHP, k_BLHP, v_BLHP, dy_BLHP))
    slot_BG = call.slots() if call.has_global else None
    band = call.band_backward(q, k, v, slot_BG, y_BLHP, lse_BHL, dy)
    if slot_BG is None:
        empty = (torch.empty(0, dtype=q.dtype, device=q.device) for _ in range(3))
        return *band, *empty  # type: ignore[return-value]
    rows = (_rows_whole(x) for x in (q_global_BLHP, k_global_BLHP, v_global_BLHP))
    lse_BHG = row_lse[: slot_BG.shape[1] * call.batch * call.heads]
    return *band, *call.rows_backward(*rows, slot_BG, y_BLHP, lse_BHG, dy)


@_backward.register_fake
def _backward_fake(
    dy_BLHP: Tensor,
    y_BLHP: Tensor,
    lse_BHL: Tensor,
    row_lse: Tensor,
    q_BLHP: Tensor,
    k_BLHP: Tensor,
    v_BLHP: Tensor,
    q_global_BLHP: Tensor | None,
    k_global_BLHP: Tensor | None,
    v_global_BLHP: Tensor | None,
    global_mask_BL: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    window: int,
    causal: bool,
    scale: float,
    max_global: int | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    rows = (q_BLHP.new_empty(0) if x is None else torch.empty(x.shape, dtype=x.dtype, device=x.device)
            for x in (q_global_BLHP, k_global_BLHP, v_global_BLHP))  # fmt: skip
    band = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q_BLHP, k_BLHP, v_BLHP))
    return *band, *rows  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*output, *inputs[:9])
    ctx.options = inputs[9:]


def _differentiate(ctx: Any, dy_BLHP: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.longseq.window_attention_backward(dy_BLHP, *ctx.saved_tensors, *ctx.options)
    wanted = zip(gradients, ctx.needs_input_grad[:6], strict=True)
    return *(gradient if asked else None for gradient, asked in wanted), *(None,) * 7


_forward.register_autograd(_differentiate, setup_context=_save)
