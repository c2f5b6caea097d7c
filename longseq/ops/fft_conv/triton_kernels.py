"""Triton kernels around a complex FFT of the sequence's own length: gates, layout, and the right-angle twist.

Signals x and k of n positions are multiplied by w^t, w = exp(i pi / 2n), before a complex FFT of length n. As w^n = i, what
wraps around comes back turned by a right angle: the real part of the untwisted product is the first half of the linear
convolution and the imaginary part the second. No zero padding, and no separate form for real signals.
"""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def twist(slot, n):
    """cos and sin of pi t / 2n, from polynomials around the middle of the quarter turn, to an absolute 1e-7."""
    y = (2 * slot - n).to(tl.float32) * (0.7853981633974483 / n)
    y2 = y * y
    sin = y * (1 + y2 * (-1 / 6 + y2 * (1 / 120 + y2 * (-1 / 5040 + y2 * (1 / 362880)))))
    cos = 1 + y2 * (-0.5 + y2 * (1 / 24 + y2 * (-1 / 720 + y2 * (1 / 40320 - y2 * (1 / 3628800)))))
    return (cos - sin) * 0.7071067811865476, (cos + sin) * 0.7071067811865476


@triton.jit
def load_part(pointer, row, place_S, rows, stride, channel_D, kept_S, inside_D):
    """(S, D) of a (B, rows, D) tensor, in fp32; `stride` numbers lie between the beginnings of rows."""
    pointer_SD = pointer + (row * rows + place_S.to(tl.int64)[:, None]) * stride + channel_D[None, :]
    return tl.load(pointer_SD, mask=kept_S[:, None] & inside_D[None, :], other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["length", "forgotten"])
