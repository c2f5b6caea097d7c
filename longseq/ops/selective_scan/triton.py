"""The selective scan as two custom operators that launch Triton kernels, forward and backward.

Neither pass allocates anything of size B L D N: the forward pass keeps one state each `KEEP` steps, the backward pass computes
the others again. Sums over channels and over stretches of time are taken in a fixed order, so gradients are deterministic.
"""

import functools
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import Future, wait
from typing import Any

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from longseq.ops.chunks import segment_starts
from longseq.ops.eager import without_dispatcher
from longseq.ops.gpu import family
from longseq.ops.selective_scan.chunked import selective_scan_chunked
from longseq.ops.selective_scan.triton_backward import scan_backward
from longseq.ops.selective_scan.triton_choices import (
    KEEP,
    LONGEST,
    MAX_STATES,
    UNROLL,
    WALK_WARPS,
    WALKED_STATES,
    Choice,
    choose,
    choose_backward,
    padded_states,
    tiles_for,
)
from longseq.ops.selective_scan.triton_gradients import scan_gradients
from longseq.ops.selective_scan.triton_kernels import combine_stretches, scan_forward
from longseq.ops.selective_scan.triton_steps import scan_steps, walk_states
from longseq.ops.self_check import largest_error, launch_all
from longseq.ops.tracing import runs_eagerly
from longseq.ops.triton_launch import compile_in_background, launch, on_device

_INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Added to a log2-decay where a segment starts: 2 to its power is 0, and millions of them still have a finite sum.
_RESET = -1e30
_COMBINE_BLOCK = 128
# Both kernels compute in bfloat16 and float32, in another order.
_LANES_TOLERANCE = 2e-2
# The shortest length at which any choice that would cut a row does.
_TO_BE_CUT = 32 * LONGEST


def supports(
    x_BLD: Tensor, dt_BLD: Tensor, A_DN: Tensor, B_BLN: Tensor, C_BLN: Tensor, *others: Any, **options: Any
) -> str | None:
    """Why these inputs cannot be run by the kernels, or None if they can."""
    if not x_BLD.is_cuda and not _INTERPRETED:
        return f"it needs CUDA tensors, found {x_BLD.device}"
    tensors = [v for v in (x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, *others, *options.values()) if isinstance(v, Tensor)]
    for v in tensors:
        if v.is_floating_point() and v.dtype not in _DTYPES:
            return f"it computes in float32, found {v.dtype}"
        if v.device != x_BLD.device:
            return f"all tensors must be on {x_BLD.device}, found {v.device}"
    if A_DN.shape[1] > MAX_STATES:
        return f"it takes up to {MAX_STATES} states, found {A_DN.shape[1]}"
    if x_BLD.shape[0] > 65535:
        return f"it takes up to 65535 rows, found {x_BLD.shape[0]}"
    return None


