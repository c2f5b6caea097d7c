"""The long convolution through the FFT in plain PyTorch, for CPU and GPU, a few channels at a time.

It is one operator to autograd and torch.compile: it keeps only its inputs for backward and transforms them again there.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

# Real numbers in the padded signals of one group of channels. On a CPU a group stays in its cache; on a GPU groups only
# bound the memory of the spectra.
_GROUP_NUMEL_CPU = 1 << 19
_GROUP_NUMEL_GPU = 1 << 26
# With fewer channels, reading a (B, L, D) tensor fetches more of each cache line than it uses.
_SMALLEST_GROUP = 16


def fft_conv_chunked(
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
) -> Tensor:
    """FFT form of `longseq.ops.fft_conv.fft_conv`; see there for the arguments.

    Cost: O(B D n log n) time for n about M + 2 L; beyond the output, the memory of one group of channels.
    """
    return torch.ops.longseq.fft_conv(u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)


def fast_length(n: int) -> int:
    """The smallest even number of the form m 2^a, m = 1, 3, 5, 9 or 15, that is at least n.

    FFTs of such lengths run at full speed: 1,024 signals take 3.1 ms at 2,048 and 1.7 ms at 2,304, but 17.9 ms at 2,047
    and 11.2 ms at 2,050 (MKL, two cores of an AMD EPYC).
    """
    return min(odd << max(1, (-(-n // odd) - 1).bit_length()) for odd in (1, 3, 5, 9, 15))


class _Signals(NamedTuple):
    """The operator's inputs for some channels, each as a view with channels before positions: `g` channels of D."""

    u_BgL: Tensor
    k_gK: Tensor
    bias_g1: Tensor | None
    pre_gate_BgL: Tensor | None
    post_gate_BgL: Tensor | None
    history_BgM: Tensor | None


def _select(channels: slice, u_BLD: Tensor, k_DK: Tensor, bias_D: Tensor | None, *rest: Tensor | None) -> _Signals:
    pre_gate, post_gate, history = (None if x is None else x[..., channels].transpose(1, 2) for x in rest)
    bias_g1 = None if bias_D is None else bias_D[channels, None]
    return _Signals(u_BLD[..., channels].transpose(1, 2), k_DK[channels], bias_g1, pre_gate, post_gate, history)


