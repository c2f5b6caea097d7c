"""Triton kernels for the columns of a long sequence, on the way in and back: gates, layout, twiddles; see `triton_long_rows`.

A tile is all t1 (or f1) of some channels C and places T of a row: sequences (B, L, D) have their channels side by side in
memory, what stands between the passes, (channels, B, N1, N2), its places t2.
"""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl

from longseq.ops.fft_conv.triton_long_rows import pack, unpack
from longseq.ops.fft_conv.triton_short import load_matrix


@triton.jit
def tile(first, N1: tl.constexpr, N2: tl.constexpr, CHANNELS: tl.constexpr, PLACES: tl.constexpr):
    """A program's (local C, channels (1, C, 1), slots (N1, 1, T), batch row)."""
    local_C = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    t2_T = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    slot = tl.arange(0, N1)[:, None, None] * N2 + t2_T[None, None, :]
    return local_C, (first + local_C)[None, :, None], slot, tl.program_id(2).to(tl.int64)


@triton.jit
def packed_places(local_C, row, rows, N1: tl.constexpr, N2: tl.constexpr, PLACES: tl.constexpr):
    """Where a tile (N1, C, T) is among the packed numbers, and its signals (C)."""
    signal_C = local_C.to(tl.int64) * rows + row
    t2_T = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    f1 = tl.arange(0, N1)[:, None, None]
    return (signal_C[None, :, None] * N1 + f1) * N2 + t2_T[None, None, :], signal_C


@triton.jit
def load_turns(turn_ptr, N1: tl.constexpr, N2: tl.constexpr, PLACES: tl.constexpr):
    t2_T = tl.program_id(1) * PLACES + tl.arange(0, PLACES)
    return tl.load(turn_ptr + tl.arange(0, N1)[:, None] * N2 + t2_T[None, :])


@triton.jit
def as_turns(packed):
    re, im = unpack(packed)
    return re.to(tl.float32)[:, None, :], im.to(tl.float32)[:, None, :]


@triton.jit
def part(pointer, place, kept):
    return tl.load(pointer + place, mask=kept, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["length"])
