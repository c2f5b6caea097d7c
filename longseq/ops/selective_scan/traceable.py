"""The selective scan as a graph of fixed size for `torch.export`: any batch, any length, nothing but plain tensor algebra.

All chunks of `STEPS` steps advance together, one unrolled step after the other; their last states are then combined by
doubling, with a number of rounds that does not depend on the length. Chunks are read with gathers: slices and views of a
padded length come with conditions on the length that an exporter cannot prove.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS = 16
# Doubling over 2^20 chunks of 16 steps covers sixteen million tokens.
_ROUNDS = 20


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
        dt_BLD = F.softplus(dt_BLD)
    if mask_BL is not None:
        dt_BLD = dt_BLD.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
    y_BLD, state_BND = _recurrence(x_BLD, dt_BLD, A_ND, B_BLN, C_BLN, keep_BL, h0_BND)
    if D_D is not None:
        y_BLD = y_BLD + D_D.to(dtype) * x_BLD
    if z_BLD is not None:
        y_BLD = y_BLD * F.silu(z_BLD.to(dtype))
    return y_BLD, state_BND


def _recurrence(
    x_BLD: Tensor, dt_BLD: Tensor, A_ND: Tensor, B_BLN: Tensor, C_BLN: Tensor, keep_BL: Tensor | None, h0_BND: Tensor
) -> tuple[Tensor, Tensor]:
    """Outputs and last state of h_t = keep_t exp(dt_t A) h_{t-1} + dt_t B_t x_t, y_t = C_t h_t.

    S is the number of chunks. Memory is one (B, S, N, D) tensor for each step of a chunk at most.
    """
    length = x_BLD.shape[1]
    # Two chunks at least, whatever the length: a size that can be 1 would be fixed in the exported graph.
    place_S = torch.arange(length // STEPS + 2, device=x_BLD.device)
    # A step of size zero changes nothing, so padding at the end leaves the last state as it is.
    dt, dtx, Bt, Ct = (_steps(v, place_S) for v in (dt_BLD, dt_BLD * x_BLD, B_BLN, C_BLN))
    keep: list[Tensor | None] = [None] * STEPS
    if keep_BL is not None:
        keep = [*_steps(keep_BL.unsqueeze(-1), place_S, value=1.0)]
    h_BSND, outputs = torch.zeros_like(dt[0].unsqueeze(2) * A_ND), []
    for t in range(STEPS):
        h_BSND = _decay(dt[t], A_ND, keep[t]) * h_BSND + dtx[t].unsqueeze(2) * Bt[t].unsqueeze(3)
        outputs.append(_read(h_BSND, Ct[t]))
    last_BSND = _combine(dt, A_ND, keep, h_BSND, h0_BND, place_S)
    # What the state handed to each chunk adds to its outputs.
    before_BSND = last_BSND.index_select(1, (place_S - 1).clamp(min=0))
    handed_BSND = torch.where((place_S == 0)[:, None, None], h0_BND.unsqueeze(1), before_BSND)
    for t in range(STEPS):
        handed_BSND = _decay(dt[t], A_ND, keep[t]) * handed_BSND
        outputs[t] = outputs[t] + _read(handed_BSND, Ct[t])
    y_BLD = torch.stack(outputs, dim=2).flatten(1, 2)
    return y_BLD.index_select(1, torch.arange(length, device=x_BLD.device)), last_BSND[:, -1]


def _steps(v_BLX: Tensor, place_S: Tensor, value: float = 0.0) -> list[Tensor]:
    """The first steps of all chunks, the second steps, and so on: STEPS times (B, S, X)."""
    length = v_BLX.shape[1]
    padded = F.pad(v_BLX, (0, 0, 0, 1), value=value)
    return [padded.index_select(1, (place_S * STEPS + t).clamp(max=length)) for t in range(STEPS)]


def _decay(dt_BSD: Tensor, A_ND: Tensor, keep_BS1: Tensor | None) -> Tensor:
    decay_BSND = torch.exp(dt_BSD.unsqueeze(2) * A_ND)
    return decay_BSND if keep_BS1 is None else decay_BSND * keep_BS1.unsqueeze(2)


def _read(h_BSND: Tensor, C_BSN: Tensor) -> Tensor:
    return (h_BSND * C_BSN.unsqueeze(3)).sum(2)


def _combine(
    dt: list[Tensor], A_ND: Tensor, keep: list[Tensor | None], h_BSND: Tensor, h0_BND: Tensor, place_S: Tensor
) -> Tensor:
    """The last state of every chunk, from those of the chunks scanned alone, by Hillis-Steele doubling."""
    total_BS1 = None
    if keep[0] is not None:
        total_BS1 = torch.stack([k for k in keep if k is not None]).prod(0)
    decay_BSND = _decay(torch.stack(dt).sum(0), A_ND, total_BS1)
    for k in range(_ROUNDS):
        source_S = place_S - 2**k
        exists = (source_S >= 0)[:, None, None]
        source_S = source_S.clamp(min=0)
        h_BSND = h_BSND + decay_BSND * torch.where(exists, h_BSND.index_select(1, source_S), 0.0)
        decay_BSND = decay_BSND * torch.where(exists, decay_BSND.index_select(1, source_S), 1.0)
    return h_BSND + decay_BSND * h0_BND.unsqueeze(1)
