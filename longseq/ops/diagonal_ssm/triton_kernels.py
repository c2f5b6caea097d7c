"""Triton kernels of the diagonal recurrence: chunks as the rows of matrix products, one channel a program.

A channel's slots are cut into rows ("stretches") of `count` chunks of T positions, and R rows run side by side, so that
everything inside a chunk is a product with R rows: made = X W, y = X toeplitz(K) + S V, S' = z^T S + made, with
V_t = C z^(t+1) and W_t = b z^(T-1-t). A first pass finds what each row leaves behind from a zero state, a small kernel
carries states from row to row, and a second pass runs with the right entering states. Backward does the same from the end
to the beginning with the adjoint states. Complex numbers are two tensors; N modes are padded with zero weights.
"""

import triton
import triton.language as tl


@triton.jit
def to_channels(
    x_ptr, out_ptr, source_ptr, length, width, n_slots, HAS_SOURCE: tl.constexpr, REVERSE: tl.constexpr,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """(B, L, D) -> (D, B, slots): slot s takes position source[s], or s, or L - 1 - s; without one it is zero."""
    slot_S = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    channel_D = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(2).to(tl.int64)
    if HAS_SOURCE:
        place_S = tl.load(source_ptr + row * n_slots + slot_S, mask=slot_S < n_slots, other=-1)
    else:
        place_S = tl.where(slot_S < length, slot_S, -1)
    kept_S = place_S >= 0
    if REVERSE:
        place_S = length - 1 - place_S
    inside_D = channel_D < width
    x_SD = tl.load(
        x_ptr + (row * length + place_S.to(tl.int64)[:, None]) * width + channel_D[None, :],
        mask=kept_S[:, None] & inside_D[None, :],
        other=0.0,
    )
    out_DS = out_ptr + (channel_D.to(tl.int64)[:, None] * tl.num_programs(2) + row) * n_slots + slot_S[None, :]
    tl.store(out_DS, tl.trans(x_SD), mask=inside_D[:, None] & (slot_S < n_slots)[None, :])


@triton.jit
def from_channels(
    y_ptr, out_ptr, slot_ptr, length, width, n_slots, HAS_SLOT: tl.constexpr, REVERSE: tl.constexpr,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """(D, B, slots) -> (B, L, D), the inverse of `to_channels`; positions without a slot are zero."""
    place_L = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    channel_D = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    row = tl.program_id(2).to(tl.int64)
    inside_L, inside_D = place_L < length, channel_D < width
    ordered_L = place_L
    if REVERSE:
        ordered_L = length - 1 - place_L
    if HAS_SLOT:
        slot_L = tl.load(slot_ptr + row * length + ordered_L, mask=inside_L, other=-1)
    else:
        slot_L = tl.where(inside_L, ordered_L, -1)
    y_DL = tl.load(
        y_ptr + (channel_D.to(tl.int64)[:, None] * tl.num_programs(2) + row) * n_slots + slot_L[None, :],
        mask=inside_D[:, None] & (slot_L >= 0)[None, :],
        other=0.0,
    )
    out_LD = out_ptr + (row * length + place_L.to(tl.int64)[:, None]) * width + channel_D[None, :]
    tl.store(out_LD, tl.trans(y_DL), mask=inside_L[:, None] & inside_D[None, :])


@triton.jit
def power(log_size, angle, exponent):
    """z^exponent as (real, imaginary)."""
    size = tl.exp(log_size * exponent)
    turn = angle * exponent
    return size * tl.cos(turn), size * tl.sin(turn)


@triton.jit
def load_modes(pointer, channel, modes, N: tl.constexpr, PAIRS: tl.constexpr):
    """A row of (D, N), or the two numbers of (D, N, 2); zeros beyond N."""
    mode_N = tl.arange(0, N)
    inside_N = mode_N < modes
    base = pointer + (channel * modes + mode_N) * (2 if PAIRS else 1)
    real_N = tl.load(base, mask=inside_N, other=0.0)
    if PAIRS:
        return real_N, tl.load(base + 1, mask=inside_N, other=0.0)
    return real_N, real_N


@triton.jit
def make_operators(
    log_size_ptr, angle_ptr, input_ptr, output_ptr, skip_ptr, taps_ptr, in_ptr, out_ptr, modes,
    HAS_SKIP: tl.constexpr, T: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One channel's taps (T,), and W and V as (2, T, N), real and imaginary parts."""
    channel = tl.program_id(0).to(tl.int64)
    time_T, mode_N = tl.arange(0, T), tl.arange(0, N)
    log_size_N, _ = load_modes(log_size_ptr, channel, modes, N, False)
    angle_N, _ = load_modes(angle_ptr, channel, modes, N, False)
    b_re_N, b_im_N = load_modes(input_ptr, channel, modes, N, True)
    c_re_N, c_im_N = load_modes(output_ptr, channel, modes, N, True)
    steps_T1 = time_T.to(tl.float32)[:, None]
    re_TN, im_TN = power(log_size_N[None, :], angle_N[None, :], steps_T1)
    cb_re_N, cb_im_N = c_re_N * b_re_N - c_im_N * b_im_N, c_re_N * b_im_N + c_im_N * b_re_N
    taps_T = 2 * tl.sum(re_TN * cb_re_N[None, :] - im_TN * cb_im_N[None, :], 1)
    if HAS_SKIP:
        taps_T += tl.where(time_T == 0, tl.load(skip_ptr + channel), 0.0)
    tl.store(taps_ptr + channel * T + time_T, taps_T)
    place_TN = time_T[:, None] * N + mode_N[None, :]
    base = channel * 2 * T * N
    kind = in_ptr.dtype.element_ty
    # W_t = b z^(T-1-t), written at the reversed place.
    back_TN = (T - 1 - time_T)[:, None] * N + mode_N[None, :]
    tl.store(in_ptr + base + back_TN, (re_TN * b_re_N[None, :] - im_TN * b_im_N[None, :]).to(kind))
    tl.store(in_ptr + base + T * N + back_TN, (re_TN * b_im_N[None, :] + im_TN * b_re_N[None, :]).to(kind))
    # 2 Re(u h) = 2 Re u Re h - 2 Im u Im h.
    re_TN, im_TN = power(log_size_N[None, :], angle_N[None, :], steps_T1 + 1)
    tl.store(out_ptr + base + place_TN, (2 * (re_TN * c_re_N[None, :] - im_TN * c_im_N[None, :])).to(kind))
    tl.store(out_ptr + base + T * N + place_TN, (-2 * (re_TN * c_im_N[None, :] + im_TN * c_re_N[None, :])).to(kind))


@triton.jit
def load_pair(pointer, row_R, stride, inside_R, N: tl.constexpr):
    """(R, N) real and imaginary parts of states laid out (..., 2, N)."""
    pointer_RN = pointer + row_R.to(tl.int64)[:, None] * stride + tl.arange(0, N)[None, :]
    re_RN = tl.load(pointer_RN, mask=inside_R[:, None], other=0.0)
    return re_RN, tl.load(pointer_RN + N, mask=inside_R[:, None], other=0.0)


@triton.jit
def store_pair(pointer, row_R, stride, kept_R, re_RN, im_RN, N: tl.constexpr):
    pointer_RN = pointer + row_R.to(tl.int64)[:, None] * stride + tl.arange(0, N)[None, :]
    tl.store(pointer_RN, re_RN.to(pointer.dtype.element_ty), mask=kept_R[:, None])
    tl.store(pointer_RN + N, im_RN.to(pointer.dtype.element_ty), mask=kept_R[:, None])


@triton.jit
def load_operator(pointer, channel, T: tl.constexpr, N: tl.constexpr):
    base = pointer + channel * 2 * T * N + tl.arange(0, T)[:, None] * N + tl.arange(0, N)[None, :]
    return tl.load(base), tl.load(base + T * N)


@triton.jit
def load_toeplitz(taps_ptr, channel, T: tl.constexpr):
    """(T, T) with `taps[i - j]` at row j (input), column i (output)."""
    lag_TT = tl.arange(0, T)[None, :] - tl.arange(0, T)[:, None]
    return tl.load(taps_ptr + channel * T + lag_TT, mask=lag_TT >= 0, other=0.0)


@triton.jit
def row_passes(
    x_ptr, in_ptr, log_size_ptr, angle_ptr, fresh_ptr, end_ptr, inject_ptr, leaving_ptr, states_ptr,
    modes, n_rows, count, n_groups, rows_per_batch,
    T: tl.constexpr, N: tl.constexpr, R: tl.constexpr, ADJOINT: tl.constexpr, HAS_FRESH: tl.constexpr,
    KEEP_STATES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What rows leave behind from zero states; forward, or as adjoints from the end to the beginning.

    With KEEP_STATES, the (local) state entering each chunk is written too.
    """
    pid = tl.program_id(0)
    channel, group = (pid // n_groups).to(tl.int64), pid % n_groups
    row_R = group * R + tl.arange(0, R)
    inside_R = row_R < n_rows
    in_re_TN, in_im_TN = load_operator(in_ptr, channel, T, N)
    log_size_N, _ = load_modes(log_size_ptr, channel, modes, N, False)
    angle_N, _ = load_modes(angle_ptr, channel, modes, N, False)
    z_re_N, z_im_N = power(log_size_N, angle_N, T * 1.0)
    if ADJOINT:
        z_im_N = -z_im_N
        end_R = tl.load(end_ptr + row_R // rows_per_batch, mask=inside_R, other=-1)
    re_RN = tl.zeros([R, N], tl.float32)
    im_RN = tl.zeros([R, N], tl.float32)
    x_ptr += channel * n_rows * count * T
    states_ptr += channel * n_rows * count * 2 * N
    for i in tl.range(0, count):
        c = i
        if ADJOINT:
            c = count - 1 - i
        chunk_R = row_R * count + c
        x_RT = tl.load(
            x_ptr + chunk_R.to(tl.int64)[:, None] * T + tl.arange(0, T)[None, :], mask=inside_R[:, None], other=0.0
        )
        kept_R = inside_R
        if HAS_FRESH:
            kept_R = tl.load(fresh_ptr + chunk_R, mask=inside_R, other=0) == 0
            if not ADJOINT:
                re_RN, im_RN = tl.where(kept_R[:, None], re_RN, 0.0), tl.where(kept_R[:, None], im_RN, 0.0)
        if KEEP_STATES:
            store_pair(states_ptr, chunk_R, 2 * N, inside_R, re_RN, im_RN, N)
        next_re_RN = re_RN * z_re_N[None, :] - im_RN * z_im_N[None, :]
        next_im_RN = re_RN * z_im_N[None, :] + im_RN * z_re_N[None, :]
        re_RN = tl.dot(x_RT, in_re_TN, next_re_RN, input_precision=PRECISION)
        im_RN = tl.dot(x_RT, in_im_TN, next_im_RN, input_precision=PRECISION)
        if ADJOINT:
            ends_R = (row_R % rows_per_batch) * count + c == end_R
            add_re_RN, add_im_RN = load_pair(
                inject_ptr + channel * 2 * N, row_R // rows_per_batch, tl.num_programs(0) // n_groups * 2 * N,
                ends_R & inside_R, N,
            )  # fmt: skip
            re_RN += add_re_RN
            im_RN += add_im_RN
            if HAS_FRESH:
                re_RN, im_RN = tl.where(kept_R[:, None], re_RN, 0.0), tl.where(kept_R[:, None], im_RN, 0.0)
    store_pair(leaving_ptr + channel * n_rows * 2 * N, row_R, 2 * N, inside_R, re_RN, im_RN, N)


@triton.jit
def carry_rows(
    leaving_ptr, log_size_ptr, angle_ptr, broken_ptr, initial_ptr, end_ptr, entering_ptr, last_ptr,
    modes, n_rows, rows_per_batch, width, steps, n_chunks,
    N: tl.constexpr, ADJOINT: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_FRESH: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The state that enters each row, one (channel, batch row) a program.

    Forward, `initial` enters the first row and the state after the last row is written where the sequence ends there.
    As an adjoint, `initial` is that of the state after the last row, and what leaves the first row is always written.
    """
    channel, batch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    mode_N = tl.arange(0, N)
    log_size_N, _ = load_modes(log_size_ptr, channel, modes, N, False)
    angle_N, _ = load_modes(angle_ptr, channel, modes, N, False)
    z_re_N, z_im_N = power(log_size_N, angle_N, steps * 1.0)
    at_end = tl.load(end_ptr + batch) == n_chunks
    state_base = (batch.to(tl.int64) * width + channel) * 2 * N + mode_N
    re_N = tl.zeros([N], tl.float32)
    im_N = tl.zeros([N], tl.float32)
    if ADJOINT:
        z_im_N = -z_im_N
        re_N = tl.load(initial_ptr + state_base, mask=(mode_N < N) & at_end, other=0.0)
        im_N = tl.load(initial_ptr + state_base + N, mask=(mode_N < N) & at_end, other=0.0)
    elif HAS_INITIAL:
        re_N = tl.load(initial_ptr + state_base)
        im_N = tl.load(initial_ptr + state_base + N)
    for i in tl.range(0, rows_per_batch, UNROLL):
        for k in tl.static_range(UNROLL):
            step = i + k
            inside = step < rows_per_batch
            place = step
            if ADJOINT:
                place = rows_per_batch - 1 - step
            row = batch * rows_per_batch + place
            pointer = (channel * n_rows + row) * 2 * N + mode_N
            made_re_N = tl.load(leaving_ptr + pointer, mask=(mode_N < N) & inside, other=0.0)
            made_im_N = tl.load(leaving_ptr + pointer + N, mask=(mode_N < N) & inside, other=0.0)
            tl.store(entering_ptr + pointer, re_N, mask=(mode_N < N) & inside)
            tl.store(entering_ptr + pointer + N, im_N, mask=(mode_N < N) & inside)
            kept = 1.0
            if HAS_FRESH:
                kept = tl.where(tl.load(broken_ptr + row, mask=inside, other=0) == 0, 1.0, 0.0)
            next_re_N = (re_N * z_re_N - im_N * z_im_N) * kept + made_re_N
            next_im_N = (re_N * z_im_N + im_N * z_re_N) * kept + made_im_N
            re_N = tl.where(inside, next_re_N, re_N)
            im_N = tl.where(inside, next_im_N, im_N)
    written = at_end
    if ADJOINT:
        written = at_end | True
    tl.store(last_ptr + state_base, re_N, mask=(mode_N < N) & written)
    tl.store(last_ptr + state_base + N, im_N, mask=(mode_N < N) & written)


@triton.jit
def outputs(
    x_ptr, y_ptr, taps_ptr, in_ptr, out_ptr, log_size_ptr, angle_ptr, fresh_ptr, end_ptr, entering_ptr, last_ptr,
    modes, n_rows, count, n_groups, rows_per_batch,
    T: tl.constexpr, N: tl.constexpr, R: tl.constexpr, HAS_FRESH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """y of all chunks, and the state entering the chunk in which the sequence ends."""
    pid = tl.program_id(0)
    channel, group = (pid // n_groups).to(tl.int64), pid % n_groups
    width = tl.num_programs(0) // n_groups
    row_R = group * R + tl.arange(0, R)
    inside_R = row_R < n_rows
    kind = x_ptr.dtype.element_ty
    toeplitz_TT = load_toeplitz(taps_ptr, channel, T).to(kind)
    in_re_TN, in_im_TN = load_operator(in_ptr, channel, T, N)
    out_re_TN, out_im_TN = load_operator(out_ptr, channel, T, N)
    log_size_N, _ = load_modes(log_size_ptr, channel, modes, N, False)
    angle_N, _ = load_modes(angle_ptr, channel, modes, N, False)
    z_re_N, z_im_N = power(log_size_N, angle_N, T * 1.0)
    end_R = tl.load(end_ptr + row_R // rows_per_batch, mask=inside_R, other=-1)
    re_RN, im_RN = load_pair(entering_ptr + channel * n_rows * 2 * N, row_R, 2 * N, inside_R, N)
    x_ptr += channel * n_rows * count * T
    y_ptr += channel * n_rows * count * T
    for c in tl.range(0, count):
        chunk_R = row_R * count + c
        place_RT = chunk_R.to(tl.int64)[:, None] * T + tl.arange(0, T)[None, :]
        x_RT = tl.load(x_ptr + place_RT, mask=inside_R[:, None], other=0.0)
        if HAS_FRESH:
            kept_R = tl.load(fresh_ptr + chunk_R, mask=inside_R, other=0) == 0
            re_RN, im_RN = tl.where(kept_R[:, None], re_RN, 0.0), tl.where(kept_R[:, None], im_RN, 0.0)
        ends_R = (row_R % rows_per_batch) * count + c == end_R
        store_pair(last_ptr + channel * 2 * N, row_R // rows_per_batch, width * 2 * N, ends_R & inside_R, re_RN, im_RN, N)
        y_RT = tl.dot(x_RT, toeplitz_TT, input_precision=PRECISION)
        y_RT = tl.dot(re_RN.to(kind), tl.trans(out_re_TN), y_RT, input_precision=PRECISION)
        y_RT = tl.dot(im_RN.to(kind), tl.trans(out_im_TN), y_RT, input_precision=PRECISION)
        tl.store(y_ptr + place_RT, y_RT.to(kind), mask=inside_R[:, None])
        next_re_RN = re_RN * z_re_N[None, :] - im_RN * z_im_N[None, :]
        next_im_RN = re_RN * z_im_N[None, :] + im_RN * z_re_N[None, :]
        re_RN = tl.dot(x_RT, in_re_TN, next_re_RN, input_precision=PRECISION)
        im_RN = tl.dot(x_RT, in_im_TN, next_im_RN, input_precision=PRECISION)


@triton.jit
def gradients(
    x_ptr, dy_ptr, dx_ptr, taps_ptr, in_ptr, out_ptr, log_size_ptr, angle_ptr, fresh_ptr, open_ptr, end_ptr, inject_ptr,
    states_ptr, entering_ptr, adjoint_ptr, part_taps_ptr, part_in_ptr, part_out_ptr, part_step_ptr,
    modes, n_rows, count, n_groups, rows_per_batch,
    T: tl.constexpr, N: tl.constexpr, R: tl.constexpr, HAS_FRESH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx of all chunks from the last to the first, and the program's part of the gradients of taps, W, V and z^T."""
    pid = tl.program_id(0)
    channel, group = (pid // n_groups).to(tl.int64), pid % n_groups
    width = tl.num_programs(0) // n_groups
    row_R = group * R + tl.arange(0, R)
    inside_R = row_R < n_rows
    kind = x_ptr.dtype.element_ty
    time_T, mode_N = tl.arange(0, T), tl.arange(0, N)
    toeplitz_TT = load_toeplitz(taps_ptr, channel, T).to(kind)
    in_re_TN, in_im_TN = load_operator(in_ptr, channel, T, N)
    out_re_TN, out_im_TN = load_operator(out_ptr, channel, T, N)
    log_size_N, _ = load_modes(log_size_ptr, channel, modes, N, False)
    angle_N, _ = load_modes(angle_ptr, channel, modes, N, False)
    z_re_N, z_im_N = power(log_size_N, angle_N, T * 1.0)
    end_R = tl.load(end_ptr + row_R // rows_per_batch, mask=inside_R, other=-1)
    enter_re_RN, enter_im_RN = load_pair(entering_ptr + channel * n_rows * 2 * N, row_R, 2 * N, inside_R, N)
    g_re_RN, g_im_RN = load_pair(adjoint_ptr + channel * n_rows * 2 * N, row_R, 2 * N, inside_R, N)
    dtoeplitz_TT = tl.zeros([T, T], tl.float32)
    dout_re_TN = tl.zeros([T, N], tl.float32)
    dout_im_TN = tl.zeros([T, N], tl.float32)
    din_re_TN = tl.zeros([T, N], tl.float32)
    din_im_TN = tl.zeros([T, N], tl.float32)
    dz_re_N = tl.zeros([N], tl.float32)
    dz_im_N = tl.zeros([N], tl.float32)
    x_ptr += channel * n_rows * count * T
    dy_ptr += channel * n_rows * count * T
    dx_ptr += channel * n_rows * count * T
    states_ptr += channel * n_rows * count * 2 * N
    for i in tl.range(0, count):
        c = count - 1 - i
        chunk_R = row_R * count + c
        place_RT = chunk_R.to(tl.int64)[:, None] * T + time_T[None, :]
        x_RT = tl.load(x_ptr + place_RT, mask=inside_R[:, None], other=0.0)
        dy_RT = tl.load(dy_ptr + place_RT, mask=inside_R[:, None], other=0.0)
        # The state entering the chunk: what this row made so far, and what entered the row.
        s_re_RN, s_im_RN = load_pair(states_ptr, chunk_R, 2 * N, inside_R, N)
        far_re_N, far_im_N = power(log_size_N, angle_N, (c * T) * 1.0)
        far_re_RN = enter_re_RN * far_re_N[None, :] - enter_im_RN * far_im_N[None, :]
        far_im_RN = enter_re_RN * far_im_N[None, :] + enter_im_RN * far_re_N[None, :]
        if HAS_FRESH:
            open_R = tl.load(open_ptr + chunk_R, mask=inside_R, other=0) != 0
            far_re_RN, far_im_RN = tl.where(open_R[:, None], far_re_RN, 0.0), tl.where(open_R[:, None], far_im_RN, 0.0)
        s_re_RN = s_re_RN.to(tl.float32) + far_re_RN
        s_im_RN = s_im_RN.to(tl.float32) + far_im_RN
        g_re, g_im = g_re_RN.to(kind), g_im_RN.to(kind)
        dx_RT = tl.dot(dy_RT, tl.trans(toeplitz_TT), input_precision=PRECISION)
        dx_RT = tl.dot(g_re, tl.trans(in_re_TN), dx_RT, input_precision=PRECISION)
        dx_RT = tl.dot(g_im, tl.trans(in_im_TN), dx_RT, input_precision=PRECISION)
        tl.store(dx_ptr + place_RT, dx_RT.to(kind), mask=inside_R[:, None])
        dtoeplitz_TT = tl.dot(tl.trans(x_RT), dy_RT, dtoeplitz_TT, input_precision=PRECISION)
        dout_re_TN = tl.dot(tl.trans(dy_RT), s_re_RN.to(kind), dout_re_TN, input_precision=PRECISION)
        dout_im_TN = tl.dot(tl.trans(dy_RT), s_im_RN.to(kind), dout_im_TN, input_precision=PRECISION)
        din_re_TN = tl.dot(tl.trans(x_RT), g_re, din_re_TN, input_precision=PRECISION)
        din_im_TN = tl.dot(tl.trans(x_RT), g_im, din_im_TN, input_precision=PRECISION)
        dz_re_N += tl.sum(g_re_RN * s_re_RN + g_im_RN * s_im_RN, 0)
        dz_im_N += tl.sum(g_im_RN * s_re_RN - g_re_RN * s_im_RN, 0)
        next_re_RN = g_re_RN * z_re_N[None, :] + g_im_RN * z_im_N[None, :]
        next_im_RN = g_im_RN * z_re_N[None, :] - g_re_RN * z_im_N[None, :]
        g_re_RN = tl.dot(dy_RT, out_re_TN, next_re_RN, input_precision=PRECISION)
        g_im_RN = tl.dot(dy_RT, out_im_TN, next_im_RN, input_precision=PRECISION)
        ends_R = (row_R % rows_per_batch) * count + c == end_R
        add_re_RN, add_im_RN = load_pair(
            inject_ptr + channel * 2 * N, row_R // rows_per_batch, width * 2 * N, ends_R & inside_R, N
        )
        g_re_RN += add_re_RN
        g_im_RN += add_im_RN
        if HAS_FRESH:
            kept_R = tl.load(fresh_ptr + chunk_R, mask=inside_R, other=0) == 0
            g_re_RN, g_im_RN = tl.where(kept_R[:, None], g_re_RN, 0.0), tl.where(kept_R[:, None], g_im_RN, 0.0)
    part = channel * n_groups + group
    tl.store(part_taps_ptr + part * T * T + time_T[:, None] * T + time_T[None, :], dtoeplitz_TT)
    place_TN = part * 2 * T * N + time_T[:, None] * N + mode_N[None, :]
    tl.store(part_in_ptr + place_TN, din_re_TN)
    tl.store(part_in_ptr + place_TN + T * N, din_im_TN)
    tl.store(part_out_ptr + place_TN, dout_re_TN)
    tl.store(part_out_ptr + place_TN + T * N, dout_im_TN)
    tl.store(part_step_ptr + part * 2 * N + mode_N, dz_re_N)
    tl.store(part_step_ptr + part * 2 * N + N + mode_N, dz_im_N)


@triton.jit
def parameter_gradients(
    log_size_ptr, angle_ptr, input_ptr, output_ptr, part_taps_ptr, part_in_ptr, part_out_ptr, part_step_ptr,
    dlog_size_ptr, dangle_ptr, dinput_ptr, doutput_ptr, dskip_ptr, modes, n_groups,
    T: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """From the gradients of one channel's operators to those of log |z|, arg z, b, C and the skip weight."""
    channel = tl.program_id(0).to(tl.int64)
    time_T, mode_N = tl.arange(0, T), tl.arange(0, N)
    lag_TT, input_TT = time_T[:, None], time_T[None, :]
    # The product of input j with output j + t is a gradient of tap t.
    diagonal_TT = input_TT * T + input_TT + lag_TT
    place_TN = time_T[:, None] * N + mode_N[None, :]
    dtaps_TT = tl.zeros([T, T], tl.float32)
    din_re_TN = tl.zeros([T, N], tl.float32)
    din_im_TN = tl.zeros([T, N], tl.float32)
    dout_re_TN = tl.zeros([T, N], tl.float32)
    dout_im_TN = tl.zeros([T, N], tl.float32)
    dz_re_N = tl.zeros([N], tl.float32)
    dz_im_N = tl.zeros([N], tl.float32)
    # W is read backwards: both then belong to a power that grows with t.
    back_TN = (T - 1 - time_T)[:, None] * N + mode_N[None, :]
    for group in tl.range(0, n_groups):
        part = channel * n_groups + group
        dtaps_TT += tl.load(part_taps_ptr + part * T * T + diagonal_TT, mask=input_TT + lag_TT < T, other=0.0)
        din_re_TN += tl.load(part_in_ptr + part * 2 * T * N + back_TN)
        din_im_TN += tl.load(part_in_ptr + part * 2 * T * N + T * N + back_TN)
        dout_re_TN += tl.load(part_out_ptr + part * 2 * T * N + place_TN)
        dout_im_TN += tl.load(part_out_ptr + part * 2 * T * N + T * N + place_TN)
        dz_re_N += tl.load(part_step_ptr + part * 2 * N + mode_N)
        dz_im_N += tl.load(part_step_ptr + part * 2 * N + N + mode_N)
    dtaps_T = tl.sum(dtaps_TT, 1)
    log_size_N, _ = load_modes(log_size_ptr, channel, modes, N, False)
    angle_N, _ = load_modes(angle_ptr, channel, modes, N, False)
    b_re_N, b_im_N = load_modes(input_ptr, channel, modes, N, True)
    c_re_N, c_im_N = load_modes(output_ptr, channel, modes, N, True)
    steps_T1 = time_T.to(tl.float32)[:, None]
    # A cotangent of u = p q gives p that of u times the conjugate of q. First the powers z^t: taps and W.
    re_TN, im_TN = power(log_size_N[None, :], angle_N[None, :], steps_T1)
    dq_T1 = 2 * dtaps_T[:, None]
    sum_q_re_N, sum_q_im_N = tl.sum(re_TN * dq_T1, 0), -tl.sum(im_TN * dq_T1, 0)
    sum_w_re_N = tl.sum(re_TN * din_re_TN + im_TN * din_im_TN, 0)
    sum_w_im_N = tl.sum(re_TN * din_im_TN - im_TN * din_re_TN, 0)
    time_q_re_N, time_q_im_N = tl.sum(steps_T1 * re_TN * dq_T1, 0), -tl.sum(steps_T1 * im_TN * dq_T1, 0)
    time_w_re_N = tl.sum(steps_T1 * (re_TN * din_re_TN + im_TN * din_im_TN), 0)
    time_w_im_N = tl.sum(steps_T1 * (re_TN * din_im_TN - im_TN * din_re_TN), 0)
    # Then z^(t+1): V, whose real numbers are 2 Re u and -2 Im u.
    re_TN, im_TN = power(log_size_N[None, :], angle_N[None, :], steps_T1 + 1)
    u_re_TN, u_im_TN = 2 * dout_re_TN, -2 * dout_im_TN
    pulled_re_TN, pulled_im_TN = re_TN * u_re_TN + im_TN * u_im_TN, re_TN * u_im_TN - im_TN * u_re_TN
    sum_u_re_N, sum_u_im_N = tl.sum(pulled_re_TN, 0), tl.sum(pulled_im_TN, 0)
    time_u_re_N = tl.sum((steps_T1 + 1) * pulled_re_TN, 0)
    time_u_im_N = tl.sum((steps_T1 + 1) * pulled_im_TN, 0)
    dc_re_N = sum_u_re_N + b_re_N * sum_q_re_N + b_im_N * sum_q_im_N
    dc_im_N = sum_u_im_N + b_re_N * sum_q_im_N - b_im_N * sum_q_re_N
    db_re_N = sum_w_re_N + c_re_N * sum_q_re_N + c_im_N * sum_q_im_N
    db_im_N = sum_w_im_N + c_re_N * sum_q_im_N - c_im_N * sum_q_re_N
    cb_re_N, cb_im_N = c_re_N * b_re_N - c_im_N * b_im_N, c_re_N * b_im_N + c_im_N * b_re_N
    z_re_N, z_im_N = power(log_size_N, angle_N, T * 1.0)
    dw_re_N = cb_re_N * time_q_re_N + cb_im_N * time_q_im_N + b_re_N * time_w_re_N + b_im_N * time_w_im_N
    dw_re_N += c_re_N * time_u_re_N + c_im_N * time_u_im_N + T * (z_re_N * dz_re_N + z_im_N * dz_im_N)
    dw_im_N = cb_re_N * time_q_im_N - cb_im_N * time_q_re_N + b_re_N * time_w_im_N - b_im_N * time_w_re_N
    dw_im_N += c_re_N * time_u_im_N - c_im_N * time_u_re_N + T * (z_re_N * dz_im_N - z_im_N * dz_re_N)
    inside_N = mode_N < modes
    place_N = channel * modes + mode_N
    tl.store(dlog_size_ptr + place_N, dw_re_N, mask=inside_N)
    tl.store(dangle_ptr + place_N, dw_im_N, mask=inside_N)
    tl.store(dinput_ptr + 2 * place_N, db_re_N, mask=inside_N)
    tl.store(dinput_ptr + 2 * place_N + 1, db_im_N, mask=inside_N)
    tl.store(doutput_ptr + 2 * place_N, dc_re_N, mask=inside_N)
    tl.store(doutput_ptr + 2 * place_N + 1, dc_im_N, mask=inside_N)
    tl.store(dskip_ptr + channel, tl.sum(tl.where(time_T == 0, dtaps_T, 0.0), 0))