def twist_in(
    x_ptr, gate_ptr, history_ptr, out_ptr, length, width, x_row, gate_row, past, forgotten, n, first, last,
    HAS_GATE: tl.constexpr, HAS_HISTORY: tl.constexpr, REVERSE: tl.constexpr, PLAIN: tl.constexpr,
    SLOTS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """Channels first ... last - 1 of gate * x behind the history, (B, L, D) -> (channels, B, n), twisted complex or PLAIN."""
    slot_S = tl.program_id(0) * SLOTS + tl.arange(0, SLOTS)
    local_D = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_D = first + local_D
    row = tl.program_id(2).to(tl.int64)
    inside_S, inside_D = slot_S < n, channel_D < last
    time_S = slot_S
    if REVERSE:
        time_S = n - 1 - slot_S
    present_S = inside_S & (time_S >= past) & (time_S < past + length)
    x_SD = load_part(x_ptr, row, time_S - past, length, x_row, channel_D, present_S, inside_D)
    if HAS_GATE:
        x_SD *= load_part(gate_ptr, row, time_S - past, length, gate_row, channel_D, present_S, inside_D)
    if HAS_HISTORY:
        x_SD += load_part(
            history_ptr, row, time_S + forgotten, past + forgotten, width, channel_D, inside_S & (time_S < past), inside_D
        )
    x_DS = tl.trans(x_SD)
    signal = (local_D.to(tl.int64)[:, None] * tl.num_programs(2) + row) * n
    if PLAIN:
        kept_DS = inside_D[:, None] & inside_S[None, :]
        tl.store(out_ptr + signal + slot_S[None, :], x_DS.to(out_ptr.dtype.element_ty), mask=kept_DS)
        return
    cos_S, sin_S = twist(slot_S, n)
    both_DS = tl.interleave(x_DS * cos_S[None, :], x_DS * sin_S[None, :])
    place_S = tl.program_id(0) * SLOTS * 2 + tl.arange(0, 2 * SLOTS)
    tl.store(out_ptr + signal * 2 + place_S[None, :], both_DS, mask=inside_D[:, None] & (place_S < 2 * n)[None, :])


@triton.jit(do_not_specialize=["taps"])
def twist_taps(k_ptr, out_ptr, taps, stride, n, first, BLOCK: tl.constexpr):
    """Kernels (D, K), zero-padded and twisted, as complex (channels, n)."""
    channel = tl.program_id(1).to(tl.int64)
    slot_S = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    k_S = tl.load(k_ptr + (first + channel) * stride + slot_S, mask=slot_S < taps, other=0.0).to(tl.float32)
    cos_S, sin_S = twist(slot_S, n)
    place_S = tl.program_id(0) * BLOCK * 2 + tl.arange(0, 2 * BLOCK)
    tl.store(out_ptr + channel * n * 2 + place_S, tl.interleave(k_S * cos_S, k_S * sin_S), mask=place_S < 2 * n)


@triton.jit
def untwist(pair_S2, slot_S, n):
    """Real parts of complex numbers of the twisted product at slots, of an unscaled inverse FFT."""
    cos_S, sin_S = twist(slot_S, n)
    real_S, imag_S = tl.split(pair_S2)
    return (real_S * cos_S + imag_S * sin_S) / n


@triton.jit(do_not_specialize=["taps"])
def untwist_taps(z_ptr, dk_ptr, taps, stride, n, first, start, BLOCK: tl.constexpr):
    """The gradient of tap t stands at slot n - 1 - t of a convolution; programs begin at slot `start`."""
    channel = tl.program_id(1).to(tl.int64)
    slot_S = start + tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    place_S = (start + tl.program_id(0) * BLOCK) * 2 + tl.arange(0, 2 * BLOCK)
    z_S = tl.load(z_ptr + channel * n * 2 + place_S, mask=place_S < 2 * n, other=0.0)
    dk_S = untwist(z_S.reshape(BLOCK, 2), slot_S, n)
    lag_S = n - 1 - slot_S
    dk_pointer_S = dk_ptr + (first + channel) * stride + lag_S
    tl.store(dk_pointer_S, dk_S.to(dk_ptr.dtype.element_ty), mask=(lag_S >= 0) & (lag_S < taps))


@triton.jit
def load_untwisted(z_ptr, row, local_D, rows, first_slot, n, inside_D, PLAIN: tl.constexpr, SLOTS: tl.constexpr):
    """(S, D) real parts at slots from the first one on; PLAIN signals are real, untwisted and scaled already.

    Real and imaginary parts are read side by side, along the slots and up to n, so that a thread reads 16 bytes at once.
    """
    signal = (local_D.to(tl.int64)[:, None] * rows + row) * n
    slot_S = first_slot + tl.arange(0, SLOTS)
    if PLAIN:
        kept_DS = inside_D[:, None] & (slot_S < n)[None, :]
        return tl.trans(tl.load(z_ptr + signal + slot_S[None, :], mask=kept_DS, other=0.0).to(tl.float32))
    place_S = first_slot * 2 + tl.arange(0, 2 * SLOTS)
    z_DS = tl.load(z_ptr + signal * 2 + place_S[None, :], mask=inside_D[:, None] & (place_S < 2 * n)[None, :], other=0.0)
    return tl.trans(untwist(z_DS.reshape(local_D.shape[0], SLOTS, 2), slot_S[None, :], n))


@triton.jit
def store_part(pointer, row, place_S, rows, width, channel_D, kept_S, inside_D, x_SD):
    pointer_SD = pointer + (row * rows + place_S.to(tl.int64)[:, None]) * width + channel_D[None, :]
    tl.store(pointer_SD, x_SD.to(pointer.dtype.element_ty), mask=kept_S[:, None] & inside_D[None, :])


@triton.jit(do_not_specialize=["length"])
def untwist_out(
    z_ptr, u_ptr, pre_ptr, post_ptr, bias_ptr, y_ptr, plain_ptr, length, width, u_row, past, n, first, last,
    HAS_PRE: tl.constexpr, HAS_POST: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr, PLAIN: tl.constexpr,
    PLACES: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """post * (convolution + bias * pre * u), and the bracket itself for the gradient of the post gate."""
    place_S = tl.program_id(0) * PLACES + tl.arange(0, PLACES)
    local_D = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_D = first + local_D
    row = tl.program_id(2).to(tl.int64)
    inside_S, inside_D = place_S < length, channel_D < last
    first_slot = tl.program_id(0) * PLACES + past
    y_SD = load_untwisted(z_ptr, row, local_D, tl.num_programs(2), first_slot, n, inside_D, PLAIN, PLACES)
    if HAS_BIAS:
        v_SD = load_part(u_ptr, row, place_S, length, u_row, channel_D, inside_S, inside_D)
        if HAS_PRE:
            v_SD *= load_part(pre_ptr, row, place_S, length, u_row, channel_D, inside_S, inside_D)
        y_SD += v_SD * tl.load(bias_ptr + channel_D, mask=inside_D, other=0.0).to(tl.float32)[None, :]
    if SAVE:
        store_part(plain_ptr, row, place_S, length, width, channel_D, inside_S, inside_D, y_SD)
    if HAS_POST:
        y_SD *= load_part(post_ptr, row, place_S, length, u_row, channel_D, inside_S, inside_D)
    store_part(y_ptr, row, place_S, length, width, channel_D, inside_S, inside_D, y_SD)


@triton.jit(do_not_specialize=["rows"])
def multiply_spectra(
    g_ptr, x_ptr, k_ptr, dk_ptr, rows, n, NEED_KERNEL: tl.constexpr, NEED_INPUT: tl.constexpr, BLOCK: tl.constexpr
):
    """In place g *= k, and dk = sum over the batch of g x, in a fixed order; complex numbers side by side."""
    channel = tl.program_id(1).to(tl.int64)
    place_S = tl.program_id(0) * 2 * BLOCK + tl.arange(0, 2 * BLOCK)
    inside_S = place_S < 2 * n
    sum_re_S = tl.zeros([BLOCK], tl.float32)
    sum_im_S = tl.zeros([BLOCK], tl.float32)
    if NEED_INPUT:
        k_S2 = tl.load(k_ptr + channel * n * 2 + place_S, mask=inside_S, other=0.0).reshape(BLOCK, 2)
        k_re_S, k_im_S = tl.split(k_S2)
    for row in tl.range(0, rows):
        pointer_S = g_ptr + (channel * rows + row) * n * 2 + place_S
        g_re_S, g_im_S = tl.split(tl.load(pointer_S, mask=inside_S, other=0.0).reshape(BLOCK, 2))
        if NEED_KERNEL:
            x_S = tl.load(x_ptr + (channel * rows + row) * n * 2 + place_S, mask=inside_S, other=0.0)
            x_re_S, x_im_S = tl.split(x_S.reshape(BLOCK, 2))
            sum_re_S += g_re_S * x_re_S - g_im_S * x_im_S
            sum_im_S += g_re_S * x_im_S + g_im_S * x_re_S
        if NEED_INPUT:
            out_S = tl.interleave(g_re_S * k_re_S - g_im_S * k_im_S, g_re_S * k_im_S + g_im_S * k_re_S)
            tl.store(pointer_S, out_S, mask=inside_S)
    if NEED_KERNEL:
        tl.store(dk_ptr + channel * n * 2 + place_S, tl.interleave(sum_re_S, sum_im_S), mask=inside_S)


@triton.jit(do_not_specialize=["length", "past", "forgotten"])
def untwist_gradients(
    z_ptr, dy_ptr, u_ptr, pre_ptr, post_ptr, bias_ptr, plain_ptr, du_ptr, dpre_ptr, dpost_ptr, dhistory_ptr, part_ptr,
    length, width, u_row, past, forgotten, n, first, last, start,
    HAS_PRE: tl.constexpr, HAS_POST: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_HISTORY: tl.constexpr,
    NEED_INPUT: tl.constexpr, PLAIN: tl.constexpr, PLACES: tl.constexpr, CHANNELS: tl.constexpr, SAVED: tl.constexpr,
):  # fmt: skip
    """Gradients of u, both gates and the history, and a tile's part of that of the bias.

    What reaches v at time t through the convolution stands at slot n - 1 - t; programs begin at slot `start`.
    """
    first_slot = start + tl.program_id(0) * PLACES
    time_S = n - 1 - first_slot - tl.arange(0, PLACES)
    local_D = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    channel_D = first + local_D
    row = tl.program_id(2).to(tl.int64)
    place_S = time_S - past
    inside_S, inside_D = (place_S >= 0) & (place_S < length), channel_D < last
    g_SD = load_part(dy_ptr, row, place_S, length, width, channel_D, inside_S, inside_D)
    if SAVED:
        plain_SD = load_part(plain_ptr, row, place_S, length, width, channel_D, inside_S, inside_D)
        store_part(dpost_ptr, row, place_S, length, width, channel_D, inside_S, inside_D, g_SD * plain_SD)
    if HAS_POST:
        g_SD *= load_part(post_ptr, row, place_S, length, u_row, channel_D, inside_S, inside_D)
    u_SD = load_part(u_ptr, row, place_S, length, u_row, channel_D, inside_S, inside_D)
    if HAS_PRE:
        pre_SD = load_part(pre_ptr, row, place_S, length, u_row, channel_D, inside_S, inside_D)
    if HAS_BIAS:
        v_SD = u_SD
        if HAS_PRE:
            v_SD = u_SD * pre_SD
        part = (row * tl.num_programs(0) + tl.program_id(0)) * width
        tl.store(part_ptr + part + channel_D, tl.sum(g_SD * v_SD, 0), mask=inside_D)
    if NEED_INPUT:
        dv_SD = load_untwisted(z_ptr, row, local_D, tl.num_programs(2), first_slot, n, inside_D, PLAIN, PLACES)
        if HAS_HISTORY:
            before_S = (time_S >= 0) & (time_S < past)
            store_part(dhistory_ptr, row, time_S + forgotten, past + forgotten, width, channel_D, before_S, inside_D, dv_SD)
        if HAS_BIAS:
            dv_SD += g_SD * tl.load(bias_ptr + channel_D, mask=inside_D, other=0.0).to(tl.float32)[None, :]
        if HAS_PRE:
            store_part(dpre_ptr, row, place_S, length, width, channel_D, inside_S, inside_D, dv_SD * u_SD)
            dv_SD *= pre_SD
        store_part(du_ptr, row, place_S, length, width, channel_D, inside_S, inside_D, dv_SD)
