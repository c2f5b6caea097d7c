"""The selective scan in plain PyTorch, chunk by chunk, with a backward pass that recomputes instead of remembering.

A chunk of `CHUNK` steps is expanded to (rows, steps, N, D) and scanned in two levels: all groups of a few steps advance
together, then their last states are chained, then every step receives what its group was handed. The states of a whole
sequence never exist at once; what is kept for backward is the inputs and one state per chunk.

Inside, the state is (B, N, D): with D innermost, dt and x broadcast along rows that are contiguous in memory and B and C
are scalars of a row, which is what vectorised element-wise loops like.
"""

import contextlib
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.ops.selective_scan.traceable import scan_traceable

CHUNK = 128
_MAX_GROUP = 16
# Elements of one expanded chunk: what stays in the last-level cache of a CPU, and what fills a GPU.
_BLOCK_ELEMENTS = {"cpu": 1 << 20, "cuda": 1 << 25}
_MIN_BLOCK_WIDTH = 64
_LOG2_E = math.log2(math.e)


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
    with without_autocast(x_BLD):
        dtype = torch.promote_types(x_BLD.dtype, torch.float32)
        x, dt, Bt, Ct, z = (
            None if v is None else _prepare(v, dtype, mask_BL, reverse) for v in (x_BLD, dt_BLD, B_BLN, C_BLN, z_BLD)
        )
        assert x is not None and dt is not None and Bt is not None and Ct is not None
        dt = _discretise(dt, dt_bias_D, dt_softplus, mask_BL.flip(1) if reverse and mask_BL is not None else mask_BL)
        keep_BL = None if segment_ids_BL is None else _keep_state(segment_ids_BL, mask_BL, reverse).to(dtype)
        A_ND = A_DN.to(dtype).t().contiguous()
        if initial_state_BDN is None:
            h0_BND = x.new_zeros(x.shape[0], *A_ND.shape)
        else:
            h0_BND = initial_state_BDN.to(dtype).transpose(1, 2).contiguous()
        if torch.compiler.is_exporting():
            y_BLD, state_BND = scan_traceable(x, dt, A_ND, Bt, Ct, keep_BL, h0_BND)
        else:
            y_BLD, state_BND, _ = _scan(x, dt, A_ND, Bt, Ct, keep_BL, h0_BND)
        if D_D is not None:
            y_BLD = y_BLD + D_D.to(dtype) * x
        if z is not None:
            y_BLD = y_BLD * F.silu(z)
        y_BLD = y_BLD.flip(1) if reverse else y_BLD
        return y_BLD.to(x_BLD.dtype), state_BND.transpose(1, 2)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Switch autocast off where it is on: decays and states lose what they remember in 16 bits."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def _prepare(v_BLX: Tensor, dtype: torch.dtype, mask_BL: Tensor | None, reverse: bool) -> Tensor:
    """Working precision, nothing at masked positions (NaN included), time running in scan order."""
    v_BLX = v_BLX.to(dtype)
    if mask_BL is not None:
        v_BLX = v_BLX.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
    return v_BLX.flip(1) if reverse else v_BLX


def _discretise(dt_BLD: Tensor, bias_D: Tensor | None, softplus: bool, mask_BL: Tensor | None) -> Tensor:
    """Step sizes as the recurrence uses them; zero, the identity step, where masked."""
    if bias_D is not None:
        dt_BLD = dt_BLD + bias_D.to(dt_BLD.dtype)
    if softplus:
        dt_BLD = F.softplus(dt_BLD)
    if mask_BL is not None and (softplus or bias_D is not None):
        dt_BLD = dt_BLD.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
    return dt_BLD


def _keep_state(segment_ids_BL: Tensor, mask_BL: Tensor | None, reverse: bool) -> Tensor:
    """False at a real position whose segment differs from that of the last real position before it."""
    if reverse:
        segment_ids_BL = segment_ids_BL.flip(1)
        mask_BL = None if mask_BL is None else mask_BL.flip(1)
    if mask_BL is None:
        same_BL = segment_ids_BL[:, 1:] == segment_ids_BL[:, :-1]
        return F.pad(same_BL, (1, 0), value=True)
    place_L = torch.arange(mask_BL.shape[1], device=mask_BL.device)
    last_real_BL = torch.where(mask_BL, place_L, -1).cummax(1).values
    previous_BL = F.pad(last_real_BL[:, :-1], (1, 0), value=-1)
    same_BL = segment_ids_BL == segment_ids_BL.gather(1, previous_BL.clamp(min=0))
    return same_BL | (previous_BL < 0) | ~mask_BL


