"""Triton kernels that transform, multiply and transform back in one launch, for bf16 sequences that fit on the chip.

n = N1 N2 positions are a matrix, t = n1 N2 + n2, and a transform of length n two products with DFT matrices and a table between
them: C = ((F1 X) . W) F2, where frequency k1 + N1 k2 stands at row k1, column k2. The way back is the same from the right,
conjugated, and spectra never leave that order. The right-angle twist of `triton_kernels`, exp(i pi t / 2n), is a factor of n1
times one of n2: the first is in F1, the second in W, so that F1 meets real signals on the way in and leaves real ones on the
way out. Products are fp16 with fp32 sums (11 bits; bf16 would lose 5e-3), of numbers scaled to at most 1 first.
"""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def circle(turns):
    """exp(2 pi i turns)."""
    quarter = tl.floor(4 * turns + 0.5)
    y = (turns - 0.25 * quarter) * 6.283185307179586
    y2 = y * y
    sin = y * (1 + y2 * (-1 / 6 + y2 * (1 / 120 + y2 * (-1 / 5040 + y2 * (1 / 362880)))))
    cos = 1 + y2 * (-0.5 + y2 * (1 / 24 + y2 * (-1 / 720 + y2 * (1 / 40320 - y2 * (1 / 3628800)))))
    q = quarter.to(tl.int32)
    odd, negative = (q & 1) != 0, (q & 2) != 0
    turned_cos, turned_sin = tl.where(odd, -sin, cos), tl.where(odd, cos, sin)
    return tl.where(negative, -turned_cos, turned_cos), tl.where(negative, -turned_sin, turned_sin)


@triton.jit
def make_tables(table_ptr, N1: tl.constexpr, N2: tl.constexpr, ROWS: tl.constexpr):
    """F1 with the twist of n1, W with that of n2, and F2, in fp16; each as real and imaginary parts, some rows a program.

    Frequencies stand at f - 1/4 for the twist's sake: turns are whole numbers over 4 N1 and 4 N1 N2.
    """
    row_R = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    column_1, column_2 = tl.arange(0, N1)[None, :], tl.arange(0, N2)[None, :]
    cos_R1, sin_R1 = circle(((4 * row_R - 1) * column_1 % (4 * N1)).to(tl.float32) / -(4 * N1))
    store_matrix(table_ptr, row_R * N1 + column_1, cos_R1, sin_R1, N1 * N1, row_R < N1)
    table_ptr += 2 * N1 * N1
    cos_R2, sin_R2 = circle(((4 * row_R - 1) * column_2).to(tl.float32) / -(4 * N1 * N2))
    store_matrix(table_ptr, row_R * N2 + column_2, cos_R2, sin_R2, N1 * N2, row_R < N1)
    table_ptr += 2 * N1 * N2
    cos_R2, sin_R2 = circle((row_R * column_2 % N2).to(tl.float32) / -N2)
    store_matrix(table_ptr, row_R * N2 + column_2, cos_R2, sin_R2, N2 * N2, row_R < N2)


@triton.jit
def store_matrix(pointer, place, re, im, SIZE: tl.constexpr, kept):
    tl.store(pointer + place, re.to(tl.float16), mask=kept)
    tl.store(pointer + SIZE + place, im.to(tl.float16), mask=kept)


