"""Triton kernels that transform, multiply and transform back in one launch, for bf16 sequences that fit on the chip.

n = N1 N2 positions are a matrix, t = n1 N2 + n2, and a transform of length n two products with DFT matrices and a table between
them: C = ((F1 X) . twiddles) F2, where frequency k1 + N1 k2 stands at row k1, column k2. The way back is the same from the
right, conjugated. Products are fp16 with fp32 sums (11 bits; bf16 would lose 5e-3), of numbers scaled to at most 1 first. The
right-angle twist is that of `triton_kernels`.
"""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl


@triton.jit
def table(turns):
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
def make_tables(dft_ptr, phase_ptr, N1: tl.constexpr, N2: tl.constexpr):
    """DFT matrices of N1 and N2 (fp16), twiddles and twist (N1, N2); each as real and imaginary parts."""
    row_1, row_2 = tl.arange(0, N1)[:, None], tl.arange(0, N2)[:, None]
    column_1, column_2 = tl.arange(0, N1)[None, :], tl.arange(0, N2)[None, :]
    cos_11, sin_11 = table((row_1 * column_1 % N1).to(tl.float32) / -N1)
    tl.store(dft_ptr + row_1 * N1 + column_1, cos_11.to(tl.float16))
    tl.store(dft_ptr + N1 * N1 + row_1 * N1 + column_1, sin_11.to(tl.float16))
    dft_ptr += 2 * N1 * N1
    cos_22, sin_22 = table((row_2 * column_2 % N2).to(tl.float32) / -N2)
    tl.store(dft_ptr + row_2 * N2 + column_2, cos_22.to(tl.float16))
    tl.store(dft_ptr + N2 * N2 + row_2 * N2 + column_2, sin_22.to(tl.float16))
    place_12 = row_1 * N2 + column_2
    cos_12, sin_12 = table((row_1 * column_2).to(tl.float32) / -(N1 * N2))
    tl.store(phase_ptr + place_12, cos_12)
    tl.store(phase_ptr + N1 * N2 + place_12, sin_12)
    cos_12, sin_12 = table(place_12.to(tl.float32) / (4 * N1 * N2))
    tl.store(phase_ptr + 2 * N1 * N2 + place_12, cos_12)
    tl.store(phase_ptr + 3 * N1 * N2 + place_12, sin_12)


