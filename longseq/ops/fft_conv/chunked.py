"""The long convolution through the FFT in plain PyTorch, for CPU and GPU, a few channels at a time.

It is one operator to autograd and torch.compile: it keeps only its inputs for backward and transforms them again there.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.ops.fft_conv.traceable import fft_conv_traceable
from longseq.ops.tracing import is_exporting

# Real numbers in the padded signals of one group of channels. On a CPU a group stays in its cache; on a GPU groups only
# bound the memory of the spectra.
_GROUP_NUMEL_CPU = 1 << 18
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
    if is_exporting():
        # Exporters see ordinary operators; torch.compile and eager see one operator that saves memory.
        return fft_conv_traceable(u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)
    return torch.ops.longseq.fft_conv(u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)


def fast_length(n: int) -> int:
    """The smallest even number of the form m 2^a, m = 1, 3, 5, 9 or 15, that is at least n.

    FFTs of such lengths run at full speed: 1,024 signals take 3.1 ms at 2,048 and 1.7 ms at 2,304, but 17.9 ms at 2,047
    and 11.2 ms at 2,050 (MKL, two cores of an AMD EPYC).
    """
    return min(odd << max(1, (-(-n // odd) - 1).bit_length()) for odd in (1, 3, 5, 9, 15))


class _Signals(NamedTuple):
    """The operator's inputs (B, L, D), (D, K), (D,) and (B, M, D), or their gradients; of all channels, or of a group."""

    u: Tensor
    k: Tensor
    bias: Tensor | None
    pre_gate: Tensor | None
    post_gate: Tensor | None
    history: Tensor | None

    def group(self, channels: slice) -> "_Signals":
        """Views of some channels."""
        rest = (None if x is None else x[..., channels] for x in self[2:])
        return _Signals(self.u[..., channels], self.k[channels], *rest)


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

    def gated(self, x_BLg: Tensor, gate_BLg: Tensor | None) -> Tensor:
        return x_BLg.to(self.dtype) if gate_BLg is None else x_BLg.to(self.dtype) * gate_BLg

    def spectrum(self, x_BLg: Tensor, history_BMg: Tensor | None = None) -> Tensor:
        """Of the history (zeros if left out), the L positions, and zeros: (B, g, n / 2 + 1)."""
        x_BgN = x_BLg.new_zeros(x_BLg.shape[0], x_BLg.shape[2], self.n)
        if history_BMg is not None:
            x_BgN[..., : self.past] = history_BMg[:, self.forgotten :].transpose(1, 2)
        x_BgN[..., self.past : self.past + self.length] = x_BLg.transpose(1, 2)
        return torch.fft.rfft(x_BgN)

    def kernel_spectrum(self, k_gK: Tensor) -> Tensor:
        return torch.fft.rfft(k_gK[:, : self.taps].to(self.dtype), n=self.n)

    def signal(self, spectrum_BgF: Tensor) -> Tensor:
        """The past and the L positions, (B, M + L, g), laid out like the inputs: elementwise work is slow across them."""
        x_BgN = torch.fft.irfft(spectrum_BgF, n=self.n)[..., : self.past + self.length]
        return x_BgN.transpose(1, 2).contiguous()

    def convolve(self, spectrum_BgF: Tensor, v_BLg: Tensor, bias_g: Tensor | None) -> Tensor:
        """The output before the post gate, from the product of the spectra."""
        y_BLg = self.signal(spectrum_BgF)[:, self.past :]
        return y_BLg if bias_g is None else y_BLg.addcmul_(bias_g.to(self.dtype), v_BLg)


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
    inputs = _Signals(u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)
    y_BLD = u_BLD.new_empty(u_BLD.shape)
    for channels in plan.groups():
        part = inputs.group(channels)
        v_BLg = plan.gated(part.u, part.pre_gate)
        spectrum_BgF = plan.spectrum(v_BLg, part.history).mul_(plan.kernel_spectrum(part.k))
        y_BLD[..., channels] = plan.gated(plan.convolve(spectrum_BgF, v_BLg, part.bias), part.post_gate)
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
    inputs = _Signals(u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)
    gradients = _allocate(inputs, need_input, need_kernel, need_bias, need_post_gate)
    for channels in plan.groups():
        part, out = inputs.group(channels), gradients.group(channels)
        dy_BLg, v_BLg = dy_BLD[..., channels], plan.gated(part.u, part.pre_gate)
        g_BLg = plan.gated(dy_BLg, part.post_gate)
        x_BgF, k_gF = plan.spectrum(v_BLg, part.history), plan.kernel_spectrum(part.k)
        if out.post_gate is not None:
            out.post_gate.copy_(plan.convolve(x_BgF * k_gF, v_BLg, part.bias).mul_(dy_BLg))
        if out.bias is not None:
            out.bias.copy_((g_BLg * v_BLg).sum(dim=(0, 1)))
        g_BgF = plan.spectrum(g_BLg)
        if need_kernel:
            dk_gF = torch.linalg.vecdot(x_BgF, g_BgF, dim=0)
            out.k[:, : plan.taps] = torch.fft.irfft(dk_gF, n=plan.n)[:, : plan.taps]
        if need_input:
            _input_gradients(plan, part, out, plan.signal(g_BgF.mul_(k_gF.conj_physical_())), g_BLg)
    return _no_none(gradients)


def _input_gradients(plan: _Plan, part: _Signals, out: _Signals, dx_BSg: Tensor, g_BLg: Tensor) -> None:
    """Writes the gradients of u, the pre gate and the history, from that of the history and v through the sum."""
    dv_BLg = dx_BSg[:, plan.past :]
    if part.bias is not None:
        dv_BLg.addcmul_(part.bias.to(plan.dtype), g_BLg)
    if out.history is not None:
        out.history[:, plan.forgotten :] = dx_BSg[:, : plan.past]
    out.u.copy_(plan.gated(dv_BLg, part.pre_gate))
    if out.pre_gate is not None:
        out.pre_gate.copy_(dv_BLg.mul_(part.u))


def _allocate(inputs: _Signals, need_input: bool, need_kernel: bool, need_bias: bool, need_post_gate: bool) -> _Signals:
    """Room for the gradients. Taps and history too far off to reach an output are never written, so these start as 0."""
    u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD = inputs
    return _Signals(
        u_BLD.new_empty(u_BLD.shape if need_input else 0),
        k_DK.new_zeros(k_DK.shape if need_kernel else 0),
        bias_D.new_empty(bias_D.shape) if bias_D is not None and need_bias else None,
        pre_gate_BLD.new_empty(pre_gate_BLD.shape) if pre_gate_BLD is not None and need_input else None,
        post_gate_BLD.new_empty(post_gate_BLD.shape) if post_gate_BLD is not None and need_post_gate else None,
        history_BMD.new_zeros(history_BMD.shape) if history_BMD is not None and need_input else None,
    )


def _no_none(gradients: _Signals) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """An operator returns tensors only: empty ones stand for those that are not needed."""
    u_BLD, k_DK, *rest = gradients
    bias_D, pre_gate_BLD, post_gate_BLD, history_BMD = (u_BLD.new_empty(0) if x is None else x for x in rest)
    return u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD


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
    inputs = _Signals(u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)
    return _no_none(_allocate(inputs, need_input, need_kernel, need_bias, need_post_gate))


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
