"""The selective scan's GPU kernels: a tile of channels walks through time with all its states in registers.

A program owns BLOCK_D channels x N states of one row of the batch and one stretch of time. It works in tiles of T steps:
loads, softplus and gates are done for the whole tile, spread over all lanes; `split_rows` then hands each step's row to the
lanes that hold the channel's states, the recurrence runs step by step, and `join_rows` puts the outputs together again for
wide stores. Time runs in scan order: position = first + sign * step.
"""

# To a type checker Triton's decorated functions never return.
# pyright: reportGeneralTypeIssues=false
# Triton knows no starred tuples.
# ruff: noqa: RUF005

import triton
import triton.language as tl

LOG2_E: tl.constexpr = tl.constexpr(1.4426950408889634)
LN_2: tl.constexpr = tl.constexpr(0.6931471805599453)


@triton.jit
def split_rows(tile, BLOCK_D: tl.constexpr, T: tl.constexpr, LOG_T: tl.constexpr):
    """(BLOCK_D, T) -> T vectors (BLOCK_D,); halving again and again costs no instruction where T lies in one thread."""
    parts = (tile,)
    for level in tl.static_range(LOG_T):
        halves = ()
        for i in tl.static_range(1 << level):
            low, high = tl.split(tl.permute(tl.reshape(parts[i], (BLOCK_D, 2, T >> (level + 1))), (0, 2, 1)))
            halves = halves + (low, high)
        parts = halves
    rows = ()
    for i in tl.static_range(T):
        rows = rows + (tl.reshape(parts[i], (BLOCK_D,)),)
    return rows


@triton.jit
def split_pairs(a, b, BLOCK_D: tl.constexpr, T: tl.constexpr, LOG_T: tl.constexpr):
    """Two tiles (BLOCK_D, T) -> T pairs (BLOCK_D, 2), which change hands in one piece; `tl.split` takes one apart."""
    parts = (tl.join(a, b),)
    for level in tl.static_range(LOG_T):
        halves = ()
        for i in tl.static_range(1 << level):
            low, high = tl.split(tl.permute(tl.reshape(parts[i], (BLOCK_D, 2, T >> (level + 1), 2)), (0, 2, 3, 1)))
            halves = halves + (low, high)
        parts = halves
    pairs = ()
    for i in tl.static_range(T):
        pairs = pairs + (tl.reshape(parts[i], (BLOCK_D, 2)),)
    return pairs


@triton.jit
def join_rows(rows, BLOCK_D: tl.constexpr, T: tl.constexpr, LOG_T: tl.constexpr):
    """The inverse of `split_rows`."""
    parts = ()
    for i in tl.static_range(T):
        parts = parts + (tl.reshape(rows[i], (BLOCK_D, 1)),)
    for level in tl.static_range(LOG_T):
        wider = ()
        for i in tl.static_range(T >> (level + 1)):
            both = tl.permute(tl.join(parts[2 * i], parts[2 * i + 1]), (0, 2, 1))
            wider = wider + (tl.reshape(both, (BLOCK_D, 2 << level)),)
        parts = wider
    return parts[0]


@triton.jit
def softplus(v):
    """max(v, 0) + log1p(e), e = exp(-|v|), accurate for small results too: log1p(e) / e as a polynomial, minimax on (0, 1]."""
    e = tl.exp2(tl.abs(v) * -LOG2_E)
    p = 0.00536479335 * e - 0.0300656687
    p = p * e + 0.0792043358
    p = p * e - 0.137537852
    p = p * e + 0.191536471
    p = p * e - 0.248571619
    p = p * e + 0.33321321
    p = p * e - 0.499996483
    p = p * e + 1.0
    return tl.maximum(v, 0.0) + e * p


@triton.jit
def sigmoid(v):
    return 1.0 / (1.0 + tl.exp2(v * -LOG2_E))


@triton.jit
def load_tile(ptr, row_stride, steps, SIGN: tl.constexpr, channels, ok):
    """(BLOCK_D, T) of a (B, L, D) tensor in float32; zero where not ok. `ptr` stands at the tile's first step."""
    at = channels[:, None] + SIGN * (steps[None, :] * row_stride)
    return tl.load(ptr + at, mask=ok, other=0.0).to(tl.float32)


@triton.jit
def tile_ok(start, end, steps, channels, D, mask_ptr, SIGN: tl.constexpr, HAS_MASK: tl.constexpr):
    """Which elements of a tile are inside the stretch and real. `mask_ptr` stands at the tile's first step."""
    inside = start + steps < end
    if HAS_MASK:
        inside = inside & (tl.load(mask_ptr + SIGN * steps, mask=inside, other=0) != 0)
    return inside[None, :] & (channels < D)[:, None]


