"""The selective scan as a graph of fixed size for `torch.export`: any batch, any length, nothing but plain tensor algebra.

All chunks of `STEPS` steps advance together from zero, one unrolled step after the other. Then the chunks of a group of
`CHUNKS` follow each other in the same way, and groups are combined by doubling, with a number of rounds that does not depend
on the length. Last, the state handed to each chunk adds to the outputs of its steps: over t steps it has decayed by
exp(A (dt_1 + ... + dt_t)), whose exponent is never positive, so no product or quotient can overflow.

Chunks are read with gathers: slices and views of a padded length come with conditions on the length that an exporter cannot
prove.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.ops.tracing import is_exporting_onnx

# Few steps make many chunks, whose states no cache holds; many make a large graph.
STEPS = 16
CHUNKS = 8
# Doubling over 2^16 groups covers eight million tokens.
_ROUNDS = 16


def scan_traceable(
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
) -> tuple[Tensor, Tensor]:
    """The scan of `longseq.ops.selective_scan.chunked`, on inputs that are zero where masked; differentiable."""
    dtype = A_ND.dtype
    x_BLD, dt_BLD, B_BLN, C_BLN = (v.to(dtype) for v in (x_BLD, dt_BLD, B_BLN, C_BLN))
    if dt_bias_D is not None:
        dt_BLD = dt_BLD + dt_bias_D.to(dtype)
    if dt_softplus:
        dt_BLD = _softplus(dt_BLD) if is_exporting_onnx() else F.softplus(dt_BLD)
    if mask_BL is not None:
        dt_BLD = dt_BLD * mask_BL.to(dtype).unsqueeze(-1)
    y_BLD, state_BND = _recurrence(x_BLD, dt_BLD, A_ND, B_BLN, C_BLN, keep_BL, h0_BND)
    if D_D is not None:
        y_BLD = y_BLD + D_D.to(dtype) * x_BLD
    if z_BLD is not None:
        y_BLD = y_BLD * F.silu(z_BLD.to(dtype))
    return y_BLD, state_BND


def _softplus(x: Tensor) -> Tensor:
    """max(x, 0) + log1p(exp(-|x|)) in what onnxruntime has vector code for; its own takes three times as long.

    `log1p(e) = log(u) e / (u - 1)` with u = 1 + e as it was rounded is exact to the last bits; where u is 1, it is e.
    """
    e = torch.exp(-x.abs())
    u = 1 + e
    smallest = torch.finfo(x.dtype).tiny
    return x.clamp(min=0) + e * (u.log().clamp(min=smallest) / (u - 1).clamp(min=smallest))


def _recurrence(
    x_BLD: Tensor, dt_BLD: Tensor, A_ND: Tensor, B_BLN: Tensor, C_BLN: Tensor, keep_BL: Tensor | None, h0_BND: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs and last state of h_t = keep_t exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t.

    T is the number of steps of a chunk, S that of chunks: the first of each of the G groups, then the second ones, and so
    on. Memory is a few (B, S, N, D) tensors, and the inputs again.
    """
    length = x_BLD.shape[1]
    n_steps, n_chunks, n_groups = _sizes(length)
    place_G = torch.arange(n_groups, device=x_BLD.device)
    chunk_S = (place_G * n_chunks + torch.arange(n_chunks, device=x_BLD.device).unsqueeze(1)).flatten()
    place_TS = chunk_S * n_steps + torch.arange(n_steps, device=x_BLD.device).unsqueeze(1)
    # A step of size zero changes nothing, so padding at the end leaves the last state as it is.
    dt_BTSD, dtx_BTSD, B_BTSN, C_BTSN = (_laid_out(v, place_TS) for v in (dt_BLD, dt_BLD * x_BLD, B_BLN, C_BLN))
    keep_BTS1 = None if keep_BL is None else _laid_out(keep_BL.unsqueeze(-1), place_TS, value=1.0)
    dt_BTS1D, dtx_BTS1D, B_BTSN1 = dt_BTSD.unsqueeze(3), dtx_BTSD.unsqueeze(3), B_BTSN.unsqueeze(4)
    C_BTS1N = C_BTSN.unsqueeze(3)
    outputs, h_BSND = [], dtx_BTS1D[:, 0] * B_BTSN1[:, 0]
    for t in range(n_steps):
        if t > 0:
            decay_BSND = _decay(dt_BTS1D[:, t], A_ND, None if keep_BTS1 is None else keep_BTS1[:, t])
            h_BSND = decay_BSND * h_BSND + dtx_BTS1D[:, t] * B_BTSN1[:, t]
        outputs.append(C_BTS1N[:, t] @ h_BSND)
    # From here on step sizes add up from a chunk's first on, and a reset holds until its end.
    dt_BTS1D = dt_BTS1D.cumsum(1)
    keep_BTS1 = None if keep_BTS1 is None else keep_BTS1.cumprod(1)
    total_keep_BS1 = None if keep_BTS1 is None else keep_BTS1[:, -1]
    handed_BSND, state_BND = _hand_over(h_BSND, dt_BTS1D[:, -1], total_keep_BS1, A_ND, h0_BND, place_G)
    for t in range(n_steps):
        decay_BSND = _decay(dt_BTS1D[:, t], A_ND, None if keep_BTS1 is None else keep_BTS1[:, t])
        outputs[t] = outputs[t] + C_BTS1N[:, t] @ (decay_BSND * handed_BSND)
    # Outputs stand by step, then by chunk as above.
    place_L = torch.arange(length, device=x_BLD.device)
    chunk_L = place_L // n_steps
    stands_L = (place_L % n_steps * n_chunks + chunk_L % n_chunks) * n_groups + chunk_L // n_chunks
    return torch.cat(outputs, dim=1).squeeze(2).index_select(1, stands_L), state_BND


