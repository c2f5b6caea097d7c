"""The causal depthwise convolution as two custom operators that launch Triton kernels, forward and backward."""

import functools
import os
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from longseq.ops.causal_conv1d.chunked import causal_conv1d_chunked, number_runs
from longseq.ops.causal_conv1d.triton_kernels import conv_backward, conv_forward
from longseq.ops.eager import without_dispatcher
from longseq.ops.gpu import family
from longseq.ops.self_check import largest_error
from longseq.ops.tracing import runs_eagerly
from longseq.ops.triton_launch import launch, on_device

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Taps that stay in registers; longer filters are for the FFT convolution.
_MAX_TAPS = 16


class Choice(NamedTuple):
    """How kernels are run: the forward tile's channels and steps, the backward tile's channels, steps unrolled and walked."""

    block: int = 256
    steps: int = 16
    warps: int = 4
    back_block: int = 512
    unroll: int = 4
    stretch: int = 128
    back_warps: int = 4


# Where nothing was measured, and where something was: by (major) compute capability.
_SAFE = Choice(128, 32, 4, 256, 4, 128, 2)
_BY_FAMILY = {9: Choice(128, 32, 4, 128, 8, 128, 1)}


def supports(x_BLD: Tensor, weight_DK: Tensor, bias_D: Tensor | None = None, **options: Any) -> str | None:
    """Why these inputs cannot be run by the kernels, or None if they can."""
    if not x_BLD.is_cuda and not _INTERPRETED:
        return f"it needs CUDA tensors, found {x_BLD.device}"
    for v in (x_BLD, weight_DK, bias_D, *options.values()):
        if isinstance(v, Tensor) and v.is_floating_point() and v.dtype not in _DTYPES:
            return f"it computes in float32, found {v.dtype}"
        if isinstance(v, Tensor) and v.device != x_BLD.device:
            return f"all tensors must be on {x_BLD.device}, found {v.device}"
    if weight_DK.shape[1] > _MAX_TAPS:
        return f"it takes up to {_MAX_TAPS} taps, found {weight_DK.shape[1]}"
    if x_BLD.shape[0] > 65535:
        return f"it takes up to 65535 rows, found {x_BLD.shape[0]}"
    return None


