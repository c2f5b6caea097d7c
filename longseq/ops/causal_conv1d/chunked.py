"""The causal depthwise convolution as K shifted multiply-adds on (B, L, D): no transpose, any length, traceable."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def causal_conv1d_chunked(
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
    """Causal convolution of all positions at once; arguments as in `longseq.ops.causal_conv1d`."""
    dtype = torch.promote_types(x_BLD.dtype, torch.float32)
    history, length = weight_DK.shape[1] - 1, x_BLD.shape[1]
    x = x_BLD.to(dtype)
    if reverse:
        x = x.flip(1)
        mask_BL = None if mask_BL is None else mask_BL.flip(1)
        segment_ids_BL = None if segment_ids_BL is None else segment_ids_BL.flip(1)
    if mask_BL is not None:
        x = x.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
    # Position t of the sequence stands at t + history; before it, what came earlier.
    extended = _prepend(x, history, initial_state_BKD, mask_BL)
    runs = None if segment_ids_BL is None else F.pad(number_runs(segment_ids_BL, mask_BL), (history, 0))
    y = _taps(extended, weight_DK.to(dtype), None if bias_D is None else bias_D.to(dtype), runs, length)
    if activation == "silu":
        y = F.silu(y)
    if mask_BL is not None:
        y = y.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
    y = y.flip(1) if reverse else y
    return y.to(x_BLD.dtype), _last_inputs(extended, history, mask_BL, runs)


def _taps(extended: Tensor, weight_DK: Tensor, bias_D: Tensor | None, runs: Tensor | None, length: int) -> Tensor:
    history = weight_DK.shape[1] - 1
    y = extended.new_zeros(()) if bias_D is None else bias_D
    for k in range(history + 1):
        tap = extended[:, k : k + length]
        if runs is not None and k < history:
            tap = tap * (runs[:, k : k + length] == runs[:, history:]).unsqueeze(-1)
        y = torch.addcmul(y, tap, weight_DK[:, k])
    return y


def _prepend(x: Tensor, history: int, initial_state_BKD: Tensor | None, mask_BL: Tensor | None) -> Tensor:
    """The inputs with the initial state before the first real position of each row, which left padding moves."""
    extended = F.pad(x, (0, 0, history, 0))
    if initial_state_BKD is None:
        return extended
    state = initial_state_BKD.to(x.dtype)
    if mask_BL is None:
        return torch.cat([state, x], dim=1)
    first_B = (mask_BL.cumsum(1) == 0).sum(1)
    place_BK = first_B[:, None] + torch.arange(history, device=x.device)
    return extended.scatter_add(1, place_BK.unsqueeze(-1).expand_as(state), state)


def number_runs(segment_ids_BL: Tensor, mask_BL: Tensor | None) -> Tensor:
    """Numbers the segments of a row from 0; a segment begins where a real position's id differs from the last one's."""
    place_L = torch.arange(segment_ids_BL.shape[1], device=segment_ids_BL.device)
    real_BL = torch.ones_like(segment_ids_BL, dtype=torch.bool) if mask_BL is None else mask_BL
    last_real_BL = torch.where(real_BL, place_L, -1).cummax(1).values
    previous_BL = F.pad(last_real_BL[:, :-1], (1, 0), value=-1)
    changed_BL = segment_ids_BL != segment_ids_BL.gather(1, previous_BL.clamp(min=0))
    return (changed_BL & real_BL & (previous_BL >= 0)).cumsum(1)


def _last_inputs(extended: Tensor, history: int, mask_BL: Tensor | None, runs: Tensor | None) -> Tensor:
    """The K-1 inputs up to the last real position, without those of other segments."""
    length = extended.shape[1] - history
    place_K = torch.arange(history, device=extended.device)
    if mask_BL is None:
        last_B = torch.full((extended.shape[0],), length, device=extended.device)
    else:
        place_L = torch.arange(1, length + 1, device=extended.device)
        last_B = torch.where(mask_BL, place_L, 0).amax(1)
        # A row without a real position has its initial state at the very end.
        last_B = torch.where(last_B == 0, length, last_B)
    if mask_BL is None and runs is None:
        return extended[:, length:].clone()
    place_BK = last_B[:, None] + place_K
    state = extended.gather(1, place_BK.unsqueeze(-1).expand(-1, -1, extended.shape[2]))
    if runs is None:
        return state
    same_BK = runs.gather(1, place_BK) == runs.gather(1, last_B[:, None] + history - 1)
    return state * same_BK.unsqueeze(-1)