def selective_scan_triton(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor | None = None,
    z_BLD: Tensor | None = None,
    dt_bias_D: Tensor | None = None,
    *,
    dt_softplus: bool = False,
    initial_state_BDN: Tensor | None = None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Selective scan on a GPU; arguments as in `longseq.ops.selective_scan.selective_scan`.

    Cost: 8 bytes of memory traffic in 16 bits, N + 3 special-function operations and about 8 N other instructions for each
    element of x in the forward pass, N + 1 and 6 N more where time is cut; N / 8 numbers of x's size are kept when a backward
    pass will follow.
    """
    values = (x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, initial_state_BDN)
    save = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in values)
    run = _scan if not runs_eagerly(x_BLD) else _eager if save else _run_forward
    return run(*values, mask_BL, segment_ids_BL, dt_softplus, reverse, save)[:2]


def self_check() -> float:
    """The largest relative error of outputs and gradients against the chunked form, with time whole and cut into stretches.

    All kernels compile side by side; gradients by lanes are compared on their own first use, and the outputs of inference are
    compiled beside this by calls that want them (`begin_to_compile`).
    """
    generator = torch.Generator().manual_seed(0)
    device = "cpu" if _INTERPRETED else "cuda"
    cases = []
    for length in (40, 600):
        shapes = ((1, length, 64), (1, length, 64), (64, 16), (1, length, 16), (1, length, 16), (64,), (1, length, 64), (64,))
        values = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        values[2] = -values[2].abs()
        cases.append([v.bfloat16() if v.dim() == 3 else v for v in values])

    def launches() -> None:
        for values in cases:
            launch_all(_run_forward, _run_backward, values, inference=False)

    run, exact = (functools.partial(f, dt_softplus=True) for f in (selective_scan_triton, selective_scan_chunked))
    return largest_error(run, exact, cases, launches)


def begin_to_compile(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    *others: Tensor | None,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    dt_softplus: bool = False,
    reverse: bool = False,
    **_options: Any,
) -> None:
    """Begins to compile what the self-check does not run: outputs of inference or of this width, and gradients by lanes."""
    inputs = (x_BLD, dt_BLD, A_DN, *others, mask_BL, segment_ids_BL)
    save = torch.is_grad_enabled() and any(v is not None and v.requires_grad for v in inputs)
    outputs = _outputs_choice(x_BLD, A_DN.shape[1], save)
    some = _stand_ins(inputs, _TO_BE_CUT if _cuts(outputs, x_BLD) else LONGEST, reverse)
    compile_in_background(lambda: _outputs(outputs, some, None, dt_softplus, reverse, save), x_BLD)
    backward = _backward_choice(x_BLD, A_DN.shape[1])
    if save and backward.values == WALKED_STATES:
        _begin_to_compile(backward, inputs, dt_softplus, reverse)


def _choices(x_BLD: Tensor, n_states: int) -> tuple[Choice, Choice]:
    batch, length, width = x_BLD.shape
    return choose(family(x_BLD.device), batch, length, width, n_states, x_BLD.dtype == torch.bfloat16)


def _outputs_choice(x_BLD: Tensor, n_states: int, save: bool) -> Choice:
    """The first of `_choices`, with states kept as the second wants them."""
    forward, backward = _choices(x_BLD, n_states)
    return forward._replace(keep=backward.keep) if save else forward


def _backward_choice(x_BLD: Tensor, n_states: int) -> Choice:
    """The second of `_choices`: all that the shape of what is kept depends on."""
    return choose_backward(family(x_BLD.device), x_BLD.numel(), n_states, x_BLD.dtype == torch.bfloat16)


def _kept_dtype(x_dtype: torch.dtype) -> torch.dtype:
    """In 16 bits for inputs of as many: what is computed from a kept state is soon rounded to them."""
    return torch.bfloat16 if x_dtype == torch.bfloat16 else torch.float32


def _rows_of(v: Tensor) -> Tensor:
    """The tensor itself if its channels are neighbours in memory and its batch stride is a whole number of rows."""
    fits = v.stride(2) == 1 and v.stride(1) > 0 and v.stride(0) % v.stride(1) == 0
    return v if fits else v.contiguous()


def _pad(length: int) -> int:
    """Steps after the last one in B, C and resets: whole tiles, and at least one that is read ahead."""
    return LONGEST - length % LONGEST


def _maps(B_BLN: Tensor, C_BLN: Tensor, mask_BL: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """B and C in float32, zero where masked and in the steps after the last one in scan order."""
    batch, length, states = B_BLN.shape
    pad, padded = _pad(length), padded_states(states)
    # Converted, padded and made contiguous in one pass.
    out = torch.empty(2, batch, length + pad, padded, dtype=torch.float32, device=B_BLN.device)
    inside, outside = (out[:, :, pad:], out[:, :, :pad]) if reverse else (out[:, :, :length], out[:, :, length:])
    for i, v_BLN in enumerate((B_BLN, C_BLN)):
        inside[i, ..., :states].copy_(v_BLN if mask_BL is None else v_BLN.masked_fill(~mask_BL.unsqueeze(-1), 0.0))
    outside.zero_()
    if states < padded:
        inside[..., states:].zero_()
    return out[0], out[1]


def _resets(segment_ids_BL: Tensor, mask_BL: Tensor | None, reverse: bool) -> Tensor:
    """What is added to log-decays: a large negative number where the state starts anew; padded as the maps are."""
    if reverse:
        starts = segment_starts(segment_ids_BL.flip(1), None if mask_BL is None else mask_BL.flip(1)).flip(1)
    else:
        starts = segment_starts(segment_ids_BL, mask_BL)
    if mask_BL is not None:
        starts = starts & mask_BL
    steps = _pad(starts.shape[1])
    return F.pad(starts.float() * _RESET, (steps, 0) if reverse else (0, steps)).contiguous()


def _strides(v: Tensor) -> list[int]:
    """Rows from one of the batch to the next, and elements from one step to the next."""
    return [v.stride(0) // max(v.stride(1), 1), v.stride(1)]


def _pad_states(v_BDN: Tensor, n_padded: int) -> Tensor:
    more = n_padded - v_BDN.shape[-1]
    # Padding by nothing would copy.
    return F.pad(v_BDN.float(), (0, more)) if more else v_BDN.float().contiguous()


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
        z: Tensor | None,
        bias: Tensor | None,
        mask: Tensor | None,
        segments: Tensor | None,
        softplus: bool,
        reverse: bool,
        choice: Choice,
    ) -> None:
        self.batch, self.length, self.width = x.shape
        self.n_states = A.shape[1]
        self.padded = padded_states(self.n_states)
        self.choice = choice
        self.x, self.dt, self.z = _rows_of(x), _rows_of(dt), None if z is None else _rows_of(z)
        self.A = _pad_states(A, self.padded)
        self.maps = _maps(B, C, mask, reverse)
        self.mask = None if mask is None else mask.contiguous().view(torch.uint8)
        self.resets = None if segments is None else _resets(segments, mask, reverse)
        self.skip = None if D is None else D.contiguous()
        self.bias = None if bias is None else bias.contiguous()
        self.n_kept = -(-self.length // choice.keep)
        self.block = choice.block_width(self.padded)
        self.stretches = choice.stretches(self.batch, self.length, self.width, self.padded)
        self.walk_block = 32 * WALK_WARPS
        self.parts = self._parts()
        self.stretch = -(-self.length // (LONGEST * self.stretches * self.parts)) * LONGEST * self.parts
        self.stretches = -(-self.length // self.stretch)
        self.grid = (-(-self.width // self.block), self.stretches, self.batch)
        rows = self.maps[0].shape[1]
        self.map_sizes = [rows, rows - 1 if reverse else 0]
        self.flags: dict[str, Any] = {
            "SIGN": -1 if reverse else 1,
            "KEEP": choice.keep,
            "TOUCH": choice.touch,
            "SOFTPLUS": softplus,
            "HAS_SKIP": D is not None,
            "HAS_GATE": z is not None,
            "HAS_BIAS": bias is not None,
            "HAS_MASK": mask is not None,
            "HAS_RESET": segments is not None,
            "BLOCK_D": self.block,
            "N": self.padded,
            "T": choice.steps,
            "LOG_T": choice.steps.bit_length() - 1,
        }

    def launch(self, kernel: Any, tensors: Sequence[Tensor], sizes: Sequence[int], **constants: Any) -> None:
        """One of the kernels that walk a stretch in a program."""
        launch(kernel, self.grid, tensors, sizes, self.choice.warps, self.choice.registers or None, **constants)

    def sizes(self, n_kept: int) -> list[int]:
        """Of the kernels that work in tiles."""
        rows = [size for v in (self.x, self.dt, self.x if self.z is None else self.z) for size in _strides(v)]
        return [self.length, self.width, self.padded, self.stretch, n_kept, *self.map_sizes, *rows]

    def inputs(self) -> list[Tensor]:
        """Up to the resets; in place of what was left out, something that is not read."""
        optional = (self.z, self.skip, self.bias, self.mask, self.resets)
        z, skip, bias, mask, resets = (self.x if v is None else v for v in optional)
        return [self.x, self.dt, z, self.A, *self.maps, skip, bias, mask, resets]

    def new_states(self) -> Tensor:
        """One state for each stretch."""
        return self.A.new_empty(self.batch, self.stretches, self.width, self.padded)

    def _parts(self) -> int:
        """Into how many parts the first pass, which holds more channels in a program, cuts a stretch."""
        if self.stretches == 1 or self.padded > WALKED_STATES:
            return 1
        programs = self.batch * self.stretches * -(-self.width // self.walk_block)
        longest = self.length // (LONGEST * self.stretches)
        return max(1, min(self.choice.walk_programs // programs, longest))

    def step_flags(self, v: Tensor) -> dict[str, Any]:
        """Constants of the kernels that walk step by step; `v` is what they read besides the step sizes and the gate."""
        names = ("SOFTPLUS", "SIGN", "HAS_GATE", "HAS_BIAS", "HAS_MASK", "HAS_RESET", "N")
        strides = zip(("X_ROW", "DT_ROW", "Z_ROW"), (v, self.dt, v if self.z is None else self.z), strict=True)
        flags = {name: self.flags[name] for name in names} | {name: tensor.stride(1) for name, tensor in strides}
        return {**flags, "KEEP": self.choice.keep, "D": self.width}

    def step_sizes(self, v: Tensor) -> list[int]:
        """Numbers of rows in the maps and between the rows of a batch, for the same kernels."""
        return [*self.map_sizes, *(_strides(t)[0] for t in (v, self.dt, v if self.z is None else self.z))]

    def enter(self, start: Tensor, v: Tensor, backward: bool) -> Tensor:
        """The state that enters each stretch, or backward its gradient, from the one that enters the first: a pass over v and
        B, or the gradient of the outputs and C."""
        part = self.stretch // self.parts
        # Of the stretch that is last in walking order only the state that enters its first part is needed.
        unused = self.parts - 1
        count = -(-self.length // part) - unused if backward else (self.stretches - 1) * self.parts + 1
        made, totals = (self.A.new_empty(self.batch, count, self.width, self.padded) for _ in range(2))
        # Without a gate of its own v is read in its place, and not used.
        bias, mask, resets, z = (v if t is None else t for t in (self.bias, self.mask, self.resets, self.z))
        tensors = (v, self.dt, z, self.A, self.maps[1 if backward else 0], bias, mask, resets, made, totals)
        sizes = [self.length, part, count, unused, *self.step_sizes(v)]
        flags = self.step_flags(v) | {"HAS_GATE": backward and self.z is not None, "BACKWARD": backward, "UNROLL": UNROLL}
        flags |= {"BLOCK_D": self.walk_block, "KEEP": KEEP}
        grid = (-(-self.width // self.walk_block), count - 1, self.batch)
        launch(walk_states, grid, tensors, sizes, WALK_WARPS, **flags)
        entering = self.combine(start, made, totals, backward)
        if self.parts == 1:
            return entering
        if not backward:
            return entering[:, :: self.parts].contiguous()
        # A stretch is entered at its last part, the last one perhaps before it is whole.
        return torch.cat([entering[:, : count - 1 : self.parts], entering[:, -1:]], dim=1)

    def combine(self, start: Tensor, made: Tensor, totals: Tensor, backward: bool) -> Tensor:
        """The state that enters each stretch."""
        entering, size = torch.empty_like(made), self.width * self.padded
        grid = (-(-size // _COMBINE_BLOCK), self.batch)
        tensors = (start, made, totals, entering)
        launch(combine_stretches, grid, tensors, (made.shape[1], size), BLOCK=_COMBINE_BLOCK, BACKWARD=backward)
        return entering

    def without_padding(self, v_BDN: Tensor) -> Tensor:
        """States without the columns that were added."""
        return v_BDN if self.padded == self.n_states else v_BDN[..., : self.n_states].contiguous()


def _run_forward(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor | None,
    z_BLD: Tensor | None,
    dt_bias_D: Tensor | None,
    h0_BDN: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    dt_softplus: bool,
    reverse: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the last state, and the state before each tile of steps (B, tiles, D, N padded), empty without `save`."""
    inputs = (x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, mask_BL, segment_ids_BL)
    with on_device(x_BLD):
        choice = _outputs_choice(x_BLD, A_DN.shape[1], save)
        return _outputs(choice, inputs, h0_BDN, dt_softplus, reverse, save)


def _outputs(
    choice: Choice, inputs: tuple[Any, ...], h0_BDN: Tensor | None, dt_softplus: bool, reverse: bool, save: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """As above, with one choice of kernel."""
    x_BLD, *_, D_D, _z, _bias, _mask, _segments = inputs
    run = _Launch(*inputs, softplus=dt_softplus, reverse=reverse, choice=choice)
    y_BLD = torch.empty(x_BLD.shape, dtype=x_BLD.dtype, device=x_BLD.device)
    shape = (run.batch, run.n_kept, run.width, run.padded) if save else (0,)
    kept = run.A.new_empty(shape, dtype=_kept_dtype(x_BLD.dtype))
    h0 = run.A.new_zeros(run.batch, run.width, run.padded) if h0_BDN is None else _pad_states(h0_BDN, run.padded)
    last, start = run.new_states(), h0
    if run.stretches > 1 and run.padded <= WALKED_STATES:
        start = run.enter(h0, run.x, backward=False)
    elif run.stretches > 1:
        totals, zeros = run.new_states(), run.new_states().zero_()
        buffers = (zeros, y_BLD, last, totals, kept)
        run.launch(scan_forward, (*run.inputs(), *buffers), run.sizes(0), **run.flags, OUTPUTS=False, TOTALS=True)
        start = run.combine(h0, last, totals, backward=False)
    if run.choice.holds(run.padded):
        buffers = (start, y_BLD, last, kept)
        sizes = [run.length, run.stretch, run.n_kept, *run.step_sizes(run.x)]
        flags = run.step_flags(run.x) | {"HAS_SKIP": D_D is not None, "BLOCK_D": run.block, "SAVE": save, "UNROLL": UNROLL}
        flags |= {"KEEP_WIDTH": min(run.padded, 16 // kept.element_size())}
        run.launch(scan_steps, (*run.inputs(), *buffers), sizes, **flags)
    else:
        buffers = (start, y_BLD, last, last, kept)
        run.launch(
            scan_forward,
            (*run.inputs(), *buffers),
            run.sizes(run.n_kept if save else 0),
            **run.flags,
            OUTPUTS=True,
            TOTALS=False,
        )
    return y_BLD, run.without_padding(last[:, -1].contiguous()), kept


_scan = torch.library.custom_op("longseq::selective_scan_triton", mutates_args=())(_run_forward)


@_scan.register_fake
def _(x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, h0, mask_BL, segments, dt_softplus, reverse, save):  # type: ignore[no-untyped-def]
    batch, length, width = x_BLD.shape
    keep = _backward_choice(x_BLD, A_DN.shape[1]).keep
    shape = (batch, (length + keep - 1) // keep, width, padded_states(A_DN.shape[1])) if save else (0,)
    state = x_BLD.new_empty(batch, width, A_DN.shape[1], dtype=torch.float32)
    return x_BLD.new_empty(x_BLD.shape), state, x_BLD.new_empty(shape, dtype=_kept_dtype(x_BLD.dtype))


def _run_backward(
    dy_BLD: Tensor,
    dstate_BDN: Tensor,
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_DN: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor | None,
    z_BLD: Tensor | None,
    dt_bias_D: Tensor | None,
    mask_BL: Tensor | None,
    segment_ids_BL: Tensor | None,
    kept: Tensor,
    dt_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and the initial state; empty for those left out."""
    inputs = (x_BLD, dt_BLD, A_DN, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, mask_BL, segment_ids_BL)
    with on_device(x_BLD):
        choice = _choices(x_BLD, A_DN.shape[1])[1]
        if choice.values == WALKED_STATES and not _lanes_agree(choice, inputs, dt_softplus, reverse):
            choice = tiles_for(choice)
        return _gradients(choice, dy_BLD, dstate_BDN, inputs, kept, dt_softplus, reverse)


# By all that its code is compiled for: whether the kernel of lanes gives what that of tiles does, and when it is compiled.
_agreed: dict[tuple[Any, ...], bool] = {}
_compiling: dict[tuple[Any, ...], Future[None]] = {}


def _lanes_agree(choice: Choice, inputs: Sequence[Tensor | None], dt_softplus: bool, reverse: bool) -> bool:
    """Whether a lane may have a channel: on first use gradients of the first few steps are compared with those by tiles."""
    key = _variant(choice, inputs, dt_softplus, reverse)
    if key in _agreed:
        return _agreed[key]
    x = inputs[0]
    assert x is not None
    if x.is_cuda and torch.cuda.is_current_stream_capturing():
        return False
    wait([_begin_to_compile(choice, inputs, dt_softplus, reverse)])
    found, expected = (_first_gradients(c, 3 * choice.keep, inputs, dt_softplus, reverse) for c in (choice, tiles_for(choice)))
    pairs = [(a.float(), b.float()) for a, b in zip(found, expected, strict=True) if b.numel()]
    # All of a gradient may be zero, where an input is.
    errors = [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in pairs]
    if not all(bool(b.isfinite().all()) for b in expected):
        # Says nothing about the kernel.
        return False
    # NaN is not below the tolerance either.
    _agreed[key] = all(error < _LANES_TOLERANCE for error in errors)
    if not _agreed[key]:
        warnings.warn(
            f"longseq: the selective scan's gradients by lanes are off by {max(errors):.1e} from those by tiles on {x.device} "
            f"(relative; {_LANES_TOLERANCE:.0e} allowed). Those by tiles are used instead.",
            RuntimeWarning,
            stacklevel=2,
        )
    return _agreed[key]


def _variant(choice: Choice, inputs: Sequence[Tensor | None], dt_softplus: bool, reverse: bool) -> tuple[Any, ...]:
    """All that the code of the kernel of lanes depends on."""
    x, dt, A, _B, _C, D, z, bias, mask, segments = inputs
    assert x is not None and dt is not None and A is not None
    strides = (x.stride(1), dt.stride(1), None if z is None else z.stride(1))
    has = tuple(v is None for v in (D, bias, mask, segments))
    return (x.device, A.shape, *strides, *has, dt_softplus, reverse, choice)


def _begin_to_compile(choice: Choice, inputs: Sequence[Tensor | None], dt_softplus: bool, reverse: bool) -> Future[None]:
    """Compiles, beside whatever comes next, all that gradients of these inputs launch."""
    key = _variant(choice, inputs, dt_softplus, reverse)
    if key in _compiling:
        return _compiling[key]
    x = inputs[0]
    assert x is not None
    cuts, some = _cuts(choice, x), _stand_ins(inputs, _TO_BE_CUT, reverse)

    def launches() -> None:
        for c in (choice, tiles_for(choice)):
            _first_gradients(c, 3 * choice.keep, some, dt_softplus, reverse)
        if cuts:
            _first_gradients(choice, _TO_BE_CUT, some, dt_softplus, reverse)

    _compiling[key] = compile_in_background(launches, x)
    return _compiling[key]


def _cuts(choice: Choice, x_BLD: Tensor) -> bool:
    batch, length, width = x_BLD.shape
    return choice.stretches(batch, length, width, WALKED_STATES) > 1


def _first_steps(inputs: Sequence[Tensor | None], steps: int, reverse: bool) -> tuple[Any, ...]:
    """A row's first steps in scan order, or all that it has, unmasked and in one segment."""
    x, dt, A, B, C, D, z, bias, mask, segments = inputs

    def first(v: Tensor | None) -> Tensor | None:
        return None if v is None else v[:1, -steps:] if reverse else v[:1, :steps]

    rows, numbers = first(mask), first(segments)
    rows = None if rows is None else torch.ones_like(rows)
    numbers = None if numbers is None else torch.zeros_like(numbers)
    return (first(x), first(dt), A, first(B), first(C), D, first(z), bias, rows, numbers)


def _stand_ins(inputs: Sequence[Tensor | None], steps: int, reverse: bool) -> tuple[Any, ...]:
    """The same with nothing in them: they compile to the same code, and hold none of the inputs' memory meanwhile."""
    some = _first_steps(inputs, steps, reverse)
    return tuple(
        [None if v is None else torch.empty_strided(v.shape, v.stride(), dtype=v.dtype, device=v.device) for v in some]
    )


def _first_gradients(
    choice: Choice, steps: int, inputs: Sequence[Tensor | None], dt_softplus: bool, reverse: bool
) -> tuple[Tensor, ...]:
    """Gradients of the first steps of a row, from states that are made up."""
    some = _first_steps(inputs, steps, reverse)
    x, A = some[0], some[2]
    steps = x.shape[1]
    # Not on the caller's default device.
    generator = torch.Generator("cpu").manual_seed(0)
    n_kept, states = -(-steps // choice.keep), padded_states(A.shape[1])
    shapes = ((1, steps, x.shape[2]), (1, *A.shape), (1, n_kept, x.shape[2], states))
    dy, dstate, kept = (torch.randn(shape, generator=generator, device="cpu").to(x.device) for shape in shapes)
    kept[..., A.shape[1] :] = 0
    return _gradients(choice, dy.to(x.dtype), dstate, some, kept.to(_kept_dtype(x.dtype)), dt_softplus, reverse)


def _gradients(
    choice: Choice,
    dy_BLD: Tensor,
    dstate_BDN: Tensor,
    inputs: tuple[Any, ...],
    kept: Tensor,
    dt_softplus: bool,
    reverse: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As above, with one choice of kernel."""
    x_BLD, dt_BLD, _A, _B, _C, D_D, z_BLD, dt_bias_D, *_ = inputs
    lanes = choice.values == WALKED_STATES
    run = _Launch(*inputs, softplus=dt_softplus, reverse=reverse, choice=choice)
    dy = dy_BLD.contiguous()
    dx, ddt = (torch.empty(x_BLD.shape, dtype=v.dtype, device=v.device) for v in (x_BLD, dt_BLD))
    dz = x_BLD.new_empty(0) if z_BLD is None else torch.empty(x_BLD.shape, dtype=z_BLD.dtype, device=x_BLD.device)
    dB, dC = (run.A.new_empty(run.grid[0], run.batch, run.length, run.padded) for _ in range(2))
    dA, dstart, totals = run.new_states(), run.new_states(), run.new_states()
    dskip, dbias = (run.A.new_empty(run.batch, run.stretches, run.width) for _ in range(2))
    dlast = _pad_states(dstate_BDN, run.padded)
    outputs = (kept, dx, ddt, dz, dB, dC, dA, dskip, dbias, dstart)
    # The interpreter multiplies no 16-bit matrices.
    dot_type = tl.float32 if _INTERPRETED else tl.bfloat16
    # A product adds at least 16 channels.
    dot = choice.dot and x_BLD.dtype == torch.bfloat16 and run.block >= 16
    flags = {**run.flags, "WARPS": choice.warps, "STAGES": choice.stages, "DOT": dot, "DOT_TYPE": dot_type}
    sizes, entering = run.sizes(run.n_kept), dlast
    if run.stretches > 1 and run.padded <= WALKED_STATES:
        entering = run.enter(dlast, dy, backward=True)
    elif run.stretches > 1:
        zeros = run.new_states().zero_()
        buffers = (*outputs, totals)
        run.launch(scan_backward, (dy, zeros, *run.inputs(), *buffers), sizes, **flags, GRADS=False, TOTALS=True)
        entering = run.combine(dlast, dstart, totals, backward=True)
    if lanes:
        sizes = [run.length, run.stretch, run.n_kept, *run.step_sizes(run.x)]
        flags = run.step_flags(run.x) | {"HAS_SKIP": D_D is not None, "STORED": choice.stored, "DOT_TYPE": dot_type}
        run.launch(scan_gradients, (dy, entering, *run.inputs(), *outputs), sizes, **flags)
    else:
        buffers = (*outputs, totals)
        run.launch(scan_backward, (dy, entering, *run.inputs(), *buffers), sizes, **flags, GRADS=True, TOTALS=False)
    n = run.n_states
    dA = dA.sum((0, 1))[:, :n].contiguous()
    dB, dC = (v.sum(0)[..., :n].contiguous() for v in (dB, dC))
    dD = x_BLD.new_empty(0) if D_D is None else dskip.sum((0, 1))
    dbias = x_BLD.new_empty(0) if dt_bias_D is None else dbias.sum((0, 1))
    return dx, ddt, dA, dB, dC, dD, dz, dbias, run.without_padding(dstart[:, 0].contiguous())


_scan_backward = torch.library.custom_op("longseq::selective_scan_triton_backward", mutates_args=())(_run_backward)


@_scan_backward.register_fake
def _(dy, dstate, x, dt, A, B, C, D, z, dt_bias, mask, segments, kept, dt_softplus, reverse):  # type: ignore[no-untyped-def]
    def like(v, shape=None):  # type: ignore[no-untyped-def]
        return x.new_empty(0) if v is None else x.new_empty(v.shape if shape is None else shape, dtype=torch.float32)

    dx, ddt = x.new_empty(x.shape), x.new_empty(x.shape, dtype=dt.dtype)
    dz = x.new_empty(0) if z is None else x.new_empty(x.shape, dtype=z.dtype)
    dD, dbias = like(D), like(dt_bias)
    return dx, ddt, like(A), like(B), like(C), dD, dz, dbias, like(A, (x.shape[0], *A.shape))


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *values, h0, mask, segments, ctx.dt_softplus, ctx.reverse, _save = inputs
    ctx.h0_dtype = None if h0 is None else h0.dtype
    # Else autograd fills a gradient of the kept states, as large as they are, with zeros.
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*values, mask, segments, output[2])


def _backward(ctx, dy_BLD: Tensor | None, dstate_BDN: Tensor | None, _dkept: Tensor | None):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    x_BLD, A_DN = saved[0], saved[2]
    if dy_BLD is None:
        dy_BLD = torch.zeros_like(x_BLD)
    if dstate_BDN is None:
        dstate_BDN = x_BLD.new_zeros(x_BLD.shape[0], *A_DN.shape, dtype=torch.float32)
    backward = _run_backward if runs_eagerly(saved[0]) else _scan_backward
    arguments: tuple[Any, ...] = (dy_BLD, dstate_BDN, *saved, ctx.dt_softplus, ctx.reverse)
    *grads, dh0 = backward(*arguments)
    grads = [None if v is None else g.to(v.dtype) for g, v in zip(grads, saved, strict=False)]
    dh0 = None if ctx.h0_dtype is None else dh0.to(ctx.h0_dtype)
    return *grads, dh0, None, None, None, None, None


_scan.register_autograd(_backward, setup_context=_setup_context)
# The same without torch's dispatcher.
_eager = without_dispatcher(_run_forward, _setup_context, _backward)
