"""Every operator's inputs at a size, and the call of it in one of its implementations."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from longseq.pipelines.bench_sizes import Size

# The reference forms loop: they stand in the table where that ends soon, and otherwise if they are asked for.
_REFERENCE_UP_TO = 2**17
Outputs = Tensor | tuple[Tensor, ...]


@dataclass
class Case:
    """An operator at a size.

    Attributes:
        operator: its name.
        run: the operator as a function of the implementation's name and the inputs; it gives the outputs without a state.
        leaves: the inputs, which want gradients.
        named: the same by the names that peers take them by.
        size: see `bench_sizes`.
    """

    operator: str
    run: Callable[..., Outputs]
    leaves: list[Tensor]
    named: dict[str, Tensor]
    size: Size

    def implementations(self, device: str) -> list[str]:
        """Those that can be measured here."""
        names = import_module(f"longseq.ops.{self.operator}")._operator.names[1:]
        elsewhere = "cpu" if device == "cuda" else "triton"
        positions = self.size["B"] * self.size["L"] * self.size.get("D", self.size.get("H", 1) * self.size.get("P", 1))
        return [n for n in names if n != elsewhere and (n != "reference" or positions <= _REFERENCE_UP_TO)]

    def call(self, implementation: str) -> Callable[..., Outputs]:
        """One implementation as a function of the inputs."""
        return lambda *leaves: self.run(implementation, *leaves)

    def floor_bytes(self, outputs: tuple[Tensor, ...]) -> tuple[int, int]:
        """What must move forward, and forward and backward together.

        Forward the inputs are read and the outputs written; backward the inputs and the outputs' gradients are read and the
        inputs' gradients written. A sum's backward pass needs the sum in place of what was added.
        """
        given, made = _bytes(self.leaves), _bytes(outputs)
        again = _bytes(outputs[1:]) if len(outputs) > 1 else given
        return given + made, 2 * given + again + 2 * made


@dataclass
class Peer:
    """Another way of computing it, ready to be called.

    Attributes:
        name: for the table.
        call: a function of the inputs.
        leaves: the inputs in its layout.
        note: how what it computes differs.
    """

    name: str
    call: Callable[..., Outputs]
    leaves: list[Tensor]
    note: str = ""


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Make:
    """Random inputs on a device; the seed is the same for every case."""

    def __init__(self, device: str, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        # One of its own: a recording that failed leaves the default one unusable.
        self.generator = torch.Generator(device).manual_seed(0)

    def normal(self, *shape: int, dtype: torch.dtype | None = None, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """Normal numbers, in the dtype that activations have or in another."""
        value = torch.randn(shape, device=self.device, generator=self.generator, dtype=dtype or self.dtype)
        return value.mul_(scale).add_(shift).requires_grad_()

    def weights(self, *shape: int, scale: float = 1.0, shift: float = 0.0) -> Tensor:
        """The same in float32, as parameters are."""
        return self.normal(*shape, dtype=torch.float32, scale=scale, shift=shift)

    def decay(self, *shape: int) -> Tensor:
        """Negative rates."""
        return (-0.5 - torch.rand(shape, device=self.device, generator=self.generator)).requires_grad_()

    def rates(self, *shape: int) -> Tensor:
        """Step sizes from 1e-3 to 1e-1, log-uniform."""
        uniform = torch.rand(shape, device=self.device, generator=self.generator)
        return torch.exp(math.log(1e-3) + uniform * math.log(100.0)).requires_grad_()


def make_case(operator: str, size: Size, device: str, dtype: torch.dtype) -> Case:
    """Inputs of an operator at a size."""
    run, named = _CASES[operator](Make(device, dtype), **size)
    return Case(operator, run, list(named.values()), named, size)


Made = tuple[Callable[..., Outputs], dict[str, Tensor]]


def _selective_scan(make: Make, B: int, L: int, D: int, N: int) -> Made:
    from longseq.ops.selective_scan import selective_scan

    def run(implementation: Any, *leaves: Tensor) -> Tensor:
        return selective_scan(*leaves, dt_softplus=True, implementation=implementation)[0]

    A = (-torch.arange(1, N + 1, device=make.device, dtype=torch.float32)).repeat(D, 1).requires_grad_()
    return run, {
        "x": make.normal(B, L, D),
        "dt": make.normal(B, L, D, scale=0.5),
        "A": A,
        "B": make.normal(B, L, N),
        "C": make.normal(B, L, N),
        "D": make.weights(D),
        "z": make.normal(B, L, D),
        "dt_bias": make.weights(D, scale=0.5, shift=-4.0),
    }


def _ssd(make: Make, B: int, L: int, H: int, P: int, N: int) -> Made:
    from longseq.ops.ssd import ssd

    def run(implementation: Any, *leaves: Tensor) -> Tensor:
        return ssd(*leaves, dt_softplus=True, implementation=implementation)[0]

    return run, {
        "x": make.normal(B, L, H, P),
        "dt": make.normal(B, L, H, scale=0.5),
        "A": make.decay(H),
        "B": make.normal(B, L, 1, N),
        "C": make.normal(B, L, 1, N),
        "D": make.weights(H),
        "dt_bias": make.weights(H, scale=0.5, shift=-4.0),
    }


def _diagonal_ssm(make: Make, B: int, L: int, D: int, N: int) -> Made:
    from longseq.ops.diagonal_ssm import diagonal_ssm

    def run(implementation: Any, x: Tensor, dt: Tensor, A: Tensor, frequency: Tensor, C: Tensor, skip: Tensor) -> Tensor:
        return diagonal_ssm(x, dt, A, frequency, C, None, skip, implementation=implementation)[0]

    frequency = (math.pi * torch.arange(N, device=make.device, dtype=torch.float32)).repeat(D, 1).requires_grad_()
    return run, {
        "x": make.normal(B, L, D),
        "dt": make.rates(D),
        "A_real": make.decay(D, N),
        "A_imag": frequency,
        "C": make.weights(D, N, 2),
        "D": make.weights(D),
    }


def _dplr_ssm(make: Make, B: int, L: int, D: int, N: int) -> Made:
    from longseq.layers.hippo import legs_low_rank
    from longseq.ops.dplr_ssm import dplr_ssm

    poles = legs_low_rank(2 * N)

    def parameter(value: Tensor) -> Tensor:
        return value.float().to(make.device).repeat(D, *[1] * value.ndim).requires_grad_()

    def run(implementation: Any, *leaves: Tensor) -> Tensor:
        return dplr_ssm(*leaves, implementation=implementation)[0]

    return run, {
        "x": make.normal(B, L, D),
        "dt": make.rates(D),
        "A_real": parameter(poles.real_N),
        "A_imag": parameter(poles.imag_N),
        "P": parameter(poles.P_N2),
        "B": parameter(poles.B_N2),
        "C": make.weights(D, N, 2),
        "D": make.weights(D),
    }


def _fft_conv(make: Make, B: int, L: int, D: int) -> Made:
    from longseq.ops.fft_conv import fft_conv

    def run(implementation: Any, u: Tensor, k: Tensor, skip: Tensor, pre: Tensor, post: Tensor) -> Tensor:
        return fft_conv(u, k, skip, pre_gate_BLD=pre, post_gate_BLD=post, implementation=implementation)

    # A filter that decays, as Hyena's do.
    window = torch.exp(-5.0 * torch.arange(L, device=make.device) / L)
    kernel = (make.weights(D, L).detach() * window / L**0.5).requires_grad_()
    gates = {"pre": make.normal(B, L, D), "post": make.normal(B, L, D)}
    return run, {"u": make.normal(B, L, D), "k": kernel, "D": make.weights(D), **gates}


def _window_attention(make: Make, B: int, L: int, H: int, P: int, W: int, G: int) -> Made:
    from longseq.ops.window_attention import window_attention

    leading = torch.zeros(B, L, dtype=torch.bool, device=make.device)
    leading[:, :G] = True

    def run(implementation: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return window_attention(q, k, v, window=W, global_mask_BL=leading, max_global=G, implementation=implementation)

    return run, {name: make.normal(B, L, H, P) for name in ("q", "k", "v")}


def _causal_conv1d(make: Make, B: int, L: int, D: int, K: int) -> Made:
    from longseq.ops.causal_conv1d import causal_conv1d

    def run(implementation: Any, *leaves: Tensor) -> Tensor:
        return causal_conv1d(*leaves, activation="silu", implementation=implementation)[0]

    return run, {"x": make.normal(B, L, D), "weight": make.weights(D, K), "bias": make.weights(D)}


def _add_norm(make: Make, B: int, L: int, D: int) -> Made:
    from longseq.ops.add_norm import add_norm

    def run(implementation: Any, x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"kind": "layer", "out_dtype": make.dtype, "implementation": implementation}
        # Both go on, as in a block: gradients of the sum come back too.
        return add_norm(x, weight, bias, residual=residual, **options)

    return run, {
        "x": make.normal(B, L, D),
        "weight": make.weights(D),
        "bias": make.weights(D),
        "residual": make.weights(B, L, D),
    }


_CASES: dict[str, Callable[..., Made]] = {
    "selective_scan": _selective_scan,
    "ssd": _ssd,
    "diagonal_ssm": _diagonal_ssm,
    "dplr_ssm": _dplr_ssm,
    "fft_conv": _fft_conv,
    "window_attention": _window_attention,
    "causal_conv1d": _causal_conv1d,
    "add_norm": _add_norm,
}