@triton.jit
def load_matrix(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Real and imaginary parts of a table or a spectrum."""
    place = pointer + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return tl.load(place), tl.load(place + ROWS * COLUMNS)


@triton.jit
def scale(re, im):
    """A power of two that is about the largest absolute number: dividing by it loses nothing."""
    size = tl.max(tl.maximum(tl.abs(re), tl.abs(im)))
    return tl.exp2(tl.ceil(tl.log2(tl.maximum(size, 1e-30))))


@triton.jit
def transform(x_12, table_ptr, N1: tl.constexpr, N2: tl.constexpr):
    """The twisted spectrum (N1, N2) of a sequence, up to a factor, and the factor."""
    x_12 = x_12.to(tl.float32)
    size = scale(x_12, x_12)
    x_12 = (x_12 * (1 / size)).to(tl.float16)
    f_re, f_im = load_matrix(table_ptr, N1, N1)
    a_re, a_im = tl.dot(f_re, x_12), tl.dot(f_im, x_12)
    t_re, t_im = load_matrix(table_ptr + 2 * N1 * N1, N1, N2)
    b_re, b_im = (a_re * t_re - a_im * t_im).to(tl.float16), (a_re * t_im + a_im * t_re).to(tl.float16)
    f_re, f_im = load_matrix(table_ptr + 2 * N1 * (N1 + N2), N2, N2)
    c_re = tl.dot(-b_im, f_im, tl.dot(b_re, f_re))
    c_im = tl.dot(b_im, f_re, tl.dot(b_re, f_im))
    return c_re, c_im, size


@triton.jit
def transform_back(c_re, c_im, table_ptr, N1: tl.constexpr, N2: tl.constexpr):
    """The real part of the untwisted sequence (N1, N2)."""
    size = scale(c_re, c_im)
    p_re, p_im = (c_re * (1 / size)).to(tl.float16), (c_im * (1 / size)).to(tl.float16)
    f_re, f_im = load_matrix(table_ptr + 2 * N1 * (N1 + N2), N2, N2)
    a_re = tl.dot(p_im, f_im, tl.dot(p_re, f_re))
    a_im = tl.dot(-p_re, f_im, tl.dot(p_im, f_re))
    t_re, t_im = load_matrix(table_ptr + 2 * N1 * N1, N1, N2)
    b_re, b_im = (a_re * t_re + a_im * t_im).to(tl.float16), (a_im * t_re - a_re * t_im).to(tl.float16)
    f_re, f_im = load_matrix(table_ptr, N1, N1)
    x_12 = tl.dot(tl.trans(f_im), b_im, tl.dot(tl.trans(f_re), b_re))
    return x_12 * (size * (1 / (N1 * N2)))


@triton.jit
def places(N1: tl.constexpr, N2: tl.constexpr):
    return tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]


@triton.jit(do_not_specialize=["taps"])
def transform_taps(k_ptr, out_ptr, table_ptr, taps, stride, N1: tl.constexpr, N2: tl.constexpr):
    """Spectra (channels, 2, N1, N2) of kernels (channels, taps)."""
    channel, place_12 = tl.program_id(0).to(tl.int64), places(N1, N2)
    k_12 = tl.load(k_ptr + channel * stride + place_12, mask=place_12 < taps, other=0.0)
    re, im, size = transform(k_12, table_ptr, N1, N2)
    tl.store(out_ptr + channel * 2 * N1 * N2 + place_12, re * size)
    tl.store(out_ptr + channel * 2 * N1 * N2 + N1 * N2 + place_12, im * size)


@triton.jit
def multiplied(c_re, c_im, k_ptr, channel, N1: tl.constexpr, N2: tl.constexpr):
    """The product with a channel's spectrum of taps."""
    k_re, k_im = load_matrix(k_ptr + channel * 2 * N1 * N2, N1, N2)
    return c_re * k_re - c_im * k_im, c_re * k_im + c_im * k_re


@triton.jit(do_not_specialize=["rows"])
def convolve_short(x_ptr, k_ptr, table_ptr, y_ptr, rows, N1: tl.constexpr, N2: tl.constexpr):
    """y = k * x of one sequence (channels, B, n), from the spectrum of k."""
    pid, place_12 = tl.program_id(0).to(tl.int64), places(N1, N2)
    re, im, size = transform(tl.load(x_ptr + pid * N1 * N2 + place_12), table_ptr, N1, N2)
    re, im = multiplied(re, im, k_ptr, pid // rows, N1, N2)
    y_12 = transform_back(re, im, table_ptr, N1, N2) * size
    tl.store(y_ptr + pid * N1 * N2 + place_12, y_12.to(y_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["rows", "taps"])
def correlate_short(
    g_ptr, x_ptr, table_ptr, dk_ptr, rows, taps, stride, N1: tl.constexpr, N2: tl.constexpr
):  # fmt: skip
    """dk of one channel, summed over the batch in order; g runs backwards, so that lag t stands at slot n - 1 - t."""
    channel, place_12 = tl.program_id(0).to(tl.int64), places(N1, N2)
    sum_re = tl.zeros([N1, N2], tl.float32)
    sum_im = tl.zeros([N1, N2], tl.float32)
    for row in tl.range(0, rows, num_stages=1):
        # Always 0, and unknown to the compiler, which otherwise keeps tables in registers from round to round.
        table = table_ptr + row // rows * 64
        place = (channel * rows + row) * N1 * N2 + place_12
        x_re, x_im, x_size = transform(tl.load(x_ptr + place), table, N1, N2)
        # At most n in size: half the registers while the other one is made.
        x_re, x_im = x_re.to(tl.float16), x_im.to(tl.float16)
        g_re, g_im, g_size = transform(tl.load(g_ptr + place), table, N1, N2)
        sum_re += (g_re * x_re - g_im * x_im) * (g_size * x_size)
        sum_im += (g_re * x_im + g_im * x_re) * (g_size * x_size)
    lag_12 = N1 * N2 - 1 - place_12
    dk_12 = transform_back(sum_re, sum_im, table_ptr, N1, N2)
    tl.store(dk_ptr + channel * stride + lag_12, dk_12.to(dk_ptr.dtype.element_ty), mask=lag_12 < taps)
