"""SSD as two custom operators that launch Triton kernels, forward and backward.

Products are made on the tensor cores, in bfloat16. Inputs of float32 and float16 are split in two bfloat16 numbers each and
take three products, which keeps 16 bits and relative errors near 1e-5. Decays, states and sums stay float32. Sums over heads,
chunks and stretches of time are taken in a fixed order, so gradients are deterministic.
"""

import functools
import os
from typing import Any

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from longseq.ops.chunks import segment_starts
from longseq.ops.eager import without_dispatcher
from longseq.ops.gpu import family
from longseq.ops.self_check import largest_error, launch_all
from longseq.ops.ssd.chunked import ssd_chunked
from longseq.ops.ssd.triton_backward import ssd_input_gradients, ssd_map_gradients
from longseq.ops.ssd.triton_choices import MAX_STATE_ELEMENTS, MAX_STATES, MAX_WIDTH, Choice, block_of, choose
from longseq.ops.ssd.triton_kernels import chain_stretches, ssd_forward, sum_decays, walk_states
from longseq.ops.tracing import runs_eagerly
from longseq.ops.triton_launch import launch, on_device

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_CHAIN_BLOCK, _HEADS_BLOCK = 512, 16


def supports(x_BLHP: Tensor, dt_BLH: Tensor, A_H: Tensor, B_BLGN: Tensor, *others: Any, **options: Any) -> str | None:
    """Why these inputs cannot be run by the kernels, or None if they can."""
    if not x_BLHP.is_cuda and not _INTERPRETED:
        return f"it needs CUDA tensors, found {x_BLHP.device}"
    for v in (x_BLHP, dt_BLH, A_H, B_BLGN, *others, *options.values()):
        if isinstance(v, Tensor) and v.is_floating_point() and v.dtype not in _DTYPES:
            return f"it computes in float32, found {v.dtype}"
        if isinstance(v, Tensor) and v.device != x_BLHP.device:
            return f"all tensors must be on {x_BLHP.device}, found {v.device}"
    width, n_states = x_BLHP.shape[3], B_BLGN.shape[3]
    if width > MAX_WIDTH or n_states > MAX_STATES or block_of(width) * block_of(n_states) > MAX_STATE_ELEMENTS:
        return (
            f"it takes heads up to {MAX_WIDTH} wide, up to {MAX_STATES} states and {MAX_STATE_ELEMENTS} elements of both, "
            f"found {width} x {n_states}"
        )
    if x_BLHP.shape[0] > 65535:
        return f"it takes up to 65535 rows, found {x_BLHP.shape[0]}"
    return None


def ssd_triton(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None = None,
    dt_bias_H: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    initial_state_BHPN: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """SSD on a GPU; arguments as in `longseq.ops.ssd.ssd`. The kernels have chunks of their own; `chunk_size` is not used.

    Cost: x is read and y written once where batch and heads fill the GPU, else x and B are read twice; N / T elements for
    each element of x are kept for the backward pass, with T = 64 positions to a chunk in 16 bits.
    """
    del chunk_size
    values = (x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, dt_bias_H, initial_state_BHPN)
    save = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in values)
    run = _ssd if not runs_eagerly(x_BLHP) else _eager if save else _run_forward
    return run(*values, mask_BL, segment_ids_BL, dt_softplus, reverse, save)[:2]


def self_check() -> float:
    """The largest relative error of outputs and gradients against the chunked form, with time whole and cut into stretches.

    It runs the variants that a training step in bf16 runs with heads of the usual size; all kernels compile side by side.
    """
    generator = torch.Generator().manual_seed(0)
    device = "cpu" if _INTERPRETED else "cuda"
    cases = []
    for length in (70, 1100):
        shapes = ((1, length, 32, 64), (1, length, 32), (32,), (1, length, 1, 128), (1, length, 1, 128), (32,), (32,))
        values = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        values[2] = -values[2].abs()
        cases.append([v.bfloat16() if v.dim() > 1 else v for v in values])
    run, exact = (functools.partial(f, dt_softplus=True) for f in (ssd_triton, ssd_chunked))
    return largest_error(run, exact, cases, lambda: [launch_all(_run_forward, _run_backward, values) for values in cases])


