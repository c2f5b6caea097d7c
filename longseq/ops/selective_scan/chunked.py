"""The selective scan in plain PyTorch, chunk by chunk, with a backward pass that recomputes instead of remembering.

Neither the states nor the decays of a whole sequence ever exist at once, and everything around the recurrence (softplus,
skip, gate) is done while a chunk is in the cache. What is kept for backward is the inputs and one state per chunk.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.ops.autocast import without_autocast
from longseq.ops.selective_scan.chunk_math import (
    expand_inputs,
    scan_back_in_place,
    scan_in_place,
    sum_over_channels,
    sum_over_states,
)
from longseq.ops.selective_scan.traceable import scan_traceable
from longseq.ops.tracing import is_exporting

CHUNK = 128
# Elements of one expanded chunk: what stays in the last-level cache of a CPU, and what fills a GPU.
_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}
_MIN_BLOCK_WIDTH = 64


def selective_scan_chunked(
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
    """Selective scan in chunks; arguments as in `longseq.ops.selective_scan.selective_scan`."""
    dtype = torch.promote_types(x_BLD.dtype, torch.float32)
    x, dt, Bt, Ct = (_prepare(v, mask_BL, reverse) for v in (x_BLD, dt_BLD, B_BLN, C_BLN))
    z = None if z_BLD is None else _prepare(z_BLD, mask_BL, reverse)
    if reverse:
        mask_BL = None if mask_BL is None else mask_BL.flip(1)
        segment_ids_BL = None if segment_ids_BL is None else segment_ids_BL.flip(1)
    keep_BL = None if segment_ids_BL is None else keep_state(segment_ids_BL, mask_BL).to(dtype)
    A_ND = A_DN.to(dtype).t().contiguous()
    if initial_state_BDN is None:
        h0_BND = torch.zeros(x.shape[0], *A_ND.shape, dtype=dtype, device=x.device)
    else:
        h0_BND = initial_state_BDN.to(dtype).transpose(1, 2).contiguous()
    if is_exporting():
        y_BLD, state_BND = scan_traceable(x, dt, A_ND, Bt, Ct, D_D, z, dt_bias_D, mask_BL, keep_BL, h0_BND, dt_softplus)
    else:
        y_BLD, state_BND, _ = _scan(x, dt, A_ND, Bt, Ct, D_D, z, dt_bias_D, mask_BL, keep_BL, h0_BND, dt_softplus)
    y_BLD = y_BLD.flip(1) if reverse else y_BLD
    return y_BLD.to(x_BLD.dtype), state_BND.transpose(1, 2)


def _prepare(v_BLX: Tensor, mask_BL: Tensor | None, reverse: bool) -> Tensor:
    """Nothing at masked positions (NaN included), and time running in scan order."""
    if mask_BL is not None:
        v_BLX = v_BLX.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
    return v_BLX.flip(1) if reverse else v_BLX


def keep_state(segment_ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
    """False at a real position whose segment differs from that of the last real position before it."""
    if mask_BL is None:
        return F.pad(segment_ids_BL[:, 1:] == segment_ids_BL[:, :-1], (1, 0), value=True)
    place_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    last_real_BL = torch.where(mask_BL, place_L, -1).cummax(1).values
    previous_BL = F.pad(last_real_BL[:, :-1], (1, 0), value=-1)
    same_BL = segment_ids_BL == segment_ids_BL.gather(1, previous_BL.clamp(min=0))
    return same_BL | (previous_BL < 0) | ~mask_BL


class _Inputs(NamedTuple):
    """The scan's inputs, of all of it or of a part."""

    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None
    z: Tensor | None
    dt_bias: Tensor | None
    mask: Tensor | None
    keep: Tensor | None
    dt_softplus: bool

    def part(self, rows: slice, span: slice, cols: slice) -> "_Inputs":
        """Some rows, steps and channels, in the working precision, which is that of A."""
        dtype = self.A.dtype

        def cut(v: Tensor | None, *where: slice) -> Tensor | None:
            return None if v is None else v[where].to(dtype)

        return _Inputs(
            self.x[rows, span, cols].to(dtype),
            self.dt[rows, span, cols].to(dtype),
            self.A[:, cols],
            self.B[rows, span].to(dtype),
            self.C[rows, span].to(dtype),
            cut(self.D, cols),
            cut(self.z, rows, span, cols),
            cut(self.dt_bias, cols),
            None if self.mask is None else self.mask[rows, span],
            cut(self.keep, rows, span),
            self.dt_softplus,
        )

    def step_sizes(self) -> tuple[Tensor, Tensor]:
        """Before and after softplus; the latter zero, the identity step, where masked."""
        before = self.dt if self.dt_bias is None else self.dt + self.dt_bias
        after = F.softplus(before) if self.dt_softplus else before
        return before, after if self.mask is None else after.masked_fill(~self.mask.unsqueeze(-1), 0.0)

    def outputs(self, states_RTND: Tensor) -> Tensor:
        """Before the gate."""
        y = sum_over_states(self.C, states_RTND)
        return y if self.D is None else y.addcmul_(self.x, self.D)

    def blocks(self) -> Iterator[tuple[slice, slice]]:
        """Rows and channels whose expanded chunk keeps to the budget; whole rows first."""
        batch, length, width = self.x.shape
        budget = _BLOCK_ELEMENTS.get(self.x.device.type, _BLOCK_ELEMENTS["cuda"])
        budget //= min(length, CHUNK) * self.A.shape[0]
        cols = min(width, max(_MIN_BLOCK_WIDTH, budget // _MIN_BLOCK_WIDTH * _MIN_BLOCK_WIDTH))
        rows = max(1, budget // cols)
        for r in range(0, batch, rows):
            for c in range(0, width, cols):
                yield slice(r, min(r + rows, batch)), slice(c, min(c + cols, width))

    def buffers(self, count: int, rows: slice, cols: slice) -> list[Tensor]:
        """Room for expanded chunks of a block."""
        steps = min(self.x.shape[1], CHUNK)
        shape = (rows.stop - rows.start, steps, self.A.shape[0], cols.stop - cols.start)
        return [self.A.new_empty(shape) for _ in range(count)]


def _n_chunks(length: int) -> int:
    return (length + CHUNK - 1) // CHUNK


def _spans(length: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


@torch.library.custom_op("longseq::selective_scan_chunked", mutates_args=())
def _scan(
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_ND: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor | None,
    z_BLD: Tensor | None,
    dt_bias_D: Tensor | None,
    mask_BL: Tensor | None,
    keep_BL: Tensor | None,
    h0_BND: Tensor,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the last state, and the state at the start of each chunk (B, L / CHUNK, N, D)."""
    inputs = _Inputs(x_BLD, dt_BLD, A_ND, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, mask_BL, keep_BL, dt_softplus)
    y_BLD = torch.empty_like(x_BLD, memory_format=torch.contiguous_format)
    state_BND = torch.empty_like(h0_BND)
    starts_BSND = h0_BND.new_empty(h0_BND.shape[0], _n_chunks(x_BLD.shape[1]), *h0_BND.shape[1:])
    with without_autocast(x_BLD):
        for rows, cols in inputs.blocks():
            h = h0_BND[rows, :, cols]
            buffers = inputs.buffers(2, rows, cols)
            for i, span in enumerate(_spans(x_BLD.shape[1])):
                starts_BSND[rows, i, :, cols] = h
                part = inputs.part(rows, span, cols)
                _, dt = part.step_sizes()
                a, states = (buffer[:, : dt.shape[1]] for buffer in buffers)
                expand_inputs(dt, dt * part.x, part.A, part.B, part.keep, a, states)
                h = scan_in_place(a, states, h)
                y = part.outputs(states)
                y_BLD[rows, span, cols] = y if part.z is None else y.mul_(F.silu(part.z))
            state_BND[rows, :, cols] = h
    return y_BLD, state_BND, starts_BSND


@_scan.register_fake
def _(x_BLD, dt_BLD, A_ND, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, mask_BL, keep_BL, h0_BND, dt_softplus):  # type: ignore[no-untyped-def]
    starts = h0_BND.new_empty(h0_BND.shape[0], _n_chunks(x_BLD.shape[1]), *h0_BND.shape[1:])
    return x_BLD.new_empty(x_BLD.shape), h0_BND.new_empty(h0_BND.shape), starts


@torch.library.custom_op("longseq::selective_scan_chunked_backward", mutates_args=())
def _scan_backward(
    dy_BLD: Tensor,
    dstate_BND: Tensor,
    x_BLD: Tensor,
    dt_BLD: Tensor,
    A_ND: Tensor,
    B_BLN: Tensor,
    C_BLN: Tensor,
    D_D: Tensor | None,
    z_BLD: Tensor | None,
    dt_bias_D: Tensor | None,
    mask_BL: Tensor | None,
    keep_BL: Tensor | None,
    starts_BSND: Tensor,
    dt_softplus: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C, D, z, dt_bias and the initial state (of those left out: of any value).

    The states of a chunk are computed again from its first one.
    """
    inputs = _Inputs(x_BLD, dt_BLD, A_ND, B_BLN, C_BLN, D_D, z_BLD, dt_bias_D, mask_BL, keep_BL, dt_softplus)
    dx_BLD, ddt_BLD, dz_BLD = (
        torch.empty(x_BLD.shape, dtype=v.dtype, device=v.device) for v in (x_BLD, dt_BLD, _or(z_BLD, x_BLD))
    )
    dB_BLN, dC_BLN = A_ND.new_zeros(B_BLN.shape), A_ND.new_zeros(C_BLN.shape)
    dA_ND, dD_D, dbias_D = torch.zeros_like(A_ND), A_ND.new_zeros(A_ND.shape[1]), A_ND.new_zeros(A_ND.shape[1])
    dh0_BND = torch.empty_like(dstate_BND)
    with without_autocast(x_BLD):
        for rows, cols in inputs.blocks():
            g_RND = dstate_BND[rows, :, cols]
            buffers = inputs.buffers(4, rows, cols)
            for i, span in reversed(list(enumerate(_spans(x_BLD.shape[1])))):
                part, start_RND = inputs.part(rows, span, cols), starts_BSND[rows, i, :, cols]
                before, dt = part.step_sizes()
                a, p, states, g = (buffer[:, : dt.shape[1]] for buffer in buffers)
                expand_inputs(dt, dt * part.x, part.A, part.B, part.keep, a, states)
                scan_in_place(p.copy_(a), states, start_RND)
                dy = dy_BLD[rows, span, cols].to(A_ND.dtype)
                if part.z is not None:
                    sigmoid = torch.sigmoid(part.z)
                    slope = sigmoid * (1.0 + part.z * (1.0 - sigmoid))
                    dz_BLD[rows, span, cols] = slope.mul_(part.outputs(states)).mul_(dy)
                    dy = dy * sigmoid.mul_(part.z)
                dC_BLN[rows, span] += sum_over_channels(dy, states)
                torch.mul(part.C.unsqueeze(-1), dy.unsqueeze(2), out=g)
                g_RND = scan_back_in_place(a, p, g, g_RND)
                dB_BLN[rows, span] += sum_over_channels(dt * part.x, g)
                # From here on a is g_t times the part of h_t that came from h_{t-1}: the gradient of the log-decay.
                a[:, 1:].mul_(states[:, :-1])
                a[:, 0].mul_(start_RND)
                a.mul_(g)
                dA_ND[:, cols] += torch.mul(a, dt.unsqueeze(2), out=p).sum((0, 1))
                dinput = sum_over_states(part.B, g)
                ddt = torch.mul(a, part.A, out=p).sum(2).addcmul_(dinput, part.x)
                ddt = ddt if part.mask is None else ddt.masked_fill_(~part.mask.unsqueeze(-1), 0.0)
                ddt = ddt.mul_(torch.sigmoid(before)) if dt_softplus else ddt
                ddt_BLD[rows, span, cols] = ddt
                dbias_D[cols] += ddt.sum((0, 1))
                dinput.mul_(dt)
                dx_BLD[rows, span, cols] = dinput if part.D is None else dinput.addcmul_(dy, part.D)
                dD_D[cols] += dy.mul(part.x).sum((0, 1))
            dh0_BND[rows, :, cols] = g_RND
    return dx_BLD, ddt_BLD, dA_ND, dB_BLN, dC_BLN, dD_D, dz_BLD, dbias_D, dh0_BND


def _or(first: Tensor | None, second: Tensor) -> Tensor:
    return second if first is None else first


@_scan_backward.register_fake
def _(dy, dstate, x, dt, A, B, C, D, z, dt_bias, mask, keep, starts, dt_softplus):  # type: ignore[no-untyped-def]
    like_x = [x.new_empty(x.shape, dtype=v.dtype) for v in (x, dt, _or(z, x))]
    channel = A.new_empty(A.shape[1])
    maps = [A.new_empty(B.shape) for _ in range(2)]
    return like_x[0], like_x[1], A.new_empty(A.shape), *maps, channel, like_x[2], channel.clone(), torch.empty_like(dstate)


def _setup_context(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    *tensors, _h0, ctx.dt_softplus = inputs
    ctx.save_for_backward(*tensors, output[2])


def _backward(ctx, dy_BLD: Tensor, dstate_BND: Tensor, _dstarts: Tensor | None):  # type: ignore[no-untyped-def]
    saved = ctx.saved_tensors
    *grads, dh0 = _scan_backward(dy_BLD, dstate_BND, *saved, ctx.dt_softplus)
    grads = [None if v is None else g.to(v.dtype) for g, v in zip(grads, saved, strict=False)]
    return *grads, None, None, dh0, None


_scan.register_autograd(_backward, setup_context=_setup_context)
