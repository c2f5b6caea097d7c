"""Window attention on a GPU: Triton kernels behind one custom operator that autograd and torch.compile see as a whole."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from longseq.ops.eager import without_dispatcher
from longseq.ops.self_check import largest_error
from longseq.ops.tracing import runs_eagerly
from longseq.ops.triton_launch import on_device
from longseq.ops.window_attention.triton_call import Call, count_slots

# Numbers of a head; the operands of three TF32 products for one need twice the room.
_LARGEST_WIDTH, _LARGEST_FP32_WIDTH = 256, 128


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
    reason = supports(q_BLHP, dilation=dilation, scale=scale)
    if reason is not None:
        raise ValueError(f"implementation='triton': {reason}; use 'auto' or 'chunked'")
    rows = (None, None, None) if global_mask_BL is None else (q_global_BLHP, k_global_BLHP, v_global_BLHP)
    inputs = (q_BLHP, k_BLHP, v_BLHP, *rows, global_mask_BL, mask_BL, segment_ids_BL)
    # Beyond the keys a window reaches nothing, and kernels add to it.
    window = min(window, 1 << 30)
    if not runs_eagerly(q_BLHP):
        return torch.ops.longseq.window_attention(*inputs, window, causal, scale, max_global)[0]
    if max_global is None and global_mask_BL is not None:
        # Counted once here, backward need not wait again.
        max_global = count_slots(global_mask_BL, None)
    arguments: tuple[Any, ...] = (*inputs, window, causal, scale, max_global)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs[:6]):
        return _eager(*arguments)[0]
    return _run_forward(*arguments)[0]


def supports(q_BLHP: Tensor, *_: Any, dilation: int = 1, scale: float = 1.0, **__: Any) -> str | None:
    """Why these arguments of `window_attention_triton` cannot be run, or None."""
    if q_BLHP.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"window_attention has no kernel for {q_BLHP.dtype}"
    if dilation != 1:
        return f"window_attention has no kernel for dilation={dilation}"
    largest = _LARGEST_FP32_WIDTH if q_BLHP.dtype == torch.float32 else _LARGEST_WIDTH
    if q_BLHP.shape[-1] > largest:
        return f"window_attention has kernels for heads of up to {largest} numbers in {q_BLHP.dtype}, found {q_BLHP.shape[-1]}"
    if scale <= 0:
        return f"window_attention has no kernel for scale={scale}"
    return None


def self_check() -> float:
    """The largest relative error of output and gradients against the chunked form, on a tiny input.

    It runs the variants that a training step in bf16 with heads of 64 runs, so that little is compiled for the check alone.
    """
    from longseq.ops.window_attention.chunked import window_attention_chunked

    generator, length = torch.Generator().manual_seed(0), 200
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    values = [torch.randn(1, length, 2, 64, generator=generator).bfloat16().to(device) for _ in range(6)]
    global_mask_BL = torch.zeros(1, length, dtype=torch.bool, device=device)
    global_mask_BL[:, 3] = True
    options: dict[str, Any] = {"window": 40, "causal": False, "dilation": 1, "scale": 0.125, "max_global": 1}
    options |= {"global_mask_BL": global_mask_BL, "mask_BL": None, "segment_ids_BL": None}

    def run(attend: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda q, k, v, q_global, k_global, v_global: attend(
            q, k, v, q_global_BLHP=q_global, k_global_BLHP=k_global, v_global_BLHP=v_global, **options
        )

    exact = run(window_attention_chunked)
    return largest_error(run(window_attention_triton), exact, [values], lambda: _run_both(values, global_mask_BL, values[0]))


def _run_both(projections: list[Tensor], global_mask_BL: Tensor, dy: Tensor) -> None:
    """The launches of forward and backward, in this thread."""
    arguments: tuple[Any, ...] = (*projections, global_mask_BL, None, None, 40, False, 0.125, 1)
    _run_backward(dy, *_run_forward(*arguments), *arguments)


def _rows_whole(x: Tensor | None) -> Any:
    """Kernels read a head's numbers side by side."""
    return x if x is None or x.stride(-1) == 1 else x.contiguous()


