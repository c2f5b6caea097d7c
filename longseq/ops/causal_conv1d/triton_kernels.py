"""The causal depthwise convolution's GPU kernels: memory is read once and written once, and the rest hides behind that.

Time runs in scan order: position = first + sign * step, so that the reversed direction needs no copy.
"""

# To a type checker Triton's decorated functions never return.
# pyright: reportGeneralTypeIssues=false
# Triton knows no starred tuples.
# ruff: noqa: RUF005

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)


@triton.jit
def sigmoid(v):
    return 1.0 / (1.0 + tl.exp2(v * -LOG2_E))


@triton.jit(do_not_specialize=["L", "x_batch"])
def conv_forward(
    x_ptr,
    weight_ptr,
    bias_ptr,
    init_ptr,
    mask_ptr,
    run_ptr,
    first_ptr,
    y_ptr,
    L,
    D,
    x_batch,
    x_row,
    K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    T: tl.constexpr,
    SIGN: tl.constexpr,
    SILU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_INIT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_RUNS: tl.constexpr,
):
    """A tile of T steps x BLOCK_D channels; the K shifted reads of a tile meet in the first-level cache."""
    row = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    begin = tl.program_id(0).to(tl.int64) * T
    steps = tl.arange(0, T)
    ok_D = channels < D
    origin = begin
    if SIGN < 0:
        origin = L - 1 - begin
    x_ptr += (row * x_batch + origin) * x_row
    y_ptr += (row * L + origin) * D
    mask_ptr += row * L + origin
    run_ptr += row * L + origin
    inside_T = begin + steps < L
    first = begin * 0
    if HAS_INIT:
        first = tl.load(first_ptr + row).to(tl.int64)
    run = steps * 0
    if HAS_RUNS:
        run = tl.load(run_ptr + SIGN * steps, mask=inside_T, other=0)
    total = tl.zeros((T, BLOCK_D), tl.float32)
    if HAS_BIAS:
        total += tl.load(bias_ptr + channels, mask=ok_D, other=0.0).to(tl.float32)[None, :]
    for k in tl.static_range(K):
        source = steps - (K - 1 - k)
        exists = inside_T & (begin + source >= 0)
        same = inside_T
        if HAS_RUNS and k < K - 1:
            # Before the row's first position there is only its first segment.
            same = run == tl.load(run_ptr + SIGN * source, mask=exists, other=0)
        if HAS_MASK:
            real = exists & (tl.load(mask_ptr + SIGN * source, mask=exists, other=0) != 0) & same
        else:
            real = exists & same
        at = SIGN * source[:, None] * x_row + channels[None, :]
        tap = tl.load(x_ptr + at, mask=real[:, None] & ok_D[None, :], other=0.0).to(tl.float32)
        if HAS_INIT and k < K - 1:
            place = begin + source - first + (K - 1)
            held = (place >= 0) & (place < K - 1) & same & inside_T
            at_init = (row * (K - 1) + place)[:, None] * D + channels[None, :]
            tap += tl.load(init_ptr + at_init, mask=held[:, None] & ok_D[None, :], other=0.0)
        total += tap * tl.load(weight_ptr + channels * K + k, mask=ok_D, other=0.0).to(tl.float32)[None, :]
    if SILU:
        total *= sigmoid(total)
    if HAS_MASK:
        real = (tl.load(mask_ptr + SIGN * steps, mask=inside_T, other=0) != 0)[:, None]
        total = tl.where(real, total, 0.0)
    at = SIGN * steps[:, None] * D + channels[None, :]
    tl.store(y_ptr + at, total.to(y_ptr.dtype.element_ty), mask=inside_T[:, None] & ok_D[None, :])


