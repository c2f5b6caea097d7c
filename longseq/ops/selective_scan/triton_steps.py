"""The selective scan's GPU kernels for up to 16 states: a lane owns a channel with all of its states and walks through time.

Nothing is exchanged between lanes, so there is no shared memory and no barrier. What a step needs is made ready early: its
inputs are loaded two steps before (and touched, for the first-level cache, a block of steps before), step sizes and gates are
made one step before, and the outputs are summed one step after, while the exponentials of the next step are under way. Time
runs in scan order: position = first + sign * step. Widths and strides are constants, so that a row's address costs nothing.
"""

# To a type checker Triton's decorated functions never return.
# pyright: reportGeneralTypeIssues=false

import triton
import triton.language as tl

from longseq.ops.selective_scan.triton_kernels import LOG2_E, STRANGE, STRANGE_WIDE, sigmoid, softplus


@triton.jit
def at_states(firsts, N: tl.constexpr, W: tl.constexpr):
    """Offsets (lanes, N / W, W) from each lane's first state: with the widest load innermost a lane gets all of its states."""
    return firsts[:, None, None] + (tl.arange(0, N // W) * W)[None, :, None] + tl.arange(0, W)[None, None, :]


@triton.jit
def load_states(ptr, rows, n_rows, LANES: tl.constexpr, N: tl.constexpr):
    """(LANES, N) of (n_rows, N), a row for each lane."""
    states = tl.load(ptr + at_states(rows * N, N, 4), mask=(rows < n_rows)[:, None, None], other=0.0)
    return tl.reshape(states, (LANES, N))


@triton.jit
def store_states(ptr, states, rows, n_rows, LANES: tl.constexpr, N: tl.constexpr, W: tl.constexpr):
    values = tl.reshape(states.to(ptr.dtype.element_ty), (LANES, N // W, W))
    tl.store(ptr + at_states(rows * N, N, W), values, mask=(rows < n_rows)[:, None, None])


@triton.jit
def load_map(ptr, no_state, LANES: tl.constexpr, N: tl.constexpr):
    """(LANES, N): one step's B or C, the same for all channels; `no_state` is as many zeros."""
    return tl.reshape(tl.load(ptr + at_states(no_state, N, 4)), (LANES, N))


@triton.jit
def touch_rows(ptr, row_stride, left, room, T: tl.constexpr, BLOCK_D: tl.constexpr, SIGN: tl.constexpr):
    """Reads one element of 16 of the next `left` rows, up to `room` channels, which brings them into the first-level cache."""
    at = tl.arange(0, T * BLOCK_D // 16)
    step, channel = at // (BLOCK_D // 16), at % (BLOCK_D // 16) * 16
    return tl.load(ptr + SIGN * (step * row_stride) + channel, mask=(step < left) & (channel < room), other=0.0).to(tl.float32)


@triton.jit
def touch_map(ptr, left, T: tl.constexpr, N: tl.constexpr, SIGN: tl.constexpr):
    """The same for B or C, one element of 4."""
    at = tl.arange(0, T * N // 4)
    step, state = at // (N // 4), at % (N // 4) * 4
    return tl.load(ptr + SIGN * (step * N) + state, mask=step < left, other=0.0)


@triton.jit
def is_strange(values, BITS: tl.constexpr):
    """What was touched must be used, or it is not read: it is compared with a number that never occurs."""
    return (values.to(tl.int32, bitcast=True) == BITS).to(tl.int32)


@triton.jit
def is_real(mask_ptr, step, left, HAS_MASK: tl.constexpr):
    """Whether a step is inside the stretch and not masked; `mask_ptr` stands at it."""
    real = step < left
    if HAS_MASK:
        real = real & (tl.load(mask_ptr, mask=real, other=0) != 0)
    return real


@triton.jit
def load_reset(reset_ptr, HAS_RESET: tl.constexpr):
    reset = 0.0
    if HAS_RESET:
        reset = tl.load(reset_ptr)
    return reset


@triton.jit
def step_sizes(dt, bias, ok, SOFTPLUS: tl.constexpr):
    d = dt.to(tl.float32) + bias
    if SOFTPLUS:
        d = softplus(d)
    return tl.where(ok, d, 0.0)


@triton.jit
def decay_of(d, A2, reset, HAS_RESET: tl.constexpr):
    log_decay = d[:, None] * A2
    if HAS_RESET:
        log_decay += reset
    return tl.exp2(log_decay)


@triton.jit
def gate_of(z, HAS_GATE: tl.constexpr):
    gate = z.to(tl.float32)
    if HAS_GATE:
        gate *= sigmoid(gate)
    return gate


@triton.jit
def output_of(h, C, skipped, gate, HAS_SKIP: tl.constexpr, HAS_GATE: tl.constexpr):
    y = tl.sum(h * C, axis=1)
    if HAS_SKIP:
        y += skipped
    if HAS_GATE:
        y *= gate
    return y


@triton.jit
def weight_of(v, d, z, BACKWARD: tl.constexpr, HAS_GATE: tl.constexpr):
    """What a step's B or C is multiplied with."""
    weight = v.to(tl.float32)
    if BACKWARD:
        if HAS_GATE:
            weight *= gate_of(z, HAS_GATE)
    else:
        weight *= d
    return weight


@triton.jit
def load_row(ptr, ok, WANTED: tl.constexpr, instead):
    row = instead
    if WANTED:
        row = tl.load(ptr, mask=ok, other=0.0)
    return row


# Values that differ from call to call; specialising on them would compile the same code again and again.
VARYING = ["L", "stretch", "n_kept", "n_stretches", "unused", "map_rows", "first_map", "x_batch", "dt_batch", "z_batch"]


@triton.jit(do_not_specialize=VARYING)
def scan_steps(
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
    kept_ptr,
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
    BLOCK_D: tl.constexpr,
    N: tl.constexpr,
    KEEP: tl.constexpr,
    KEEP_WIDTH: tl.constexpr,
    UNROLL: tl.constexpr,
    SIGN: tl.constexpr,
    SAVE: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_RESET: tl.constexpr,
):
    """One stretch of time from its entering state: outputs, the last state, and with SAVE the one before each KEEP-th step."""
    segment, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    first_channel = tl.program_id(0) * BLOCK_D
    lanes = tl.arange(0, BLOCK_D)
    channels, no_state = first_channel + lanes, lanes * 0
    ok_D = channels < D
    room = D - first_channel
    begin = segment.to(tl.int64) * stretch
    left = (tl.minimum(begin + stretch, L) - begin).to(tl.int32)
    place = (row * tl.num_programs(1) + segment) * (D * N)
    A2 = load_states(A_ptr, channels, D, BLOCK_D, N) * LOG2_E
    h = load_states(start_ptr + place, channels, D, BLOCK_D, N)
    first = begin
    if SIGN < 0:
        first = L - 1 - begin
    x_ptr += (row * x_batch + first) * X_ROW
    dt_ptr += (row * dt_batch + first) * DT_ROW
    z_ptr += (row * z_batch + first) * Z_ROW
    mask_at = mask_ptr + row * L + first
    map_first = row * map_rows + first_map + SIGN * begin
    B_ptr += map_first * N
    C_ptr += map_first * N
    reset_at = reset_ptr + map_first
    kept_ptr += (row * n_kept + begin // KEEP) * (D * N)
    bias = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channels, mask=ok_D, other=0.0)
    skip = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_SKIP:
        skip += tl.load(skip_ptr + channels, mask=ok_D, other=0.0)

    # Step 0 is made ready and step 1 loaded; each turn makes one more ready and loads the one after it.
    x_at, dt_at, z_at = x_ptr, dt_ptr, z_ptr
    ok = ok_D & is_real(mask_at, 0, left, HAS_MASK)
    x = tl.load(x_at + channels, mask=ok, other=0.0).to(tl.float32)
    d = step_sizes(tl.load(dt_at + channels, mask=ok, other=0.0), bias, ok, SOFTPLUS)
    reset = load_reset(reset_at, HAS_RESET)
    u, skipped = d * x, skip * x
    gate = gate_of(load_row(z_at + channels, ok, HAS_GATE, x), HAS_GATE)
    B = load_map(B_ptr, no_state, BLOCK_D, N)
    # Not the same tensors as `skipped` and `gate`: Triton finds what a loop carries by comparing names before and after one
    # turn, and where two names of one tensor change places it sees nothing change.
    C, skipped_before, gate_before = B, tl.zeros((BLOCK_D,), tl.float32), tl.zeros((BLOCK_D,), tl.float32)
    x_at += SIGN * X_ROW
    dt_at += SIGN * DT_ROW
    z_at += SIGN * Z_ROW
    mask_at += SIGN
    reset_at += SIGN
    ok = ok_D & is_real(mask_at, 1, left, HAS_MASK)
    x_raw = tl.load(x_at + channels, mask=ok, other=0.0)
    dt_raw = tl.load(dt_at + channels, mask=ok, other=0.0)
    z_raw = load_row(z_at + channels, ok, HAS_GATE, x_raw)
    # Outputs are written one step late: the first turn's is that of no step.
    y_at = y_ptr + (row * L + first - SIGN) * D
    hits = tl.zeros((KEEP * BLOCK_D // 16,), tl.int32)
    map_hits = tl.zeros((KEEP * N // 4,), tl.int32)
    for start in tl.range(0, left, KEEP):
        # Read a block ahead of where they are needed.
        ahead = left - start - KEEP - 2
        x_far = touch_rows(x_ptr + SIGN * (KEEP + 2) * X_ROW + first_channel, X_ROW, ahead, room, KEEP, BLOCK_D, SIGN)
        dt_far = touch_rows(dt_ptr + SIGN * (KEEP + 2) * DT_ROW + first_channel, DT_ROW, ahead, room, KEEP, BLOCK_D, SIGN)
        z_far = x_far
        if HAS_GATE:
            z_far = touch_rows(z_ptr + SIGN * (KEEP + 2) * Z_ROW + first_channel, Z_ROW, ahead, room, KEEP, BLOCK_D, SIGN)
        B_far = touch_map(B_ptr + SIGN * (KEEP + 1) * N, ahead + 1, KEEP, N, SIGN)
        C_far = touch_map(C_ptr + SIGN * (KEEP + 1) * N, ahead + 1, KEEP, N, SIGN)
        if SAVE:
            store_states(kept_ptr, h, channels, D, BLOCK_D, N, KEEP_WIDTH)
            kept_ptr += D * N
        B_at, C_at = B_ptr, C_ptr
        for j in tl.range(0, KEEP, loop_unroll_factor=UNROLL):
            step = start + j
            a = decay_of(d, A2, reset, HAS_RESET)
            x_at += SIGN * X_ROW
            dt_at += SIGN * DT_ROW
            z_at += SIGN * Z_ROW
            mask_at += SIGN
            ok_next = ok_D & is_real(mask_at, step + 2, left, HAS_MASK)
            x_next = tl.load(x_at + channels, mask=ok_next, other=0.0)
            dt_next = tl.load(dt_at + channels, mask=ok_next, other=0.0)
            z_next = load_row(z_at + channels, ok_next, HAS_GATE, x_next)
            B_next = load_map(B_at + SIGN * N, no_state, BLOCK_D, N)
            C_next = load_map(C_at, no_state, BLOCK_D, N)
            B_at += SIGN * N
            C_at += SIGN * N
            x = x_raw.to(tl.float32)
            d_next = step_sizes(dt_raw, bias, ok, SOFTPLUS)
            gate_next = gate_of(z_raw, HAS_GATE)
            reset = load_reset(reset_at, HAS_RESET)
            reset_at += SIGN
            y = output_of(h, C, skipped_before, gate_before, HAS_SKIP, HAS_GATE)
            h = a * h + u[:, None] * B
            tl.store(y_at + channels, y.to(y_ptr.dtype.element_ty), mask=ok_D & (step > 0) & (step <= left))
            y_at += SIGN * D
            skipped_before, gate_before, B, C = skipped, gate, B_next, C_next
            d, u, skipped, gate = d_next, d_next * x, skip * x, gate_next
            x_raw, dt_raw, z_raw, ok = x_next, dt_next, z_next, ok_next
        hits = hits | is_strange(x_far, STRANGE_WIDE) | is_strange(dt_far, STRANGE_WIDE)
        if HAS_GATE:
            hits = hits | is_strange(z_far, STRANGE_WIDE)
        map_hits = map_hits | is_strange(B_far, STRANGE) | is_strange(C_far, STRANGE)
        x_ptr += SIGN * KEEP * X_ROW
        dt_ptr += SIGN * KEEP * DT_ROW
        z_ptr += SIGN * KEEP * Z_ROW
        B_ptr += SIGN * KEEP * N
        C_ptr += SIGN * KEEP * N
    # Where the stretch ends within a block its last output is written; past the end the state stays as it is.
    if left % KEEP == 0:
        y = output_of(h, C, skipped_before, gate_before, HAS_SKIP, HAS_GATE)
        tl.store(y_at + channels, y.to(y_ptr.dtype.element_ty), mask=ok_D)
    h += (tl.max(hits, axis=0) | tl.max(map_hits, axis=0)).to(tl.float32)
    store_states(last_ptr + place, h, channels, D, BLOCK_D, N, 4)


@triton.jit(do_not_specialize=VARYING)
def walk_states(
    v_ptr,
    dt_ptr,
    z_ptr,
    A_ptr,
    map_ptr,
    bias_ptr,
    mask_ptr,
    reset_ptr,
    made_ptr,
    total_ptr,
    L,
    stretch,
    n_stretches,
    unused,
    map_rows,
    first_map,
    x_batch,
    dt_batch,
    z_batch,
    D: tl.constexpr,
    X_ROW: tl.constexpr,
    DT_ROW: tl.constexpr,
    Z_ROW: tl.constexpr,
    BLOCK_D: tl.constexpr,
    N: tl.constexpr,
    KEEP: tl.constexpr,
    UNROLL: tl.constexpr,
    SIGN: tl.constexpr,
    BACKWARD: tl.constexpr,
    SOFTPLUS: tl.constexpr,
    HAS_GATE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_MASK: tl.constexpr,
    HAS_RESET: tl.constexpr,
):
    """What a stretch makes of nothing, and the sum of its log2-decays; BACKWARD the first `unused` stretches are left out.

    That is the last state, from x and B, or, BACKWARD, the gradient of its entering state, from dy, C and the gate. The stretch
    that is last in walking order is not needed, and not walked.
    """
    segment, row = tl.program_id(1), tl.program_id(2).to(tl.int64)
    begin = segment.to(tl.int64) * stretch
    if BACKWARD:
        segment += 1
        begin += (unused + 1) * stretch.to(tl.int64)
    first_channel = tl.program_id(0) * BLOCK_D
    channels = first_channel + tl.arange(0, BLOCK_D)
    ok_D = channels < D
    room = D - first_channel
    left = (tl.minimum(begin + stretch, L) - begin).to(tl.int32)
    A2 = load_states(A_ptr, channels, D, BLOCK_D, N) * LOG2_E
    h = A2 * 0.0
    no_state = channels * 0
    first = begin
    WALK: tl.constexpr = -SIGN if BACKWARD else SIGN
    if BACKWARD:
        first += left - 1
    map_first = row * map_rows + first_map + SIGN * first
    if SIGN < 0:
        first = L - 1 - first
    v_ptr += (row * x_batch + first) * X_ROW
    dt_ptr += (row * dt_batch + first) * DT_ROW
    z_ptr += (row * z_batch + first) * Z_ROW
    mask_at = mask_ptr + row * L + first
    map_ptr += map_first * N
    reset_at = reset_ptr + map_first
    bias = tl.zeros((BLOCK_D,), tl.float32)
    if HAS_BIAS:
        bias += tl.load(bias_ptr + channels, mask=ok_D, other=0.0)
    # As in the outputs' kernel: step 0 is ready, step 1 loaded.
    v_at, dt_at, z_at = v_ptr, dt_ptr, z_ptr
    ok = ok_D & is_real(mask_at, 0, left, HAS_MASK)
    v = tl.load(v_at + channels, mask=ok, other=0.0)
    d = step_sizes(tl.load(dt_at + channels, mask=ok, other=0.0), bias, ok, SOFTPLUS)
    w = weight_of(v, d, load_row(z_at + channels, ok, HAS_GATE, v), BACKWARD, HAS_GATE)
    reset = load_reset(reset_at, HAS_RESET)
    rows = load_map(map_ptr, no_state, BLOCK_D, N)
    total, resets = d, reset
    v_at += WALK * X_ROW
    dt_at += WALK * DT_ROW
    z_at += WALK * Z_ROW
    mask_at += WALK
    ok = ok_D & is_real(mask_at, 1, left, HAS_MASK)
    v_raw = tl.load(v_at + channels, mask=ok, other=0.0)
    dt_raw = tl.load(dt_at + channels, mask=ok, other=0.0)
    z_raw = load_row(z_at + channels, ok, HAS_GATE, v_raw)
    hits = tl.zeros((KEEP * BLOCK_D // 16,), tl.int32)
    map_hits = tl.zeros((KEEP * N // 4,), tl.int32)
    map_at = map_ptr
    for start in tl.range(0, left, KEEP):
        ahead = left - start - KEEP - 2
        v_far = touch_rows(v_ptr + WALK * (KEEP + 2) * X_ROW + first_channel, X_ROW, ahead, room, KEEP, BLOCK_D, WALK)
        dt_far = touch_rows(dt_ptr + WALK * (KEEP + 2) * DT_ROW + first_channel, DT_ROW, ahead, room, KEEP, BLOCK_D, WALK)
        z_far = v_far
        if HAS_GATE:
            z_far = touch_rows(z_ptr + WALK * (KEEP + 2) * Z_ROW + first_channel, Z_ROW, ahead, room, KEEP, BLOCK_D, WALK)
        map_far = touch_map(map_ptr + WALK * (KEEP + 1) * N, ahead + 1, KEEP, N, WALK)
        for j in tl.range(0, KEEP, loop_unroll_factor=UNROLL):
            step = start + j
            a = decay_of(d, A2, reset, HAS_RESET)
            v_at += WALK * X_ROW
            dt_at += WALK * DT_ROW
            z_at += WALK * Z_ROW
            mask_at += WALK
            ok_next = ok_D & is_real(mask_at, step + 2, left, HAS_MASK)
            v_next = tl.load(v_at + channels, mask=ok_next, other=0.0)
            dt_next = tl.load(dt_at + channels, mask=ok_next, other=0.0)
            z_next = load_row(z_at + channels, ok_next, HAS_GATE, v_next)
            # Past the last step the map stays where it is, with weight 0: backwards there may be nothing to read.
            more = step + 1 < left
            map_at += tl.where(more, WALK * N, 0)
            rows_next = load_map(map_at, no_state, BLOCK_D, N)
            d_next = step_sizes(dt_raw, bias, ok, SOFTPLUS)
            w_next = weight_of(v_raw, d_next, z_raw, BACKWARD, HAS_GATE)
            if HAS_RESET:
                reset_at += WALK
                reset = tl.load(reset_at, mask=more, other=0.0)
                resets += reset
            if BACKWARD:
                h = a * (h + w[:, None] * rows)
            else:
                h = a * h + w[:, None] * rows
            total += d_next
            d, w, rows = d_next, w_next, rows_next
            v_raw, dt_raw, z_raw, ok = v_next, dt_next, z_next, ok_next
        hits = hits | is_strange(v_far, STRANGE_WIDE) | is_strange(dt_far, STRANGE_WIDE)
        if HAS_GATE:
            hits = hits | is_strange(z_far, STRANGE_WIDE)
        map_hits = map_hits | is_strange(map_far, STRANGE)
        v_ptr += WALK * KEEP * X_ROW
        dt_ptr += WALK * KEEP * DT_ROW
        z_ptr += WALK * KEEP * Z_ROW
        map_ptr += WALK * KEEP * N
    h += (tl.max(hits, axis=0) | tl.max(map_hits, axis=0)).to(tl.float32)
    place = (row * n_stretches + segment) * (D * N)
    store_states(made_ptr + place, h, channels, D, BLOCK_D, N, 4)
    totals = total[:, None] * A2
    if HAS_RESET:
        totals += resets
    store_states(total_ptr + place, totals, channels, D, BLOCK_D, N, 4)
