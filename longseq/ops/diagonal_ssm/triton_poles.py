"""Triton code for the poles: from the continuous model to discrete poles, powers of them, and the way back for gradients.

The angle of a pole is kept in turns (of 2 pi) in double precision, so that whole turns leave a power's angle exactly: sines
and cosines are as good at position 4,000 as at position 1, and a polynomial on an eighth of a turn is all that they need.
What happens once for each channel and mode is done in double precision, the (T, N) tables in single.
"""

# To a type checker Triton's decorated functions never return, and take no launch options.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportArgumentType=false

import triton
import triton.language as tl

# Rows of the table of poles (D, 4, N): log |z|, Re b, Im b, and one to spare.
POLE_ROWS = tl.constexpr(4)


@triton.jit
def load_number(pointer, channel, modes, mode_N, place: tl.constexpr, PAIRS: tl.constexpr):
    """A row of (D, N), or one of the two numbers of a row of (D, N, 2); zeros beyond N."""
    return tl.load(pointer + (channel * modes + mode_N) * (2 if PAIRS else 1) + place, mask=mode_N < modes, other=0.0)


@triton.jit
def circle(turns):
    """cos and sin of an angle in turns, from -1/2 to 1/2."""
    quarter = tl.floor(4.0 * turns + 0.5)
    y = (turns - 0.25 * quarter) * 6.283185307179586
    y2 = y * y
    sin = y * (1 + y2 * (-1 / 6 + y2 * (1 / 120 + y2 * (-1 / 5040 + y2 * (1 / 362880)))))
    cos = 1 + y2 * (-0.5 + y2 * (1 / 24 + y2 * (-1 / 720 + y2 * (1 / 40320 - y2 * (1 / 3628800)))))
    q = quarter.to(tl.int32)
    odd, negative = (q & 1) != 0, (q & 2) != 0
    turned_cos, turned_sin = tl.where(odd, -sin, cos), tl.where(odd, cos, sin)
    return tl.where(negative, -turned_cos, turned_cos), tl.where(negative, -turned_sin, turned_sin)


@triton.jit
def power(log_size, turns, exponent):
    """z^exponent as (real, imaginary); turns in double precision."""
    turned = turns * exponent.to(tl.float64)
    cos, sin = circle((turned - tl.floor(turned + 0.5)).to(tl.float32))
    size = tl.exp(log_size * exponent.to(tl.float32))
    return size * cos, size * sin


@triton.jit
def load_power(pole_ptr, turn_ptr, channel, exponent, N: tl.constexpr):
    """z^exponent of a channel's modes."""
    mode_N = tl.arange(0, N)
    log_size_N = tl.load(pole_ptr + channel * POLE_ROWS * N + mode_N)
    return power(log_size_N, tl.load(turn_ptr + channel * N + mode_N), exponent)


@triton.jit
def divide(a_re, a_im, b_re, b_im):
    size = b_re * b_re + b_im * b_im
    return (a_re * b_re + a_im * b_im) / size, (a_im * b_re - a_re * b_im) / size


@triton.jit
def times(a_re, a_im, b_re, b_im):
    return a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re


@triton.jit
def hold(re, im):
    """f(w) = (exp(w) - 1) / w and its derivative (exp(w) - f) / w, by their series where w is small."""
    size = tl.exp(re)
    e_re, e_im = size * tl.cos(im), size * tl.sin(im)
    small = re * re + im * im < 1e-4
    w_re, w_im = tl.where(small, 1.0, re), tl.where(small, 0.0, im)
    f_re, f_im = divide(e_re - 1, e_im, w_re, w_im)
    d_re, d_im = divide(e_re - f_re, e_im - f_im, w_re, w_im)
    s_re, s_im = times(re, im, 1 / 120 + 0 * re, 0 * im)
    s_re, s_im = times(re, im, s_re + 1 / 24, s_im)
    s_re, s_im = times(re, im, s_re + 1 / 6, s_im)
    s_re, s_im = times(re, im, s_re + 0.5, s_im)
    t_re, t_im = times(re, im, 1 / 144 + 0 * re, 0 * im)
    t_re, t_im = times(re, im, t_re + 1 / 30, t_im)
    t_re, t_im = times(re, im, t_re + 1 / 8, t_im)
    t_re, t_im = times(re, im, t_re + 1 / 3, t_im)
    f_re, f_im = tl.where(small, s_re + 1, f_re), tl.where(small, s_im, f_im)
    return f_re, f_im, tl.where(small, t_re + 0.5, d_re), tl.where(small, t_im, d_im)