# Bits of a number that no computation makes: one of the values that are not a number.
STRANGE: tl.constexpr = tl.constexpr(0x7FABCDEF)
# And one that 16 bits can hold.
STRANGE_WIDE: tl.constexpr = tl.constexpr(0x7FAB0000)


@triton.jit
def touch(hits, ptr, wanted, T: tl.constexpr, N: tl.constexpr, SIGN: tl.constexpr):
    """Reads the map's next T steps into the first-level cache, where the steps themselves find them soon after.

    A read must be used, so it is compared with a number that never occurs, and would make a result NaN wherever it did.
    """
    base = ptr + SIGN * T * N
    if SIGN < 0:
        base = ptr - (2 * T - 1) * N
    values = tl.load(base + tl.arange(0, T * N), mask=wanted, other=0.0)
    return hits | (values.to(tl.int32, bitcast=True) == STRANGE).to(tl.int32)


@triton.jit
def touch_tile(hits, ptr, row_stride, left, room, T: tl.constexpr, BLOCK_D: tl.constexpr, SIGN: tl.constexpr):
    """The same for a tile of a (B, L, D) tensor, one element of 16. `left` steps and `room` channels exist from `ptr` on."""
    PARTS: tl.constexpr = (BLOCK_D + 15) // 16
    at = tl.arange(0, T * PARTS)
    step, channel = at // PARTS, at % PARTS * 16
    wanted = (step < left) & (channel < room)
    values = tl.load(ptr + SIGN * (step * row_stride) + channel, mask=wanted, other=0.0).to(tl.float32)
    return hits | (values.to(tl.int32, bitcast=True) == STRANGE_WIDE).to(tl.int32)


# Values that differ from call to call; specialising on them would compile the same code again and again.
VARYING = ["L", "stretch", "n_kept", "map_rows", "first_map", "x_batch", "dt_batch", "z_batch"]


