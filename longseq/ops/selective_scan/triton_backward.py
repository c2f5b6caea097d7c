"""The backward pass of the selective scan: states are computed again from those kept, gradients walk back through time.

With g_t the gradient of the state h_t, a_t = exp(dt_t A) and u_t = dt_t x_t:
g_t = a_{t+1} g_{t+1} + C_t dy_t, dC_t = sum_d dy_t h_t, dB_t = sum_d u_t g_t, du_t = sum_n B_t g_t, and the log-decay's
gradient g_t a_t h_{t-1} gives those of dt and A.
"""

# To a type checker Triton's decorated functions never return.
# pyright: reportGeneralTypeIssues=false
# Triton knows no starred tuples.
# ruff: noqa: RUF005

import triton
import triton.language as tl

from longseq.ops.selective_scan.triton_kernels import (
    LN_2,
    LOG2_E,
    VARYING,
    join_rows,
    load_tile,
    sigmoid,
    softplus,
    split_rows,
    tile_ok,
    touch,
)

# Columns of the matrix of ones: the smallest that the tensor cores take.
COLUMNS: tl.constexpr = tl.constexpr(8)


@triton.jit
def sum_over_channels(values, BLOCK_D: tl.constexpr, N: tl.constexpr, WARPS: tl.constexpr):
    """(BLOCK_D, N) -> (WARPS, N): each warp adds up its own channels, so that no warp waits for another."""
    return tl.sum(tl.reshape(values, (WARPS, BLOCK_D // WARPS, N)), axis=1)


@triton.jit
def join_maps(rows, WARPS: tl.constexpr, N: tl.constexpr, T: tl.constexpr, LOG_T: tl.constexpr):
    """T times (WARPS, N) -> (N, T), the sum over warps."""
    parts = ()
    for i in tl.static_range(T):
        parts = parts + (tl.reshape(rows[i], (WARPS, N, 1)),)
    for level in tl.static_range(LOG_T):
        wider = ()
        for i in tl.static_range(T >> (level + 1)):
            both = tl.permute(tl.join(parts[2 * i], parts[2 * i + 1]), (0, 1, 3, 2))
            wider = wider + (tl.reshape(both, (WARPS, N, 2 << level)),)
        parts = wider
    return tl.sum(parts[0], axis=0)


@triton.jit
def dot_over_channels(rows, BLOCK_D: tl.constexpr, N: tl.constexpr, T: tl.constexpr, LOG_T: tl.constexpr):
    """T times (BLOCK_D, N) -> (N * T, COLUMNS), the sum over channels in every column: a product with ones, on tensor cores."""
    parts = ()
    for i in tl.static_range(T):
        parts = parts + (tl.reshape(rows[i], (BLOCK_D, N, 1)),)
    for level in tl.static_range(LOG_T):
        wider = ()
        for i in tl.static_range(T >> (level + 1)):
            both = tl.permute(tl.join(parts[2 * i], parts[2 * i + 1]), (0, 1, 3, 2))
            wider = wider + (tl.reshape(both, (BLOCK_D, N, 2 << level)),)
        parts = wider
    stacked = tl.trans(tl.reshape(parts[0], (BLOCK_D, N * T)))
    return tl.dot(stacked, tl.full((BLOCK_D, COLUMNS), 1.0, tl.float32).to(stacked.dtype))


@triton.jit(do_not_specialize=VARYING)
def scan_backward(
    dy_ptr,
    dlast_ptr,
    x_ptr,
    dt_ptr,
    z_ptr,
    A_ptr,
    B_ptr,
    C_ptr,
    skip_ptr,
    bias_ptr,
    mask_ptr,
    reset_ptr,
    kept_ptr,
    dx_ptr,
    ddt_ptr,
    dz_ptr,
    dB_ptr,
    dC_ptr,
    dA_ptr,
    dskip_ptr,
    dbias_ptr,
    dstart_ptr,
    total_ptr,
    L,
    D,
    n_states,
    stretch,
    n_kept,
    map_rows,
    first_map,
    x_batch,
    x_row,
    dt_batch,
    dt_row,
    z_batch,
    z_row,
    BLOCK_D: tl.constexpr,
    N: tl.constexpr,
    T: tl.constexpr,
    LOG_T: tl.constexpr,
    WARPS: tl.constexpr,
    STAGES: tl.constexpr,
    SIGN: tl.constexpr,
    KEEP: tl.constexpr,
    GRADS: tl.constexpr,
    TOTALS: tl.constexpr,
    TOUCH: tl.constexpr,
    DOT: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_RESET: tl.constexpr,
):
    """One stretch of time, from the gradient of its last state back to that of the state that enters it.

    Without GRADS only the latter is made. DOT adds over channels on the tensor cores, in
    DOT_TYPE.
    """
    segment, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    channels = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    states, steps = tl.arange(0, N), tl.arange(0, T)
    ok_D = channels < D
    at_DN = channels[:, None] * N + states[None, :]
    at_A = channels[:, None] * n_states + states[None, :]
    A2 = tl.load(A_ptr + at_A, mask=ok_D[:, None] & (states < n_states)[None, :], other=0.0) * LOG2_E
    begin = segment.to(tl.int64) * stretch
    end = tl.minimum(begin + stretch, L)
    n_tiles = ((end - begin + T - 1) // T).to(tl.int32)
    place = (row * tl.num_programs(1) + segment) * D
    g = tl.load(dlast_ptr + place * N + at_DN, mask=ok_D[:, None], other=0.0)
    first = begin
    if SIGN < 0:
        first = L - 1 - begin
    x_ptr += (row * x_batch + first) * x_row
    dt_ptr += (row * dt_batch + first) * dt_row
    z_ptr += (row * z_batch + first) * z_row
    shift = (row * L + first) * D
    dy_ptr += shift
    dx_ptr += shift
    ddt_ptr += shift
    dz_ptr += shift
    mask_ptr += row * L + first
    B_ptr += (row * map_rows + first_map + SIGN * begin) * N
    C_ptr += (row * map_rows + first_map + SIGN * begin) * N
    reset_ptr += row * map_rows + first_map + SIGN * begin
    kept_ptr += (row * n_kept + begin // KEEP) * D * N
    at_map = states[None, :] + channels[:, None] * 0
    # Partial sums over this tile of channels: (tiles, batch, length, N).
    partial = ((tl.program_id(0).to(tl.int64) * tl.num_programs(2) + row) * L + first) * N
    dB_ptr += partial
    dC_ptr += partial
    bias = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channels, mask=ok_D, other=0.0)
    skip = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_SKIP:
        skip += tl.load(skip_ptr + channels, mask=ok_D, other=0.0)
    dA = tl.zeros((BLOCK_D, N), tl.float32)
    dskip = tl.zeros((BLOCK_D,), tl.float32)
    dbias = tl.zeros((BLOCK_D,), tl.float32)
    total = tl.zeros((BLOCK_D,), tl.float32)
    resets = 0.0

    # Makes offsets along time 64 bits wide.
    zero = begin * 0
    # The tile before is loaded while one is computed; float32 in registers also keeps the compiler from doing the arithmetic
    # below in the layout of the states, once for each lane that shares a channel.
    ahead = zero + SIGN * (n_tiles - 1) * T
    start_next = begin + (n_tiles - 1) * T
    ok_next = tile_ok(start_next, end, steps, channels, D, mask_ptr + ahead, SIGN, HAS_MASK)
    dt_next = load_tile(dt_ptr + ahead * dt_row, dt_row, steps, SIGN, channels, ok_next)
    x_next = load_tile(x_ptr + ahead * x_row, x_row, steps, SIGN, channels, ok_next)
    dy_next = load_tile(dy_ptr + ahead * D, D, steps, SIGN, channels, ok_next)
    z_next = dy_next
    if HAS_GATE:
        z_next = load_tile(z_ptr + ahead * z_row, z_row, steps, SIGN, channels, ok_next)
    h_next = tl.zeros((BLOCK_D, N), kept_ptr.dtype.element_ty)
    if GRADS:
        last_kept = zero + ((n_tiles - 1) * T) // KEEP
        h_next = tl.load(kept_ptr + last_kept * D * N + at_DN, mask=ok_D[:, None], other=0.0)
    hits = tl.zeros((T * N,), tl.int32)
    for index in tl.range(0, n_tiles, num_stages=STAGES):
        k = n_tiles - 1 - index
        start = begin + k * T
        here = zero + SIGN * k * T
        ok, dt, x, dy, z = ok_next, dt_next, x_next, dy_next, z_next
        ahead = zero + SIGN * tl.maximum(k - 1, 0) * T
        start_next = begin + tl.maximum(k - 1, 0) * T
        ok_next = tile_ok(start_next, end, steps, channels, D, mask_ptr + ahead, SIGN, HAS_MASK)
        dt_next = load_tile(dt_ptr + ahead * dt_row, dt_row, steps, SIGN, channels, ok_next)
        x_next = load_tile(x_ptr + ahead * x_row, x_row, steps, SIGN, channels, ok_next)
        dy_next = load_tile(dy_ptr + ahead * D, D, steps, SIGN, channels, ok_next)
        if HAS_GATE:
            z_next = load_tile(z_ptr + ahead * z_row, z_row, steps, SIGN, channels, ok_next)
        else:
            z_next = dy_next
        h_kept = h_next
        if GRADS:
            kept_before = zero + (tl.maximum(k - 1, 0) * T) // KEEP
            h_next = tl.load(kept_ptr + kept_before * D * N + at_DN, mask=ok_D[:, None], other=0.0)
        if TOUCH:
            # Two tiles of steps stand between the pointers and those before: time runs backwards here.
            hits = touch(hits, C_ptr + (here - SIGN * 2 * T) * N, k > 0, T, N, SIGN)
            if GRADS:
                hits = touch(hits, B_ptr + (here - SIGN * 2 * T) * N, k > 0, T, N, SIGN)
        if HAS_GATE:
            dy *= z * sigmoid(z)
        if HAS_BIAS:
            dt += bias[:, None]
        if SOFTPLUS:
            dt = softplus(dt)
        if HAS_BIAS or SOFTPLUS:
            dt = tl.where(ok, dt, 0.0)
        if TOTALS:
            total += tl.sum(dt, axis=1)
        dt_rows = split_rows(dt, BLOCK_D, T, LOG_T)
        dy_rows = split_rows(dy, BLOCK_D, T, LOG_T)
        B_here = B_ptr + here * N
        C_here = C_ptr + here * N
        reset_here = reset_ptr + here
        if not GRADS:
            for j in tl.static_range(T):
                C = tl.load(C_here + (SIGN * (T - 1 - j) * N) + at_map)
                log_decay = dt_rows[T - 1 - j][:, None] * A2
                if HAS_RESET:
                    reset = tl.load(reset_here + SIGN * (T - 1 - j))
                    log_decay += reset
                    resets += reset
                g = tl.exp2(log_decay) * (g + dy_rows[T - 1 - j][:, None] * C)
        else:
            u_rows = split_rows(dt * x, BLOCK_D, T, LOG_T)
            h = h_kept.to(tl.float32)
            if KEEP > T:
                # From the kept state to this tile's first one.
                for earlier in tl.range((k * T) // KEEP * (KEEP // T), k):
                    there = zero + SIGN * earlier * T
                    ok_e = tile_ok(begin + earlier * T, end, steps, channels, D, mask_ptr + there, SIGN, HAS_MASK)
                    dt_e = load_tile(dt_ptr + there * dt_row, dt_row, steps, SIGN, channels, ok_e)
                    x_e = load_tile(x_ptr + there * x_row, x_row, steps, SIGN, channels, ok_e)
                    if HAS_BIAS:
                        dt_e += bias[:, None]
                    if SOFTPLUS:
                        dt_e = softplus(dt_e)
                    if HAS_BIAS or SOFTPLUS:
                        dt_e = tl.where(ok_e, dt_e, 0.0)
                    dt_e_rows = split_rows(dt_e, BLOCK_D, T, LOG_T)
                    u_e_rows = split_rows(dt_e * x_e, BLOCK_D, T, LOG_T)
                    for i in tl.static_range(T):
                        B = tl.load(B_ptr + there * N + (SIGN * i * N) + at_map)
                        log_decay = dt_e_rows[i][:, None] * A2
                        if HAS_RESET:
                            log_decay += tl.load(reset_ptr + there + SIGN * i)
                        h = tl.exp2(log_decay) * h + u_e_rows[i][:, None] * B
            hs = (h,)
            decays = ()
            for i in tl.static_range(T):
                B = tl.load(B_here + (SIGN * i * N) + at_map)
                log_decay = dt_rows[i][:, None] * A2
                if HAS_RESET:
                    log_decay += tl.load(reset_here + SIGN * i)
                a = tl.exp2(log_decay)
                h = a * h + u_rows[i][:, None] * B
                hs = hs + (h,)
                decays = decays + (a,)
            ys = ()
            dus = ()
            ddts = ()
            dBs = ()
            dCs = ()
            for j in tl.static_range(T):
                B = tl.load(B_here + (SIGN * (T - 1 - j) * N) + at_map)
                C = tl.load(C_here + (SIGN * (T - 1 - j) * N) + at_map)
                h = hs[T - j]
                if HAS_GATE:
                    ys = (tl.sum(h * C, axis=1),) + ys
                g += dy_rows[T - 1 - j][:, None] * C
                dus = (tl.sum(g * B, axis=1),) + dus
                dC_here = dy_rows[T - 1 - j][:, None] * h
                dB_here = u_rows[T - 1 - j][:, None] * g
                if DOT:
                    dCs = (dC_here.to(DOT_TYPE),) + dCs
                    dBs = (dB_here.to(DOT_TYPE),) + dBs
                else:
                    dCs = (sum_over_channels(dC_here, BLOCK_D, N, WARPS),) + dCs
                    dBs = (sum_over_channels(dB_here, BLOCK_D, N, WARPS),) + dBs
                g *= decays[T - 1 - j]
                slope = g * hs[T - 1 - j]
                dA += slope * dt_rows[T - 1 - j][:, None]
                ddts = (tl.sum(slope * A2, axis=1),) + ddts
            inside_T = start + steps < end
            if DOT:
                # Row n * T + t holds the sum in each of its columns.
                flat = tl.arange(0, N * T)
                at_flat = here * N + SIGN * (flat % T) * N + flat // T
                ok_flat = (start + flat % T < end)[:, None] & (tl.arange(0, COLUMNS) == 0)[None, :]
                at_flat = at_flat[:, None] + tl.arange(0, COLUMNS)[None, :] * 0
                tl.store(dB_ptr + at_flat, dot_over_channels(dBs, BLOCK_D, N, T, LOG_T), mask=ok_flat)
                tl.store(dC_ptr + at_flat, dot_over_channels(dCs, BLOCK_D, N, T, LOG_T), mask=ok_flat)
            else:
                at_NT = here * N + states[:, None] + SIGN * (steps[None, :] * N)
                ok_NT = inside_T[None, :] & (states < N)[:, None]
                tl.store(dB_ptr + at_NT, join_maps(dBs, WARPS, N, T, LOG_T), mask=ok_NT)
                tl.store(dC_ptr + at_NT, join_maps(dCs, WARPS, N, T, LOG_T), mask=ok_NT)

            # The tile's inputs again, in the layout of wide loads.
            inside = inside_T[None, :] & ok_D[:, None]
            at_tile = channels[:, None] + SIGN * (steps[None, :] * D)
            dy = load_tile(dy_ptr + here * D, D, steps, SIGN, channels, ok)
            x = load_tile(x_ptr + here * x_row, x_row, steps, SIGN, channels, ok)
            dt = load_tile(dt_ptr + here * dt_row, dt_row, steps, SIGN, channels, ok)
            if HAS_GATE:
                z = load_tile(z_ptr + here * z_row, z_row, steps, SIGN, channels, ok)
                gate = sigmoid(z)
                y = join_rows(ys, BLOCK_D, T, LOG_T)
                if HAS_SKIP:
                    y += skip[:, None] * x
                dz = dy * y * gate * (1.0 + z * (1.0 - gate))
                if HAS_MASK:
                    dz = tl.where(ok, dz, 0.0)
                tl.store(dz_ptr + here * D + at_tile, dz.to(dz_ptr.dtype.element_ty), mask=inside)
                dy *= z * gate
            if HAS_BIAS:
                dt += bias[:, None]
            slope_dt = tl.full((BLOCK_D, T), 1.0, tl.float32)
            if SOFTPLUS:
                slope_dt = sigmoid(dt)
                dt = softplus(dt)
            du = join_rows(dus, BLOCK_D, T, LOG_T)
            ddt = (join_rows(ddts, BLOCK_D, T, LOG_T) * LN_2 + du * x) * slope_dt
            dx = du * dt
            if HAS_SKIP:
                dx += skip[:, None] * dy
                dskip += tl.sum(dy * x, axis=1)
            ddt = tl.where(ok, ddt, 0.0)
            if HAS_MASK:
                dx = tl.where(ok, dx, 0.0)
            if HAS_BIAS:
                dbias += tl.sum(ddt, axis=1)
            tl.store(dx_ptr + here * D + at_tile, dx.to(dx_ptr.dtype.element_ty), mask=inside)
            tl.store(ddt_ptr + here * D + at_tile, ddt.to(ddt_ptr.dtype.element_ty), mask=inside)
    if TOUCH:
        g += tl.max(hits, axis=0).to(tl.float32)
    tl.store(dstart_ptr + place * N + at_DN, g, mask=ok_D[:, None])
    if TOTALS:
        totals = total[:, None] * A2
        if HAS_RESET:
            totals += resets
        tl.store(total_ptr + place * N + at_DN, totals, mask=ok_D[:, None])
    if GRADS:
        tl.store(dA_ptr + place * N + at_DN, dA, mask=ok_D[:, None])
        if HAS_SKIP:
            tl.store(dskip_ptr + place + channels, dskip, mask=ok_D)
        if HAS_BIAS:
            tl.store(dbias_ptr + place + channels, dbias, mask=ok_D)
