"""From a continuous diagonal state-space model to its discrete poles, their powers and its kernel, in real arithmetic.

Complex tensors cannot be exported to ONNX or compiled ahead of time, so a pole z is kept as `log |z|` and an angle, and
complex values as a last dimension of (real, imaginary).
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Discretization = Literal["zoh", "bilinear"]


class Poles(NamedTuple):
    """The discrete model `h_t = z h_{t-1} + b x_t` of each channel and conjugate pair.

    Attributes:
        log_size_DN: log |z|, at most 0 for a stable model.
        angle_DN: arg z, from -pi to pi.
        input_DN2: b.
    """

    log_size_DN: Tensor
    angle_DN: Tensor
    input_DN2: Tensor


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """Complex product over a last dimension of (real, imaginary)."""
    # Taken apart in one piece: the gradient of each number taken by its index would be written into zeros.
    (a_real, a_imag), (b_real, b_imag) = a.unbind(-1), b.unbind(-1)
    return torch.stack([a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real], dim=-1)


def divide(a: Tensor, b: Tensor) -> Tensor:
    """Complex quotient over a last dimension of (real, imaginary)."""
    return multiply(a, conjugate(b)) / b.square().sum(-1, keepdim=True)


def conjugate(a: Tensor) -> Tensor:
    """Complex conjugate over a last dimension of (real, imaginary)."""
    real, imag = a.unbind(-1)
    return torch.stack([real, -imag], dim=-1)


def discretize(dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, B_DN2: Tensor | None, discretization: str) -> Poles:
    """Poles and input weights of `h' = A h + B x` sampled every dt.

    `zoh` holds x between samples: `z = exp(dt A)`, `b = (z - 1) / A * B`. `bilinear` (Tustin):
    `z = (1 + dt A / 2) / (1 - dt A / 2)`, `b = dt / (1 - dt A / 2) * B`.
    """
    dt_D1 = dt_D.unsqueeze(-1)
    real_DN, imag_DN = dt_D1 * A_real_DN, dt_D1 * A_imag_DN
    log_size_DN, angle_DN, input_DN2 = (_hold if discretization == "zoh" else _bilinear)(real_DN, imag_DN)
    # In units of dt: b = dt * f(dt A) * B for both rules.
    input_DN2 = input_DN2 * dt_D1.unsqueeze(-1)
    if B_DN2 is not None:
        input_DN2 = multiply(input_DN2, B_DN2)
    # Powers multiply the angle by up to the chunk length, so whole turns leave it first.
    turns_DN = torch.round(angle_DN.detach() / (2 * math.pi))
    return Poles(log_size_DN, angle_DN - 2 * math.pi * turns_DN, input_DN2)


def _hold(real_DN: Tensor, imag_DN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`z = exp(w)` and `(z - 1) / w`; z - 1 is written without the cancellation that a small w would suffer."""
    minus_one_DN = torch.expm1(real_DN) * torch.cos(imag_DN) - 2 * torch.sin(imag_DN / 2).square()
    change_DN2 = torch.stack([minus_one_DN, torch.exp(real_DN) * torch.sin(imag_DN)], dim=-1)
    return real_DN, imag_DN, divide(change_DN2, torch.stack([real_DN, imag_DN], dim=-1))


def _bilinear(real_DN: Tensor, imag_DN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`z = (1 + w/2) / (1 - w/2)` and `1 / (1 - w/2)`."""
    a_DN, b_DN = real_DN / 2, imag_DN / 2
    below_DN = (1 - a_DN).square() + b_DN.square()
    # |1 + w/2|^2 - |1 - w/2|^2 = 4a; exactly -1 (a pole at zero) would give -inf, which is NaN at the power 0.
    ratio_DN = (4 * a_DN / below_DN).clamp(min=torch.finfo(a_DN.dtype).eps - 1)
    angle_DN = torch.atan2(b_DN, 1 + a_DN) + torch.atan2(b_DN, 1 - a_DN)
    input_DN2 = torch.stack([1 - a_DN, b_DN], dim=-1) / below_DN.unsqueeze(-1)
    return 0.5 * torch.log1p(ratio_DN), angle_DN, input_DN2


def pole_powers(poles: Poles, count: int, stride: int = 1) -> Tensor:
    """`z^(stride t)` for t = 0 ... count - 1, as (D, N, count, 2).

    About 2 sqrt(count) exponentials and sines per pole, and one product per power.
    """
    baby = math.isqrt(max(count - 1, 0)) + 1
    giant = (count + baby - 1) // baby
    baby_DNb2 = _direct_powers(poles, baby, stride)
    if giant == 1:
        return baby_DNb2
    giant_DNg2 = _direct_powers(poles, giant, stride * baby)
    return multiply(giant_DNg2.unsqueeze(3), baby_DNb2.unsqueeze(2)).flatten(2, 3)[:, :, :count]


def _direct_powers(poles: Poles, count: int, stride: int) -> Tensor:
    exponents_t = torch.arange(count, device=poles.angle_DN.device, dtype=poles.angle_DN.dtype) * stride
    size_DNt = torch.exp(poles.log_size_DN.unsqueeze(-1) * exponents_t)
    angle_DNt = poles.angle_DN.unsqueeze(-1) * exponents_t
    return torch.stack([size_DNt * torch.cos(angle_DNt), size_DNt * torch.sin(angle_DNt)], dim=-1)


def kernel_taps(poles: Poles, C_DN2: Tensor, length: int) -> Tensor:
    """`K_t = 2 Re(sum_n C_n b_n z_n^t)` for t = 0 ... length - 1, as (D, length).

    Baby steps and giant steps: `z^(iT + j) = z^(iT) z^j` makes the sum over n a product of two (about sqrt(length), 2N)
    matrices, and no (D, N, length) tensor is made.
    """
    baby = math.isqrt(max(length - 1, 0)) + 1
    giant = (length + baby - 1) // baby
    weights_DN2 = 2 * multiply(C_DN2, poles.input_DN2)
    left_DNg2 = multiply(weights_DN2.unsqueeze(2), pole_powers(poles, giant, stride=baby))
    right_DNb2 = pole_powers(poles, baby)
    # Re(u v) = Re u Re v - Im u Im v.
    left_DgM = torch.cat([left_DNg2[..., 0], -left_DNg2[..., 1]], dim=1).transpose(1, 2)
    right_DMb = torch.cat([right_DNb2[..., 0], right_DNb2[..., 1]], dim=1)
    return (left_DgM @ right_DMb).flatten(1)[:, :length]