def causal_conv1d_triton(
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    *,
    activation: Literal["silu"] | None = None,
    initial_state_BKD: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Causal convolution on a GPU; arguments as in `longseq.ops.causal_conv1d.causal_conv1d`.

    Cost: x is read and y written once, and 3 times the bytes of x pass in backward.
    """
    if mask_BL is not None:
        # The first real position in scan order; the length where there is none.
        scanned = mask_BL.flip(1) if reverse else mask_BL
        first_B = (scanned.cumsum(1) == 0).sum(1)
    else:
        scanned, first_B = None, None
    runs_BL = None
    if segment_ids_BL is not None:
        runs_BL = number_runs(segment_ids_BL.flip(1) if reverse else segment_ids_BL, scanned).int()
        runs_BL = runs_BL.flip(1) if reverse else runs_BL
    arguments = (x_BLD, weight_DK, bias_D, initial_state_BKD, mask_BL, runs_BL, first_B, activation == "silu", reverse)
    y_BLD = (_eager if runs_eagerly(x_BLD) else _conv)(*arguments)
    return y_BLD, _last_inputs(x_BLD, weight_DK.shape[1] - 1, initial_state_BKD, mask_BL, runs_BL, first_B, reverse)


def self_check() -> float:
    """The largest relative error of output and gradients against the chunked form, on a tiny input.

    It runs the variants that a training step in bf16 runs with a multiple of 16 channels.
    """
    generator = torch.Generator().manual_seed(0)
    device = "cpu" if _INTERPRETED else "cuda"
    x_BLD, weight_DK, bias_D = (torch.randn(shape, generator=generator).to(device) for shape in ((1, 40, 64), (64, 4), (64,)))
    values = [x_BLD.bfloat16(), weight_DK, bias_D]
    arguments: tuple[Any, ...] = (*values, None, None, None, None, True, False)
    run, exact = (functools.partial(f, activation="silu") for f in (causal_conv1d_triton, causal_conv1d_chunked))
    return largest_error(run, exact, [values], lambda: [_convolve(*arguments), _convolve_backward(values[0], *arguments)])


def _last_inputs(
    x_BLD: Tensor,
    history: int,
    init_BKD: Tensor | None,
    mask_BL: Tensor | None,
    runs_BL: Tensor | None,
    first_B: Tensor | None,
    reverse: bool,
) -> Tensor:
    """The K-1 inputs up to the last real position, without those of other segments, in float32."""
    batch, length, width = x_BLD.shape
    if mask_BL is None and runs_BL is None and length >= history:
        last = x_BLD[:, :history].flip(1) if reverse else x_BLD[:, length - history :]
        return last.to(torch.float32, copy=True)
    init = x_BLD.new_zeros(batch, history, width, dtype=torch.float32) if init_BKD is None else init_BKD.float()
    if mask_BL is None and runs_BL is None:
        count = min(history, length)
        last = x_BLD[:, :count].flip(1) if reverse else x_BLD[:, length - count :]
        return torch.cat([init[:, count:], last.float()], dim=1)
    device = x_BLD.device
    place_L = torch.arange(1, length + 1, device=device)
    if mask_BL is None or first_B is None:
        mask_BL = torch.ones(batch, length, dtype=torch.bool, device=device)
        first_B = torch.zeros(batch, dtype=torch.long, device=device)
    last_B = torch.where(mask_BL.flip(1) if reverse else mask_BL, place_L, 0).amax(1)
    last_B = torch.where(last_B == 0, length, last_B)
    step_BK = last_B[:, None] - history + torch.arange(history, device=device)
    from_x = step_BK >= first_B[:, None]
    at_BK = step_BK.clamp(min=0)
    at_BK = length - 1 - at_BK if reverse else at_BK
    held_BK = step_BK - first_B[:, None] + history
    keep_BK = held_BK >= 0
    if runs_BL is not None:
        last_at_B1 = (length - last_B if reverse else last_B - 1)[:, None]
        keep_BK = keep_BK & (runs_BL.gather(1, at_BK) == runs_BL.gather(1, last_at_B1))
    values = x_BLD.gather(1, at_BK.unsqueeze(-1).expand(-1, -1, width)).float()
    values = torch.where((mask_BL.gather(1, at_BK) & keep_BK).unsqueeze(-1), values, 0.0)
    initial = init.gather(1, held_BK.clamp(0, max(history - 1, 0)).unsqueeze(-1).expand(-1, -1, width))
    return torch.where(from_x.unsqueeze(-1), values, torch.where(keep_BK.unsqueeze(-1), initial, 0.0))


def _choice(x: Tensor) -> Choice:
    return _BY_FAMILY.get(family(x.device), _SAFE) if x.is_cuda else Choice(16, 4, 4, 16, 4, 16, 4)


def _rows_of(v: Tensor) -> Tensor:
    """The tensor itself if its channels are neighbours in memory and its batch stride is a whole number of rows."""
    fits = v.stride(2) == 1 and v.stride(1) > 0 and v.stride(0) % v.stride(1) == 0
    return v if fits else v.contiguous()


def _inputs(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    init: Tensor | None,
    mask: Tensor | None,
    runs: Tensor | None,
    first: Tensor | None,
) -> list[Tensor]:
    """The kernels' tensors; in place of what was left out, something that is not read."""
    if init is not None and first is None:
        first = torch.zeros(x.shape[0], dtype=torch.long, device=x.device)
    optional = (
        None if bias is None else bias.contiguous(),
        None if init is None else init.float().contiguous(),
        None if mask is None else mask.contiguous().view(torch.uint8),
        None if runs is None else runs.contiguous(),
        first,
    )
    return [x, weight.contiguous(), *(x if v is None else v for v in optional)]


def _flags(
    bias: Tensor | None, init: Tensor | None, mask: Tensor | None, runs: Tensor | None, taps: int, silu: bool, reverse: bool
) -> dict[str, Any]:
    has = {"HAS_BIAS": bias is not None, "HAS_INIT": init is not None and taps > 1}
    has |= {"HAS_MASK": mask is not None, "HAS_RUNS": runs is not None}
    return {"K": taps, "SIGN": -1 if reverse else 1, "SILU": silu, **has}


def _convolve(
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    init_BKD: Tensor | None,
    mask_BL: Tensor | None,
    runs_BL: Tensor | None,
    first_B: Tensor | None,
    silu: bool,
    reverse: bool,
) -> Tensor:
    """The outputs. `runs_BL` numbers the segments of a row; `first_B` is each row's first real position in scan order."""
    (batch, length, width), taps, choice = x_BLD.shape, weight_DK.shape[1], _choice(x_BLD)
    x = _rows_of(x_BLD)
    y_BLD = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = (-(-length // choice.steps), -(-width // choice.block), batch)
    flags = _flags(bias_D, init_BKD, mask_BL, runs_BL, taps, silu, reverse)
    tensors = _inputs(x, weight_DK, bias_D, init_BKD, mask_BL, runs_BL, first_B)
    sizes = (length, width, x.stride(0) // max(x.stride(1), 1), x.stride(1))
    with on_device(x):
        launch(conv_forward, grid, (*tensors, y_BLD), sizes, choice.warps, BLOCK_D=choice.block, T=choice.steps, **flags)
    return y_BLD


_conv = torch.library.custom_op("longseq::causal_conv1d_triton", _convolve, mutates_args=())


@_conv.register_fake
def _(x_BLD, weight_DK, bias_D, init_BKD, mask_BL, runs_BL, first_B, silu, reverse):  # type: ignore[no-untyped-def]
    return x_BLD.new_empty(x_BLD.shape)


def _convolve_backward(
    dy_BLD: Tensor,
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    init_BKD: Tensor | None,
    mask_BL: Tensor | None,
    runs_BL: Tensor | None,
    first_B: Tensor | None,
    silu: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, the weight and the bias, the last two in float32."""
    (batch, length, width), taps, choice = x_BLD.shape, weight_DK.shape[1], _choice(x_BLD)
    x, dy = _rows_of(x_BLD), dy_BLD.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grid = (-(-length // choice.stretch), -(-width // choice.back_block), batch)
    dweight = torch.empty(batch, grid[0], width, taps, dtype=torch.float32, device=x.device)
    dbias = torch.empty(batch, grid[0], width, dtype=torch.float32, device=x.device)
    flags = _flags(bias_D, init_BKD, mask_BL, runs_BL, taps, silu, reverse)
    flags |= {"BLOCK_D": choice.back_block, "U": choice.unroll}
    tensors = (dy, *_inputs(x, weight_DK, bias_D, init_BKD, mask_BL, runs_BL, first_B), dx, dweight, dbias)
    sizes = (length, width, choice.stretch, x.stride(0) // max(x.stride(1), 1), x.stride(1))
    with on_device(x):
        launch(conv_backward, grid, tensors, sizes, choice.back_warps, **flags)
    return dx, dweight.sum((0, 1)), x.new_empty(0) if bias_D is None else dbias.sum((0, 1))


_conv_backward = torch.library.custom_op("longseq::causal_conv1d_triton_backward", _convolve_backward, mutates_args=())


@_conv_backward.register_fake
def _(dy, x, weight, bias, init, mask, runs, first, silu, reverse):  # type: ignore[no-untyped-def]
    dbias = x.new_empty(0) if bias is None else x.new_empty(bias.shape, dtype=torch.float32)
    return x.new_empty(x.shape), x.new_empty(weight.shape, dtype=torch.float32), dbias


def _initial_gradient(
    dy_BLD: Tensor,
    x_BLD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None,
    init_BKD: Tensor,
    mask_BL: Tensor | None,
    runs_BL: Tensor | None,
    first_B: Tensor | None,
    silu: bool,
    reverse: bool,
) -> Tensor:
    """Gradient of the initial state, in tensor operations: only K-1 outputs from the first real position on have seen it."""
    batch, length, width = x_BLD.shape
    history, weight = init_BKD.shape[1], weight_DK.float()
    first = torch.zeros(batch, dtype=torch.long, device=x_BLD.device) if first_B is None else first_B
    step_BK = first[:, None] + torch.arange(history, device=x_BLD.device)
    real_BK, at_BK = step_BK < length, step_BK.clamp(max=length - 1)
    at_BK = length - 1 - at_BK if reverse else at_BK
    if mask_BL is not None:
        real_BK = real_BK & mask_BL.gather(1, at_BK)
    if runs_BL is not None:
        # The initial state belongs to the first segment, number 0.
        real_BK = real_BK & (runs_BL.gather(1, at_BK) == 0)
    x_BKD, slope_BKD = (v.gather(1, at_BK.unsqueeze(-1).expand(-1, -1, width)).float() for v in (x_BLD, dy_BLD))
    x_BKD, slope_BKD = (torch.where(real_BK.unsqueeze(-1), v, 0.0) for v in (x_BKD, slope_BKD))
    if silu:
        extended = torch.cat([init_BKD.float(), x_BKD], dim=1)
        total = sum((weight[:, k] * extended[:, k : k + history] for k in range(history + 1)), extended.new_zeros(()))
        total = total if bias_D is None else total + bias_D.float()
        gate = torch.sigmoid(total)
        slope_BKD = slope_BKD * gate * (1.0 + total * (1.0 - gate))
    # Tap k of the output r steps after the first one meets entry r + k.
    rows = [sum((weight[:, k] * slope_BKD[:, i - k] for k in range(i + 1)), weight.new_zeros(())) for i in range(history)]
    return torch.stack(rows, dim=1)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, ctx.silu, ctx.reverse = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx, dy_BLD: Tensor):  # type: ignore[no-untyped-def]
    # Read once: where activations are made again, checkpointing hands them out a single time.
    saved = ctx.saved_tensors
    _x, weight, bias, init, *_ = saved
    arguments: list[Any] = [dy_BLD, *saved, ctx.silu, ctx.reverse]
    dx, dweight, dbias = (_convolve_backward if runs_eagerly(saved[0]) else _conv_backward)(*arguments)
    dinit = None
    if init is not None and ctx.needs_input_grad[3]:
        dinit = torch.zeros_like(init)
        if init.shape[1]:
            dinit = _initial_gradient(*arguments).to(init.dtype)
    return dx, dweight.to(weight.dtype), None if bias is None else dbias.to(bias.dtype), dinit, *[None] * 5


_conv.register_autograd(_backward, setup_context=_setup_context)


# The same without torch's dispatcher.
_eager = without_dispatcher(_convolve, _setup_context, _backward)
