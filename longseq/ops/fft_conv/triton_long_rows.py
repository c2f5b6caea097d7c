"""Triton kernels that transform, multiply and transform back the rows of a long sequence, and the tables for it.

n = N1 N2 positions are a matrix, t = t1 N2 + t2, and a row itself is one, t2 = a NB + b. A transform of length n is: products
with a DFT matrix along the columns, a twiddle w(f1, t2), and transforms of the rows, each as in `triton_short`: frequency
f1 + N1 (fa + NA fb) stands in row f1 at (fa, fb), so that nothing is ever transposed. The right-angle twist, exp(i pi t / 2n),
is a factor of t1 times one of t2: it is in the matrix and the twiddle of the columns, which meet real signals only.

What stands in memory between the passes is a complex number in 4 bytes, two fp16 in an int32 with the real part below, and a
power of two for every signal and some places of a row (on the way back: for every row). Signals are at most 1 when they enter,
and what the factors below leave of the transforms is unitary: nothing grows above sqrt(n), for which fp16 has room.
"""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl

from longseq.ops.fft_conv.triton_short import circle, load_matrix, places, scale


@triton.jit
def pack(re, im):
    """Two numbers as fp16 in an int32."""
    low = re.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) & 0xFFFF
    return low | (im.to(tl.float16).to(tl.int16, bitcast=True).to(tl.int32) << 16)


@triton.jit
def unpack(both):
    return both.to(tl.int16).to(tl.float16, bitcast=True), (both >> 16).to(tl.int16).to(tl.float16, bitcast=True)


