"""The short causal convolution on a CPU in compiled loops: taps, bias and SiLU in one pass, channels as vector lanes.

A task is a slice of positions of one row. What a slice adds to gradients that all share is kept apart and added up in a
fixed order, so that results do not depend on the number of threads.
"""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from longseq.ops.causal_conv1d.chunked import number_runs
from longseq.ops.compiled import allocate, compiled, flat, inlined, run_tasks, sigmoid

__all__ = ["causal_conv1d_cpu"]

# Positions of one task.
SLICE = 256
_NOTHING = -(2**62)


def causal_conv1d_cpu(
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state_BKD: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Causal convolution in compiled loops; arguments as in `longseq.ops.causal_conv1d`, float32 or less."""
    if reverse:
        mask_BL = None if mask_BL is None else mask_BL.flip(1)
        segment_ids_BL = None if segment_ids_BL is None else segment_ids_BL.flip(1)
    runs_BL = None if segment_ids_BL is None else number_runs(segment_ids_BL, mask_BL)
    return _convolve(x_BLD, weight_DK, bias_D, initial_state_BKD, mask_BL, runs_BL, activation == "silu", reverse)


def _arrays(
    x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor | None, mask: Tensor | None, runs: Tensor | None
) -> tuple[Any, ...]:
    """The inputs as the kernels read them; what is left out is zeros or empty."""
    (batch, length, width), taps = x.shape, weight.shape[1]
    first_B, end_B = torch.zeros(batch, dtype=torch.long), torch.full((batch,), length)
    if mask is not None:
        # A row without a real position has its initial state at the very end.
        place_L = torch.arange(length)
        first_B = torch.where(mask, place_L, length).amin(1)
        end_B = torch.where(first_B < length, torch.where(mask, place_L + 1, 0).amax(1), length)
    row, at = flat(x)
    state = x.new_zeros((batch, taps - 1, width), dtype=torch.float32) if state is None else state
    bias = x.new_zeros(width, dtype=torch.float32) if bias is None else bias
    return (
        (length, width, taps - 1),
        row,
        at,
        *(v.detach().to(torch.float32).contiguous().numpy() for v in (weight.t(), bias, state)),
        np.empty((0, 0), np.bool_) if mask is None else mask.contiguous().numpy(),
        np.empty((0, 0), np.int64) if runs is None else runs.contiguous().numpy(),
        first_B.numpy(),
        end_B.numpy(),
    )


def _n_tasks(x_BLD: Tensor) -> int:
    return x_BLD.shape[0] * (-(-x_BLD.shape[1] // SLICE))


@torch.library.custom_op("longseq::causal_conv1d_cpu", mutates_args=())
def _convolve(
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    state_BKD: Tensor | None,
    mask_BL: Tensor | None,
    runs_BL: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """Outputs and the last inputs; mask and runs in scan order."""
    y_BLD, last_BKD = allocate(*x_BLD.shape), allocate(*_state_shape(x_BLD, weight_DK))
    arrays = _arrays(x_BLD, weight_DK, bias_D, state_BKD, mask_BL, runs_BL)
    run_tasks(_forward, _n_tasks(x_BLD), x_BLD.numel(), *arrays, y_BLD.numpy(), last_BKD.numpy(), silu, reverse)
    return y_BLD.to(x_BLD.dtype), last_BKD


def _state_shape(x_BLD: Tensor, weight_DK: Tensor) -> tuple[int, int, int]:
    return x_BLD.shape[0], weight_DK.shape[1] - 1, x_BLD.shape[2]


@_convolve.register_fake
def _(x_BLD, weight_DK, bias_D, state_BKD, mask_BL, runs_BL, silu, reverse):  # type: ignore[no-untyped-def]
    return x_BLD.new_empty(x_BLD.shape), x_BLD.new_empty(_state_shape(x_BLD, weight_DK), dtype=torch.float32)


@torch.library.custom_op("longseq::causal_conv1d_cpu_backward", mutates_args=())
def _convolve_backward(
    dy_BLD: Tensor,
    dlast_BKD: Tensor,
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    state_BKD: Tensor | None,
    mask_BL: Tensor | None,
    runs_BL: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, the weight, the bias and the initial state, in float32."""
    n_tasks, (batch, _, width), taps = _n_tasks(x_BLD), x_BLD.shape, weight_DK.shape[1]
    dx_BLD = allocate(*x_BLD.shape)
    # For each task: of the taps, of the bias, and of the initial state.
    dshared_ZRD = dx_BLD.new_zeros(n_tasks, 2 * taps, width)
    run_tasks(
        _backward,
        n_tasks,
        4 * x_BLD.numel(),
        *_arrays(x_BLD, weight_DK, bias_D, state_BKD, mask_BL, runs_BL),
        *flat(dy_BLD),
        dlast_BKD.detach().to(torch.float32).contiguous().numpy(),
        dx_BLD.numpy(),
        dshared_ZRD.numpy(),
        silu,
        reverse,
    )
    dshared_BRD = dshared_ZRD.unflatten(0, (batch, -1)).sum(1)
    dweight_KD, dbias_1D, _ = dshared_BRD.sum(0).split([taps, 1, taps - 1])
    return dx_BLD, dweight_KD.t().contiguous(), dbias_1D[0].clone(), dshared_BRD[:, taps + 1 :].contiguous()


@_convolve_backward.register_fake
def _(dy, dlast, x, weight, bias, state, mask, runs, silu, reverse):  # type: ignore[no-untyped-def]
    dx = x.new_empty(x.shape, dtype=torch.float32)
    return dx, dx.new_empty(weight.shape), dx.new_empty(x.shape[2]), dx.new_empty(dlast.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _differentiate(ctx, dy_BLD: Tensor, dlast_BKD: Tensor):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    grads = _convolve_backward(dy_BLD, dlast_BKD, *saved, ctx.silu, ctx.reverse)
    wanted = zip(grads, saved, ctx.needs_input_grad, strict=False)
    return *(g.to(v.dtype) if asked and v is not None else None for g, v, asked in wanted), None, None, None, None


_convolve.register_autograd(_differentiate, setup_context=_setup_context)


@inlined
def _source(i, run, b, first, length, history, real, runs, reverse):  # type: ignore[no-untyped-def]
    """What stands at position i in scan order: a position of x, -1 - k for row k of the initial state, or nothing.

    The initial state stands before the first real position. Nothing of another run than `run` is seen.
    """
    if runs.size > 0 and (runs[b, i] if i >= 0 else 0) != run:
        return _NOTHING
    if i >= 0 and (real.size == 0 or real[b, i]):
        return length - 1 - i if reverse else i
    return first - history - 1 - i if first - history <= i < first else _NOTHING


@inlined
def _add(out, scale, row, start, w):  # type: ignore[no-untyped-def]
    for d in range(w):
        out[d] += scale[d] * row[start + d]


@inlined
def _taps(out, x, x_at, weight, bias, state, i, b, first, length, history, real, runs, reverse, w):  # type: ignore[no-untyped-def]
    """Position i before the activation. Unsigned positions in the rows let the loops vectorise."""
    if history == 3 and i >= 3 and real.size == 0 and runs.size == 0:
        # The common case in one loop.
        side = -x_at[1] if reverse else x_at[1]
        last = b * x_at[0] + (length - 1 - i if reverse else i) * x_at[1]
        x0, x1, x2, x3 = np.uint64(last - 3 * side), np.uint64(last - 2 * side), np.uint64(last - side), np.uint64(last)
        for d in range(w):
            early = weight[0, d] * x[x0 + d] + weight[1, d] * x[x1 + d]
            out[d] = early + weight[2, d] * x[x2 + d] + weight[3, d] * x[x3 + d] + bias[d]
        return
    run = runs[b, i] if runs.size > 0 else 0
    for d in range(w):
        out[d] = bias[d]
    for k in range(history + 1):
        source = _source(i - history + k, run, b, first, length, history, real, runs, reverse)
        if source >= 0:
            _add(out, weight[k], x, np.uint64(b * x_at[0] + source * x_at[1]), w)
        elif source != _NOTHING:
            _add(out, weight[k], state[b, -1 - source], np.uint64(0), w)


@compiled
def _forward(start, stop, sizes, x, x_at, weight, bias, state, real, runs, firsts, ends, y, last, silu, reverse):  # type: ignore[no-untyped-def]
    """Tasks start ... stop - 1. The last one of a row writes the last inputs too."""
    length, width, history = sizes
    n_slices, w = (length + SLICE - 1) // SLICE, np.uint64(width)
    for task in range(start, stop):
        b, begin = task // n_slices, task % n_slices * SLICE
        first, end = firsts[b], ends[b]
        for i in range(begin, min(begin + SLICE, length)):
            out = y[b, length - 1 - i if reverse else i]
            if real.size > 0 and not real[b, i]:
                for d in range(w):
                    out[d] = np.float32(0.0)
                continue
            _taps(out, x, x_at, weight, bias, state, i, b, first, length, history, real, runs, reverse, w)
            if silu:
                for d in range(w):
                    out[d] *= sigmoid(out[d])
        if begin + SLICE < length:
            continue
        run = runs[b, end - 1] if runs.size > 0 else 0
        for k in range(history):
            source = _source(end - history + k, run, b, first, length, history, real, runs, reverse)
            x_i = np.uint64(b * x_at[0] + max(source, 0) * x_at[1])
            for d in range(w):
                last[b, k, d] = x[x_i + d] if source >= 0 else np.float32(0.0)
            if source < 0 and source != _NOTHING:
                for d in range(w):
                    last[b, k, d] = state[b, -1 - source, d]


@compiled
def _backward(  # type: ignore[no-untyped-def]
    start, stop, sizes, x, x_at, weight, bias, state, real, runs, firsts, ends, dy, dy_at, dlast, dx, dshared, silu, reverse
):  # fmt: skip
    """The gradients that reach the inputs of each slice, from its own outputs and the next K - 1; and all of its outputs."""
    length, width, history = sizes
    n_slices, w = (length + SLICE - 1) // SLICE, np.uint64(width)
    out, g = np.empty(width, np.float32), np.empty(width, np.float32)
    for task in range(start, stop):
        b, begin = task // n_slices, task % n_slices * SLICE
        first, end, stop_i = firsts[b], ends[b], min(begin + SLICE, length)
        for i in range(begin, stop_i):
            t = length - 1 - i if reverse else i
            for d in range(w):
                dx[b, t, d] = np.float32(0.0)
        for i in range(begin, min(stop_i + history, length)):
            if real.size > 0 and not real[b, i]:
                continue
            t, own = length - 1 - i if reverse else i, i < stop_i
            dy_i = np.uint64(b * dy_at[0] + t * dy_at[1])
            for d in range(w):
                g[d] = dy[dy_i + d]
            if silu:
                _taps(out, x, x_at, weight, bias, state, i, b, first, length, history, real, runs, reverse, w)
                for d in range(w):
                    opened = sigmoid(out[d])
                    g[d] *= opened * (np.float32(1.0) + out[d] * (np.float32(1.0) - opened))
            if own:
                for d in range(w):
                    dshared[task, history + 1, d] += g[d]
            run = runs[b, i] if runs.size > 0 else 0
            for k in range(history + 1):
                source = _source(i - history + k, run, b, first, length, history, real, runs, reverse)
                if source >= 0:
                    x_i, place = np.uint64(b * x_at[0] + source * x_at[1]), i - history + k
                    if begin <= place < stop_i:
                        for d in range(w):
                            dx[b, source, d] += weight[k, d] * g[d]
                    if own:
                        _add(dshared[task, k], g, x, x_i, w)
                elif source != _NOTHING and own:
                    for d in range(w):
                        dshared[task, k, d] += g[d] * state[b, -1 - source, d]
                        dshared[task, history + 1 - source, d] += weight[k, d] * g[d]
        run = runs[b, end - 1] if runs.size > 0 else 0
        for k in range(history):
            source = _source(end - history + k, run, b, first, length, history, real, runs, reverse)
            if source >= 0 and begin <= end - history + k < stop_i:
                for d in range(w):
                    dx[b, source, d] += dlast[b, k, d]
            elif source < 0 and source != _NOTHING and begin == 0:
                for d in range(w):
                    dshared[task, history + 1 - source, d] += dlast[b, k, d]