@triton.jit(do_not_specialize=VARYING)
def scan_forward(
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
    start_ptr,
    y_ptr,
    last_ptr,
    total_ptr,
    kept_ptr,
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
    SIGN: tl.constexpr,
    KEEP: tl.constexpr,
    OUTPUTS: tl.constexpr,
    TOTALS: tl.constexpr,
    TOUCH: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_RESET: tl.constexpr,
):
    """One stretch of time from its entering state: outputs (OUTPUTS), the last state, those before each KEEP steps (none if
    n_kept is 0), and the sum of its log2-decays (TOTALS)."""
    segment, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    first_channel = tl.program_id(0) * BLOCK_D
    channels = first_channel + tl.arange(0, BLOCK_D)
    states, steps = tl.arange(0, N), tl.arange(0, T)
    ok_D = channels < D
    at_DN = channels[:, None] * N + states[None, :]
    A2 = tl.load(
        A_ptr + channels[:, None] * n_states + states[None, :], mask=ok_D[:, None] & (states < n_states)[None, :], other=0.0
    )
    A2 = A2 * LOG2_E
    begin = segment.to(tl.int64) * stretch
    end = tl.minimum(begin + stretch, L)
    place = (row * tl.num_programs(1) + segment) * D * N
    h = tl.load(start_ptr + place + at_DN, mask=ok_D[:, None], other=0.0)
    first = begin
    if SIGN < 0:
        first = L - 1 - begin
    x_ptr += (row * x_batch + first) * x_row
    dt_ptr += (row * dt_batch + first) * dt_row
    z_ptr += (row * z_batch + first) * z_row
    y_ptr += (row * L + first) * D
    mask_ptr += row * L + first
    B_ptr += (row * map_rows + first_map + SIGN * begin) * N
    C_ptr += (row * map_rows + first_map + SIGN * begin) * N
    reset_ptr += row * map_rows + first_map + SIGN * begin
    kept_ptr += (row * n_kept + begin // KEEP) * D * N
    at_map = states[None, :] + channels[:, None] * 0
    bias = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channels, mask=ok_D, other=0.0)
    skip = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_SKIP:
        skip += tl.load(skip_ptr + channels, mask=ok_D, other=0.0)
    total = tl.zeros((BLOCK_D,), tl.float32)
    resets = 0.0

    hits = tl.zeros((T * N,), tl.int32)
    ok_next = tile_ok(begin, end, steps, channels, D, mask_ptr, SIGN, HAS_MASK)
    x_next = load_tile(x_ptr, x_row, steps, SIGN, channels, ok_next)
    dt_next = load_tile(dt_ptr, dt_row, steps, SIGN, channels, ok_next)
    hits_z = tl.zeros((T * ((BLOCK_D + 15) // 16),), tl.int32)
    for start in tl.range(begin, end, T):
        # The next tile is on its way while this one is computed.
        ok, x, dt = ok_next, x_next, dt_next
        ok_next = tile_ok(start + T, end, steps, channels, D, mask_ptr + SIGN * T, SIGN, HAS_MASK)
        x_next = load_tile(x_ptr + SIGN * T * x_row, x_row, steps, SIGN, channels, ok_next)
        dt_next = load_tile(dt_ptr + SIGN * T * dt_row, dt_row, steps, SIGN, channels, ok_next)
        if TOUCH:
            hits = touch(hits, B_ptr, start + T < end, T, N, SIGN)
            if OUTPUTS:
                hits = touch(hits, C_ptr, start + T < end, T, N, SIGN)
                if HAS_GATE:
                    z_ahead = z_ptr + SIGN * T * z_row + first_channel
                    hits_z = touch_tile(hits_z, z_ahead, z_row, end - start - T, D - first_channel, T, BLOCK_D, SIGN)
        if HAS_BIAS:
            dt += bias[:, None]
        if SOFTPLUS:
            dt = softplus(dt)
        if HAS_BIAS or SOFTPLUS:
            dt = tl.where(ok, dt, 0.0)
        if TOTALS:
            total += tl.sum(dt, axis=1)
        pairs = split_pairs(dt, dt * x, BLOCK_D, T, LOG_T)
        ys = ()
        for i in tl.static_range(T):
            if i % KEEP == 0:
                # Also where nothing is kept: the wide store is what gives a lane many states of few channels.
                kept_at = kept_ptr + (i // KEEP) * D * N
                tl.store(
                    kept_at + at_DN, h.to(kept_ptr.dtype.element_ty), mask=ok_D[:, None] & (start + i < end) & (n_kept > 0)
                )
            B = tl.load(B_ptr + (SIGN * i * N) + at_map)
            dt_D, u_D = tl.split(pairs[i])
            log_decay = dt_D[:, None] * A2
            if HAS_RESET:
                reset = tl.load(reset_ptr + SIGN * i)
                log_decay += reset
                resets += reset
            h = tl.exp2(log_decay) * h + u_D[:, None] * B
            if OUTPUTS:
                C = tl.load(C_ptr + (SIGN * i * N) + at_map)
                ys = ys + (tl.sum(h * C, axis=1),)
        if OUTPUTS:
            y = join_rows(ys, BLOCK_D, T, LOG_T)
            # Loaded again from the cache: this keeps the gate in the layout of wide loads instead of that of the states.
            if HAS_SKIP:
                y += skip[:, None] * load_tile(x_ptr, x_row, steps, SIGN, channels, ok)
            if HAS_GATE:
                z = load_tile(z_ptr, z_row, steps, SIGN, channels, ok)
                y *= z * sigmoid(z)
            if HAS_MASK:
                y = tl.where(ok, y, 0.0)
            inside = (start + steps < end)[None, :] & ok_D[:, None]
            at_y = channels[:, None] + SIGN * (steps[None, :] * D)
            tl.store(y_ptr + at_y, y.to(y_ptr.dtype.element_ty), mask=inside)
            y_ptr += SIGN * T * D
            z_ptr += SIGN * T * z_row
        kept_ptr += (T // KEEP) * D * N
        x_ptr += SIGN * T * x_row
        dt_ptr += SIGN * T * dt_row
        mask_ptr += SIGN * T
        B_ptr += SIGN * T * N
        C_ptr += SIGN * T * N
        reset_ptr += SIGN * T
    if TOUCH:
        h += (tl.max(hits, axis=0) | tl.max(hits_z, axis=0)).to(tl.float32)
    tl.store(last_ptr + place + at_DN, h, mask=ok_D[:, None])
    if TOTALS:
        totals = total[:, None] * A2
        if HAS_RESET:
            totals += resets
        tl.store(total_ptr + place + at_DN, totals, mask=ok_D[:, None])


@triton.jit(do_not_specialize=["n_stretches"])
def combine_stretches(
    start_ptr, made_ptr, total_ptr, entering_ptr, n_stretches, size, BLOCK: tl.constexpr, BACKWARD: tl.constexpr
):
    """What enters each stretch: entering_{s+1} = 2^total_s entering_s + made_s, or the same from the last to the first.

    What the last one in that order makes is not read.
    """
    row = tl.program_id(1).to(tl.int64)
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    ok = at < size
    h = tl.load(start_ptr + row * size + at, mask=ok, other=0.0)
    for i in tl.range(0, n_stretches):
        s = i
        if BACKWARD:
            s = n_stretches - 1 - i
        place = (row * n_stretches + s) * size + at
        tl.store(entering_ptr + place, h, mask=ok)
        more = ok & (i + 1 < n_stretches)
        decay = tl.exp2(tl.load(total_ptr + place, mask=more, other=0.0))
        h = decay * h + tl.load(made_ptr + place, mask=more, other=0.0)
