"""Triton kernels of the diagonal recurrence: chunks as the rows of matrix products, one channel a program.

A channel's slots are cut into rows ("stretches") of `count` chunks of T positions, and R rows run side by side, so that
everything inside a chunk is a product with R rows: made = X W, y = X toeplitz(K) + S V, S' = z^T S + made, with
V_t = C z^(t+1) and W_t = b z^(T-1-t). A first pass finds what each row leaves behind from a zero state, a small kernel
carries states from row to row, and a second pass runs with the right entering states. Backward does the same from the end
to the beginning with the adjoint states. Complex numbers are two tensors; N modes are padded with zero weights.
"""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl

from longseq.ops.diagonal_ssm.triton_parameters import end_slots
from longseq.ops.diagonal_ssm.triton_poles import load_number, load_power


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
def end_chunks(end_ptr, batch_R, inside_R, length, HAS_ENDS: tl.constexpr, T: tl.constexpr):
    """The chunk in which the row of the batch ends that a row of chunks belongs to."""
    if HAS_ENDS:
        return tl.load(end_ptr + batch_R, mask=inside_R, other=-1) // T
    return length // T + 0 * batch_R


@triton.jit(do_not_specialize=["length", "n_rows", "count", "n_groups", "rows_per_batch"])
def row_passes(
    x_ptr, in_ptr, pole_ptr, turn_ptr, fresh_ptr, end_ptr, inject_ptr, leaving_ptr, states_ptr,
    length, n_rows, count, n_groups, rows_per_batch,
    T: tl.constexpr, N: tl.constexpr, R: tl.constexpr, ADJOINT: tl.constexpr, HAS_FRESH: tl.constexpr,
    HAS_ENDS: tl.constexpr, HAS_INJECT: tl.constexpr, KEEP_STATES: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What rows leave behind from zero states; forward, or as adjoints from the end to the beginning.

    With KEEP_STATES, the (local) state entering each chunk is written too.
    """
    pid = tl.program_id(0)
    channel, group = (pid // n_groups).to(tl.int64), pid % n_groups
    row_R = group * R + tl.arange(0, R)
    inside_R = row_R < n_rows
    in_re_TN, in_im_TN = load_operator(in_ptr, channel, T, N)
    z_re_N, z_im_N = load_power(pole_ptr, turn_ptr, channel, T + 0 * tl.arange(0, N), N)
    if ADJOINT:
        z_im_N = -z_im_N
        if HAS_INJECT:
            end_R = end_chunks(end_ptr, row_R // rows_per_batch, inside_R, length, HAS_ENDS, T)
    re_RN = tl.zeros([R, N], tl.float32)
    im_RN = tl.zeros([R, N], tl.float32)
    x_ptr += channel * n_rows * count * T
    states_ptr += channel * n_rows * count * 2 * N
    for i in tl.range(0, count):
        c = i
        if ADJOINT:
            c = count - 1 - i
        chunk_R = row_R * count + c
        x_RT = tl.load(x_ptr + chunk_R.to(tl.int64)[:, None] * T + tl.arange(0, T)[None, :], mask=inside_R[:, None], other=0.0)
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
            if HAS_INJECT:
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


@triton.jit(do_not_specialize=["modes", "length", "n_rows", "rows_per_batch", "width", "count"])
def carry_rows(
    leaving_ptr, pole_ptr, turn_ptr, broken_ptr, initial_ptr, end_ptr, entering_ptr, last_ptr,
    modes, length, n_rows, rows_per_batch, width, count,
    T: tl.constexpr, N: tl.constexpr, ADJOINT: tl.constexpr, HAS_INITIAL: tl.constexpr, HAS_FRESH: tl.constexpr,
    HAS_ENDS: tl.constexpr, UNROLL: tl.constexpr,
):  # fmt: skip
    """The state that enters each row, one (channel, batch row) a program.

    Forward, `initial` (B, D, modes, 2) enters the first row, and the state after the last row is written (B, D, 2, N) where
    the sequence ends there. As an adjoint, `initial` (B, D, 2, N) is that of the state after the last row, and what leaves
    the first row is written (B, D, modes, 2).
    """
    channel, batch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    mode_N = tl.arange(0, N)
    z_re_N, z_im_N = load_power(pole_ptr, turn_ptr, channel, count * T + 0 * mode_N, N)
    at_end = end_slots(end_ptr, batch, length, HAS_ENDS) // T == rows_per_batch * count
    state = batch.to(tl.int64) * width + channel
    re_N = tl.zeros([N], tl.float32)
    im_N = tl.zeros([N], tl.float32)
    if ADJOINT:
        z_im_N = -z_im_N
        if HAS_INITIAL:
            re_N = tl.load(initial_ptr + state * 2 * N + mode_N, mask=(mode_N < N) & at_end, other=0.0)
            im_N = tl.load(initial_ptr + state * 2 * N + N + mode_N, mask=(mode_N < N) & at_end, other=0.0)
    elif HAS_INITIAL:
        re_N = load_number(initial_ptr, state, modes, mode_N, 0, True).to(tl.float32)
        im_N = load_number(initial_ptr, state, modes, mode_N, 1, True).to(tl.float32)
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
    if ADJOINT:
        tl.store(last_ptr + (state * modes + mode_N) * 2, re_N, mask=mode_N < modes)
        tl.store(last_ptr + (state * modes + mode_N) * 2 + 1, im_N, mask=mode_N < modes)
    else:
        tl.store(last_ptr + state * 2 * N + mode_N, re_N, mask=(mode_N < N) & at_end)
        tl.store(last_ptr + state * 2 * N + N + mode_N, im_N, mask=(mode_N < N) & at_end)


@triton.jit(do_not_specialize=["length", "n_rows", "count", "n_groups", "rows_per_batch"])
def outputs(
    x_ptr, y_ptr, taps_ptr, in_ptr, out_ptr, pole_ptr, turn_ptr, fresh_ptr, end_ptr, entering_ptr, last_ptr,
    length, n_rows, count, n_groups, rows_per_batch,
    T: tl.constexpr, N: tl.constexpr, R: tl.constexpr, HAS_FRESH: tl.constexpr, HAS_ENDS: tl.constexpr,
    PRECISION: tl.constexpr,
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
    z_re_N, z_im_N = load_power(pole_ptr, turn_ptr, channel, T + 0 * tl.arange(0, N), N)
    end_R = end_chunks(end_ptr, row_R // rows_per_batch, inside_R, length, HAS_ENDS, T)
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
def step_adjoint(
    dy_RT, g_re_RN, g_im_RN, out_re_TN, out_im_TN, z_re_N, z_im_N, c, end_R, row_R, inside_R, fresh_ptr, inject_ptr,
    channel, width, count, rows_per_batch,
    N: tl.constexpr, HAS_FRESH: tl.constexpr, HAS_INJECT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The adjoint of the state that enters chunk c, from that of the state that leaves it."""
    next_re_RN = g_re_RN * z_re_N[None, :] + g_im_RN * z_im_N[None, :]
    next_im_RN = g_im_RN * z_re_N[None, :] - g_re_RN * z_im_N[None, :]
    g_re_RN = tl.dot(dy_RT, out_re_TN, next_re_RN, input_precision=PRECISION)
    g_im_RN = tl.dot(dy_RT, out_im_TN, next_im_RN, input_precision=PRECISION)
    if HAS_INJECT:
        ends_R = (row_R % rows_per_batch) * count + c == end_R
        add_re_RN, add_im_RN = load_pair(
            inject_ptr + channel * 2 * N, row_R // rows_per_batch, width * 2 * N, ends_R & inside_R, N
        )
        g_re_RN += add_re_RN
        g_im_RN += add_im_RN
    if HAS_FRESH:
        kept_R = tl.load(fresh_ptr + row_R * count + c, mask=inside_R, other=0) == 0
        g_re_RN, g_im_RN = tl.where(kept_R[:, None], g_re_RN, 0.0), tl.where(kept_R[:, None], g_im_RN, 0.0)
    return g_re_RN, g_im_RN


@triton.jit
def state_gradients(
    x_ptr, dy_ptr, far_ptr, fresh_ptr, open_ptr, inject_ptr, states_ptr, entering_ptr, part_taps_ptr, part_out_ptr,
    part_step_ptr, out_re_TN, out_im_TN, z_re_N, z_im_N, g_re_RN, g_im_RN, end_R, row_R, inside_R,
    channel, width, part, count, rows_per_batch,
    T: tl.constexpr, N: tl.constexpr, HAS_FRESH: tl.constexpr, HAS_INJECT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A program's part of the gradients of what meets outputs: taps, V; and of z^T."""
    kind = x_ptr.dtype.element_ty
    time_T, mode_N = tl.arange(0, T), tl.arange(0, N)
    dtoeplitz_TT = tl.zeros([T, T], tl.float32)
    dout_re_TN = tl.zeros([T, N], tl.float32)
    dout_im_TN = tl.zeros([T, N], tl.float32)
    dz_re_N = tl.zeros([N], tl.float32)
    dz_im_N = tl.zeros([N], tl.float32)
    enter_re_RN, enter_im_RN = load_pair(entering_ptr, row_R, 2 * N, inside_R, N)
    for i in tl.range(0, count):
        c = count - 1 - i
        chunk_R = row_R * count + c
        place_RT = chunk_R.to(tl.int64)[:, None] * T + time_T[None, :]
        x_RT = tl.load(x_ptr + place_RT, mask=inside_R[:, None], other=0.0)
        dy_RT = tl.load(dy_ptr + place_RT, mask=inside_R[:, None], other=0.0)
        # The state entering the chunk: what this row made so far, and what entered the row.
        s_re_RN, s_im_RN = load_pair(states_ptr, chunk_R, 2 * N, inside_R, N)
        far_N = far_ptr + (channel * count + c) * 2 * N + mode_N
        far_re_N, far_im_N = tl.load(far_N), tl.load(far_N + N)
        far_re_RN = enter_re_RN * far_re_N[None, :] - enter_im_RN * far_im_N[None, :]
        far_im_RN = enter_re_RN * far_im_N[None, :] + enter_im_RN * far_re_N[None, :]
        if HAS_FRESH:
            open_R = tl.load(open_ptr + chunk_R, mask=inside_R, other=0) != 0
            far_re_RN, far_im_RN = tl.where(open_R[:, None], far_re_RN, 0.0), tl.where(open_R[:, None], far_im_RN, 0.0)
        s_re_RN = s_re_RN.to(tl.float32) + far_re_RN
        s_im_RN = s_im_RN.to(tl.float32) + far_im_RN
        dz_re_N += tl.sum(g_re_RN * s_re_RN + g_im_RN * s_im_RN, 0)
        dz_im_N += tl.sum(g_im_RN * s_re_RN - g_re_RN * s_im_RN, 0)
        dtoeplitz_TT = tl.dot(tl.trans(x_RT), dy_RT, dtoeplitz_TT, input_precision=PRECISION)
        dout_re_TN = tl.dot(tl.trans(dy_RT), s_re_RN.to(kind), dout_re_TN, input_precision=PRECISION)
        dout_im_TN = tl.dot(tl.trans(dy_RT), s_im_RN.to(kind), dout_im_TN, input_precision=PRECISION)
        g_re_RN, g_im_RN = step_adjoint(
            dy_RT, g_re_RN, g_im_RN, out_re_TN, out_im_TN, z_re_N, z_im_N, c, end_R, row_R, inside_R, fresh_ptr, inject_ptr,
            channel, width, count, rows_per_batch, N, HAS_FRESH, HAS_INJECT, PRECISION,
        )  # fmt: skip
    tl.store(part_taps_ptr + part * T * T + time_T[:, None] * T + time_T[None, :], dtoeplitz_TT)
    place_TN = part_out_ptr + part * 2 * T * N + time_T[:, None] * N + mode_N[None, :]
    tl.store(place_TN, dout_re_TN)
    tl.store(place_TN + T * N, dout_im_TN)
    tl.store(part_step_ptr + part * 2 * N + mode_N, dz_re_N)
    tl.store(part_step_ptr + part * 2 * N + N + mode_N, dz_im_N)


@triton.jit
def input_gradients(
    x_ptr, dy_ptr, dx_ptr, taps_ptr, in_ptr, fresh_ptr, inject_ptr, part_in_ptr,
    out_re_TN, out_im_TN, z_re_N, z_im_N, g_re_RN, g_im_RN, end_R, row_R, inside_R,
    channel, width, part, count, rows_per_batch,
    T: tl.constexpr, N: tl.constexpr, HAS_FRESH: tl.constexpr, HAS_INJECT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx, and a program's part of the gradient of W."""
    kind = x_ptr.dtype.element_ty
    time_T, mode_N = tl.arange(0, T), tl.arange(0, N)
    toeplitz_TT = load_toeplitz(taps_ptr, channel, T).to(kind)
    in_re_TN, in_im_TN = load_operator(in_ptr, channel, T, N)
    din_re_TN = tl.zeros([T, N], tl.float32)
    din_im_TN = tl.zeros([T, N], tl.float32)
    for i in tl.range(0, count):
        c = count - 1 - i
        place_RT = (row_R * count + c).to(tl.int64)[:, None] * T + time_T[None, :]
        x_RT = tl.load(x_ptr + place_RT, mask=inside_R[:, None], other=0.0)
        dy_RT = tl.load(dy_ptr + place_RT, mask=inside_R[:, None], other=0.0)
        g_re, g_im = g_re_RN.to(kind), g_im_RN.to(kind)
        dx_RT = tl.dot(dy_RT, tl.trans(toeplitz_TT), input_precision=PRECISION)
        dx_RT = tl.dot(g_re, tl.trans(in_re_TN), dx_RT, input_precision=PRECISION)
        dx_RT = tl.dot(g_im, tl.trans(in_im_TN), dx_RT, input_precision=PRECISION)
        tl.store(dx_ptr + place_RT, dx_RT.to(kind), mask=inside_R[:, None])
        din_re_TN = tl.dot(tl.trans(x_RT), g_re, din_re_TN, input_precision=PRECISION)
        din_im_TN = tl.dot(tl.trans(x_RT), g_im, din_im_TN, input_precision=PRECISION)
        g_re_RN, g_im_RN = step_adjoint(
            dy_RT, g_re_RN, g_im_RN, out_re_TN, out_im_TN, z_re_N, z_im_N, c, end_R, row_R, inside_R, fresh_ptr, inject_ptr,
            channel, width, count, rows_per_batch, N, HAS_FRESH, HAS_INJECT, PRECISION,
        )  # fmt: skip
    place_TN = part_in_ptr + part * 2 * T * N + time_T[:, None] * N + mode_N[None, :]
    tl.store(place_TN, din_re_TN)
    tl.store(place_TN + T * N, din_im_TN)


@triton.jit(do_not_specialize=["length", "n_rows", "count", "n_groups", "rows_per_batch"])
def gradients(
    x_ptr, dy_ptr, dx_ptr, taps_ptr, in_ptr, out_ptr, pole_ptr, turn_ptr, far_ptr, fresh_ptr, open_ptr, end_ptr, inject_ptr,
    states_ptr, entering_ptr, adjoint_ptr, part_taps_ptr, part_in_ptr, part_out_ptr, part_step_ptr,
    length, n_rows, count, n_groups, rows_per_batch,
    T: tl.constexpr, N: tl.constexpr, R: tl.constexpr, HAS_FRESH: tl.constexpr, HAS_ENDS: tl.constexpr,
    HAS_INJECT: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dx of all chunks from the last to the first, and a group's part of the gradients of taps, W, V and z^T.

    Two programs a group, beside each other, each with half of the sums: all of them would not fit in registers, and what
    both read, the second one finds in the cache.
    """
    pid = tl.program_id(0) // 2
    channel, group = (pid // n_groups).to(tl.int64), pid % n_groups
    width = tl.num_programs(0) // 2 // n_groups
    row_R = group * R + tl.arange(0, R)
    inside_R = row_R < n_rows
    out_re_TN, out_im_TN = load_operator(out_ptr, channel, T, N)
    z_re_N, z_im_N = load_power(pole_ptr, turn_ptr, channel, T + 0 * tl.arange(0, N), N)
    end_R = row_R
    if HAS_INJECT:
        end_R = end_chunks(end_ptr, row_R // rows_per_batch, inside_R, length, HAS_ENDS, T)
    g_re_RN, g_im_RN = load_pair(adjoint_ptr + channel * n_rows * 2 * N, row_R, 2 * N, inside_R, N)
    x_ptr += channel * n_rows * count * T
    dy_ptr += channel * n_rows * count * T
    part = channel * n_groups + group
    if tl.program_id(0) % 2 == 0:
        input_gradients(
            x_ptr, dy_ptr, dx_ptr + channel * n_rows * count * T, taps_ptr, in_ptr, fresh_ptr, inject_ptr, part_in_ptr,
            out_re_TN, out_im_TN, z_re_N, z_im_N, g_re_RN, g_im_RN, end_R, row_R, inside_R,
            channel, width, part, count, rows_per_batch, T, N, HAS_FRESH, HAS_INJECT, PRECISION,
        )  # fmt: skip
    else:
        state_gradients(
            x_ptr, dy_ptr, far_ptr, fresh_ptr, open_ptr, inject_ptr, states_ptr + channel * n_rows * count * 2 * N,
            entering_ptr + channel * n_rows * 2 * N, part_taps_ptr, part_out_ptr, part_step_ptr,
            out_re_TN, out_im_TN, z_re_N, z_im_N, g_re_RN, g_im_RN, end_R, row_R, inside_R,
            channel, width, part, count, rows_per_batch, T, N, HAS_FRESH, HAS_INJECT, PRECISION,
        )  # fmt: skip