def _run_forward(
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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y; base-2 log-sum-exps of the band (B, H, L); at the beginning of larger tensors those of the global rows (B, H, G), and
    the positions of the global tokens (B, G)."""
    call = Call(q_BLHP, k_BLHP, global_mask_BL, mask_BL, segment_ids_BL, window, causal, scale, max_global)
    q, k, v = _rows_whole(q_BLHP), _rows_whole(k_BLHP), _rows_whole(v_BLHP)
    y_BLHP, lse_BHL, row_lse, slots = _empty(q_BLHP, global_mask_BL, max_global)
    with on_device(q_BLHP):
        if not call.has_global:
            call.band_forward(q, k, v, None, y_BLHP, lse_BHL)
            return y_BLHP, lse_BHL, row_lse, slots
        call.find_slots(slots)
        call.band_forward(q, k, v, slots, y_BLHP, lse_BHL)
        q, k, v = _rows_whole(q_global_BLHP), _rows_whole(k_global_BLHP), _rows_whole(v_global_BLHP)
        call.rows_forward(q, k, v, slots, y_BLHP, row_lse)
    return y_BLHP, lse_BHL, row_lse, slots


_forward = torch.library.custom_op("longseq::window_attention", mutates_args=())(_run_forward)


def _empty(q_BLHP: Tensor, global_mask_BL: Tensor | None, max_global: int | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, length, heads, _ = q_BLHP.shape
    y_BLHP = torch.empty(q_BLHP.shape, dtype=q_BLHP.dtype, device=q_BLHP.device)
    lse_BHL = torch.empty((batch, heads, length), dtype=torch.float32, device=q_BLHP.device)
    # How many global tokens there are may be data: room for all of them keeps the shape a matter of shapes.
    room = 0 if global_mask_BL is None else length if max_global is None else max(1, max_global)
    row_lse = torch.empty((batch * heads * room,), dtype=torch.float32, device=q_BLHP.device)
    return y_BLHP, lse_BHL, row_lse, torch.empty((batch * room,), dtype=torch.int32, device=q_BLHP.device)


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
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty(q_BLHP, global_mask_BL, max_global)


def _run_backward(
    dy_BLHP: Tensor,
    y_BLHP: Tensor,
    lse_BHL: Tensor,
    row_lse: Tensor,
    slots: Tensor,
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
    call = Call(q_BLHP, k_BLHP, global_mask_BL, mask_BL, segment_ids_BL, window, causal, scale, max_global)
    q, k, v, dy = _rows_whole(q_BLHP), _rows_whole(k_BLHP), _rows_whole(v_BLHP), _rows_whole(dy_BLHP)
    slot_BG = slots if call.has_global else None
    with on_device(q_BLHP):
        dq, dk, dv, columns = call.band_backward(q, k, v, slot_BG, y_BLHP, lse_BHL, dy)
        if slot_BG is None:
            empty = (torch.empty(0, dtype=q.dtype, device=q.device) for _ in range(3))
            return dq, dk, dv, *empty  # type: ignore[return-value]
        q, k, v = _rows_whole(q_global_BLHP), _rows_whole(k_global_BLHP), _rows_whole(v_global_BLHP)
        row_dq, row_dk, row_dv, part = call.rows_backward(q, k, v, slot_BG, y_BLHP, row_lse, dy)
        call.add_parts(columns, part, dk, dv, row_dq, slot_BG)
    return dq, dk, dv, row_dq, row_dk, row_dv


_backward = torch.library.custom_op("longseq::window_attention_backward", mutates_args=())(_run_backward)


@_backward.register_fake
def _backward_fake(
    dy_BLHP: Tensor,
    y_BLHP: Tensor,
    lse_BHL: Tensor,
    row_lse: Tensor,
    slots: Tensor,
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


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(*output[1:])
    # Only y has a cotangent: none is made up for the others.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output, *inputs[:9])
    ctx.options = inputs[9:]


def _differentiate(ctx: Any, dy_BLHP: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if dy_BLHP is None:
        return (None,) * 13
    saved = ctx.saved_tensors
    backward = _run_backward if runs_eagerly(saved[0]) else torch.ops.longseq.window_attention_backward
    gradients = backward(dy_BLHP, *saved, *ctx.options)
    wanted = zip(gradients, ctx.needs_input_grad[:6], strict=True)
    return *(gradient if asked else None for gradient, asked in wanted), *(None,) * 7


_forward.register_autograd(_differentiate, setup_context=_save)


# The same without torch's dispatcher.
_eager = without_dispatcher(_run_forward, _save, _differentiate)
