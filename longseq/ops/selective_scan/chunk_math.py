"""What the chunked selective scan does to one chunk, in place, on buffers (rows R, steps T, states N, channels D).

A chunk is scanned in two levels: all groups of a few steps advance together, then their last states are chained, then every
step receives what its group was handed. D is innermost, so dt and x broadcast along rows that are contiguous in memory and B
and C are scalars of a row, which is what vectorised element-wise loops like.
"""

import math

import torch
from torch import Tensor

_MAX_GROUP = 16
_LOG2_E = math.log2(math.e)


def expand_inputs(
    dt_RTD: Tensor, dtx_RTD: Tensor, A_ND: Tensor, B_RTN: Tensor, keep_RT: Tensor | None, a_out: Tensor, h_out: Tensor
) -> None:
    """Write the decays exp(dt A), zero where a segment begins, and the inputs dt x B."""
    # exp2 is several times faster than exp on CPUs.
    torch.mul(dt_RTD.unsqueeze(2), A_ND * _LOG2_E, out=a_out)
    a_out.exp2_()
    if keep_RT is not None:
        a_out.mul_(keep_RT[:, :, None, None])
    torch.mul(dtx_RTD.unsqueeze(2), B_RTN.unsqueeze(-1), out=h_out)


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


def scan_back_in_place(a_RTND: Tensor, p_RTND: Tensor, g_RTND: Tensor, g_RND: Tensor) -> Tensor:
    """g_t += a_{t+1} g_{t+1} from the last step to the first; p is scratch.

    `g_RND` is what the steps after the chunk add to the gradient of its last state; returned is what the chunk adds to
    the gradient of the state before it.
    """
    size = _group_size(a_RTND.shape[1])
    a_groups, p_groups, g_groups = (v.unflatten(1, (-1, size)) for v in (a_RTND, p_RTND, g_RTND))
    a_at, p_at, g_at = a_groups.unbind(2), p_groups.unbind(2), g_groups.unbind(2)
    p_at[-1].fill_(1.0)
    for j in range(size - 2, -1, -1):
        g_at[j].addcmul_(a_at[j + 1], g_at[j + 1])
        torch.mul(a_at[j + 1], p_at[j + 1], out=p_at[j])
    handed = [g_RND]
    firsts = list(zip(a_at[0].unbind(1), p_at[0].unbind(1), g_at[0].unbind(1), strict=True))
    for a_first, p_first, g_first in reversed(firsts):
        handed.append(torch.addcmul(g_first, p_first, handed[-1]).mul_(a_first))
    g_groups.addcmul_(p_groups, torch.stack(handed[-2::-1], dim=1).unsqueeze(2))
    return handed[-1]


def sum_over_states(v_RTN: Tensor, h_RTND: Tensor) -> Tensor:
    """sum_n v_n h_nd."""
    return torch.matmul(v_RTN.unsqueeze(2), h_RTND).squeeze(2)


def sum_over_channels(v_RTD: Tensor, h_RTND: Tensor) -> Tensor:
    """sum_d v_d h_nd, as row times transposed matrix: BLAS is many times slower at the matrix times column."""
    return torch.matmul(v_RTD.unsqueeze(2), h_RTND.transpose(2, 3)).squeeze(2)


def _group_size(steps: int) -> int:
    return max(size for size in range(1, _MAX_GROUP + 1) if steps % size == 0)
