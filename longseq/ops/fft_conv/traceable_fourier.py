"""The Fourier transforms of a long convolution as small matrix products, for runtimes whose own transform is slow.

A sequence of n = R Q c positions is a block of R x Q x c numbers. Its spectrum at the frequencies f = 0 ... n - 1 is one
product along each axis, with factors (twiddles) where an axis' frequency meets the position on a later one; R and Q are fixed,
c follows from the length. Everything is real arithmetic on (..., position, channel), and nothing is ever transposed.

The spectrum is taken at f + 1/4 instead of f, as of a sequence multiplied by w^t with w = exp(-i pi / 2n). Products of such
spectra belong to a circular convolution whose wrapped part is multiplied by w^n = -i: for real sequences of n positions it is
the imaginary part of the result, and the real part the causal convolution. So n positions are enough where zero padding
needs 2n.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# The two fixed factors, for sequences that are known to be at most that long. A product with a matrix of m rows costs m
# multiply-adds a number, and sequences are filled up to a multiple of R Q.
_FACTORS = ((64, 4, 4), (1 << 16, 16, 32), (math.inf, 64, 32))


def convolve_causally(x_BSD: Tensor, k_DK: Tensor) -> Tensor:
    """`y_t = sum over j of k_j x_(t-j)`, as many positions as x has; batch and length may be symbols.

    Args:
        x_BSD: input, float32 or float64.
        k_DK: kernels, in the same dtype; taps that reach no position count for nothing.

    Returns:
        y (B, S, D).

    Cost: O(B D S (R + Q + c)) with c = S / (R Q); 16 + 32 + 31 at 16,000 positions.
    """
    # It brings sympy, which nobody should wait for who exports nothing.
    from torch.fx.experimental.symbolic_shapes import statically_known_true

    n_inputs = x_BSD.shape[1]
    n_rows, n_columns = next(factors for most, *factors in _FACTORS if statically_known_true(n_inputs <= most))
    size = n_rows * n_columns
    # A symbol that can be 1 would be fixed in the exported graph.
    n_blocks = -(-n_inputs // size) if isinstance(n_inputs, int) else (n_inputs + 2 * size - 1) // size
    fourier = _Fourier(n_rows, n_columns, n_blocks, x_BSD)
    real, imag = fourier.transform(_filled(x_BSD, size * n_blocks))
    k_1KD = k_DK.T.unsqueeze(0) * (1 / (size * n_blocks))
    k_real, k_imag = fourier.transform(_filled(k_1KD, size * n_blocks))
    y_BnD = fourier.invert(real * k_real - imag * k_imag, real * k_imag + imag * k_real)
    return y_BnD.index_select(1, torch.arange(n_inputs, device=x_BSD.device))


def _filled(x_BSD: Tensor, n: int) -> Tensor:
    """The first n positions, with zeros behind the last; a gather, since a pad comes with conditions on symbols."""
    n_inputs = x_BSD.shape[1]
    place_n = torch.arange(n, device=x_BSD.device).clamp(max=n_inputs)
    return F.pad(x_BSD, (0, 0, 0, 1)).index_select(1, place_n)


class _Fourier:
    """The transforms of one size, n = R Q c.

    Position t = (a Q + b) c + s meets frequency f = p + R q + R Q r in exp(-2 pi i t (f + 1/4) / n), which is

        exp(-2 pi i [a (p + 1/4) / R  +  b (p + R q + 1/4) / (R Q)  +  s (p + R q + 1/4) / n  +  s r / c]),

    the products along a, along b, the twiddles, and the product along s. The inverse, of which only the real part is
    wanted, is the transposed real map over n. Complex operands stand as real parts above imaginary parts, and tables
    have leading axes of size 1, for a product's result would be strided without.

    Args:
        n_rows: R.
        n_columns: Q.
        n_blocks: c.
        like: a tensor of the dtype and device to compute in.
    """

    def __init__(self, n_rows: int, n_columns: int, n_blocks: int, like: Tensor) -> None:
        self.sizes = n_rows, n_columns, n_blocks
        self.dtype = like.dtype
        p_R, q_Q, s_c = (torch.arange(size, device=like.device) for size in self.sizes)
        # Turns are reduced as integers: that is exact.
        quarters_RR = p_R * (4 * p_R.unsqueeze(1) + 1)
        self.cos_a, self.sin_a = self._circle(quarters_RR % (4 * n_rows), 1 / (4 * n_rows))
        f_RQ1 = p_R[:, None, None] + n_rows * q_Q[:, None]
        quarters_RQQ = q_Q * (4 * f_RQ1 + 1)
        size = n_rows * n_columns
        self.cos_b, self.sin_b = self._circle(quarters_RQQ % (4 * size), 1 / (4 * size))
        # At most 4n, which float32 holds to n = 4 million.
        quarters_RQc1 = (s_c * (4 * f_RQ1 + 1)).unsqueeze(-1)
        self.cos_twiddle, self.sin_twiddle = self._circle(quarters_RQc1, 1 / (4 * size * n_blocks))
        turns_cc = s_c * s_c.unsqueeze(1) % torch.full((), n_blocks, dtype=s_c.dtype, device=like.device)
        self.cos_s, self.sin_s = self._circle(turns_cc, 1 / n_blocks)

    def _circle(self, count: Tensor, turns: float) -> tuple[Tensor, Tensor]:
        angle = count.to(self.dtype) * (2 * math.pi * turns)
        return angle.cos(), angle.sin()

    def transform(self, x_BnD: Tensor) -> tuple[Tensor, Tensor]:
        """The spectrum's real and imaginary parts (B, R, Q, c, D)."""
        n_batch, _, width = x_BnD.shape
        n_rows, n_columns, n_blocks = self.sizes
        x_BRM = x_BnD.reshape(n_batch, n_rows, n_columns * n_blocks * width)
        both_RRR = torch.stack([self.cos_a, -self.sin_a], 1).reshape(1, 2 * n_rows, n_rows)
        x_BRQM = (both_RRR @ x_BRM).reshape(n_batch, n_rows, 2 * n_columns, n_blocks * width)
        real, imag = (
            part.reshape(n_batch, n_rows, n_columns, n_blocks, width)
            for part in _multiply(self.cos_b.unsqueeze(0), -self.sin_b.unsqueeze(0), x_BRQM)
        )
        real, imag = self._twiddle(real, imag, -self.sin_twiddle)
        return _multiply(self.cos_s[None, None, None], -self.sin_s[None, None, None], torch.cat([real, imag], 3))

    def invert(self, real: Tensor, imag: Tensor) -> Tensor:
        """n times the real sequence (B, n, D) of a spectrum."""
        n_rows, n_columns, n_blocks = self.sizes
        n_batch, width = real.shape[0], real.shape[4]
        both = torch.cat([real, imag], 3)
        # The matrix along s is symmetric.
        real, imag = _multiply(self.cos_s[None, None, None], self.sin_s[None, None, None], both)
        real, imag = self._twiddle(real, imag, self.sin_twiddle)
        both = torch.cat([real, imag], 2).reshape(n_batch, n_rows, 2 * n_columns, n_blocks * width)
        real, imag = _multiply(self.cos_b.mT.unsqueeze(0), self.sin_b.mT.unsqueeze(0), both)
        real, imag = (part.reshape(n_batch, n_rows, n_columns * n_blocks * width) for part in (real, imag))
        x_BRM = self.cos_a.mT.unsqueeze(0) @ real - self.sin_a.mT.unsqueeze(0) @ imag
        return x_BRM.reshape(n_batch, n_rows * n_columns * n_blocks, width)

    def _twiddle(self, real: Tensor, imag: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return real * self.cos_twiddle - imag * sin, real * sin + imag * self.cos_twiddle


def _multiply(cos: Tensor, sin: Tensor, both: Tensor) -> tuple[Tensor, Tensor]:
    """The real and imaginary parts of (cos + i sin) z, for z's real parts above its imaginary parts."""
    return torch.cat([cos, -sin], -1) @ both, torch.cat([sin, cos], -1) @ both