def columns_in(
    x_ptr, gate_ptr, table_ptr, turn_ptr, out_ptr, size_ptr, length, x_row, gate_row, first, last,
    HAS_GATE: tl.constexpr, REVERSE: tl.constexpr, TAPS: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr, CHANNELS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Channels first ... last - 1 of gate * x, (B, L, D), to columns' spectra, packed (channels, B, N1, N2), and sizes.

    A position's channels lie `x_row` and `gate_row` numbers after those of the position before. TAPS are (D, K) instead, of
    K = `length` columns, and `x_row` lies between channels.
    """
    local_C, channel, slot, row = tile(first, N1, N2, CHANNELS, PLACES)
    time = slot
    if REVERSE:
        time = N1 * N2 - 1 - slot
    kept = (time < length) & (channel < last)
    if TAPS:
        place = channel.to(tl.int64) * x_row + time
    else:
        place = (row * length + time) * x_row + channel
    x = part(x_ptr, place, kept)
    if HAS_GATE:
        x *= part(gate_ptr, (row * length + time) * gate_row + channel, kept)
    # Under way before the tile is complete.
    f_re, f_im = load_matrix(table_ptr, N1, N1)
    turns = load_turns(turn_ptr, N1, N2, PLACES)
    # A power of two that is about the largest absolute number.
    size_C = tl.exp2(tl.ceil(tl.log2(tl.maximum(tl.max(tl.max(tl.abs(x), 2), 0), 1e-30))))
    x = (x * (1 / size_C)[None, :, None]).to(tl.float16).reshape(N1, CHANNELS * PLACES)
    a_re = tl.dot(f_re, x).reshape(N1, CHANNELS, PLACES)
    a_im = tl.dot(f_im, x).reshape(N1, CHANNELS, PLACES)
    t_re, t_im = as_turns(turns)
    both = pack(a_re * t_re - a_im * t_im, a_re * t_im + a_im * t_re)
    out_place, signal_C = packed_places(local_C, row, tl.num_programs(2), N1, N2, PLACES)
    tl.store(out_ptr + out_place, both, mask=channel < last)
    tl.store(size_ptr + signal_C * (N2 // PLACES) + tl.program_id(1), size_C, mask=first + local_C < last)


@triton.jit
def transform_columns_back(
    z_ptr, size_ptr, table_ptr, turn_ptr, local_C, row, rows, count,
    N1: tl.constexpr, N2: tl.constexpr, CHANNELS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """The real parts (N1, C, T) of untwisted signals, from rows of which each has a power of two."""
    place, signal_C = packed_places(local_C, row, rows, N1, N2, PLACES)
    kept_C = local_C < count
    z_re, z_im = unpack(tl.load(z_ptr + place, mask=kept_C[None, :, None], other=0))
    # Under way before the tile is complete.
    turns = load_turns(turn_ptr, N1, N2, PLACES)
    f_re, f_im = load_matrix(table_ptr, N1, N1)
    f1 = tl.arange(0, N1)[:, None]
    size_1C = tl.load(size_ptr + signal_C[None, :] * N1 + f1, mask=kept_C[None, :], other=1.0)
    size_C = tl.max(size_1C, 0)
    # Powers of two, of which the largest is 1.
    factor = (size_1C * (1 / tl.maximum(size_C, 1e-37))[None, :])[:, :, None]
    z_re, z_im = z_re.to(tl.float32) * factor, z_im.to(tl.float32) * factor
    t_re, t_im = as_turns(turns)
    b_re = (z_re * t_re + z_im * t_im).to(tl.float16).reshape(N1, CHANNELS * PLACES)
    b_im = (z_im * t_re - z_re * t_im).to(tl.float16).reshape(N1, CHANNELS * PLACES)
    x = tl.dot(tl.trans(f_im), b_im, tl.dot(tl.trans(f_re), b_re)).reshape(N1, CHANNELS, PLACES)
    return x * size_C[None, :, None]


@triton.jit(do_not_specialize=["length"])
def columns_out(
    z_ptr, size_ptr, table_ptr, turn_ptr, u_ptr, pre_ptr, post_ptr, bias_ptr, y_ptr, plain_ptr,
    length, width, u_row, first, last,
    HAS_PRE: tl.constexpr, HAS_POST: tl.constexpr, HAS_BIAS: tl.constexpr, SAVE: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr, CHANNELS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """post * (convolution + bias * pre * u), and the bracket itself for the gradient of the post gate.

    Of u and both gates a position lies `u_row` numbers after the one before, of what is written `width`.
    """
    local_C, channel, time, row = tile(first, N1, N2, CHANNELS, PLACES)
    kept = (time < length) & (channel < last)
    place = (row * length + time) * width + channel
    given = (row * length + time) * u_row + channel
    y = transform_columns_back(
        z_ptr, size_ptr, table_ptr, turn_ptr, local_C, row, tl.num_programs(2), last - first, N1, N2, CHANNELS, PLACES
    )
    if HAS_BIAS:
        v = part(u_ptr, given, kept)
        if HAS_PRE:
            v *= part(pre_ptr, given, kept)
        y += v * part(bias_ptr, channel, channel < last)
    if SAVE:
        tl.store(plain_ptr + place, y.to(plain_ptr.dtype.element_ty), mask=kept)
    if HAS_POST:
        y *= part(post_ptr, given, kept)
    tl.store(y_ptr + place, y.to(y_ptr.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["taps"])
def columns_out_taps(
    z_ptr, size_ptr, table_ptr, turn_ptr, dk_ptr, taps, stride, first, last,
    N1: tl.constexpr, N2: tl.constexpr, CHANNELS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Gradients (D, K) of taps; that of tap t stands at slot n - 1 - t."""
    local_C, channel, slot, row = tile(first, N1, N2, CHANNELS, PLACES)
    lag = N1 * N2 - 1 - slot
    dk = transform_columns_back(
        z_ptr, size_ptr, table_ptr, turn_ptr, local_C, row, tl.num_programs(2), last - first, N1, N2, CHANNELS, PLACES
    )
    kept = (lag < taps) & (channel < last)
    tl.store(dk_ptr + channel.to(tl.int64) * stride + lag, dk.to(dk_ptr.dtype.element_ty), mask=kept)


@triton.jit(do_not_specialize=["length"])
def columns_gradients(
    z_ptr, size_ptr, table_ptr, turn_ptr, dy_ptr, u_ptr, pre_ptr, post_ptr, bias_ptr, plain_ptr, du_ptr, dpre_ptr, dpost_ptr,
    part_ptr, length, width, u_row, first, last,
    HAS_PRE: tl.constexpr, HAS_POST: tl.constexpr, HAS_BIAS: tl.constexpr, NEED_INPUT: tl.constexpr, SAVED: tl.constexpr,
    N1: tl.constexpr, N2: tl.constexpr, CHANNELS: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """Gradients of u and both gates, and a tile's part of that of the bias; time t of v stands at slot n - 1 - t.

    Strides as in `columns_out`.
    """
    local_C, channel, slot, row = tile(first, N1, N2, CHANNELS, PLACES)
    time = N1 * N2 - 1 - slot
    kept = (time < length) & (channel < last)
    place = (row * length + time) * width + channel
    given = (row * length + time) * u_row + channel
    if NEED_INPUT:
        dv = transform_columns_back(
            z_ptr, size_ptr, table_ptr, turn_ptr, local_C, row, tl.num_programs(2), last - first, N1, N2, CHANNELS, PLACES
        )
    g = part(dy_ptr, place, kept)
    if SAVED:
        tl.store(dpost_ptr + place, (g * part(plain_ptr, place, kept)).to(dpost_ptr.dtype.element_ty), mask=kept)
    if HAS_POST:
        g *= part(post_ptr, given, kept)
    u = part(u_ptr, given, kept)
    if HAS_PRE:
        pre = part(pre_ptr, given, kept)
    if HAS_BIAS:
        v = u
        if HAS_PRE:
            v = u * pre
        own_C = tl.sum(tl.sum(g * v, 2), 0)
        part_ptr += (row * tl.num_programs(1) + tl.program_id(1)) * width + first
        tl.store(part_ptr + local_C, own_C, mask=first + local_C < last)
    if NEED_INPUT:
        if HAS_BIAS:
            dv += g * part(bias_ptr, channel, channel < last)
        if HAS_PRE:
            tl.store(dpre_ptr + place, (dv * u).to(dpre_ptr.dtype.element_ty), mask=kept)
            dv *= pre
        tl.store(du_ptr + place, dv.to(du_ptr.dtype.element_ty), mask=kept)