def _sizes(length: int) -> tuple[int, int, int]:
    """Steps of a chunk, chunks of a group, and groups."""
    if not isinstance(length, int):
        # Two groups at least, whatever the length: a size that can be 1 would be fixed in the exported graph.
        return STEPS, CHUNKS, (length + 2 * STEPS * CHUNKS - 1) // (STEPS * CHUNKS)
    n_steps = min(STEPS, length)
    n_chunks = min(CHUNKS, -(-length // n_steps))
    return n_steps, n_chunks, -(-length // (n_steps * n_chunks))


def _laid_out(v_BLX: Tensor, place_TS: Tensor, value: float = 0.0) -> Tensor:
    """(B, T, S, X): the inputs at these positions, `value` behind the last one."""
    padded = F.pad(v_BLX, (0, 0, 0, 1), value=value)
    return padded.index_select(1, place_TS.flatten().clamp(max=v_BLX.shape[1])).unflatten(1, place_TS.shape)


def _decay(dt_BS1D: Tensor, A_ND: Tensor, keep_BS1: Tensor | None) -> Tensor:
    decay_BSND = torch.exp(dt_BS1D * A_ND)
    return decay_BSND if keep_BS1 is None else decay_BSND * keep_BS1.unsqueeze(3)


def _hand_over(
    h_BSND: Tensor, dt_BS1D: Tensor, keep_BS1: Tensor | None, A_ND: Tensor, h0_BND: Tensor, place_G: Tensor
) -> tuple[Tensor, Tensor]:
    """The state that every chunk starts from, and the last one; `h`, `dt` and `keep` are the chunks' own over all steps."""
    sizes = (h_BSND.shape[1] // place_G.shape[0], place_G.shape[0])
    made_BcGND = h_BSND.unflatten(1, sizes)
    decay_BcGND = _decay(dt_BS1D, A_ND, keep_BS1).unflatten(1, sizes)
    h_BGND, total_BGND = made_BcGND[:, 0], decay_BcGND[:, 0]
    for c in range(1, sizes[0]):
        h_BGND = decay_BcGND[:, c] * h_BGND + made_BcGND[:, c]
        total_BGND = decay_BcGND[:, c] * total_BGND
    states_BGND = _double(h_BGND, total_BGND, h0_BND)
    handed = [states_BGND.index_select(1, place_G)]
    for c in range(sizes[0] - 1):
        handed.append(decay_BcGND[:, c] * handed[-1] + made_BcGND[:, c])
    return torch.cat(handed, dim=1), states_BGND[:, -1]


def _double(h_BGND: Tensor, decay_BGND: Tensor, h0_BND: Tensor) -> Tensor:
    """States before the first group and after each, from those of the groups scanned alone, by Hillis-Steele doubling."""
    # The initial state stands first and nothing before it counts: what already reaches back to it has a decay of zero.
    h0_B1ND = h0_BND.unsqueeze(1)
    states, decay = torch.cat([h0_B1ND, h_BGND], dim=1), torch.cat([torch.zeros_like(h0_B1ND), decay_BGND], dim=1)
    place = torch.arange(states.shape[1], device=states.device)
    n_groups = h_BGND.shape[1]
    for k in range(n_groups.bit_length() if isinstance(n_groups, int) else _ROUNDS):
        source = (place - 2**k).clamp(min=0)
        states = states + decay * states.index_select(1, source)
        decay = decay * decay.index_select(1, source)
    return states
