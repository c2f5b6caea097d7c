"""The long convolution on a GPU: Triton kernels around complex FFTs, one custom operator to autograd and torch.compile."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from longseq.ops.eager import without_dispatcher
from longseq.ops.fft_conv import triton_long as long_form
from longseq.ops.fft_conv.chunked import fast_length
from longseq.ops.fft_conv.triton_choices import (
    LONG,
    SHORT,
    cdiv,
    choose,
    group_width,
    long_factors,
    short_factors,
    short_warps,
)
from longseq.ops.fft_conv.triton_kernels import (
    multiply_spectra,
    twist_in,
    twist_taps,
    untwist_gradients,
    untwist_out,
    untwist_taps,
)
from longseq.ops.fft_conv.triton_long import row_stride
from longseq.ops.fft_conv.triton_short import convolve_short, correlate_short, make_tables, transform_taps
from longseq.ops.self_check import largest_error
from longseq.ops.tracing import runs_eagerly
from longseq.ops.triton_launch import Launch, on_device, prepare


def fft_conv_triton(
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
) -> Tensor:
    """Triton form of `longseq.ops.fft_conv.fft_conv`; see there for the arguments.

    Cost: O(B D n log n) time for n about M + L; one group's spectra, and the ungated output for the post gate's gradient.
    """
    reason = supports(u_BLD, k_DK)
    if reason is not None:
        raise ValueError(f"implementation='triton': {reason}; use 'auto' or 'chunked'")
    save = post_gate_BLD is not None and post_gate_BLD.requires_grad and torch.is_grad_enabled()
    inputs = (u_BLD, k_DK, bias_D, pre_gate_BLD, post_gate_BLD, history_BMD)
    if not runs_eagerly(u_BLD):
        return torch.ops.longseq.fft_conv_gpu(*inputs, save)[0]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in inputs):
        return _eager(*inputs, save)[0]
    return _run_forward(*inputs, save)[0]


def supports(u_BLD: Tensor, *_: Any, **__: Any) -> str | None:
    """Why these arguments of `fft_conv_triton` cannot be run, or None."""
    if u_BLD.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"fft_conv has no kernel for {u_BLD.dtype}"
    return None


def self_check() -> float:
    """The largest relative error of output and gradients against the chunked form, on a tiny input.

    It runs the variants that a training step in bf16 runs, so that nothing is compiled for the check alone.
    """
    from longseq.ops.fft_conv.chunked import fft_conv_chunked

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    # The ways of transforming: by cuFFT, by one program in its largest form, and in three passes where these are switched on.
    long = (1 << LONG["first"],) if LONG["first"] <= LONG["last"] else ()
    cases = [_check_case(length, device) for length in (64, SHORT["last"], *long)]
    return largest_error(
        lambda u, k, bias, pre, post: fft_conv_triton(u, k, bias, pre, post, None),
        lambda u, k, bias, pre, post: fft_conv_chunked(u, k, bias, pre, post, None),
        cases,
        lambda: [_run_both(case, case[0]) for case in cases],
    )


def _check_case(length: int, device: torch.device) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    row = (2, length, 16)
    values = [torch.randn(shape, generator=generator).to(device) for shape in (row, (16, length), (16,), row, row)]
    return [v if v.dim() < 3 else v.bfloat16() for v in values]


def _run_both(given: list[Tensor], dy_BLD: Tensor) -> None:
    """The launches of forward and backward, in this thread."""
    arguments: tuple[Any, ...] = (*given, None)
    _run_backward(dy_BLD, _run_forward(*arguments, save=True)[1], *arguments, need_input=True, need_kernel=True)


class _Plan:
    """Sizes of one call, and the launches of its kernels."""

    def __init__(self, u_BLD: Tensor, k_DK: Tensor, history_BMD: Tensor | None) -> None:
        self.batch, self.length, self.width = u_BLD.shape
        given = 0 if history_BMD is None else history_BMD.shape[1]
        self.taps = min(k_DK.shape[1], given + self.length)
        self.past = min(given, self.taps - 1)
        self.forgotten = given - self.past
        needed = max(2, self.past + self.length, self.taps)
        self.device, self.history, self.dtype = u_BLD.device, history_BMD, u_BLD.dtype
        # The sides of a program's matrix, or None if cuFFT transforms.
        self.short = short_factors(needed, u_BLD.dtype, u_BLD.device)
        self.tile = choose(u_BLD.device, self.short is not None)
        if self.short is None:
            self.n = fast_length(needed)
            self.group = group_width(self.batch, self.width, self.n)
        else:
            self.n, self.group = self.short[0] * self.short[1], self.width
            self.table = self._tables(*self.short)

    def _tables(self, n1: int, n2: int) -> Tensor:
        """DFT matrices, and twiddles, for transforms of one program."""
        table = torch.empty(2 * (n1 * n1 + n1 * n2 + n2 * n2), dtype=torch.float16, device=self.device)
        prepare(make_tables, (n1 // 16,), (), (n1, n2, 16))(table)
        return table

    def groups(self) -> Iterator[tuple[int, int]]:
        for first in range(0, self.width, self.group):
            yield first, min(first + self.group, self.width)

    def grid(self, places: int, channels: int) -> tuple[int, int, int]:
        return cdiv(places, self.tile.places), cdiv(channels, self.tile.channels), self.batch

    def from_the_end(self, places: int, block: int, channels: int) -> tuple[tuple[int, int, int], int]:
        """Programs over the last slots, and the whole block at which they begin."""
        start = (self.n - places) // block * block
        return (cdiv(self.n - start, block), cdiv(channels, self.tile.channels), self.batch), start

    def spectrum(self, x_BLD: Tensor, gate_BLD: Tensor | None, first: int, last: int, reverse: bool) -> Tensor:
        """(channels, B, n) of gate * x behind the history, or of gate * x from the end to the beginning without it.

        Of what one program transforms, not the spectrum but the signal.
        """
        plain = self.short is not None
        z = torch.empty(last - first, self.batch, self.n, dtype=self.dtype if plain else torch.complex64, device=self.device)
        history = None if reverse else self.history
        rows = (self.width, row_stride(x_BLD), row_stride(x_BLD if gate_BLD is None else gate_BLD))
        numbers = (self.length, *rows, self.past, self.forgotten, self.n, first, last)
        has = (gate_BLD is not None, history is not None and self.past > 0)
        constants = (*has, reverse, plain, self.tile.places, self.tile.channels)
        prepare(twist_in, self.grid(self.n, last - first), numbers, constants, self.tile.warps)(
            x_BLD, x_BLD if gate_BLD is None else gate_BLD, x_BLD if history is None else history,
            z if plain else torch.view_as_real(z),
        )  # fmt: skip
        return z if plain else torch.fft.fft(z)

    def convolve(self, z: Tensor, kernel: Tensor) -> Tensor:
        """The convolution as `untwist_out` reads it, from a spectrum (which is overwritten) or a signal."""
        if self.short is None:
            return _signal(z.mul_(kernel.unsqueeze(1)))
        y = torch.empty_like(z)
        self._short(convolve_short, z.shape[0] * self.batch, self.batch)(z, kernel, self.table, y)
        return y

    def _short(self, kernel: Any, programs: int, *numbers: int) -> Launch:
        assert self.short is not None
        return prepare(kernel, (programs,), numbers, self.short, short_warps(self.n))

    def gradient_of_taps(self, g: Tensor, x: Tensor, dk: Tensor) -> None:
        """From signals that one program transforms."""
        self._short(correlate_short, g.shape[0], self.batch, self.taps, dk.stride(0))(g, x, self.table, dk)

    def products(self, g: Tensor, x: Tensor | None, kernel: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """From spectra, those of the gradients of the input (in place of g) and of the taps, where their other factor is."""
        dkernel = None if x is None else torch.empty(g.shape[0], self.n, dtype=torch.complex64, device=self.device)
        real = torch.view_as_real(g)
        constants = (x is not None, kernel is not None, self.tile.block)
        prepare(multiply_spectra, (cdiv(self.n, self.tile.block), g.shape[0]), (self.batch, self.n), constants)(
            real, *(real if t is None else torch.view_as_real(t) for t in (x, kernel, dkernel))
        )
        return g, dkernel

    def kernel_spectrum(self, k_DK: Tensor, first: int, last: int) -> Tensor:
        if self.short is not None:
            spectrum = torch.empty(last - first, 2 * self.n, dtype=torch.float32, device=self.device)
            self._short(transform_taps, last - first, self.taps, k_DK.stride(0))(k_DK, spectrum, self.table)
            return spectrum
        z = torch.empty(last - first, self.n, dtype=torch.complex64, device=self.device)
        numbers = (self.taps, k_DK.stride(0), self.n, first)
        launch = prepare(twist_taps, (cdiv(self.n, self.tile.block), last - first), numbers, (self.tile.block,))
        launch(k_DK, torch.view_as_real(z))
        return torch.fft.fft(z)

    def untwist_taps(self, dkernel: Tensor, dk: Tensor, first: int) -> None:
        grid, start = self.from_the_end(self.taps, self.tile.block, 1)
        numbers = (self.taps, dk.stride(0), self.n, first, start)
        prepare(untwist_taps, (grid[0], dkernel.shape[0]), numbers, (self.tile.block,))(_signal(dkernel), dk)


def _long_plan(u: Tensor, k: Tensor, history: Tensor | None) -> long_form.LongPlan | None:
    """The three-pass form's sizes, if it is to run; history is left to cuFFT."""
    factors = long_factors(u.shape[1], u.dtype, u.device) if history is None else None
    return None if factors is None else long_form.LongPlan(u, min(k.shape[1], u.shape[1]), factors)