@torch.library.custom_op("longseq::selective_scan_chunked", mutates_args=())
def _scan(
    x_BLD: Tensor, dt_BLD: Tensor, A_ND: Tensor, B_BLN: Tensor, C_BLN: Tensor, keep_BL: Tensor | None, h0_BND: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs, the last state, and the state at the start of each chunk (B, L / CHUNK, N, D)."""
    with without_autocast(x_BLD):
        length = x_BLD.shape[1]
        y_BLD = torch.empty_like(x_BLD, memory_format=torch.contiguous_format)
        state_BND = torch.empty_like(h0_BND)
        starts_BSND = h0_BND.new_empty(h0_BND.shape[0], _n_chunks(length), *h0_BND.shape[1:])
        for rows, cols in _blocks(x_BLD, A_ND.shape[0]):
            x, dt, A = x_BLD[rows, :, cols], dt_BLD[rows, :, cols], A_ND[:, cols]
            h = h0_BND[rows, :, cols]
            a_RTND, h_RTND = _buffers(2, x, A)
            for i, span in enumerate(_spans(length)):
                steps = span.stop - span.start
                starts_BSND[rows, i, :, cols] = h
                keep = None if keep_BL is None else keep_BL[rows, span]
                a, states = a_RTND[:, :steps], h_RTND[:, :steps]
                _decay_and_input(dt[:, span], x[:, span], A, B_BLN[rows, span], keep, a, states)
                h = scan_in_place(a, states, h)
                y_BLD[rows, span, cols] = torch.matmul(C_BLN[rows, span, None], states).squeeze(2)
            state_BND[rows, :, cols] = h
        return y_BLD, state_BND, starts_BSND


@_scan.register_fake
def _(x_BLD, dt_BLD, A_ND, B_BLN, C_BLN, keep_BL, h0_BND):  # noqa: ANN001, ANN202
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
    keep_BL: Tensor | None,
    starts_BSND: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, dt, A, B, C and the initial state; the states of a chunk are computed again from its first."""
    with without_autocast(x_BLD):
        dx_BLD, ddt_BLD = torch.empty_like(x_BLD), torch.empty_like(dt_BLD)
        dA_ND, dB_BLN, dC_BLN = torch.zeros_like(A_ND), torch.zeros_like(B_BLN), torch.zeros_like(C_BLN)
        dh0_BND = torch.empty_like(dstate_BND)
        for rows, cols in _blocks(x_BLD, A_ND.shape[0]):
            x, dt, A = x_BLD[rows, :, cols], dt_BLD[rows, :, cols], A_ND[:, cols]
            g_RND = dstate_BND[rows, :, cols]
            buffers = _buffers(4, x, A)
            for i, span in reversed(list(enumerate(_spans(x_BLD.shape[1])))):
                steps = span.stop - span.start
                Bt, Ct, dy = B_BLN[rows, span], C_BLN[rows, span], dy_BLD[rows, span, cols]
                a, p, states, g = (buffer[:, :steps] for buffer in buffers)
                keep = None if keep_BL is None else keep_BL[rows, span]
                _decay_and_input(dt[:, span], x[:, span], A, Bt, keep, a, states)
                start_RND = starts_BSND[rows, i, :, cols]
                scan_in_place(p.copy_(a), states, start_RND)
                dC_BLN[rows, span] += _sum_over_channels(dy, states)
                torch.mul(Ct.unsqueeze(-1), dy.unsqueeze(2), out=g)
                g_RND = _scan_back_in_place(a, p, g, g_RND)
                # From here on a holds g_t times the part of h_t that came from h_{t-1}: the gradient of the log-decay.
                a[:, 1:].mul_(states[:, :-1])
                a[:, 0].mul_(start_RND)
                a.mul_(g)
                dinput = torch.matmul(Bt.unsqueeze(2), g).squeeze(2)
                ddt_BLD[rows, span, cols] = torch.mul(a, A, out=p).sum(2).addcmul_(dinput, x[:, span])
                dx_BLD[rows, span, cols] = dinput.mul_(dt[:, span])
                dB_BLN[rows, span] += _sum_over_channels(dt[:, span] * x[:, span], g)
                dA_ND[:, cols] += torch.mul(a, dt[:, span].unsqueeze(2), out=p).sum((0, 1))
            dh0_BND[rows, :, cols] = g_RND
        return dx_BLD, ddt_BLD, dA_ND, dB_BLN, dC_BLN, dh0_BND


@_scan_backward.register_fake
def _(dy_BLD, dstate_BND, x_BLD, dt_BLD, A_ND, B_BLN, C_BLN, keep_BL, starts_BSND):  # noqa: ANN001, ANN202
    return tuple(torch.empty_like(v) for v in (x_BLD, dt_BLD, A_ND, B_BLN, C_BLN, dstate_BND))


def _setup_context(ctx, inputs, output) -> None:  # noqa: ANN001
    ctx.save_for_backward(*inputs[:6], output[2])


def _backward(ctx, dy_BLD: Tensor, dstate_BND: Tensor, _dstarts: Tensor | None):  # noqa: ANN001, ANN202
    x, dt, A, Bt, Ct, keep, starts = ctx.saved_tensors
    dx, ddt, dA, dB, dC, dh0 = _scan_backward(dy_BLD, dstate_BND, x, dt, A, Bt, Ct, keep, starts)
    return dx, ddt, dA, dB, dC, None, dh0


_scan.register_autograd(_backward, setup_context=_setup_context)


def _n_chunks(length: int) -> int:
    return (length + CHUNK - 1) // CHUNK


def _spans(length: int) -> list[slice]:
    return [slice(start, min(start + CHUNK, length)) for start in range(0, length, CHUNK)]


def _blocks(x_BLD: Tensor, n_state: int) -> list[tuple[slice, slice]]:
    """Blocks of rows and channels whose expanded chunk keeps to the budget; whole rows first."""
    batch, length, width = x_BLD.shape
    budget = _BLOCK_ELEMENTS.get(x_BLD.device.type, _BLOCK_ELEMENTS["cuda"]) // (min(length, CHUNK) * n_state)
    cols = min(width, max(_MIN_BLOCK_WIDTH, budget // _MIN_BLOCK_WIDTH * _MIN_BLOCK_WIDTH))
    rows = max(1, budget // cols)
    return [
        (slice(r, min(r + rows, batch)), slice(c, min(c + cols, width)))
        for r in range(0, batch, rows)
        for c in range(0, width, cols)
    ]


def _buffers(count: int, x_RLD: Tensor, A_ND: Tensor) -> list[Tensor]:
    shape = (x_RLD.shape[0], min(x_RLD.shape[1], CHUNK), *A_ND.shape)
    return [x_RLD.new_empty(shape) for _ in range(count)]


def _decay_and_input(
    dt: Tensor, x: Tensor, A_ND: Tensor, Bt: Tensor, keep: Tensor | None, a_out: Tensor, b_out: Tensor
) -> None:
    """Write exp(dt A), zero where a segment begins, and dt B x. exp2 is several times faster than exp on CPUs."""
    torch.mul(dt.unsqueeze(2), A_ND * _LOG2_E, out=a_out)
    a_out.exp2_()
    if keep is not None:
        a_out.mul_(keep[:, :, None, None])
    torch.mul((dt * x).unsqueeze(2), Bt.unsqueeze(-1), out=b_out)


def _sum_over_channels(v_RTD: Tensor, h_RTND: Tensor) -> Tensor:
    """sum_d v_d h_nd, as row times transposed matrix: BLAS is many times slower at the matrix times column."""
    return torch.matmul(v_RTD.unsqueeze(2), h_RTND.transpose(2, 3)).squeeze(2)


def _group_size(steps: int) -> int:
    return max(size for size in range(1, _MAX_GROUP + 1) if steps % size == 0)


def scan_in_place(a_RTND: Tensor, h_RTND: Tensor, h0_RND: Tensor) -> Tensor:
    """Turn inputs into states in h; a becomes the decay since the start of each group. Returns the last state."""
    size = _group_size(a_RTND.shape[1])
    a_groups, h_groups = a_RTND.unflatten(1, (-1, size)), h_RTND.unflatten(1, (-1, size))
    a_at, h_at = a_groups.unbind(2), h_groups.unbind(2)
    for j in range(1, size):
        h_at[j].addcmul_(a_at[j], h_at[j - 1])
        a_at[j].mul_(a_at[j - 1])
    handed = [h0_RND]
    for a_last, h_last in zip(a_at[-1].unbind(1), h_at[-1].unbind(1), strict=True):
        handed.append(torch.addcmul(h_last, a_last, handed[-1]))
    h_groups.addcmul_(a_groups, torch.stack(handed[:-1], dim=1).unsqueeze(2))
    return handed[-1]


def _scan_back_in_place(a_RTND: Tensor, p_RTND: Tensor, g_RTND: Tensor, g_RND: Tensor) -> Tensor:
    """g_t += a_{t+1} g_{t+1} from the last step to the first; p is scratch. Returns the gradient of the first state."""
    size = _group_size(a_RTND.shape[1])
    a_groups, p_groups, g_groups = (v.unflatten(1, (-1, size)) for v in (a_RTND, p_RTND, g_RTND))
    a_at, p_at, g_at = a_groups.unbind(2), p_groups.unbind(2), g_groups.unbind(2)
    p_at[-1].fill_(1.0)
    for j in range(size - 2, -1, -1):
        g_at[j].addcmul_(a_at[j + 1], g_at[j + 1])
        torch.mul(a_at[j + 1], p_at[j + 1], out=p_at[j])
    handed = [g_RND]
    for a_first, p_first, g_first in reversed(list(zip(a_at[0].unbind(1), p_at[0].unbind(1), g_at[0].unbind(1), strict=True))):
        handed.append(torch.addcmul(g_first, p_first, handed[-1]).mul_(a_first))
    g_groups.addcmul_(p_groups, torch.stack(handed[-2::-1], dim=1).unsqueeze(2))
    return handed[-1]
