"""The selective scan on a CPU in compiled loops: one pass over the sequence, channels as vector lanes, states in the cache.

Nothing of size L x D x N is kept: forward stores the state at the start of every `CHUNK` steps, and backward computes the
states of one chunk again. Sums over channels (the gradients of B and C) are made for each block of channels and added
up in a fixed order, so that results do not depend on the number of threads.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from longseq.ops.compiled import allocate, compiled, exp2, flat, inlined, run_tasks, sigmoid, softplus
from longseq.ops.selective_scan.chunked import keep_state

__all__ = ["selective_scan_cpu"]

CHUNK = 64
# Channels of one task in backward: the states of a chunk fit the second-level cache. Fixed, for it decides how sums are made.
WIDTH = 64
# Channels of one task in forward, where results do not depend on it: as many as leave a task for every thread, for wide rows
# are read from memory at half the cost of narrow ones.
_FORWARD_WIDTHS = (256, 128, 64)
_LOG2_E, _LN_2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
# What a position is: padding, a step, or a step before which the state restarts from zero.
_PADDING, _RESTART = 0, 2


def selective_scan_cpu(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor | None = None,
    z_BLD: Tensor | None = None,
    dt_bias_D: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    initial_state_BDN: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan in compiled loops; arguments as in `longseq.ops.selective_scan.selective_scan`, float32 or less."""
    kind_BL = None
    if mask_BL is not None or segment_ids_BL is not None:
        kind_BL = _kinds(mask_BL, segment_ids_BL, reverse)
    given = (x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, initial_state_BDN)
    trains = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in given)
    y_BLD, state_BDN, _ = _scan(*given, kind_BL, dt_softplus, reverse, trains)
    return y_BLD, state_BDN


def _kinds(mask_BL: Tensor | None, segment_ids_BL: Tensor | None, reverse: bool) -> Tensor:
    """What each position is, as uint8."""
    if segment_ids_BL is None:
        assert mask_BL is not None
        return mask_BL.to(torch.uint8)
    if reverse:
        mask_BL = None if mask_BL is None else mask_BL.flip(1)
        segment_ids_BL = segment_ids_BL.flip(1)
    kind_BL = _RESTART - keep_state(segment_ids_BL, mask_BL).to(torch.uint8)
    kind_BL = kind_BL if mask_BL is None else kind_BL.masked_fill(~mask_BL, _PADDING)
    return kind_BL.flip(1) if reverse else kind_BL


def _arrays(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    dt_bias: Tensor | None,
    kind: Tensor | None,
    dy: Tensor | None = None,
) -> tuple[Any, ...]:
    """The inputs as the kernels read them: rows of numbers with their strides; what is left out is zeros or empty."""
    width = x.shape[2]
    zeros_D = np.zeros(width, np.float32)
    given = [x, dt, x[:, :0, :0] if z is None else z, B, C] + ([] if dy is None else [dy])
    rows, at = zip(*(flat(v) for v in given), strict=True)
    return (
        (x.shape[1], width, A.shape[1]),
        rows,
        at,
        _numbers(A.detach().t()),
        zeros_D if D is None else _numbers(D),
        zeros_D if dt_bias is None else _numbers(dt_bias),
        np.empty((0, 0), np.uint8) if kind is None else kind.contiguous().numpy(),
    )


def _numbers(v: Tensor) -> np.ndarray:
    return v.detach().to(torch.float32).contiguous().numpy()