@triton.jit
def load_matrix(pointer, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Real and imaginary parts of a table."""
    place = pointer + tl.arange(0, ROWS)[:, None] * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    return tl.load(place), tl.load(place + ROWS * COLUMNS)


@triton.jit
def product(a_re, a_im, b_re, b_im):
    """Complex matrix product of fp16 operands."""
    re = tl.dot(-a_im, b_im, tl.dot(a_re, b_re))
    return re, tl.dot(a_im, b_re, tl.dot(a_re, b_im))


@triton.jit
def largest(re, im):
    """The largest absolute number, or 1 if all are 0."""
    size = tl.max(tl.max(tl.maximum(tl.abs(re), tl.abs(im)), 1), 0)
    return tl.where(size > 0, size, 1.0)


@triton.jit
def transform(x_ptr, dft_ptr, phase_ptr, N1: tl.constexpr, N2: tl.constexpr):
    """The twisted spectrum (N1, N2) of a sequence, up to a factor, and the factor."""
    x_12 = tl.load(x_ptr + tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]).to(tl.float32)
    size = largest(x_12, x_12)
    x_12 /= size
    cos_12, sin_12 = load_matrix(phase_ptr + 2 * N1 * N2, N1, N2)
    f_re, f_im = load_matrix(dft_ptr, N1, N1)
    a_re, a_im = product(f_re, f_im, (x_12 * cos_12).to(tl.float16), (x_12 * sin_12).to(tl.float16))
    t_re, t_im = load_matrix(phase_ptr, N1, N2)
    b_re, b_im = a_re * t_re - a_im * t_im, a_re * t_im + a_im * t_re
    f_re, f_im = load_matrix(dft_ptr + 2 * N1 * N1, N2, N2)
    c_re, c_im = product(b_re.to(tl.float16), b_im.to(tl.float16), f_re, f_im)
    return c_re, c_im, size


@triton.jit
def transform_back(c_re, c_im, dft_ptr, phase_ptr, N1: tl.constexpr, N2: tl.constexpr):
    """The real part of the untwisted sequence (N1, N2)."""
    size = largest(c_re, c_im)
    f_re, f_im = load_matrix(dft_ptr + 2 * N1 * N1, N2, N2)
    a_re, a_im = product((c_re / size).to(tl.float16), (c_im / size).to(tl.float16), f_re, -f_im)
    t_re, t_im = load_matrix(phase_ptr, N1, N2)
    b_re, b_im = a_re * t_re + a_im * t_im, a_im * t_re - a_re * t_im
    f_re, f_im = load_matrix(dft_ptr, N1, N1)
    x_re, x_im = product(f_re, -f_im, b_re.to(tl.float16), b_im.to(tl.float16))
    cos_12, sin_12 = load_matrix(phase_ptr + 2 * N1 * N2, N1, N2)
    return (x_re * cos_12 + x_im * sin_12) * (size / (N1 * N2))


@triton.jit
def place_spectrum(N1: tl.constexpr, N2: tl.constexpr):
    """Places of the parts of a spectrum in natural order, as rows of N1 complex numbers."""
    return tl.arange(0, N2)[:, None] * 2 * N1 + tl.arange(0, 2 * N1)[None, :]


@triton.jit(do_not_specialize=["rows"])
def convolve_short(
    x_ptr, k_ptr, dft_ptr, phase_ptr, y_ptr, rows, N1: tl.constexpr, N2: tl.constexpr
):  # fmt: skip
    """y = k * x of one sequence (channels, B, n), from the spectrum of k."""
    pid = tl.program_id(0).to(tl.int64)
    c_re, c_im, size = transform(x_ptr + pid * N1 * N2, dft_ptr, phase_ptr, N1, N2)
    k_21 = tl.load(k_ptr + (pid // rows) * 2 * N1 * N2 + place_spectrum(N1, N2))
    k_re, k_im = tl.split(k_21.reshape(N2, N1, 2))
    k_re, k_im = tl.trans(k_re), tl.trans(k_im)
    p_re, p_im = c_re * k_re - c_im * k_im, c_re * k_im + c_im * k_re
    y_12 = transform_back(p_re, p_im, dft_ptr, phase_ptr, N1, N2) * size
    place_12 = tl.arange(0, N1)[:, None] * N2 + tl.arange(0, N2)[None, :]
    tl.store(y_ptr + pid * N1 * N2 + place_12, y_12.to(y_ptr.dtype.element_ty))


@triton.jit(do_not_specialize=["rows"])
def correlate_short(
    g_ptr, x_ptr, dft_ptr, phase_ptr, dk_ptr, rows, N1: tl.constexpr, N2: tl.constexpr
):  # fmt: skip
    """The spectrum of one channel's dk: the sum over the batch, in order, of the products of those of g and x."""
    channel = tl.program_id(0).to(tl.int64)
    sum_re = tl.zeros([N1, N2], tl.float32)
    sum_im = tl.zeros([N1, N2], tl.float32)
    for row in tl.range(0, rows, num_stages=1):
        place = (channel * rows + row) * N1 * N2
        g_re, g_im, g_size = transform(g_ptr + place, dft_ptr, phase_ptr, N1, N2)
        x_re, x_im, x_size = transform(x_ptr + place, dft_ptr, phase_ptr, N1, N2)
        sum_re += (g_re * x_re - g_im * x_im) * (g_size * x_size)
        sum_im += (g_re * x_im + g_im * x_re) * (g_size * x_size)
    both_21 = tl.join(tl.trans(sum_re), tl.trans(sum_im)).reshape(N2, 2 * N1)
    tl.store(dk_ptr + channel * 2 * N1 * N2 + place_spectrum(N1, N2), both_21)