def _signal(z: Tensor) -> Tensor:
    """The inverse FFT without its factor 1 / n, as real and imaginary parts."""
    return torch.view_as_real(torch.fft.ifft(z, norm="forward"))


def _whole(*tensors: Tensor | None) -> list[Any]:
    return [None if x is None else x.contiguous() for x in tensors]


def _rows(u_BLD: Tensor, *gates: Tensor | None) -> list[Any]:
    """The input and its gates where they are, if all are as far from one position to the next: parts of a projection, say."""
    given = [x for x in (u_BLD, *gates) if x is not None]
    even = all(x.stride(2) == 1 and (1 in x.shape[:2] or x.stride(0) == x.shape[1] * x.stride(1)) for x in given)
    return [u_BLD, *gates] if even and len({row_stride(x) for x in given}) == 1 else _whole(u_BLD, *gates)


def _run_forward(
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    """y, and what the post gate multiplies if it is to be saved."""
    k, bias, history = _whole(k_DK, bias_D, history_BMD)
    u, pre, post = _rows(u_BLD, pre_gate_BLD, post_gate_BLD)
    y_BLD, plain_BLD = _empty(u, save)
    with on_device(u):
        long = _long_plan(u, k, history)
        if long is not None:
            long_form.run_forward(long, u, k, bias, pre, post, (y_BLD, plain_BLD), save)
            return y_BLD, plain_BLD
        plan = _Plan(u, k, history)
        has = (pre is not None, post is not None, bias is not None, save, plan.short is not None)
        for first, last in plan.groups():
            z = plan.convolve(plan.spectrum(u, pre, first, last, False), plan.kernel_spectrum(k, first, last))
            numbers = (plan.length, plan.width, row_stride(u), plan.past, plan.n, first, last)
            constants = (*has, plan.tile.places, plan.tile.channels)
            prepare(untwist_out, plan.grid(plan.length, last - first), numbers, constants, plan.tile.warps)(
                z, u, u if pre is None else pre, u if post is None else post, u if bias is None else bias, y_BLD, plain_BLD
            )
    return y_BLD, plain_BLD


_forward = torch.library.custom_op("longseq::fft_conv_gpu", mutates_args=())(_run_forward)


def _empty(u_BLD: Tensor, save: bool) -> tuple[Tensor, Tensor]:
    y_BLD = torch.empty(u_BLD.shape, dtype=u_BLD.dtype, device=u_BLD.device)
    return y_BLD, torch.empty(u_BLD.shape if save else (0,), dtype=u_BLD.dtype, device=u_BLD.device)


@_forward.register_fake
def _forward_fake(
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
    save: bool,
) -> tuple[Tensor, Tensor]:
    return _empty(u_BLD, save)


def _run_backward(
    dy_BLD: Tensor,
    plain_BLD: Tensor,
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
    need_input: bool,
    need_kernel: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of u, k, bias, pre gate, post gate and history; those that do not exist are empty."""
    dy, k, bias, history = _whole(dy_BLD, k_DK, bias_D, history_BMD)
    u, pre, post = _rows(u_BLD, pre_gate_BLD, post_gate_BLD)
    with on_device(u):
        save = plain_BLD.numel() > 0
        long = _long_plan(u, k, history)
        if long is not None:
            du, dk, _, dpre, dpost, dhistory = _gradients(u, k, bias, pre, post if save else None, history, long.taps)
            results = (du, dk, dpre, dpost)
            part = long_form.run_backward(long, dy, plain_BLD, u, k, bias, pre, post, results, need_input, need_kernel)
            return du, dk, _sum_of(part, bias), dpre, dpost, dhistory
        plan = _Plan(u, k, history)
        du, dk, _, dpre, dpost, dhistory = _gradients(
            u, k, bias, pre, post if save else None, history, plan.taps, plan.forgotten
        )
        grid, start = plan.from_the_end(plan.past + plan.length, plan.tile.places, plan.width)
        part = torch.empty(plan.batch * grid[0] if bias is not None else 0, plan.width, dtype=torch.float32, device=u.device)
        has = (pre is not None, post is not None, bias is not None, history is not None, need_input)
        constants = (*has, plan.short is not None, plan.tile.places, plan.tile.channels, save)
        for first, last in plan.groups():
            z = _products(plan, dy, u, k, pre, post, dk, first, last, need_input, need_kernel)
            grid, start = plan.from_the_end(plan.past + plan.length, plan.tile.places, last - first)
            numbers = (plan.length, plan.width, row_stride(u), plan.past, plan.forgotten, plan.n, first, last, start)
            prepare(untwist_gradients, grid, numbers, constants, plan.tile.warps)(
                z, dy, u, u if pre is None else pre, u if post is None else post, u if bias is None else bias,
                plain_BLD, du, dpre, dpost, dhistory, part,
            )  # fmt: skip
    return du, dk, _sum_of(part, bias), dpre, dpost, dhistory


def _sum_of(part: Tensor, bias: Tensor | None) -> Tensor:
    return part.sum(0).to(bias.dtype) if bias is not None else part.new_empty(0)


def _products(
    plan: _Plan,
    dy: Tensor,
    u: Tensor,
    k: Tensor,
    pre: Tensor | None,
    post: Tensor | None,
    dk: Tensor,
    first: int,
    last: int,
    need_input: bool,
    need_kernel: bool,
) -> Tensor:
    """What the gradient of the input is made of, as `untwist_gradients` reads it; writes dk."""
    g = plan.spectrum(dy, post, first, last, True)
    x = plan.spectrum(u, pre, first, last, False) if need_kernel else None
    kernel = plan.kernel_spectrum(k, first, last) if need_input else None
    if plan.short is not None:
        if x is not None:
            plan.gradient_of_taps(g, x, dk)
        return g if kernel is None else plan.convolve(g, kernel)
    g, dkernel = plan.products(g, x, kernel)
    del x, kernel
    if dkernel is not None:
        plan.untwist_taps(dkernel, dk, first)
        del dkernel
    return _signal(g) if need_input else torch.view_as_real(g)


_backward = torch.library.custom_op("longseq::fft_conv_gpu_backward", mutates_args=())(_run_backward)


def _gradients(
    u: Tensor,
    k: Tensor,
    bias: Tensor | None,
    pre: Tensor | None,
    post: Tensor | None,
    history: Tensor | None,
    taps: int | None = None,
    forgotten: int = 0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for them. Taps and history too far off to reach an output are never written, so these start as 0."""

    def like(x: Tensor | None, make: Any = torch.empty) -> Tensor:
        return make((0,) if x is None else x.shape, dtype=u.dtype if x is None else x.dtype, device=u.device)

    # At a million positions zeros that are all written over would cost a third of a millisecond.
    made_k = torch.zeros if taps is not None and taps < k.shape[1] else torch.empty
    made_history = torch.zeros if forgotten > 0 else torch.empty
    return like(u), like(k, made_k), like(bias), like(pre), like(post), like(history, made_history)


@_backward.register_fake
def _backward_fake(
    dy_BLD: Tensor,
    plain_BLD: Tensor,
    u_BLD: Tensor,
    k_DK: Tensor,
    bias_D: Tensor | None,
    pre_gate_BLD: Tensor | None,
    post_gate_BLD: Tensor | None,
    history_BMD: Tensor | None,
    need_input: bool,
    need_kernel: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    post = post_gate_BLD if plain_BLD.shape[0] > 0 else None
    return _gradients(u_BLD, k_DK, bias_D, pre_gate_BLD, post, history_BMD)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], *inputs[:6])


def _differentiate(ctx: Any, dy_BLD: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    saved, asked = ctx.saved_tensors, ctx.needs_input_grad[:6]
    backward = _run_backward if runs_eagerly(saved[1]) else torch.ops.longseq.fft_conv_gpu_backward
    gradients = backward(dy_BLD, *saved, need_input=asked[0] or asked[3] or asked[5], need_kernel=asked[1])
    pairs = zip(gradients, asked, saved[1:], strict=True)
    return *(gradient if wanted and x is not None else None for gradient, wanted, x in pairs), None


_forward.register_autograd(_differentiate, setup_context=_save)


# The same without torch's dispatcher.
_eager = without_dispatcher(_run_forward, _save, _differentiate)
