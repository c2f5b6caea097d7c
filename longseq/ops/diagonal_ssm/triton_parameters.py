"""Triton kernels between a channel's parameters and the operators of its chunks, and of the state at the end of a row.

One program a channel does in one launch what discretization, tables of powers and their gradients take hundreds for.
"""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl

from longseq.ops.diagonal_ssm.triton_poles import POLE_ROWS, load_continuous, load_number, load_power, power, sample, times


@triton.jit(do_not_specialize=["modes", "count"])
def make_operators(
    dt_ptr, a_re_ptr, a_im_ptr, input_ptr, output_ptr, skip_ptr, taps_ptr, in_ptr, out_ptr, pole_ptr, turn_ptr, far_ptr,
    modes, count,
    BILINEAR: tl.constexpr, HAS_INPUT: tl.constexpr, HAS_SKIP: tl.constexpr, FAR: tl.constexpr,
    T: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """One channel's poles; taps (T,), W and V (2, T, N) as real and imaginary parts; for backward, z^(cT) of every chunk c."""
    channel = tl.program_id(0).to(tl.int64)
    time_T, mode_N = tl.arange(0, T), tl.arange(0, N)
    dt, a_re_N, a_im_N, b_re_N, b_im_N = load_continuous(dt_ptr, a_re_ptr, a_im_ptr, input_ptr, channel, modes, HAS_INPUT, N)
    log_N, turn_N, f_re_N, f_im_N, _, _, _, _ = sample(dt, a_re_N, a_im_N, BILINEAR)
    b_re_N, b_im_N = times(b_re_N, b_im_N, dt * f_re_N, dt * f_im_N)
    # Spare modes have no weight, and stay finite.
    log_N = log_N.to(tl.float32)
    b_re_N, b_im_N = b_re_N.to(tl.float32), b_im_N.to(tl.float32)
    pole_N = pole_ptr + channel * POLE_ROWS * N + mode_N
    tl.store(pole_N, log_N)
    tl.store(pole_N + N, b_re_N)
    tl.store(pole_N + 2 * N, b_im_N)
    tl.store(turn_ptr + channel * N + mode_N, turn_N)
    c_re_N = load_number(output_ptr, channel, modes, mode_N, 0, True).to(tl.float32)
    c_im_N = load_number(output_ptr, channel, modes, mode_N, 1, True).to(tl.float32)
    re_TN, im_TN = power(log_N[None, :], turn_N[None, :], time_T[:, None])
    cb_re_N, cb_im_N = times(c_re_N, c_im_N, b_re_N, b_im_N)
    taps_T = 2 * tl.sum(re_TN * cb_re_N[None, :] - im_TN * cb_im_N[None, :], 1)
    if HAS_SKIP:
        taps_T += tl.where(time_T == 0, tl.load(skip_ptr + channel).to(tl.float32), 0.0)
    tl.store(taps_ptr + channel * T + time_T, taps_T)
    base = channel * 2 * T * N
    kind = in_ptr.dtype.element_ty
    # W_t = b z^(T-1-t), written at the reversed place.
    back_TN = base + (T - 1 - time_T)[:, None] * N + mode_N[None, :]
    w_re_TN, w_im_TN = times(re_TN, im_TN, b_re_N[None, :], b_im_N[None, :])
    tl.store(in_ptr + back_TN, w_re_TN.to(kind))
    tl.store(in_ptr + back_TN + T * N, w_im_TN.to(kind))
    # V_t = C z^(t+1), and 2 Re(u h) = 2 Re u Re h - 2 Im u Im h.
    z_re_N, z_im_N = power(log_N, turn_N, 1.0 + 0.0 * log_N)
    cz_re_N, cz_im_N = times(c_re_N, c_im_N, z_re_N, z_im_N)
    v_re_TN, v_im_TN = times(re_TN, im_TN, cz_re_N[None, :], cz_im_N[None, :])
    place_TN = base + time_T[:, None] * N + mode_N[None, :]
    tl.store(out_ptr + place_TN, (2 * v_re_TN).to(kind))
    tl.store(out_ptr + place_TN + T * N, (-2 * v_im_TN).to(kind))
    if FAR:
        for first in tl.range(0, count, 16):
            chunk_C = first + tl.arange(0, 16)
            far_re_CN, far_im_CN = power(log_N[None, :], turn_N[None, :], (chunk_C * T)[:, None])
            place_CN = (channel * count + chunk_C[:, None]) * 2 * N + mode_N[None, :]
            tl.store(far_ptr + place_CN, far_re_CN, mask=(chunk_C < count)[:, None])
            tl.store(far_ptr + place_CN + N, far_im_CN, mask=(chunk_C < count)[:, None])


@triton.jit
def end_slots(end_ptr, row, length, HAS_ENDS: tl.constexpr):
    """Slots of a row that are filled."""
    if HAS_ENDS:
        return tl.load(end_ptr + row)
    return length


@triton.jit(do_not_specialize=["modes", "length"])
def finish_states(
    last_ptr, x_ptr, pole_ptr, turn_ptr, end_ptr, out_ptr, modes, length, n_slots,
    HAS_ENDS: tl.constexpr, T: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """The state at the end of a row: z^r times that entering its last, unfinished chunk, and what r positions there add."""
    channel, batch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    time_T, mode_N = tl.arange(0, T), tl.arange(0, N)
    end = end_slots(end_ptr, batch, length, HAS_ENDS)
    rest = end % T
    last_N = last_ptr + (batch.to(tl.int64) * tl.num_programs(0) + channel) * 2 * N + mode_N
    re_N, im_N = tl.load(last_N), tl.load(last_N + N)
    if rest > 0:
        x_pointer_T = x_ptr + (channel * tl.num_programs(1) + batch) * n_slots + end - rest + time_T
        x_T1 = tl.load(x_pointer_T, mask=time_T < rest, other=0.0).to(tl.float32)[:, None]
        back_T = tl.maximum(rest - 1 - time_T, 0)
        p_re_TN, p_im_TN = load_powers(pole_ptr, turn_ptr, channel, back_T, N)
        pole_N = pole_ptr + channel * POLE_ROWS * N + mode_N
        b_re_N, b_im_N = tl.load(pole_N + N), tl.load(pole_N + 2 * N)
        add_re_N, add_im_N = times(b_re_N, b_im_N, tl.sum(p_re_TN * x_T1, 0), tl.sum(p_im_TN * x_T1, 0))
        z_re_N, z_im_N = load_power(pole_ptr, turn_ptr, channel, rest + 0 * mode_N, N)
        re_N, im_N = times(re_N, im_N, z_re_N, z_im_N)
        re_N += add_re_N
        im_N += add_im_N
    out_N = out_ptr + ((batch.to(tl.int64) * tl.num_programs(0) + channel) * modes + mode_N) * 2
    tl.store(out_N, re_N, mask=mode_N < modes)
    tl.store(out_N + 1, im_N, mask=mode_N < modes)


@triton.jit
def load_powers(pole_ptr, turn_ptr, channel, exponent_T, N: tl.constexpr):
    """(T, N): z^exponent."""
    mode_N = tl.arange(0, N)
    log_size_N = tl.load(pole_ptr + channel * POLE_ROWS * N + mode_N)
    turn_N = tl.load(turn_ptr + channel * N + mode_N)
    return power(log_size_N[None, :], turn_N[None, :], exponent_T[:, None])


@triton.jit(do_not_specialize=["modes", "length"])
def inject_states(
    dstate_ptr, pole_ptr, turn_ptr, end_ptr, inject_ptr, modes, length,
    HAS_ENDS: tl.constexpr, T: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """What the cotangent of the state at the end of a row is for the state entering its last chunk."""
    channel, batch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    mode_N = tl.arange(0, N)
    rest = end_slots(end_ptr, batch, length, HAS_ENDS) % T
    z_re_N, z_im_N = load_power(pole_ptr, turn_ptr, channel, rest + 0 * mode_N, N)
    row = batch.to(tl.int64) * tl.num_programs(0) + channel
    g_re_N = load_number(dstate_ptr, row, modes, mode_N, 0, True)
    g_im_N = load_number(dstate_ptr, row, modes, mode_N, 1, True)
    g_re_N, g_im_N = times(g_re_N, g_im_N, z_re_N, -z_im_N)
    tl.store(inject_ptr + row * 2 * N + mode_N, g_re_N)
    tl.store(inject_ptr + row * 2 * N + N + mode_N, g_im_N)


@triton.jit(do_not_specialize=["modes", "length"])
def finish_gradients(
    dstate_ptr, last_ptr, x_ptr, dx_ptr, pole_ptr, turn_ptr, end_ptr, part_ptr, modes, length, n_slots,
    HAS_ENDS: tl.constexpr, T: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """Backward of `finish_states`: adds to dx in the last chunk; the row's part of the gradients of log z and b."""
    channel, batch = tl.program_id(0).to(tl.int64), tl.program_id(1)
    time_T, mode_N = tl.arange(0, T), tl.arange(0, N)
    end = end_slots(end_ptr, batch, length, HAS_ENDS)
    rest = end % T
    part_N = part_ptr + (channel * tl.num_programs(1) + batch) * 4 * N + mode_N
    dlog_re_N = tl.zeros([N], tl.float32)
    dlog_im_N, db_re_N, db_im_N = dlog_re_N, dlog_re_N, dlog_re_N
    if rest > 0:
        row = batch.to(tl.int64) * tl.num_programs(0) + channel
        g_re_N = load_number(dstate_ptr, row, modes, mode_N, 0, True)
        g_im_N = load_number(dstate_ptr, row, modes, mode_N, 1, True)
        last_N = last_ptr + row * 2 * N + mode_N
        place_T = (channel * tl.num_programs(1) + batch) * n_slots + end - rest + time_T
        inside_T = time_T < rest
        x_T1 = tl.load(x_ptr + place_T, mask=inside_T, other=0.0).to(tl.float32)[:, None]
        back_T = tl.maximum(rest - 1 - time_T, 0)
        p_re_TN, p_im_TN = load_powers(pole_ptr, turn_ptr, channel, back_T, N)
        pole_N = pole_ptr + channel * POLE_ROWS * N + mode_N
        b_re_N, b_im_N = tl.load(pole_N + N), tl.load(pole_N + 2 * N)
        # dx_t = Re(conj(g) b z^k), k = r - 1 - t.
        q_re_N, q_im_N = times(g_re_N, -g_im_N, b_re_N, b_im_N)
        dx_T = tl.sum(p_re_TN * q_re_N[None, :] - p_im_TN * q_im_N[None, :], 1)
        before_T = tl.load(dx_ptr + place_T, mask=inside_T, other=0.0).to(tl.float32)
        tl.store(dx_ptr + place_T, (before_T + dx_T).to(dx_ptr.dtype.element_ty), mask=inside_T)
        made_re_N, made_im_N = tl.sum(p_re_TN * x_T1, 0), tl.sum(p_im_TN * x_T1, 0)
        kx_T1 = back_T.to(tl.float32)[:, None] * x_T1
        late_re_N, late_im_N = times(b_re_N, b_im_N, tl.sum(p_re_TN * kx_T1, 0), tl.sum(p_im_TN * kx_T1, 0))
        z_re_N, z_im_N = load_power(pole_ptr, turn_ptr, channel, rest + 0 * mode_N, N)
        s_re_N, s_im_N = times(tl.load(last_N), tl.load(last_N + N), z_re_N, z_im_N)
        dlog_re_N, dlog_im_N = times(g_re_N, g_im_N, rest * s_re_N + late_re_N, -(rest * s_im_N + late_im_N))
        db_re_N, db_im_N = times(g_re_N, g_im_N, made_re_N, -made_im_N)
    tl.store(part_N, dlog_re_N)
    tl.store(part_N + N, dlog_im_N)
    tl.store(part_N + 2 * N, db_re_N)
    tl.store(part_N + 3 * N, db_im_N)


@triton.jit
def load_parts(part_taps_ptr, part_in_ptr, part_out_ptr, part_step_ptr, channel, n_groups, T: tl.constexpr, N: tl.constexpr):
    """Sums of the programs' parts, in order: of the taps (T,), of W and V by time, of z^T."""
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
    return tl.sum(dtaps_TT, 1), din_re_TN, din_im_TN, dout_re_TN, dout_im_TN, dz_re_N, dz_im_N


@triton.jit
def store_number(pointer, channel, modes, mode_N, x_N, place: tl.constexpr, PAIRS: tl.constexpr):
    x_N = x_N.to(pointer.dtype.element_ty)
    tl.store(pointer + (channel * modes + mode_N) * (2 if PAIRS else 1) + place, x_N, mask=mode_N < modes)


@triton.jit(do_not_specialize=["modes", "n_groups", "batch"])
def parameter_gradients(
    dt_ptr, a_re_ptr, a_im_ptr, input_ptr, output_ptr, pole_ptr, turn_ptr,
    part_taps_ptr, part_in_ptr, part_out_ptr, part_step_ptr, part_end_ptr,
    ddt_ptr, da_re_ptr, da_im_ptr, dinput_ptr, doutput_ptr, dskip_ptr, modes, n_groups, batch,
    BILINEAR: tl.constexpr, HAS_INPUT: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_END: tl.constexpr,
    T: tl.constexpr, N: tl.constexpr,
):  # fmt: skip
    """From the gradients of one channel's operators to those of dt, A, B, C and the skip weight."""
    channel = tl.program_id(0).to(tl.int64)
    time_T, mode_N = tl.arange(0, T), tl.arange(0, N)
    dtaps_T, din_re_TN, din_im_TN, dout_re_TN, dout_im_TN, dz_re_N, dz_im_N = load_parts(
        part_taps_ptr, part_in_ptr, part_out_ptr, part_step_ptr, channel, n_groups, T, N
    )
    pole_N = pole_ptr + channel * POLE_ROWS * N + mode_N
    b_re_N, b_im_N = tl.load(pole_N + N), tl.load(pole_N + 2 * N)
    c_re_N = load_number(output_ptr, channel, modes, mode_N, 0, True).to(tl.float32)
    c_im_N = load_number(output_ptr, channel, modes, mode_N, 1, True).to(tl.float32)
    steps_T1 = time_T.to(tl.float32)[:, None]
    # A cotangent of u = p q gives p that of u times the conjugate of q. First the powers z^t: taps and W.
    re_TN, im_TN = load_powers(pole_ptr, turn_ptr, channel, time_T, N)
    dq_T1 = 2 * dtaps_T[:, None]
    sum_q_re_N, sum_q_im_N = tl.sum(re_TN * dq_T1, 0), -tl.sum(im_TN * dq_T1, 0)
    time_q_re_N, time_q_im_N = tl.sum(steps_T1 * re_TN * dq_T1, 0), -tl.sum(steps_T1 * im_TN * dq_T1, 0)
    w_re_TN, w_im_TN = times(din_re_TN, din_im_TN, re_TN, -im_TN)
    sum_w_re_N, sum_w_im_N = tl.sum(w_re_TN, 0), tl.sum(w_im_TN, 0)
    time_w_re_N, time_w_im_N = tl.sum(steps_T1 * w_re_TN, 0), tl.sum(steps_T1 * w_im_TN, 0)
    # Then z^(t+1): V, whose real numbers are 2 Re u and -2 Im u.
    u_re_TN, u_im_TN = times(2 * dout_re_TN, -2 * dout_im_TN, re_TN, -im_TN)
    z_re_N, z_im_N = load_power(pole_ptr, turn_ptr, channel, 1 + 0 * mode_N, N)
    sum_u_re_N, sum_u_im_N = times(tl.sum(u_re_TN, 0), tl.sum(u_im_TN, 0), z_re_N, -z_im_N)
    time_u_re_N, time_u_im_N = times(tl.sum((steps_T1 + 1) * u_re_TN, 0), tl.sum((steps_T1 + 1) * u_im_TN, 0), z_re_N, -z_im_N)
    dc_re_N, dc_im_N = times(sum_q_re_N, sum_q_im_N, b_re_N, -b_im_N)
    db_re_N, db_im_N = times(sum_q_re_N, sum_q_im_N, c_re_N, -c_im_N)
    db_re_N += sum_w_re_N
    db_im_N += sum_w_im_N
    cb_re_N, cb_im_N = times(c_re_N, c_im_N, b_re_N, b_im_N)
    q_re_N, q_im_N = times(time_q_re_N, time_q_im_N, cb_re_N, -cb_im_N)
    w_re_N, w_im_N = times(time_w_re_N, time_w_im_N, b_re_N, -b_im_N)
    u_re_N, u_im_N = times(time_u_re_N, time_u_im_N, c_re_N, -c_im_N)
    z_re_N, z_im_N = load_power(pole_ptr, turn_ptr, channel, T + 0 * mode_N, N)
    far_re_N, far_im_N = times(dz_re_N, dz_im_N, z_re_N, -z_im_N)
    dlog_re_N = q_re_N + w_re_N + u_re_N + T * far_re_N
    dlog_im_N = q_im_N + w_im_N + u_im_N + T * far_im_N
    if HAS_END:
        for row in tl.range(0, batch):
            part_N = part_end_ptr + (channel * batch + row) * 4 * N + mode_N
            dlog_re_N += tl.load(part_N)
            dlog_im_N += tl.load(part_N + N)
            db_re_N += tl.load(part_N + 2 * N)
            db_im_N += tl.load(part_N + 3 * N)
    store_number(doutput_ptr, channel, modes, mode_N, dc_re_N + sum_u_re_N, 0, True)
    store_number(doutput_ptr, channel, modes, mode_N, dc_im_N + sum_u_im_N, 1, True)
    if HAS_SKIP:
        dskip = tl.sum(tl.where(time_T == 0, dtaps_T, 0.0), 0)
        tl.store(dskip_ptr + channel, dskip.to(dskip_ptr.dtype.element_ty))
    # b = dt f(w) B and log z at w = dt A, in double precision.
    dt, a_re_N, a_im_N, in_re_N, in_im_N = load_continuous(dt_ptr, a_re_ptr, a_im_ptr, input_ptr, channel, modes, HAS_INPUT, N)
    _, _, f_re_N, f_im_N, df_re_N, df_im_N, log_re_N, log_im_N = sample(dt, a_re_N, a_im_N, BILINEAR)
    db_re_N, db_im_N = db_re_N.to(tl.float64), db_im_N.to(tl.float64)
    pulled_re_N, pulled_im_N = times(db_re_N, db_im_N, f_re_N, -f_im_N)
    if HAS_INPUT:
        store_number(dinput_ptr, channel, modes, mode_N, dt * pulled_re_N, 0, True)
        store_number(dinput_ptr, channel, modes, mode_N, dt * pulled_im_N, 1, True)
    slope_re_N, slope_im_N = times(in_re_N, in_im_N, df_re_N, df_im_N)
    dw_re_N, dw_im_N = times(db_re_N, db_im_N, dt * slope_re_N, -dt * slope_im_N)
    from_log_re_N, from_log_im_N = times(dlog_re_N.to(tl.float64), dlog_im_N.to(tl.float64), log_re_N, -log_im_N)
    dw_re_N += from_log_re_N
    dw_im_N += from_log_im_N
    ddt_N = pulled_re_N * in_re_N + pulled_im_N * in_im_N + dw_re_N * a_re_N + dw_im_N * a_im_N
    ddt = tl.sum(tl.where(mode_N < modes, ddt_N, 0.0), 0)
    tl.store(ddt_ptr + channel, ddt.to(ddt_ptr.dtype.element_ty))
    store_number(da_re_ptr, channel, modes, mode_N, dt * dw_re_N, 0, False)
    store_number(da_im_ptr, channel, modes, mode_N, dt * dw_im_N, 0, False)