@triton.jit
def read_input(
    s,
    x_ptr,
    init_ptr,
    mask_ptr,
    row,
    first,
    channels,
    ok_D,
    L,
    D,
    x_row,
    K: tl.constexpr,
    SIGN: tl.constexpr,
    HAS_INIT: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """The input at step s as a vector over channels: zero where masked or outside, the initial state's before the first.

    Without an initial state it keeps its dtype, which halves the registers of inputs that are read ahead.
    """
    exists = (s >= 0) & (s < L)
    if HAS_MASK:
        exists = exists & (tl.load(mask_ptr + SIGN * s, mask=exists, other=0) != 0)
    value = tl.load(x_ptr + SIGN * s * x_row + channels, mask=ok_D & exists, other=0.0)
    if HAS_INIT:
        value = value.to(tl.float32)
        place = s - first + (K - 1)
        held = (place >= 0) & (place < K - 1)
        value += tl.load(init_ptr + (row * (K - 1) + place) * D + channels, mask=ok_D & held, other=0.0)
    return value


@triton.jit
def read_group(
    t,
    stop,
    dy_ptr,
    x_ptr,
    init_ptr,
    mask_ptr,
    row,
    first,
    channels,
    ok_D,
    L,
    D,
    x_row,
    K: tl.constexpr,
    U: tl.constexpr,
    SIGN: tl.constexpr,
    HAS_INIT: tl.constexpr,
    HAS_MASK: tl.constexpr,
):
    """Inputs and gradients of the U steps from t on, the latter up to `stop`."""
    xs = ()
    dys = ()
    for i in tl.static_range(U):
        s = t + i
        x = read_input(s, x_ptr, init_ptr, mask_ptr, row, first, channels, ok_D, L, D, x_row, K, SIGN, HAS_INIT, HAS_MASK)
        xs = xs + (x,)
        wanted = s < stop
        if HAS_MASK:
            wanted = wanted & (tl.load(mask_ptr + SIGN * s, mask=wanted, other=0) != 0)
        dys = dys + (tl.load(dy_ptr + SIGN * s * D + channels, mask=ok_D & wanted, other=0.0),)
    return xs, dys


@triton.jit(do_not_specialize=["L", "stretch", "x_batch"])
def conv_backward(
    dy_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    init_ptr,
    mask_ptr,
    run_ptr,
    first_ptr,
    dx_ptr,
    dweight_ptr,
    dbias_ptr,
    L,
    D,
    stretch,
    x_batch,
    x_row,
    K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    U: tl.constexpr,
    SIGN: tl.constexpr,
    SILU: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_INIT: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_RUNS: tl.constexpr,
):
    """Walks through a stretch of time with the last K inputs and the last K gradients before the activation in registers.

    U steps are unrolled, and the next U are read meanwhile. The gradient of the input at step t - (K - 1) is complete once that
    of the output at step t is known, so the walk runs K - 1 steps past the stretch's end.
    """
    row = tl.program_id(2).to(tl.int64)
    channels = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    ok_D = channels < D
    begin = tl.program_id(0).to(tl.int64) * stretch
    end = tl.minimum(begin + stretch, L)
    begin_row = begin * 0
    if SIGN < 0:
        begin_row += L - 1
    x_ptr += (row * x_batch + begin_row) * x_row
    dy_ptr += (row * L + begin_row) * D
    dx_ptr += (row * L + begin_row) * D
    mask_ptr += row * L + begin_row
    run_ptr += row * L + begin_row
    first = begin * 0
    if HAS_INIT:
        first = tl.load(first_ptr + row).to(tl.int64)
    weights = ()
    dweights = ()
    for k in tl.static_range(K):
        weights = weights + (tl.load(weight_ptr + channels * K + k, mask=ok_D, other=0.0).to(tl.float32),)
        dweights = dweights + (tl.zeros((BLOCK_D,), tl.float32),)
    bias = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channels, mask=ok_D, other=0.0).to(tl.float32)
    dbias = tl.zeros((BLOCK_D,), tl.float32)
    # Inputs at the K - 1 steps before, and gradients (of outputs before the activation) at them that this stretch owns.
    inputs = ()
    slopes = ()
    runs = ()
    for k in tl.static_range(K - 1):
        s = begin - (K - 1) + k
        value = read_input(s, x_ptr, init_ptr, mask_ptr, row, first, channels, ok_D, L, D, x_row, K, SIGN, HAS_INIT, HAS_MASK)
        inputs = inputs + (value.to(tl.float32),)
        slopes = slopes + (tl.zeros((BLOCK_D,), tl.float32),)
        here = begin * 0
        if HAS_RUNS:
            here += tl.load(run_ptr + SIGN * tl.maximum(s, 0))
        runs = runs + (here,)
    # The stretch's own steps and the K - 1 after them, whose gradients the last inputs wait for.
    stop = tl.minimum(end + (K - 1), L)
    new, dys = read_group(
        begin, stop, dy_ptr, x_ptr, init_ptr, mask_ptr, row, first, channels, ok_D, L, D, x_row, K, U, SIGN, HAS_INIT, HAS_MASK
    )
    for start in tl.range(begin, end + (K - 1), U):
        # The next group is on its way while this one is computed.
        next_new, next_dys = read_group(
            begin * 0 + start + U,
            stop,
            dy_ptr,
            x_ptr,
            init_ptr,
            mask_ptr,
            row,
            first,
            channels,
            ok_D,
            L,
            D,
            x_row,
            K,
            U,
            SIGN,
            HAS_INIT,
            HAS_MASK,
        )
        for i in tl.static_range(U):
            t = begin * 0 + start + i
            window = inputs + (new[i].to(tl.float32),)
            run = begin * 0
            if HAS_RUNS:
                run += tl.load(run_ptr + SIGN * tl.minimum(t, L - 1))
            window_runs = runs + (run,)
            slope = dys[i].to(tl.float32)
            if SILU:
                total = bias
                for k in tl.static_range(K):
                    if HAS_RUNS:
                        total += tl.where(window_runs[k] == run, window[k], 0.0) * weights[k]
                    else:
                        total += window[k] * weights[k]
                gate = sigmoid(total)
                slope *= gate * (1.0 + total * (1.0 - gate))
            # The steps past the end belong to the next stretch's sums.
            owned = tl.where(t < end, slope, 0.0)
            dbias += owned
            grown = ()
            for k in tl.static_range(K):
                if HAS_RUNS:
                    grown = grown + (dweights[k] + owned * tl.where(window_runs[k] == run, window[k], 0.0),)
                else:
                    grown = grown + (dweights[k] + owned * window[k],)
            dweights = grown
            # The input that has just met its last tap.
            window_slopes = slopes + (slope,)
            done = t - (K - 1)
            dx = tl.zeros((BLOCK_D,), tl.float32)
            for k in tl.static_range(K):
                if HAS_RUNS:
                    dx += tl.where(window_runs[k] == window_runs[0], window_slopes[k], 0.0) * weights[K - 1 - k]
                else:
                    dx += window_slopes[k] * weights[K - 1 - k]
            write = (done >= begin) & (done < end)
            if HAS_MASK:
                real = tl.load(mask_ptr + SIGN * done, mask=write, other=0) != 0
                dx = tl.where(real, dx, 0.0)
            tl.store(dx_ptr + SIGN * done * D + channels, dx.to(dx_ptr.dtype.element_ty), mask=ok_D & write)
            inputs = window[1:]
            slopes = window_slopes[1:]
            runs = window_runs[1:]
        new, dys = next_new, next_dys
    part = (row * tl.num_programs(0) + tl.program_id(0)) * D
    for k in tl.static_range(K):
        tl.store(dweight_ptr + (part + channels) * K + k, dweights[k], mask=ok_D)
    if HAS_BIAS:
        tl.store(dbias_ptr + part + channels, dbias, mask=ok_D)