@triton.constexpr_function
def root(n):
    """A power of two that is about 1 / sqrt(n): what keeps numbers as large as a transform of n found them."""
    return 2.0 ** -((n.bit_length() - 1) // 2)


@triton.jit
def make_long_tables(table_ptr, turn_ptr, N1: tl.constexpr, NA: tl.constexpr, NB: tl.constexpr, BLOCK: tl.constexpr):
    """The columns' matrix and twiddle (packed), and the matrices and twiddle of a row as `triton_short` lays them out."""
    place_S = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    re_S, im_S = turned(place_S, NA * NB, N1 * NA * NB, 1)
    tl.store(turn_ptr + place_S, pack(re_S, im_S), mask=place_S < N1 * NA * NB)
    make_table(table_ptr, place_S, N1, N1, N1, 1)
    make_table(table_ptr + 2 * N1 * N1, place_S, NA, NA, NA, 0)
    make_table(table_ptr + 2 * (N1 * N1 + NA * NA), place_S, NA, NB, NA * NB, 0)
    make_table(table_ptr + 2 * (N1 * N1 + NA * NA + NA * NB), place_S, NB, NB, NB, 0)


@triton.jit
def turned(place_S, COLUMNS: tl.constexpr, PERIOD: tl.constexpr, QUARTERS: tl.constexpr):
    """exp(-2 pi i (row - QUARTERS / 4) column / PERIOD) of the places of a matrix: whole numbers under 2^24 over 4 PERIOD."""
    turns_S = (4 * (place_S // COLUMNS) - QUARTERS) * (place_S % COLUMNS) % (4 * PERIOD)
    return circle(turns_S.to(tl.float32) / -(4 * PERIOD))


@triton.jit
def make_table(
    pointer, place_S, ROWS: tl.constexpr, COLUMNS: tl.constexpr, PERIOD: tl.constexpr, QUARTERS: tl.constexpr
):  # fmt: skip
    re_S, im_S = turned(place_S, COLUMNS, PERIOD, QUARTERS)
    tl.store(pointer + place_S, re_S.to(tl.float16), mask=place_S < ROWS * COLUMNS)
    tl.store(pointer + ROWS * COLUMNS + place_S, im_S.to(tl.float16), mask=place_S < ROWS * COLUMNS)


@triton.jit
def transform_row(
    x_ptr, size_ptr, table_ptr, signal, row,
    N1: tl.constexpr, NA: tl.constexpr, NB: tl.constexpr, PLACES: tl.constexpr,
):  # fmt: skip
    """The spectrum of a row of what the columns made, over `size` of its signal and root(N1)."""
    # Places with a power of two in common are side by side: no number of those is read twice.
    COUNT: tl.constexpr = NA * NB // PLACES
    size_S = tl.load(size_ptr + signal * COUNT + tl.arange(0, COUNT))
    size = tl.max(size_S, 0)
    place = tl.arange(0, COUNT)[:, None] * PLACES + tl.arange(0, PLACES)[None, :]
    x_re, x_im = unpack(tl.load(x_ptr + (signal * N1 + row) * (NA * NB) + place))
    # At most 1, and a power of two.
    factor = (size_S * (root(N1) / size)).to(tl.float16)[:, None]
    x_re, x_im = (x_re * factor).reshape(NA, NB), (x_im * factor).reshape(NA, NB)
    f_re, f_im = load_matrix(table_ptr, NA, NA)
    a_re = tl.dot(f_im, -x_im, tl.dot(f_re, x_re))
    a_im = tl.dot(f_im, x_re, tl.dot(f_re, x_im))
    t_re, t_im = load_matrix(table_ptr + 2 * NA * NA, NA, NB)
    b_re, b_im = (a_re * t_re - a_im * t_im).to(tl.float16), (a_re * t_im + a_im * t_re).to(tl.float16)
    f_re, f_im = load_matrix(table_ptr + 2 * NA * (NA + NB), NB, NB)
    c_re = tl.dot(-b_im, f_im, tl.dot(b_re, f_re))
    c_im = tl.dot(b_im, f_re, tl.dot(b_re, f_im))
    return c_re * root(NA * NB), c_im * root(NA * NB), size


@triton.jit
def transform_row_back(p_re, p_im, table_ptr, NA: tl.constexpr, NB: tl.constexpr):
    """The row of a spectrum, not yet untwisted, packed."""
    p_re, p_im = p_re.to(tl.float16), p_im.to(tl.float16)
    f_re, f_im = load_matrix(table_ptr + 2 * NA * (NA + NB), NB, NB)
    a_re = tl.dot(p_im, f_im, tl.dot(p_re, f_re))
    a_im = tl.dot(-p_re, f_im, tl.dot(p_im, f_re))
    t_re, t_im = load_matrix(table_ptr + 2 * NA * NA, NA, NB)
    b_re, b_im = (a_re * t_re + a_im * t_im).to(tl.float16), (a_im * t_re - a_re * t_im).to(tl.float16)
    # The matrix is its own transpose.
    f_re, f_im = load_matrix(table_ptr, NA, NA)
    x_re = tl.dot(f_im, b_im, tl.dot(f_re, b_re))
    x_im = tl.dot(f_im, -b_re, tl.dot(f_re, b_im))
    return pack(x_re * root(NA * NB), x_im * root(NA * NB))


@triton.jit
def transform_taps_rows(
    k_ptr, size_ptr, table_ptr, out_size_ptr, N1: tl.constexpr, NA: tl.constexpr, NB: tl.constexpr, PLACES: tl.constexpr
):
    """Rows (channels, N1, N2) of taps, in place, and what each is to be multiplied by."""
    pid = tl.program_id(0).to(tl.int64)
    re, im, size = transform_row(k_ptr, size_ptr, table_ptr, pid // N1, pid % N1, N1, NA, NB, PLACES)
    own = scale(re, im)
    tl.store(k_ptr + pid * (NA * NB) + places(NA, NB), pack(re * (1 / own), im * (1 / own)))
    tl.store(out_size_ptr + pid, own * size * (1 / (root(N1) * root(NA * NB))))


@triton.jit(do_not_specialize=["rows"])
def convolve_rows(
    x_ptr, size_ptr, k_ptr, k_size_ptr, table_ptr, out_size_ptr, rows,
    N1: tl.constexpr, NA: tl.constexpr, NB: tl.constexpr,
    PLACES: tl.constexpr, TAP_PLACES: tl.constexpr, TRANSFORMED: tl.constexpr,
):  # fmt: skip
    """Rows (channels, B, N1, N2) of k * x in place of those of x, which may be TRANSFORMED already, and a power of two each.

    With TAP_PLACES the taps are still what `columns_in` made of them, and not what `transform_taps_rows` did.
    """
    pid, place_AB = tl.program_id(0).to(tl.int64), places(NA, NB)
    signal, row = pid // N1, pid % N1
    if TRANSFORMED:
        re, im = unpack(tl.load(x_ptr + pid * (NA * NB) + place_AB))
        size = tl.max(tl.load(size_ptr + signal * (NA * NB // PLACES) + tl.arange(0, NA * NB // PLACES)), 0)
    else:
        re, im, size = transform_row(x_ptr, size_ptr, table_ptr, signal, row, N1, NA, NB, PLACES)
    if TAP_PLACES > 0:
        # Half the registers while the other one is made.
        re, im = re.to(tl.float16), im.to(tl.float16)
        k_re, k_im, k_size = transform_row(k_ptr, k_size_ptr, table_ptr, signal // rows, row, N1, NA, NB, TAP_PLACES)
        size *= k_size * (1 / (root(N1) * root(NA * NB)))
    else:
        of_taps = signal // rows * N1 + row
        k_re, k_im = unpack(tl.load(k_ptr + of_taps * (NA * NB) + place_AB))
        size *= tl.load(k_size_ptr + of_taps)
    re, im, k_re, k_im = re.to(tl.float32), im.to(tl.float32), k_re.to(tl.float32), k_im.to(tl.float32)
    p_re, p_im = re * k_re - im * k_im, re * k_im + im * k_re
    if TAP_PLACES > 0:
        own = scale(p_re, p_im)
        p_re, p_im = p_re * (1 / own), p_im * (1 / own)
        size *= own
    tl.store(x_ptr + pid * (NA * NB) + place_AB, transform_row_back(p_re, p_im, table_ptr, NA, NB))
    # All that was divided out before, and the inverse transform's own factor.
    factor = 1 / (root(N1) * root(NA * NB) * root(NA * NB) * (N1 * NA * NB))
    tl.store(out_size_ptr + pid, size * factor)


@triton.jit
def correlate_rows(
    g_ptr, g_size_ptr, x_ptr, x_size_ptr, table_ptr, out_ptr, out_size_ptr, rows,
    N1: tl.constexpr, NA: tl.constexpr, NB: tl.constexpr, PLACES: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """Rows (channels, N1, N2) of the sum over the batch, in order, of g * x; KEEP leaves the spectrum of g in its place."""
    pid, place_AB = tl.program_id(0).to(tl.int64), places(NA, NB)
    channel, row = pid // N1, pid % N1
    sum_re = tl.zeros([NA, NB], tl.float32)
    sum_im = tl.zeros([NA, NB], tl.float32)
    for batch_row in tl.range(0, rows, num_stages=1):
        # Always 0, and unknown to the compiler, which otherwise keeps tables in registers from round to round.
        table = table_ptr + batch_row // rows * 64
        signal = channel * rows + batch_row
        x_re, x_im, x_size = transform_row(x_ptr, x_size_ptr, table, signal, row, N1, NA, NB, PLACES)
        # Half the registers while the other one is made.
        x_re, x_im = x_re.to(tl.float16), x_im.to(tl.float16)
        g_re, g_im, g_size = transform_row(g_ptr, g_size_ptr, table, signal, row, N1, NA, NB, PLACES)
        if KEEP:
            tl.store(g_ptr + (signal * N1 + row) * (NA * NB) + place_AB, pack(g_re, g_im))
        sum_re += (g_re * x_re - g_im * x_im) * (g_size * x_size)
        sum_im += (g_re * x_im + g_im * x_re) * (g_size * x_size)
    own = scale(sum_re, sum_im)
    out_AB = transform_row_back(sum_re * (1 / own), sum_im * (1 / own), table_ptr, NA, NB)
    tl.store(out_ptr + pid * (NA * NB) + place_AB, out_AB)
    both = root(N1) * root(NA * NB)
    tl.store(out_size_ptr + pid, own * (1 / (both * both * root(NA * NB) * (N1 * NA * NB))))