def _choice(x: Tensor, wide: bool) -> Choice:
    return choose(family(x.device), wide)


def _chunk_of(dtype: torch.dtype, x: Tensor) -> int:
    return _choice(x, dtype != torch.bfloat16).chunk


def _rows_of(v_BLXY: Tensor) -> Tensor:
    """The tensor itself if the last two dimensions lie in a row and its batch stride is a whole number of positions."""
    fits = v_BLXY.stride(3) == 1 and (v_BLXY.stride(2) == v_BLXY.shape[3] or v_BLXY.shape[2] == 1)
    fits = fits and v_BLXY.stride(1) > 0 and v_BLXY.stride(0) % v_BLXY.stride(1) == 0
    return v_BLXY if fits else v_BLXY.contiguous()


def _columns(sums: tuple[Tensor, ...]) -> list[Tensor]:
    """dA, dD and dbias. Copies: with one head they lie in a row as they are, and outputs must not share memory."""
    return [v.clone() for v in sums]


def _strides(v: Tensor) -> list[int]:
    """Positions from one row of the batch to the next, and elements from one position to the next."""
    return [v.stride(0) // max(v.stride(1), 1), v.stride(1)]


class _Launch:
    """What both passes hand to their kernels."""

    def __init__(
        self,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        bias: Tensor | None,
        mask: Tensor | None,
        segments: Tensor | None,
        softplus: bool,
        reverse: bool,
    ) -> None:
        self.batch, self.length, self.heads, self.width = x.shape
        self.groups, self.states = B.shape[2:]
        wide = x.dtype != torch.bfloat16
        choice = _choice(x, wide)
        blocks = [block_of(size, choice.least) for size in (self.width, self.states)]
        self.choice = choice = choice.fitted(blocks[0] * blocks[1])
        self.n_chunks = -(-self.length // choice.chunk)
        self.padded = self.n_chunks * choice.chunk
        n_stretches = choice.stretches(self.batch, self.heads, self.n_chunks)
        self.stretch = -(-self.n_chunks // n_stretches)
        self.stretches = -(-self.n_chunks // self.stretch)
        self.x, self.B, self.C = _rows_of(x), _rows_of(B), _rows_of(C)
        self.dt = dt if dt.stride(2) == 1 else dt.contiguous()
        self.A = A.float().contiguous()
        self.skip = None if D is None else D.contiguous()
        self.bias = None if bias is None else bias.contiguous()
        self.mask = None if mask is None else mask.contiguous().view(torch.uint8)
        self.runs = None if segments is None else self._number_runs(segments, mask, reverse)
        self.kept_dtype = torch.float32 if wide else torch.bfloat16
        self.sign = {"SIGN": -1 if reverse else 1, "HAS_MASK": mask is not None}
        exact = x.dtype == torch.float32
        self.decays = {"T": choice.chunk, "EXACT": exact, **self.sign}
        self.dots = {
            "P": self.width,
            "N": self.states,
            "BLOCK_P": blocks[0],
            "BLOCK_N": blocks[1],
            "HAS_RUNS": segments is not None,
            # The interpreter multiplies no bfloat16 matrices.
            "DOT_TYPE": tl.float32 if wide or _INTERPRETED else tl.bfloat16,
            # Which the interpreter does not know either.
            "PRECISION": "bf16x3" if wide and not _INTERPRETED else "tf32",
            **self.decays,
        }
        self.softplus, self.grid = softplus, (self.heads, self.stretches, self.batch)
        self._sum_decays()

    def _number_runs(self, segments: Tensor, mask: Tensor | None, reverse: bool) -> Tensor:
        """The number of each step's segment in scan order; steps past the end belong to the last one."""
        if reverse:
            segments, mask = segments.flip(1), None if mask is None else mask.flip(1)
        starts = segment_starts(segments, mask)
        starts = starts if mask is None else starts & mask
        return F.pad(starts.int(), (0, self.padded - self.length)).cumsum(1, dtype=torch.int32)

    def _sum_decays(self) -> None:
        self.steps, self.hi = (self.A.new_empty(self.batch, self.heads, self.padded) for _ in range(2))
        self.lo = torch.empty_like(self.hi) if self.decays["EXACT"] else self.hi
        tensors = (self.dt, self.or_unread(self.bias), self.A, self.or_unread(self.mask), self.steps, self.hi, self.lo)
        sizes = (self.length, self.heads, self.padded, self.dt.stride(0), self.dt.stride(1))
        flags = {"SOFTPLUS": self.softplus, "HAS_BIAS": self.bias is not None, "BLOCK_H": _HEADS_BLOCK, **self.decays}
        grid = (self.n_chunks, self.batch, -(-self.heads // _HEADS_BLOCK))
        launch(sum_decays, grid, tensors, sizes, **flags)

    def or_unread(self, v: Tensor | None) -> Tensor:
        """In place of what was left out, something that is not read."""
        return self.A if v is None else v

    def decay_tensors(self) -> tuple[Tensor, ...]:
        return self.or_unread(self.mask), self.or_unread(self.runs), self.steps, self.hi, self.lo

    def new_states(self) -> Tensor:
        """One state for each stretch."""
        return self.A.new_empty(self.batch, self.stretches, self.heads, self.width, self.states)

    def kept_states(self) -> Tensor:
        """One state for each chunk."""
        shape = (self.batch, self.n_chunks, self.heads, self.width, self.states)
        return self.A.new_empty(shape, dtype=self.kept_dtype)

    def walk(self, v: Tensor, rows: Tensor, start: Tensor, kept: Tensor | None, backward: bool) -> tuple[Tensor, Tensor]:
        """The last state of each stretch and its whole decay."""
        last, total = self.new_states(), self.A.new_empty(self.batch, self.stretches, self.heads)
        tensors = (v, rows, *self.decay_tensors(), start, last, total, self.or_unread(kept))
        sizes = (self.length, self.heads, self.n_chunks, self.stretch, self.padded, self.heads // self.groups)
        strides = (*_strides(v), *_strides(rows))
        flags = {"BACKWARD": backward, "SAVE": kept is not None, "STAGES": self.choice.walk_stages, **self.dots}
        launch(walk_states, self.grid, tensors, (*sizes, *strides), self.choice.warps, **flags)
        return last, total

    def chain(self, start: Tensor, made: Tensor, total: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
        """The state that enters each stretch, and the one after the last."""
        entering, final = torch.empty_like(made), torch.empty_like(start)
        size = self.width * self.states
        grid = (-(-size // _CHAIN_BLOCK), self.heads, self.batch)
        tensors = (start, made, total, entering, final)
        sizes = (self.stretches, self.heads, size)
        launch(chain_stretches, grid, tensors, sizes, BLOCK=_CHAIN_BLOCK, BACKWARD=backward)
        return entering, final

    def enter(self, v: Tensor, rows: Tensor, start: Tensor, backward: bool) -> tuple[Tensor, Tensor | None]:
        """What enters each stretch, and with several stretches the state after the last."""
        if self.stretches == 1:
            return start, None
        made, total = self.walk(v, rows, self.new_states().zero_(), None, backward)
        return self.chain(start, made, total, backward)

    def _heads_and_splits(self, heads: int) -> tuple[int, int]:
        """Heads of a group that a program takes one after another, and into how many programs a group is cut."""
        per_group = self.heads // self.groups
        per_program = min(heads, per_group)
        return per_program, -(-per_group // per_program)

    def _new_gradients(self, splits: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """dx and ddt, and for each part of a group dB and dC, float32 where there are several to add."""
        dx = torch.empty(self.x.shape, dtype=self.x.dtype, device=self.x.device)
        ddt = torch.empty(self.dt.shape, dtype=self.dt.dtype, device=self.x.device)
        shape = (splits, self.batch, self.length, self.groups, self.states)
        dB, dC = (self.A.new_empty(shape, dtype=v.dtype if splits == 1 else torch.float32) for v in (self.B, self.C))
        return dx, ddt, dB, dC

    def gradients(self, dy: Tensor, kept: Tensor, dkept: Tensor) -> list[Tensor]:
        """dx, ddt, dA, dD, dbias, dB and dC, from the states before each chunk and the gradients of those after it."""
        choice = self.choice
        per_program, splits = self._heads_and_splits(choice.heads)
        programs = max(1, choice.map_programs // (self.n_chunks * self.batch * self.groups))
        map_heads, map_splits = self._heads_and_splits(-(-self.heads // self.groups // programs))
        dx, ddt, dB, dC = self._new_gradients(map_splits)
        sums = self.A.new_empty(3, self.batch, self.heads, self.padded)
        tensors = [dy, self.x, self.dt, self.or_unread(self.bias), self.A, self.B, self.C, self.or_unread(self.skip)]
        tensors += [*self.decay_tensors(), kept, dkept, dx, ddt, sums]
        sizes = [self.length, self.heads, self.n_chunks, self.padded, self.groups, self.heads // self.groups]
        strides = [self.dt.stride(0), self.dt.stride(1), *self._map_strides()]
        flags = {"SOFTPLUS": self.softplus, "HAS_SKIP": self.skip is not None, "HAS_BIAS": self.bias is not None, **self.dots}
        flags |= {"STAGES": choice.grad_stages, "AGAIN": choice.again}
        grid = (self.n_chunks, self.batch, self.groups * splits)
        launch(ssd_input_gradients, grid, tensors, (*sizes, per_program, *strides), choice.grad_warps, **flags)
        tensors = [dy, self.x, self.B, self.C, *self.decay_tensors(), kept, dkept, dB, dC]
        flags = {"STAGES": choice.map_stages, **self.dots}
        grid = (self.n_chunks, self.batch, self.groups * map_splits)
        launch(ssd_map_gradients, grid, tensors, (*sizes, map_heads, *strides[2:]), choice.map_warps, **flags)
        return [dx, ddt, *_columns(sums.sum((1, 3)).unbind(0)), *self._add_splits(dB, dC)]

    def _map_strides(self) -> list[int]:
        return [stride for v in (self.x, self.B, self.C) for stride in _strides(v)]

    def _add_splits(self, dB: Tensor, dC: Tensor) -> list[Tensor]:
        return [v[0] if v.shape[0] == 1 else v.sum(0).to(like.dtype) for v, like in ((dB, self.B), (dC, self.C))]


def _run_forward(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    dt_bias_H: Tensor | None,
    h0_BHPN: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the last state, and the state before each chunk (B, chunks, H, P, N), empty without `save`."""
    inputs = (x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, dt_bias_H, mask_BL, segment_ids_BL)
    with on_device(x_BLHP):
        run = _Launch(*inputs, dt_softplus, reverse)
        y_BLHP = torch.empty(x_BLHP.shape, dtype=x_BLHP.dtype, device=x_BLHP.device)
        kept = run.kept_states() if save else run.A.new_empty(0, dtype=run.kept_dtype)
        shape = (run.batch, run.heads, run.width, run.states)
        h0 = run.A.new_zeros(shape) if h0_BHPN is None else h0_BHPN.float().contiguous()
        start, final = run.enter(run.x, run.B, h0, backward=False)
        last = run.new_states()
        tensors = (run.x, run.B, run.C, run.or_unread(run.skip), *run.decay_tensors(), start, y_BLHP, last, kept)
        sizes = [run.length, run.heads, run.n_chunks, run.stretch, run.padded, run.heads // run.groups]
        for v in (run.x, run.B, run.C):
            sizes += _strides(v)
        flags = {"STAGES": run.choice.stages, "SAVE": save, "HAS_SKIP": D_H is not None, **run.dots}
        launch(ssd_forward, run.grid, tensors, sizes, run.choice.warps, **flags)
        return y_BLHP, last.view(shape) if final is None else final, kept


_ssd = torch.library.custom_op("longseq::ssd_triton", mutates_args=())(_run_forward)


@_ssd.register_fake
def _(x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, dt_bias_H, h0, mask_BL, segments, dt_softplus, reverse, save):  # type: ignore[no-untyped-def]
    batch, length, heads, width = x_BLHP.shape
    states, chunk = B_BLGN.shape[3], _chunk_of(x_BLHP.dtype, x_BLHP)
    shape = (batch, (length + chunk - 1) // chunk, heads, width, states) if save else (0,)
    kept = x_BLHP.new_empty(shape, dtype=torch.bfloat16 if x_BLHP.dtype == torch.bfloat16 else torch.float32)
    state = x_BLHP.new_empty((batch, heads, width, states), dtype=torch.float32)
    return x_BLHP.new_empty(x_BLHP.shape), state, kept


def _run_backward(
    dy_BLHP: Tensor,
    dstate_BHPN: Tensor,
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    A_H: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    dt_bias_H: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    kept: Tensor,
    dt_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, dt_bias and the initial state; empty for D and dt_bias if they were left out.

    Those of x, dt, B and C have their dtypes, the others are float32.
    """
    inputs = (x_BLHP, dt_BLH, A_H, B_BLGN, C_BLGN, D_H, dt_bias_H, mask_BL, segment_ids_BL)
    with on_device(x_BLHP):
        run = _Launch(*inputs, dt_softplus, reverse)
        dy, dlast = dy_BLHP.contiguous(), dstate_BHPN.float().contiguous()
        entering, dh0 = run.enter(dy, run.C, dlast, backward=True)
        dkept = run.kept_states()
        dfirst, _ = run.walk(dy, run.C, entering, dkept, backward=True)
        dx, ddt, dA, dD, dbias, dB, dC = run.gradients(dy, kept, dkept)
        dD = run.A.new_empty(0) if D_H is None else dD
        dbias = run.A.new_empty(0) if dt_bias_H is None else dbias
        dh0 = dfirst.view(dlast.shape) if dh0 is None else dh0
        return dx, ddt, dA, dB, dC, dD, dbias, dh0


_ssd_backward = torch.library.custom_op("longseq::ssd_triton_backward", mutates_args=())(_run_backward)


@_ssd_backward.register_fake
def _(dy, dstate, x, dt, A, B, C, D, dt_bias, mask, segments, kept, dt_softplus, reverse):  # type: ignore[no-untyped-def]
    def like(v, shape=None):  # type: ignore[no-untyped-def]
        return x.new_empty(0 if v is None else v.shape if shape is None else shape, dtype=torch.float32)

    dh0 = like(A, (x.shape[0], x.shape[2], x.shape[3], B.shape[3]))
    dB, dC = B.new_empty(B.shape), C.new_empty(C.shape)
    return x.new_empty(x.shape), dt.new_empty(dt.shape), like(A), dB, dC, like(D), like(dt_bias), dh0


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *values, h0, mask, segments, ctx.dt_softplus, ctx.reverse, _save = inputs
    ctx.h0_dtype = None if h0 is None else h0.dtype
    ctx.save_for_backward(*values, mask, segments, output[2])
    # The kept states have no gradient; zeros as large as they are would be written for nothing.
    ctx.set_materialize_grads(False)
    ctx.state_shape = output[1].shape


def _backward(ctx, dy_BLHP: Tensor | None, dstate_BHPN: Tensor | None, _dkept: None):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    dy_BLHP = torch.zeros_like(saved[0]) if dy_BLHP is None else dy_BLHP
    dstate_BHPN = saved[2].new_zeros(ctx.state_shape, dtype=torch.float32) if dstate_BHPN is None else dstate_BHPN
    backward = _run_backward if runs_eagerly(saved[0]) else _ssd_backward
    arguments: tuple[Any, ...] = (dy_BLHP, dstate_BHPN, *saved, ctx.dt_softplus, ctx.reverse)
    *grads, dh0 = backward(*arguments)
    grads = [None if v is None else g.to(v.dtype) for g, v in zip(grads, saved, strict=False)]
    return *grads, None if ctx.h0_dtype is None else dh0.to(ctx.h0_dtype), None, None, None, None, None


_ssd.register_autograd(_backward, setup_context=_setup_context)
# The same without torch's dispatcher.
_eager = without_dispatcher(_run_forward, _setup_context, _backward)