@triton.jit
def angle_in_turns(re, im):
    """The angle of a complex number: a guess good to 0.004, then one step against its own sine."""
    size = tl.sqrt(re * re + im * im)
    there = size > 0
    re, im = tl.where(there, re / tl.where(there, size, 1.0), 1.0), tl.where(there, im / tl.where(there, size, 1.0), 0.0)
    abs_re, abs_im = tl.abs(re), tl.abs(im)
    ratio = tl.minimum(abs_re, abs_im) / tl.maximum(abs_re, abs_im)
    guess = ratio * (0.7853981633974483 + 0.273 * (1 - ratio))
    guess = tl.where(abs_im > abs_re, 1.5707963267948966 - guess, guess)
    guess = tl.where(re < 0, 3.141592653589793 - guess, guess)
    guess = tl.where(im < 0, -guess, guess)
    off = im * tl.cos(guess) - re * tl.sin(guess)
    return (guess + off + off * off * off / 6) / 6.283185307179586


@triton.jit
def sample(dt, a_re, a_im, BILINEAR: tl.constexpr):
    """log |z| and the turns of z, b / (dt B) = f(w), f'(w) and d(log z) / dw, at w = dt A, in double precision."""
    w_re, w_im = dt * a_re, dt * a_im
    one, zero = 1.0 + 0.0 * w_re, 0.0 * w_re
    if BILINEAR:
        f_re, f_im = divide(one, zero, 1 - 0.5 * w_re, -0.5 * w_im)
        below = (1 - 0.5 * w_re) * (1 - 0.5 * w_re) + 0.25 * w_im * w_im
        above_re, above_im = 1 + 0.5 * w_re, 0.5 * w_im
        # |1 + w/2|^2 / |1 - w/2|^2, which may be zero: its logarithm stays finite.
        ratio = (above_re * above_re + above_im * above_im) / below
        log_size = 0.5 * tl.log(tl.maximum(ratio, 1.1920928955078125e-07))
        # (1 + w/2) times the conjugate of (1 - w/2).
        turns = angle_in_turns(1 - 0.25 * (w_re * w_re + w_im * w_im), w_im)
        df_re, df_im = times(f_re, f_im, 0.5 * f_re, 0.5 * f_im)
        gone = ratio == 0
        dlog_re, dlog_im = divide(f_re, f_im, tl.where(gone, 1.0, above_re), above_im)
        dlog_re, dlog_im = tl.where(gone, 0.0, dlog_re), tl.where(gone, 0.0, dlog_im)
    else:
        f_re, f_im, df_re, df_im = hold(w_re, w_im)
        log_size, turns = w_re, w_im / 6.283185307179586
        dlog_re, dlog_im = one, zero
    turns -= tl.floor(turns + 0.5)
    return log_size, turns, f_re, f_im, df_re, df_im, dlog_re, dlog_im


@triton.jit
def load_continuous(dt_ptr, a_re_ptr, a_im_ptr, input_ptr, channel, modes, HAS_INPUT: tl.constexpr, N: tl.constexpr):
    """A channel's step, poles and input weights, in double precision."""
    mode_N = tl.arange(0, N)
    dt = tl.load(dt_ptr + channel).to(tl.float64)
    a_re_N = load_number(a_re_ptr, channel, modes, mode_N, 0, False).to(tl.float64)
    a_im_N = load_number(a_im_ptr, channel, modes, mode_N, 0, False).to(tl.float64)
    if HAS_INPUT:
        b_re_N = load_number(input_ptr, channel, modes, mode_N, 0, True).to(tl.float64)
        b_im_N = load_number(input_ptr, channel, modes, mode_N, 1, True).to(tl.float64)
    else:
        b_re_N = tl.where(mode_N < modes, 1.0, 0.0).to(tl.float64)
        b_im_N = 0.0 * b_re_N
    return dt, a_re_N, a_im_N, b_re_N, b_im_N