def _n_tasks(x_BLD: Tensor, width: int = WIDTH) -> int:
    return x_BLD.shape[0] * (-(-x_BLD.shape[2] // width))


def _forward_width(x_BLD: Tensor) -> int:
    threads = torch.get_num_threads()
    return next((width for width in _FORWARD_WIDTHS if _n_tasks(x_BLD, width) >= threads), _FORWARD_WIDTHS[-1])


@torch.library.custom_op("longseq::selective_scan_cpu", mutates_args=())
def _scan(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor | None,
    z_BLD: Tensor | None,
    dt_bias_D: Tensor | None,
    h0_BDN: Tensor | None,
    kind_BL: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    trains: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the last state, and, if a backward pass may follow, the state at the start of each chunk (B, S, N, D)."""
    result, state_BDN, starts_BSND = (allocate(*shape) for shape in _shapes(x_BLD, A_DN, trains))
    if h0_BDN is None:
        state_BDN.zero_()
    else:
        state_BDN.copy_(h0_BDN)
    width = _forward_width(x_BLD)
    run_tasks(
        _forward,
        _n_tasks(x_BLD, width),
        x_BLD.numel() * A_DN.shape[1],
        *_arrays(x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, kind_BL),
        result.numpy(),
        state_BDN.numpy(),
        starts_BSND.numpy(),
        dt_softplus,
        reverse,
        width,
    )
    return result.to(x_BLD.dtype), state_BDN, starts_BSND


def _shapes(x_BLD: Tensor, A_DN: Tensor, trains: bool) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    (batch, length, width), n_states = x_BLD.shape, A_DN.shape[1]
    n_chunks = (length + CHUNK - 1) // CHUNK if trains else 0
    return (batch, length, width), (batch, width, n_states), (batch, n_chunks, n_states, width)


@_scan.register_fake
def _(x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, h0_BDN, kind_BL, dt_softplus, reverse, trains):  # type: ignore[no-untyped-def]
    y, *states = _shapes(x_BLD, A_DN, trains)
    return x_BLD.new_empty(y), *(x_BLD.new_empty(shape, dtype=torch.float32) for shape in states)


@torch.library.custom_op("longseq::selective_scan_cpu_backward", mutates_args=())
def _scan_backward(
    dy_BLD: Tensor,
    dstate_BDN: Tensor,
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor | None,
    z_BLD: Tensor | None,
    dt_bias_D: Tensor | None,
    kind_BL: Tensor | None,
    starts_BSND: Tensor,
    dt_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and the initial state (of a z left out: empty), in float32."""
    (batch, length, width), n_states, n_tasks = x_BLD.shape, A_DN.shape[1], _n_tasks(x_BLD)
    dx_BLD, ddt_BLD, dz_BLD = (allocate(*shape) for shape in _row_shapes(x_BLD, z_BLD))
    dA_BND, dchannel_B2D = dx_BLD.new_zeros(batch, n_states, width), dx_BLD.new_zeros(batch, 2, width)
    dB_ZLN, dC_ZLN = (allocate(n_tasks, length, n_states) for _ in range(2))
    dh0_BDN = dstate_BDN.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    run_tasks(
        _backward,
        n_tasks,
        4 * x_BLD.numel() * n_states,
        *_arrays(x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, kind_BL, dy_BLD),
        starts_BSND.numpy(),
        tuple(v.numpy() for v in (dx_BLD, ddt_BLD, dz_BLD)),
        *(v.numpy() for v in (dA_BND, dchannel_B2D, dB_ZLN, dC_ZLN, dh0_BDN)),
        dt_softplus,
        reverse,
    )
    dB_BLN, dC_BLN = (v.unflatten(0, (batch, -1)).sum(1) for v in (dB_ZLN, dC_ZLN))
    dD_D, dbias_D = dchannel_B2D.sum(0).unbind(0)
    return dx_BLD, ddt_BLD, dA_BND.sum(0).t().contiguous(), dB_BLN, dC_BLN, dD_D.clone(), dz_BLD, dbias_D.clone(), dh0_BDN


def _row_shapes(x_BLD: Tensor, z_BLD: Tensor | None) -> list[tuple[int, ...]]:
    return [tuple(x_BLD.shape), tuple(x_BLD.shape), (0, 0, 0) if z_BLD is None else tuple(z_BLD.shape)]


@_scan_backward.register_fake
def _(dy, dstate, x, dt, A, B, C, D, z, dt_bias, kind, starts, dt_softplus, reverse):  # type: ignore[no-untyped-def]
    dx, ddt, dz = (x.new_empty(shape, dtype=torch.float32) for shape in _row_shapes(x, z))
    channel = [dx.new_empty(x.shape[2]) for _ in range(2)]
    maps = [dx.new_empty(B.shape) for _ in range(2)]
    return dx, ddt, dx.new_empty(A.shape), *maps, channel[0], dz, channel[1], dx.new_empty(dstate.shape)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.dt_softplus, ctx.reverse, _ = inputs
    *arguments, h0_BDN, kind_BL = tensors
    ctx.h0_dtype = None if h0_BDN is None else h0_BDN.dtype
    ctx.save_for_backward(*arguments, kind_BL, output[2])


def _differentiate(ctx, dy_BLD: Tensor, dstate_BDN: Tensor, _dstarts: Tensor | None):  # type: ignore[no-untyped-def]
    *arguments, kind_BL, starts_BSND = ctx.saved_tensors
    *grads, dh0 = _scan_backward(dy_BLD, dstate_BDN, *arguments, kind_BL, starts_BSND, ctx.dt_softplus, ctx.reverse)
    wanted = zip(grads, arguments, ctx.needs_input_grad, strict=False)
    grads = [g.to(v.dtype) if asked and v is not None else None for g, v, asked in wanted]
    return *grads, None if ctx.h0_dtype is None else dh0.to(ctx.h0_dtype), None, None, None, None


_scan.register_autograd(_differentiate, setup_context=_setup_context)


@inlined
def _enter(step, inflow, out, x, x_i, dt, dt_i, skip, bias, first, w, dt_softplus):  # type: ignore[no-untyped-def]
    """Step sizes, what flows in but for B, and what is read but for the states, of a block of channels at one position."""
    for d in range(w):
        step[d] = dt[dt_i + d] + bias[first + d]
    if dt_softplus:
        for d in range(w):
            step[d] = softplus(step[d])
    for d in range(w):
        inflow[d] = step[d] * x[x_i + d]
        out[d] = skip[first + d] * x[x_i + d]


@inlined
def _advance(step, inflow, out, rate, before, after, B, B_i, C, C_i, n_states, w):  # type: ignore[no-untyped-def]
    """The states after a position, and what is read from them."""
    for n in range(n_states):
        into, read = B[B_i + n], C[C_i + n]
        for d in range(w):
            new = exp2(step[d] * rate[n, d]) * before[n, d] + inflow[d] * into
            after[n, d] = new
            out[d] += read * new


@compiled
def _forward(start, stop, sizes, rows, at, A_ND, skip, bias, kind, y, state, starts, dt_softplus, reverse, block):  # type: ignore[no-untyped-def]
    """Tasks start ... stop - 1, each of one batch row and `block` channels; the state is read and overwritten.

    Positions in the rows are unsigned: a signed index might count from the end, and loops over it do not vectorise.
    """
    length, width, n_states = sizes
    x, dt, z, B, C = rows
    n_blocks = (width + block - 1) // block
    rate, h = np.empty((n_states, block), np.float32), np.empty((n_states, block), np.float32)
    # Reading and writing the same states would keep the loop from vectorising.
    after = np.empty((n_states, block), np.float32)
    step, inflow, out = np.empty(block, np.float32), np.empty(block, np.float32), np.empty(block, np.float32)
    for task in range(start, stop):
        b, first = task // n_blocks, task % n_blocks * block
        w, first_u = np.uint64(min(block, width - first)), np.uint64(first)
        for n in range(n_states):
            for d in range(w):
                rate[n, d], h[n, d] = A_ND[n, first_u + d] * _LOG2_E, state[b, first_u + d, n]
        for i in range(length):
            t = length - 1 - i if reverse else i
            if starts.size > 0 and i % CHUNK == 0:
                for n in range(n_states):
                    for d in range(w):
                        starts[b, i // CHUNK, n, first_u + d] = h[n, d]
            what = kind[b, t] if kind.size > 0 else 1
            if what == _PADDING:
                for d in range(w):
                    y[b, t, first_u + d] = np.float32(0.0)
                continue
            if what == _RESTART:
                h.fill(np.float32(0.0))
            x_i, dt_i = np.uint64(b * at[0][0] + t * at[0][1] + first), np.uint64(b * at[1][0] + t * at[1][1] + first)
            B_i, C_i = b * at[3][0] + t * at[3][1], b * at[4][0] + t * at[4][1]
            _enter(step, inflow, out, x, x_i, dt, dt_i, skip, bias, first_u, w, dt_softplus)
            _advance(step, inflow, out, rate, h, after, B, B_i, C, C_i, n_states, w)
            h, after = after, h
            if z.size > 0:
                z_i = np.uint64(b * at[2][0] + t * at[2][1] + first)
                for d in range(w):
                    out[d] *= z[z_i + d] * sigmoid(z[z_i + d])
            for d in range(w):
                y[b, t, first_u + d] = out[d]
        for n in range(n_states):
            for d in range(w):
                state[b, first_u + d, n] = h[n, d]


@inlined
def _retreat(step, inflow, grad, rate, before, after, g, dA, dstep, dinflow, B, B_i, C, C_i, dB, dC, n_states, w):  # type: ignore[no-untyped-def]
    """The gradients of one position: g, that of the states after it from later positions, becomes that of those before it."""
    for d in range(w):
        dstep[d], dinflow[d] = np.float32(0.0), np.float32(0.0)
    for n in range(n_states):
        into, read = B[B_i + n], C[C_i + n]
        dinto, dread = np.float32(0.0), np.float32(0.0)
        for d in range(w):
            g_t = g[n, d] + read * grad[d]
            dread += grad[d] * after[n, d]
            dinto += g_t * inflow[d]
            dinflow[d] += g_t * into
            g_t *= exp2(step[d] * rate[n, d])
            # The gradient of the logarithm of the decay.
            dlog = g_t * before[n, d]
            dstep[d] += dlog * rate[n, d]
            dA[n, d] += dlog * step[d]
            g[n, d] = g_t
        dB[n], dC[n] = dinto, dread


@compiled
def _backward(  # type: ignore[no-untyped-def]
    start, stop, sizes, rows, at, A_ND, skip, bias, kind, starts, grads, dA, dchannel, dB, dC, dh0, dt_softplus, reverse
):  # fmt: skip
    """The tasks of `_forward` from the last chunk to the first; `dh0` holds the gradient of the last state at first."""
    length, width, n_states = sizes
    x, dt, z, B, C, dy = rows
    dx, ddt, dz = grads
    n_blocks, n_chunks = (width + WIDTH - 1) // WIDTH, (length + CHUNK - 1) // CHUNK
    rate, g = np.empty((n_states, WIDTH), np.float32), np.empty((n_states, WIDTH), np.float32)
    dA_block, nothing = np.empty((n_states, WIDTH), np.float32), np.zeros((n_states, WIDTH), np.float32)
    # The states of a chunk: before its first step, after its first step, and so on.
    states = np.empty((CHUNK + 1, n_states, WIDTH), np.float32)
    steps, outs = np.empty((CHUNK, WIDTH), np.float32), np.empty((CHUNK, WIDTH), np.float32)
    inflow, grad, sums = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32), np.empty((2, WIDTH), np.float32)
    dstep, dinflow = np.empty(WIDTH, np.float32), np.empty(WIDTH, np.float32)
    for task in range(start, stop):
        b, first = task // n_blocks, task % n_blocks * WIDTH
        w, first_u = np.uint64(min(WIDTH, width - first)), np.uint64(first)
        sums.fill(np.float32(0.0))
        dA_block.fill(np.float32(0.0))
        for n in range(n_states):
            for d in range(w):
                rate[n, d], g[n, d] = A_ND[n, first_u + d] * _LOG2_E, dh0[b, first_u + d, n]
        for chunk in range(n_chunks - 1, -1, -1):
            begin = chunk * CHUNK
            n_steps = min(CHUNK, length - begin)
            for n in range(n_states):
                for d in range(w):
                    states[0, n, d] = starts[b, chunk, n, first_u + d]
            for j in range(n_steps):
                t = length - 1 - begin - j if reverse else begin + j
                what = kind[b, t] if kind.size > 0 else 1
                if what == _PADDING:
                    for n in range(n_states):
                        for d in range(w):
                            states[j + 1, n, d] = states[j, n, d]
                    continue
                before = nothing if what == _RESTART else states[j]
                x_i, dt_i = np.uint64(b * at[0][0] + t * at[0][1] + first), np.uint64(b * at[1][0] + t * at[1][1] + first)
                B_i, C_i = b * at[3][0] + t * at[3][1], b * at[4][0] + t * at[4][1]
                _enter(steps[j], inflow, outs[j], x, x_i, dt, dt_i, skip, bias, first_u, w, dt_softplus)
                _advance(steps[j], inflow, outs[j], rate, before, states[j + 1], B, B_i, C, C_i, n_states, w)
            for j in range(n_steps - 1, -1, -1):
                t = length - 1 - begin - j if reverse else begin + j
                what = kind[b, t] if kind.size > 0 else 1
                if what == _PADDING:
                    for d in range(w):
                        dx[b, t, first_u + d], ddt[b, t, first_u + d] = np.float32(0.0), np.float32(0.0)
                        if z.size > 0:
                            dz[b, t, first_u + d] = np.float32(0.0)
                    for n in range(n_states):
                        dB[task, t, n], dC[task, t, n] = np.float32(0.0), np.float32(0.0)
                    continue
                step, out = steps[j], outs[j]
                before = nothing if what == _RESTART else states[j]
                x_i, dt_i = np.uint64(b * at[0][0] + t * at[0][1] + first), np.uint64(b * at[1][0] + t * at[1][1] + first)
                B_i, C_i = b * at[3][0] + t * at[3][1], b * at[4][0] + t * at[4][1]
                dy_i = np.uint64(b * at[5][0] + t * at[5][1] + first)
                for d in range(w):
                    inflow[d], grad[d] = step[d] * x[x_i + d], dy[dy_i + d]
                if z.size > 0:
                    z_i = np.uint64(b * at[2][0] + t * at[2][1] + first)
                    for d in range(w):
                        opened = sigmoid(z[z_i + d])
                        slope = opened * (np.float32(1.0) + z[z_i + d] * (np.float32(1.0) - opened))
                        dz[b, t, first_u + d] = grad[d] * out[d] * slope
                        grad[d] *= z[z_i + d] * opened
                _retreat(
                    step, inflow, grad, rate, before, states[j + 1], g, dA_block, dstep, dinflow,
                    B, B_i, C, C_i, dB[task, t], dC[task, t], n_states, w,
                )  # fmt: skip
                if what == _RESTART:
                    g.fill(np.float32(0.0))
                for d in range(w):
                    dx[b, t, first_u + d] = dinflow[d] * step[d] + skip[first_u + d] * grad[d]
                    sums[0, d] += grad[d] * x[x_i + d]
                    dstep[d] = dstep[d] * _LN_2 + dinflow[d] * x[x_i + d]
                if dt_softplus:
                    for d in range(w):
                        dstep[d] *= sigmoid(dt[dt_i + d] + bias[first_u + d])
                for d in range(w):
                    ddt[b, t, first_u + d] = dstep[d]
                    sums[1, d] += dstep[d]
        for d in range(w):
            dchannel[b, 0, first_u + d], dchannel[b, 1, first_u + d] = sums[0, d], sums[1, d]
        for n in range(n_states):
            for d in range(w):
                dA[b, n, first_u + d], dh0[b, first_u + d, n] = dA_block[n, d], g[n, d]
