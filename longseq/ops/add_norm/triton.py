"""The sum and its norm as two custom operators that launch Triton kernels, forward and backward."""

import functools
import os
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from longseq.ops.add_norm.chunked import add_norm_chunked
from longseq.ops.add_norm.triton_kernels import add_norm_backward, add_norm_forward
from longseq.ops.eager import without_dispatcher
from longseq.ops.self_check import largest_error
from longseq.ops.tracing import runs_eagerly
from longseq.ops.triton_launch import on_device, prepare

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Channels whose statistics one program holds in registers.
_MAX_WIDTH = 8192


class Choice(NamedTuple):
    """How kernels are run: numbers in a tile, warps for it, and programs of the backward pass for each multiprocessor."""

    tile: int = 2048
    warps: int = 4
    programs: int = 4


_SAFE = Choice()
# Measured ones, by (major) compute capability.
_BY_FAMILY = {9: Choice()}


class _Plan(NamedTuple):
    """The tile of one launch."""

    block: int
    rows: int
    warps: int
    programs: int


def supports(x: Tensor, weight_D: Tensor, bias_D: Tensor | None = None, **options: Any) -> str | None:
    """Why these inputs cannot be run by the kernels, or None if they can."""
    if not x.is_cuda and not _INTERPRETED:
        return f"it needs CUDA tensors, found {x.device}"
    for v in (x, weight_D, bias_D, *options.values()):
        if isinstance(v, Tensor) and v.dtype not in _DTYPES:
            return f"it computes in float32, found {v.dtype}"
        if isinstance(v, Tensor) and v.device != x.device:
            return f"all tensors must be on {x.device}, found {v.device}"
    for name in ("sum_dtype", "out_dtype"):
        if options.get(name) not in (None, *_DTYPES):
            return f"it computes in float32, found {name}={options[name]}"
    width = x.shape[-1] // options.get("n_groups", 1)
    return f"it takes up to {_MAX_WIDTH} channels, found {width}" if width > _MAX_WIDTH else None


