"""The selective scan's gradients for up to 16 states and bfloat16: a warp owns 32 channels, a lane one with all its states.

A tile of T steps is walked forward from the state that was kept before it, which leaves its states in bfloat16, the type of the
kept ones; then backward. The decays of all but the last STORED steps are computed again: the special functions have
room for it, the registers do not. A program is one warp, so nothing waits for another.
"""

# To a type checker Triton's decorated functions never return.
# pyright: reportGeneralTypeIssues=false
# Triton knows no starred tuples.
# ruff: noqa: RUF005

import triton
import triton.language as tl

from longseq.ops.selective_scan.triton_kernels import LN_2, LOG2_E, STRANGE, STRANGE_WIDE, sigmoid, softplus
from longseq.ops.selective_scan.triton_steps import (
    VARYING,
    at_states,
    is_real,
    is_strange,
    load_map,
    load_reset,
    load_row,
    load_states,
    store_states,
    touch_map,
    touch_rows,
)


@triton.jit
def choose_states(N: tl.constexpr, DOT_TYPE: tl.constexpr):
    """(16, 4 N): row n picks what `sum_over_channels` has of state n."""
    row, at = tl.arange(0, 16)[:, None], tl.arange(0, 4 * N)[None, :]
    return (row == at // 16 * 4 + at % 4).to(tl.float32).to(DOT_TYPE)


@triton.jit
def pack(values, N: tl.constexpr, DOT_TYPE: tl.constexpr):
    """(32, N) -> (32, N / 2): two neighbours as bfloat16 in one number. The compiler by itself gives each a register."""
    low, high = tl.split(tl.reshape(values, (32, N // 2, 2)))
    if tl.float32 == DOT_TYPE:
        # The interpreter knows no machine code.
        low = low.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
        return low | (high.to(tl.bfloat16).to(tl.int16, bitcast=True).to(tl.int32) << 16)
    return tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $2, $1;", "=r,r,r", [low, high], tl.int32, is_pure=True, pack=1)


@triton.jit
def unpack(packed, N: tl.constexpr):
    """What was packed, in float32."""
    low, high = (packed << 16).to(tl.float32, bitcast=True), (packed & -65536).to(tl.float32, bitcast=True)
    return tl.reshape(tl.join(low, high), (32, N))


@triton.jit
def sum_over_states(values, N: tl.constexpr):
    """(32, N) -> (32,): four chains of additions, none of which waits for another."""
    return tl.sum(tl.sum(tl.reshape(values, (32, N // 2, 2)), axis=1), axis=1)


@triton.jit
def decays_of(d, A2, reset, HAS_RESET: tl.constexpr):
    log_decay = d[:, None] * A2
    if HAS_RESET:
        log_decay += reset
    return tl.exp2(log_decay)


@triton.jit
def sum_over_channels(packed, weight, chooser, N: tl.constexpr, DOT_TYPE: tl.constexpr):
    """What was packed, each channel times its weight (32,), added over channels: (16,), of which the first N count.

    A product on the tensor cores. A lane's states lie in the registers of its second operand: the values are only renamed, four
    lanes' channels and pairs of states to its inner dimension, and it adds up those four channels. Eight columns remain.
    """
    if tl.float32 == DOT_TYPE:
        values = unpack(packed, N) * weight[:, None]
    else:
        weights = tl.inline_asm_elementwise("cvt.rn.bf16x2.f32 $0, $1, $1;", "=r,r", [weight], tl.int32, is_pure=True, pack=1)
        weights = tl.broadcast_to(tl.expand_dims(weights, 1), packed.shape)
        low, high = tl.inline_asm_elementwise(
            "{ .reg .b32 w; mul.rn.bf16x2 w, $2, $3; mov.b32 {$0, $1}, w; }",
            "=h,=h,r,r",
            [packed, weights],
            dtype=(tl.bfloat16, tl.bfloat16),
            is_pure=True,
            pack=1,
        )
        values = tl.reshape(tl.join(low, high), (32, N))
    operand = tl.reshape(tl.permute(tl.reshape(values, (8, 4, N // 4, 4)), (2, 1, 3, 0)), (4 * N, 8))
    return tl.sum(tl.dot(chooser, operand), axis=1)


@triton.jit(do_not_specialize=VARYING)
def scan_gradients(
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
    L,
    stretch,
    n_kept,
    map_rows,
    first_map,
    x_batch,
    dt_batch,
    z_batch,
    D: tl.constexpr,
    X_ROW: tl.constexpr,
    DT_ROW: tl.constexpr,
    Z_ROW: tl.constexpr,
    N: tl.constexpr,
    KEEP: tl.constexpr,
    STORED: tl.constexpr,
    SIGN: tl.constexpr,
    DOT_TYPE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_RESET: tl.constexpr,
):
    """One stretch of time, from the gradient of its last state back to that of the state that enters it."""
    T: tl.constexpr = KEEP
    segment, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    first_channel = tl.program_id(0) * 32
    channels = first_channel + tl.arange(0, 32)
    ok_D = channels < D
    room = D - first_channel
    begin = segment.to(tl.int64) * stretch
    n_steps = (tl.minimum(begin + stretch, L) - begin).to(tl.int32)
    n_tiles = (n_steps + T - 1) // T
    place = (row * tl.num_programs(1) + segment) * D
    A2 = load_states(A_ptr, channels, D, 32, N) * LOG2_E
    g = load_states(dlast_ptr + place * N, channels, D, 32, N)
    dA = A2 * 0.0
    # All pointers stand at the first step of the last tile, and go back tile by tile.
    last_tile = begin + (n_tiles - 1) * T
    first = last_tile
    if SIGN < 0:
        first = L - 1 - last_tile
    x_ptr += (row * x_batch + first) * X_ROW + first_channel
    dt_ptr += (row * dt_batch + first) * DT_ROW + first_channel
    z_ptr += (row * z_batch + first) * Z_ROW + first_channel
    shift = (row * L + first) * D + first_channel
    dy_ptr += shift
    dx_ptr += shift
    ddt_ptr += shift
    dz_ptr += shift
    mask_ptr += row * L + first
    map_first = row * map_rows + first_map + SIGN * last_tile
    B_ptr += map_first * N
    C_ptr += map_first * N
    reset_ptr += map_first
    kept_ptr += (row * n_kept + last_tile // KEEP) * (D * N)
    # Partial sums over this program's channels: (programs, batch, length, N).
    partial = ((tl.program_id(0).to(tl.int64) * tl.num_programs(2) + row) * L + first) * N
    dB_ptr += partial
    dC_ptr += partial
    bias = tl.zeros((32,), tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channels, mask=ok_D, other=0.0)
    skip = tl.zeros((32,), tl.float32)
    if HAS_SKIP:
        skip += tl.load(skip_ptr + channels, mask=ok_D, other=0.0)
    dskip, dbias = tl.zeros((32,), tl.float32), tl.zeros((32,), tl.float32)
    lanes = tl.arange(0, 32)
    no_state = lanes * 0
    # A zero that the compiler does not know: what is made of d + zero is computed again, not kept in registers.
    zero = ((L >> 30) >> 30).to(tl.float32)
    chooser = choose_states(N, DOT_TYPE)
    sums = tl.arange(0, 16)
    hits = tl.zeros((T * 2,), tl.int32)
    map_hits = tl.zeros((T * N // 4,), tl.int32)
    kept_hits = tl.zeros((32,), tl.int32)
    for index in tl.range(0, n_tiles, num_stages=1):
        left = n_steps - (n_tiles - 1 - index) * T
        h_kept = tl.load(kept_ptr + at_states(channels * N, N, 4), mask=ok_D[:, None, None], other=0.0)
        h = tl.reshape(h_kept, (32, N)).to(tl.float32)
        oks = ()
        xs = ()
        dts = ()
        dys = ()
        zs = ()
        for i in tl.static_range(T):
            ok = ok_D & is_real(mask_ptr + SIGN * i, i, left, HAS_MASK)
            x = tl.load(x_ptr + SIGN * i * X_ROW + lanes, mask=ok, other=0.0)
            dt = tl.load(dt_ptr + SIGN * i * DT_ROW + lanes, mask=ok, other=0.0)
            dy = tl.load(dy_ptr + SIGN * i * D + lanes, mask=ok, other=0.0)
            z = load_row(z_ptr + SIGN * i * Z_ROW + lanes, ok, HAS_GATE, dy)
            oks = oks + (ok,)
            xs = xs + (x,)
            dts = dts + (dt,)
            dys = dys + (dy,)
            zs = zs + (z,)
        # The tile before, into the first-level cache.
        more = (index + 1 < n_tiles).to(tl.int32) * T
        x_far = touch_rows(x_ptr - SIGN * T * X_ROW, X_ROW, more, room, T, 32, SIGN)
        dt_far = touch_rows(dt_ptr - SIGN * T * DT_ROW, DT_ROW, more, room, T, 32, SIGN)
        dy_far = touch_rows(dy_ptr - SIGN * T * D, D, more, room, T, 32, SIGN)
        z_far = dy_far
        if HAS_GATE:
            z_far = touch_rows(z_ptr - SIGN * T * Z_ROW, Z_ROW, more, room, T, 32, SIGN)
        B_far = touch_map(B_ptr - SIGN * T * N, more, T, N, SIGN)
        C_far = touch_map(C_ptr - SIGN * T * N, more, T, N, SIGN)
        kept_far = tl.load(kept_ptr - D * N + channels * N, mask=ok_D & (more > 0), other=0.0).to(tl.float32)

        before = (pack(h, N, DOT_TYPE),)
        decays = ()
        ds = ()
        slopes = ()
        dygs = ()
        dzs = ()
        dCs = ()
        B = load_map(B_ptr, no_state, 32, N)
        C = load_map(C_ptr, no_state, 32, N)
        for i in tl.static_range(T):
            if i + 1 < T:
                B_next = load_map(B_ptr + SIGN * (i + 1) * N, no_state, 32, N)
                C_next = load_map(C_ptr + SIGN * (i + 1) * N, no_state, 32, N)
            d = dts[i].to(tl.float32) + bias
            slope = d * 0.0 + 1.0
            if SOFTPLUS:
                slope, d = sigmoid(d), softplus(d)
            d = tl.where(oks[i], d, 0.0)
            a = decays_of(d, A2, load_reset(reset_ptr + SIGN * i, HAS_RESET), HAS_RESET)
            x, dyg = xs[i].to(tl.float32), dys[i].to(tl.float32)
            h = a * h + (d * x)[:, None] * B
            if HAS_GATE:
                z = zs[i].to(tl.float32)
                gate = sigmoid(z)
                y = sum_over_states(h * C, N)
                if HAS_SKIP:
                    y += skip * x
                dyg *= gate
                dzs = dzs + (dyg * y * (1.0 + z * (1.0 - gate)),)
                dyg *= z
            packed = pack(h, N, DOT_TYPE)
            dCs = dCs + (sum_over_channels(packed, dyg, chooser, N, DOT_TYPE),)
            if i + 1 < T:
                before = before + (packed,)
            if i >= T - STORED:
                decays = decays + (a,)
            ds = ds + (d,)
            slopes = slopes + (slope,)
            dygs = dygs + (dyg,)
            if HAS_GATE:
                tl.store(dz_ptr + SIGN * i * D + lanes, dzs[i].to(dz_ptr.dtype.element_ty), mask=ok_D & (i < left))
            if i > 0:
                tl.store(dC_ptr + SIGN * (i - 1) * N + sums, dCs[i - 1], mask=(sums < N) & (i - 1 < left))
            if i + 1 < T:
                B, C = B_next, C_next
        tl.store(dC_ptr + SIGN * (T - 1) * N + sums, dCs[T - 1], mask=(sums < N) & (left > T - 1))
        xs_again = ()
        for i in tl.static_range(T):
            xs_again = xs_again + (tl.load(x_ptr + SIGN * i * X_ROW + lanes, mask=oks[i], other=0.0),)

        C = load_map(C_ptr + SIGN * (T - 1) * N, no_state, 32, N)
        B = load_map(B_ptr + SIGN * (T - 1) * N, no_state, 32, N)
        dBs = ()
        for j in tl.static_range(T):
            # Time runs backwards.
            if j + 1 < T:
                C_next = load_map(C_ptr + SIGN * (T - 2 - j) * N, no_state, 32, N)
                B_next = load_map(B_ptr + SIGN * (T - 2 - j) * N, no_state, 32, N)
            d, dyg, x = ds[T - 1 - j], dygs[T - 1 - j], xs_again[T - 1 - j].to(tl.float32)
            if j < STORED:
                a = decays[STORED - 1 - j]
            else:
                a = decays_of(d + zero, A2, load_reset(reset_ptr + SIGN * (T - 1 - j), HAS_RESET), HAS_RESET)
            g += dyg[:, None] * C
            du = sum_over_states(g * B, N)
            dBs = dBs + (sum_over_channels(pack(g, N, DOT_TYPE), d * x, chooser, N, DOT_TYPE),)
            g *= a
            change = g * unpack(before[T - 1 - j], N)
            dA += change * d[:, None]
            ddt = (sum_over_states(change * A2, N) * LN_2 + du * x) * slopes[T - 1 - j]
            ddt = tl.where(oks[T - 1 - j], ddt, 0.0)
            dx = du * d
            if HAS_SKIP:
                dx += skip * dyg
                dskip += dyg * x
            if HAS_BIAS:
                dbias += ddt
            inside = ok_D & (T - 1 - j < left)
            tl.store(dx_ptr + SIGN * (T - 1 - j) * D + lanes, dx.to(dx_ptr.dtype.element_ty), mask=inside)
            tl.store(ddt_ptr + SIGN * (T - 1 - j) * D + lanes, ddt.to(ddt_ptr.dtype.element_ty), mask=inside)
            if j > 0:
                tl.store(dB_ptr + SIGN * (T - j) * N + sums, dBs[j - 1], mask=(sums < N) & (T - j < left))
            if j + 1 < T:
                B, C = B_next, C_next
        tl.store(dB_ptr + sums, dBs[T - 1], mask=sums < N)
        hits = hits | is_strange(x_far, STRANGE_WIDE) | is_strange(dt_far, STRANGE_WIDE) | is_strange(dy_far, STRANGE_WIDE)
        if HAS_GATE:
            hits = hits | is_strange(z_far, STRANGE_WIDE)
        map_hits = map_hits | is_strange(B_far, STRANGE) | is_strange(C_far, STRANGE)
        kept_hits = kept_hits | is_strange(kept_far, STRANGE_WIDE)
        x_ptr -= SIGN * T * X_ROW
        dt_ptr -= SIGN * T * DT_ROW
        z_ptr -= SIGN * T * Z_ROW
        dy_ptr -= SIGN * T * D
        dx_ptr -= SIGN * T * D
        ddt_ptr -= SIGN * T * D
        dz_ptr -= SIGN * T * D
        mask_ptr -= SIGN * T
        B_ptr -= SIGN * T * N
        C_ptr -= SIGN * T * N
        dB_ptr -= SIGN * T * N
        dC_ptr -= SIGN * T * N
        reset_ptr -= SIGN * T
        kept_ptr -= D * N
    g += (tl.max(hits, axis=0) | tl.max(map_hits, axis=0) | tl.max(kept_hits, axis=0)).to(tl.float32)
    store_states(dstart_ptr + place * N, g, channels, D, 32, N, 4)
    store_states(dA_ptr + place * N, dA, channels, D, 32, N, 4)
    if HAS_SKIP:
        tl.store(dskip_ptr + place + channels, dskip, mask=ok_D)
    if HAS_BIAS:
        tl.store(dbias_ptr + place + channels, dbias, mask=ok_D)