class _Plan:
    """Sizes of one convolution: how much of the history and the kernel can matter, the FFT's length, the groups.

    A circular convolution of length n spoils the first M + L + K - 1 - n positions. Only the last L are wanted, so
    n >= max(M + L, L + K - 1) is enough, and the same n serves both correlations of backward.
    """

    def __init__(self, u_BLD: Tensor, k_DK: Tensor, history_BMD: Tensor | None) -> None:
        batch, self.length, self.width = u_BLD.shape
        given = 0 if history_BMD is None else history_BMD.shape[1]
        self.taps = min(k_DK.shape[1], given + self.length)
        self.past = min(given, self.taps - 1)
        self.forgotten = given - self.past
        self.n = fast_length(max(self.past + self.length, self.length + self.taps - 1))
        self.dtype = torch.float64 if u_BLD.dtype == torch.float64 else torch.float32
        numel = _GROUP_NUMEL_CPU if u_BLD.device.type == "cpu" else _GROUP_NUMEL_GPU
        self.group = max(_SMALLEST_GROUP, numel // max(1, batch * self.n))

    def groups(self) -> Iterator[slice]:
        for first in range(0, self.width, self.group):
            yield slice(first, min(first + self.group, self.width))

    def here(self, x_BgN: Tensor) -> Tensor:
        """The L positions that outputs are wanted for."""
        return x_BgN[..., self.past : self.past + self.length]

    def window(self, signal_BgL: Tensor, gate_BgL: Tensor | None, history_BgM: Tensor | None = None) -> Tensor:
        """(B, g, n) with the history, the gated signal, and zeros."""
        x_BgN = signal_BgL.new_zeros((*signal_BgL.shape[:2], self.n), dtype=self.dtype)
        if history_BgM is not None:
            x_BgN[..., : self.past] = history_BgM[..., self.forgotten :]
        here_BgL = self.here(x_BgN).copy_(signal_BgL)
        if gate_BgL is not None:
            here_BgL.mul_(gate_BgL)
        return x_BgN

    def kernel_spectrum(self, k_gK: Tensor) -> Tensor:
        return torch.fft.rfft(k_gK[:, : self.taps].to(self.dtype), n=self.n)

    def convolve(self, spectrum_BgF: Tensor, x_BgN: Tensor, bias_g1: Tensor | None) -> Tensor:
        """The output before the post gate, from the product of the spectra."""
        y_BgL = self.here(torch.fft.irfft(spectrum_BgF, n=self.n))
        return y_BgL if bias_g1 is None else y_BgL.addcmul_(bias_g1.to(self.dtype), self.here(x_BgN))


@torch.library.custom_op("longseq::fft_conv", mutates_args=())
def _forward(
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
) -> Tensor:
    plan = _Plan(u_BLD, k_DK, history_BMD)
    y_BLD = u_BLD.new_empty(u_BLD.shape)
    for channels in plan.groups():
        part = _select(channels, u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)
        x_BgN = plan.window(part.u_BgL, part.pre_gate_BgL, part.history_BgM)
        spectrum_BgF = torch.fft.rfft(x_BgN).mul_(plan.kernel_spectrum(part.k_gK))
        y_BgL = plan.convolve(spectrum_BgF, x_BgN, part.bias_g1)
        if part.post_gate_BgL is not None:
            y_BgL.mul_(part.post_gate_BgL)
        y_BLD[..., channels] = y_BgL.transpose(1, 2)
    return y_BLD


@_forward.register_fake
def _forward_fake(
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
) -> Tensor:
    return u_BLD.new_empty(u_BLD.shape)


@torch.library.custom_op("longseq::fft_conv_backward", mutates_args=())
def _backward(
    dy_BLD: Tensor,
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
    need_input: bool,
    need_kernel: bool,
    need_bias: bool,
    need_post_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, k, bias, pre gate, post gate and history; those that are not needed come back empty."""
    plan = _Plan(u_BLD, k_DK, history_BMD)
    inputs = (u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)
    gradients = _allocate(inputs, (need_input, need_kernel, need_bias, need_input, need_post_gate, need_input))
    for channels in plan.groups():
        part, out = _select(channels, *inputs), _select(channels, *gradients)
        dy_BgL = dy_BLD[..., channels].transpose(1, 2)
        x_BgN = plan.window(part.u_BgL, part.pre_gate_BgL, part.history_BgM)
        g_BgN = plan.window(dy_BgL, part.post_gate_BgL)
        x_BgF, k_gF = torch.fft.rfft(x_BgN), plan.kernel_spectrum(part.k_gK)
        if out.post_gate_BgL is not None:
            out.post_gate_BgL.copy_(plan.convolve(x_BgF * k_gF, x_BgN, part.bias_g1).mul_(dy_BgL))
        if out.bias_g1 is not None:
            out.bias_g1.copy_((plan.here(g_BgN) * plan.here(x_BgN)).sum(dim=(0, 2))[:, None])
        g_BgF = torch.fft.rfft(g_BgN)
        if out.k_gK is not None:
            dk_gF = torch.linalg.vecdot(x_BgF, g_BgF, dim=0)
            out.k_gK[:, : plan.taps] = torch.fft.irfft(dk_gF, n=plan.n)[:, : plan.taps]
        if out.u_BgL is not None:
            dx_BgN = torch.fft.irfft(g_BgF.mul_(k_gF.conj_physical_()), n=plan.n)
            _input_gradients(plan, part, out, dx_BgN, plan.here(g_BgN))
    return _without_none(gradients, u_BLD)


def _input_gradients(plan: _Plan, part: _Signals, out: _Signals, dx_BgN: Tensor, g_BgL: Tensor) -> None:
    """Writes the gradients of u, the pre gate and the history."""
    dv_BgL = plan.here(dx_BgN)
    if part.bias_g1 is not None:
        dv_BgL.addcmul_(part.bias_g1.to(plan.dtype), g_BgL)
    if out.history_BgM is not None:
        out.history_BgM[..., plan.forgotten :] = dx_BgN[..., : plan.past]
    if part.pre_gate_BgL is None or out.pre_gate_BgL is None:
        out.u_BgL.copy_(dv_BgL)
        return
    out.u_BgL.copy_(dv_BgL * part.pre_gate_BgL)
    out.pre_gate_BgL.copy_(dv_BgL.mul_(part.u_BgL))


def _allocate(inputs: tuple[Tensor | None, ...], needed: tuple[bool, ...]) -> Any:
    """Room for the gradients. Taps and history too far off to reach an output are never written, so these start as 0."""
    u, k, bias, pre_gate, post_gate, history = (
        x if x is not None and need else None for x, need in zip(inputs, needed, strict=True)
    )
    empty = (None if x is None else x.new_empty(x.shape) for x in (bias, pre_gate, post_gate))
    return (
        None if u is None else u.new_empty(u.shape),
        None if k is None else k.new_zeros(k.shape),
        *empty,
        None if history is None else history.new_zeros(history.shape),
    )


def _without_none(gradients: tuple[Tensor | None, ...], like: Tensor) -> Any:
    """An operator returns tensors only: empty ones stand for those that are not needed."""
    return tuple(like.new_empty(0) if x is None else x for x in gradients)


@_backward.register_fake
def _backward_fake(
    dy_BLD: Tensor,
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
    need_input: bool,
    need_kernel: bool,
    need_bias: bool,
    need_post_gate: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    inputs = (u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)
    needed = (need_input, need_kernel, need_bias, need_input, need_post_gate, need_input)
    return _without_none(_allocate(inputs, needed), u_BLD)


def _save_inputs(ctx: Any, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate(ctx: Any, dy_BLD: Tensor) -> tuple[Tensor | None, ...]:
    inputs, asked = ctx.saved_tensors, ctx.needs_input_grad
    gradients = torch.ops.longseq.fft_conv_backward(
        dy_BLD,
        *inputs,
        need_input=asked[0] or asked[3] or asked[5],
        need_kernel=asked[1],
        need_bias=asked[2],
        need_post_gate=asked[4],
    )
    return tuple(
        gradient if wanted and x is not None else None for gradient, wanted, x in zip(gradients, asked, inputs, strict=True)
    )


_forward.register_autograd(_differentiate, setup_context=_save_inputs)