def add_norm_triton(
    x: Tensor,
    weight_D: Tensor,
    bias_D: Tensor | None = None,
    *,
    residual: Tensor | None = None,
    gate: Tensor | None = None,
    kind: Literal["layer", "rms"] = "rms",
    eps: float = 1e-5,
    n_groups: int = 1,
    sum_dtype: torch.dtype | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """The sum and its norm on a GPU; arguments as in `longseq.ops.add_norm.add_norm`."""
    promoted = x.dtype if residual is None else torch.promote_types(x.dtype, residual.dtype)
    sum_dtype = sum_dtype or promoted
    rows = [None if v is None else v.reshape(-1, v.shape[-1]) for v in (x, residual, gate)]
    arguments = (*rows, weight_D, bias_D, kind == "layer", eps, n_groups, sum_dtype, out_dtype or sum_dtype)
    y, total, *_ = (_eager if runs_eagerly(x) else _add_norm)(*arguments)
    # Nothing was added or rounded: the sum is x.
    return y.view(x.shape), x if residual is None and sum_dtype == x.dtype else total.view(x.shape)


def self_check() -> float:
    """The largest relative error of outputs and gradients against the chunked form, on a tiny input."""
    generator = torch.Generator().manual_seed(0)
    device = "cpu" if _INTERPRETED else "cuda"
    values = [torch.randn(shape, generator=generator).to(device) for shape in ((5, 70), (70,), (70,), (5, 70), (5, 70))]
    run, exact = (functools.partial(f, kind="layer", n_groups=2) for f in (add_norm_triton, add_norm_chunked))
    return largest_error(
        lambda x, weight, bias, residual, gate: run(x, weight, bias, residual=residual, gate=gate),
        lambda x, weight, bias, residual, gate: exact(x, weight, bias, residual=residual, gate=gate),
        [values],
    )


def _plan(x: Tensor, width: int) -> _Plan:
    return _plan_of(x.device.index if x.is_cuda else None, width)


@functools.lru_cache(1024)
def _plan_of(device: int | None, width: int) -> _Plan:
    """A tile of whole rows, and as many programs as the backward pass keeps partial sums for."""
    block = max(16, 1 << (width - 1).bit_length())
    if device is None:
        # The interpreter's.
        return _Plan(block, 4, 4, 2)
    properties = torch.cuda.get_device_properties(device)
    choice = _BY_FAMILY.get(properties.major, _SAFE)
    warps = max(choice.warps, min(16, block * choice.warps // choice.tile))
    return _Plan(block, max(1, choice.tile // block), warps, choice.programs * properties.multi_processor_count)


def _rows_of(v: Tensor) -> Tensor:
    """The tensor itself if its channels are neighbours in memory."""
    return v if v.stride(1) == 1 or v.shape[1] == 1 else v.contiguous()


def _normalize(
    x_ND: Tensor,
    residual_ND: Tensor | None,
    gate_ND: Tensor | None,
    weight_D: Tensor,
    bias_D: Tensor | None,
    layer: bool,
    eps: float,
    n_groups: int,
    sum_dtype: torch.dtype,
    out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the sum (empty where it is x), and each group's mean (empty without one) and 1 / root mean square."""
    x = _rows_of(x_ND)
    residual = x if residual_ND is None else _rows_of(residual_ND)
    gate = x if gate_ND is None else _rows_of(gate_ND)
    (n_rows, width), stored = x.shape, residual_ND is not None or sum_dtype != x.dtype
    y, total, mean, rstd = _outputs(x, layer, n_groups, stored, sum_dtype, out_dtype)
    plan = _plan(x, width // n_groups)
    tensors = (x, residual, gate, weight_D.contiguous(), x if bias_D is None else bias_D.contiguous(), y, total, mean, rstd)
    sizes = (n_rows, width // n_groups, x.stride(0), residual.stride(0), gate.stride(0), eps)
    has = (layer, residual_ND is not None, gate_ND is not None, bias_D is not None, stored)
    if n_rows:
        grid = (-(-n_rows // plan.rows), n_groups)
        with on_device(x):
            prepare(add_norm_forward, grid, sizes, (*has, plan.block, plan.rows), plan.warps)(*tensors)
    return y, total, mean, rstd


def _outputs(
    x: Tensor, layer: bool, n_groups: int, stored: bool, sum_dtype: torch.dtype, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    n_rows, width = x.shape
    statistics = (n_rows, n_groups)
    return (
        x.new_empty((n_rows, width), dtype=out_dtype),
        x.new_empty((n_rows, width) if stored else (0,), dtype=sum_dtype),
        x.new_empty(statistics if layer else (0,), dtype=torch.float32),
        x.new_empty(statistics, dtype=torch.float32),
    )


_add_norm = torch.library.custom_op("longseq::add_norm_triton", _normalize, mutates_args=())


@_add_norm.register_fake
def _(x, residual, gate, weight, bias, layer, eps, n_groups, sum_dtype, out_dtype):  # type: ignore[no-untyped-def]
    return _outputs(x, layer, n_groups, residual is not None or sum_dtype != x.dtype, sum_dtype, out_dtype)


def _gradients(
    dy_ND: Tensor,
    dsum_ND: Tensor | None,
    total_ND: Tensor,
    gate_ND: Tensor | None,
    weight_D: Tensor,
    mean_NG: Tensor,
    rstd_NG: Tensor,
    has_bias: bool,
    x_dtype: torch.dtype,
    residual_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, of the residual (empty where it is that of x), the gate, and in float32 of weight and bias."""
    dy, total = dy_ND.contiguous(), _rows_of(total_ND)
    gate = total if gate_ND is None else _rows_of(gate_ND)
    dsum = dy if dsum_ND is None else dsum_ND.contiguous()
    (n_rows, width), n_groups = total.shape, rstd_NG.shape[1]
    two = residual_dtype is not None and residual_dtype != x_dtype
    plan = _plan(total, width // n_groups)
    n_programs = min(plan.programs, max(1, -(-n_rows // plan.rows)))
    dx, dresidual, dgate = _slopes(total, gate_ND, x_dtype, residual_dtype)
    dweight = total.new_empty((n_programs, width), dtype=torch.float32)
    dbias = total.new_empty((n_programs, width) if has_bias else (0, 0), dtype=torch.float32)
    tensors = (dy, dsum, total, gate, weight_D.contiguous(), mean_NG, rstd_NG, dx, dresidual, dgate, dweight, dbias)
    sizes = (n_rows, width // n_groups, total.stride(0), gate.stride(0))
    has = (mean_NG.numel() > 0, dsum_ND is not None, gate_ND is not None, has_bias, two)
    with on_device(total):
        prepare(add_norm_backward, (n_programs, n_groups), sizes, (*has, plan.block, plan.rows), plan.warps)(*tensors)
    return dx, dresidual, dgate, dweight.sum(0), dbias.sum(0)


def _slopes(
    total: Tensor, gate: Tensor | None, x_dtype: torch.dtype, residual_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    two = residual_dtype is not None and residual_dtype != x_dtype
    return (
        total.new_empty(total.shape, dtype=x_dtype),
        total.new_empty(total.shape if two else (0,), dtype=residual_dtype),
        total.new_empty((0,)) if gate is None else gate.new_empty(gate.shape),
    )


_add_norm_backward = torch.library.custom_op("longseq::add_norm_triton_backward", _gradients, mutates_args=())


@_add_norm_backward.register_fake
def _(dy, dsum, total, gate, weight, mean, rstd, has_bias, x_dtype, residual_dtype):  # type: ignore[no-untyped-def]
    dweight = total.new_empty(weight.shape, dtype=torch.float32)
    return *_slopes(total, gate, x_dtype, residual_dtype), dweight, dweight.new_empty(weight.shape if has_bias else (0,))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, residual, gate, weight, bias, *_ = inputs
    _, total, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    stored = total.ndim == 2
    ctx.save_for_backward(total if stored else x, gate, weight, mean, rstd)
    ctx.stored, ctx.x_dtype = stored, x.dtype
    ctx.residual_dtype = None if residual is None else residual.dtype
    ctx.bias_dtype = None if bias is None else bias.dtype
    # Where nothing follows the sum, no zeros are made to be added.
    ctx.set_materialize_grads(False)


def _backward(ctx, dy, dsum, _dmean=None, _drstd=None):  # type: ignore[no-untyped-def]
    total, gate, weight, mean, rstd = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(total)
    dsum = dsum if ctx.stored else None
    arguments = (dy, dsum, total, gate, weight, mean, rstd, ctx.bias_dtype is not None, ctx.x_dtype, ctx.residual_dtype)
    backward = _gradients if runs_eagerly(total) else _add_norm_backward
    dx, dresidual, dgate, dweight, dbias = backward(*arguments)
    if ctx.residual_dtype is None:
        dresidual = None
    elif ctx.residual_dtype == ctx.x_dtype:
        dresidual = dx
    dbias = None if ctx.bias_dtype is None else dbias.to(ctx.bias_dtype)
    return dx, dresidual, None if gate is None else dgate, dweight.to(weight.dtype), dbias, *[None] * 5


_add_norm.register_autograd(_backward, setup_context=_setup_context)


# The same without torch's dispatcher.
_eager = without_dispatcher(_normalize, _setup_context, _backward)
