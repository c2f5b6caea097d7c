"""The SSD recurrence chunk by chunk, as matrix products in plain PyTorch.

Inside a chunk of T positions the recurrence is a masked T x T product, `((C B^T) * decay) (dt x)`; between chunks only
one state per chunk is carried. Every decay is the exponential of a sum of non-positive terms that is summed directly
(never a difference of two cumulative sums), so it is at most one and as exact for dt = 20 as for dt = 1e-4.
"""

from itertools import repeat
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from longseq.ops.chunks import from_chunks, segment_starts, to_chunks

# Log-decay of a position where a new segment starts: exp(RESET) is 0, and sums of a few thousand of them stay finite.
RESET = -1e30
# Chunks that are passed on by one small matrix; more of them are passed in groups of this many.
GROUP = 64
# Elements of one decay matrix (rows x heads x positions x chunk_size) that are alive at a time.
CPU_BLOCK_ELEMENTS = 1 << 18
GPU_BLOCK_ELEMENTS = 1 << 26


class _Coefficients(NamedTuple):
    """What does not vary along the sequence."""

    A_H: Tensor
    D_H: Tensor | None
    dt_bias_H: Tensor | None
    dt_softplus: bool
    chunk_size: int


def ssd_chunked(
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
    """`longseq.ops.ssd` in chunks of `chunk_size` positions.

    Run eagerly, blocks of chunks go one after another and are recomputed in backward, so that only the inputs and one
    state per block are kept; traced (torch.compile, torch.export), the whole length is one block of plain operations.
    """
    per_position = [x_BLHP, dt_BLH, B_BLGN, C_BLGN, mask_BL, segment_ids_BL]
    if reverse:
        per_position = [None if t is None else t.flip(1) for t in per_position]
    inputs, mask_BL, segment_ids_BL = per_position[:4], per_position[4], per_position[5]
    reset_BL = None if segment_ids_BL is None else segment_starts(segment_ids_BL, mask_BL)
    n_batch, _, n_heads, width = x_BLHP.shape
    dtype = torch.float64 if x_BLHP.dtype == torch.float64 else torch.float32
    if initial_state_BHPN is None:
        initial_state_BHPN = x_BLHP.new_zeros((n_batch, n_heads, width, B_BLGN.shape[-1]), dtype=dtype)
    coefficients = _Coefficients(A_H, D_H, dt_bias_H, dt_softplus, chunk_size)
    run: list[Any] = [*inputs, mask_BL, reset_BL, initial_state_BHPN.to(dtype), coefficients]
    y_BLHP, state_BHPN = _block(*run) if torch.compiler.is_compiling() else _blocks(*run)
    return (y_BLHP.flip(1) if reverse else y_BLHP), state_BHPN


def _blocks(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    mask_BL: Tensor | None,
    reset_BL: Tensor | None,
    state_BHPN: Tensor,
    coefficients: _Coefficients,
) -> tuple[Tensor, Tensor]:
    """Blocks of chunks one after another, each recomputed in backward."""
    n_batch, _, n_heads, _ = x_BLHP.shape
    budget = CPU_BLOCK_ELEMENTS if x_BLHP.device.type == "cpu" else GPU_BLOCK_ELEMENTS
    n_chunks = max(1, min(GROUP, budget // (n_batch * n_heads * coefficients.chunk_size**2)))
    size = n_chunks * coefficients.chunk_size
    per_position = (x_BLHP, dt_BLH, B_BLGN, C_BLGN, mask_BL, reset_BL)
    fixed = (state_BHPN, coefficients.A_H, coefficients.D_H, coefficients.dt_bias_H)
    in_training = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (*per_position, *fixed))
    ys = []
    # The backward of `split` is one concatenation; that of a slice is a full-length sum, which would be quadratic in blocks.
    blocks: list[Any] = [repeat(None) if t is None else t.split(size, dim=1) for t in per_position]
    for part in zip(*blocks, strict=False):
        arguments: Any = (*part, state_BHPN, coefficients)
        if in_training:
            y_BLHP, state_BHPN = checkpoint(_block, *arguments, use_reentrant=False, preserve_rng_state=False)  # type: ignore[misc]
        else:
            y_BLHP, state_BHPN = _block(*arguments)
        ys.append(y_BLHP)
    return (ys[0] if len(ys) == 1 else torch.cat(ys, dim=1)), state_BHPN


def _block(
    x_BLHP: Tensor,
    dt_BLH: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    mask_BL: Tensor | None,
    reset_BL: Tensor | None,
    state_BHPN: Tensor,
    coefficients: _Coefficients,
) -> tuple[Tensor, Tensor]:
    """A stretch of positions from its entering state: y in x's dtype, and the state after it."""
    dtype = state_BHPN.dtype
    length, n_groups = x_BLHP.shape[1], B_BLGN.shape[2]
    x_BLHP_in, x_dtype = x_BLHP, x_BLHP.dtype
    if mask_BL is not None:
        x_BLHP_in, B_BLGN, C_BLGN = (t.masked_fill(~mask_BL[..., None, None], 0.0) for t in (x_BLHP, B_BLGN, C_BLGN))
    x_BLHP, B_BLGN, C_BLGN = x_BLHP_in.to(dtype), B_BLGN.to(dtype), C_BLGN.to(dtype)
    dt_BLH = _step_sizes(dt_BLH, mask_BL, coefficients, dtype)
    log_decay_BLH = (dt_BLH * coefficients.A_H.to(dtype)).clamp(max=0.0)
    if reset_BL is not None:
        log_decay_BLH = log_decay_BLH.masked_fill(reset_BL[..., None], RESET)
    # A single position (step) needs no chunk of zeros around it.
    chunk = length if isinstance(length, int) and length < coefficients.chunk_size else coefficients.chunk_size
    x_BcTHP, log_decay_BcTH = to_chunks(x_BLHP * dt_BLH[..., None], chunk), to_chunks(log_decay_BLH, chunk)
    B_BcTGN, C_BcTGN = to_chunks(B_BLGN, chunk), to_chunks(C_BLGN, chunk)
    y_BcTHP, state_BHPN = _chunks(x_BcTHP, log_decay_BcTH, B_BcTGN, C_BcTGN, state_BHPN, n_groups)
    y_BLHP = from_chunks(y_BcTHP, length)
    if coefficients.D_H is not None:
        y_BLHP = y_BLHP + coefficients.D_H.to(dtype)[:, None] * x_BLHP
    return y_BLHP.to(x_dtype), state_BHPN


def _step_sizes(dt_BLH: Tensor, mask_BL: Tensor | None, coefficients: _Coefficients, dtype: torch.dtype) -> Tensor:
    """dt after bias and softplus; 0, the identity step, at masked positions."""
    if mask_BL is not None:
        dt_BLH = dt_BLH.masked_fill(~mask_BL[..., None], 0.0)
    dt_BLH = dt_BLH.to(dtype)
    if coefficients.dt_bias_H is not None:
        dt_BLH = dt_BLH + coefficients.dt_bias_H.to(dtype)
    if coefficients.dt_softplus:
        dt_BLH = F.softplus(dt_BLH)
    return dt_BLH if mask_BL is None else dt_BLH.masked_fill(~mask_BL[..., None], 0.0)


def _chunks(
    x_BcTHP: Tensor, log_decay_BcTH: Tensor, B_BcTGN: Tensor, C_BcTGN: Tensor, state_BHPN: Tensor, n_groups: int
) -> tuple[Tensor, Tensor]:
    """All chunks of a block at once; x is already multiplied by dt."""
    n_heads, width = x_BcTHP.shape[3:]
    n_repeat = n_heads // n_groups
    log_decay_BcHT = log_decay_BcTH.transpose(2, 3)
    decay_BcHTT = torch.exp(_segment_sums(log_decay_BcHT))
    B_BcGTN, C_BcGTN = B_BcTGN.transpose(2, 3), C_BcTGN.transpose(2, 3)
    scores_BcGTT = C_BcGTN @ B_BcGTN.transpose(3, 4)
    mixing_BcHTT = (scores_BcGTT.unsqueeze(3) * decay_BcHTT.unflatten(2, (n_groups, n_repeat))).flatten(2, 3)
    y_BcTHP = (mixing_BcHTT @ x_BcTHP.transpose(2, 3)).transpose(2, 3)

    # Heads of one group share B and C: folding them into the width makes one product per group.
    to_end_BcTH = decay_BcHTT[..., -1, :].transpose(2, 3)
    x_BcGTW = (x_BcTHP * to_end_BcTH[..., None]).unflatten(3, (n_groups, n_repeat)).flatten(4, 5).transpose(2, 3)
    made_BcGWN = x_BcGTW.transpose(3, 4) @ B_BcGTN
    made_BcHS = made_BcGWN.unflatten(3, (n_repeat, width)).flatten(2, 3).flatten(3, 4)
    total_BcH = log_decay_BcTH.sum(dim=2)
    entering_BcHS, state_BHS = _pass_states(made_BcHS, total_BcH, state_BHPN.flatten(2, 3))

    entering_BcGWN = entering_BcHS.unflatten(3, (width, -1)).unflatten(2, (n_groups, n_repeat)).flatten(3, 4)
    carried_BcTGW = (C_BcGTN @ entering_BcGWN.transpose(3, 4)).transpose(2, 3)
    carried_BcTHP = carried_BcTGW.unflatten(4, (n_repeat, width)).flatten(3, 4)
    from_start_BcTH = torch.exp(log_decay_BcTH.cumsum(dim=2))
    return y_BcTHP + carried_BcTHP * from_start_BcTH[..., None], state_BHS.unflatten(2, (width, -1))


def _segment_sums(log_decay: Tensor) -> Tensor:
    """`out[..., i, j] = sum of log_decay[..., j+1 .. i]` for j <= i, and -inf above the diagonal.

    Each column is summed from its own start: differences of one cumulative sum would lose the small terms after a large one.
    """
    size = log_decay.shape[-1]
    ones_TT = torch.ones(size, size, dtype=torch.bool, device=log_decay.device)
    terms = log_decay.unsqueeze(-1).expand(*log_decay.shape, size).masked_fill(~ones_TT.tril(-1), 0.0)
    return terms.cumsum(dim=-2).masked_fill(~ones_TT.tril(), float("-inf"))


def _pass_states(made_BcHS: Tensor, total_BcH: Tensor, initial_BHS: Tensor) -> tuple[Tensor, Tensor]:
    """States entering each chunk, and the one after the last, from what each chunk makes and its total log-decay."""
    n_chunks = made_BcHS.shape[1]
    if isinstance(n_chunks, int) and n_chunks <= GROUP:
        return _pass_group(made_BcHS, total_BcH, initial_BHS)
    made_BgcHS, total_BgcH = to_chunks(made_BcHS, GROUP), to_chunks(total_BcH, GROUP)
    inside_BgcHS, made_BgHS = _pass_group(made_BgcHS, total_BgcH, torch.zeros_like(made_BgcHS[:, :, 0]))
    group_BgHS, final_BHS = _pass_group(made_BgHS, total_BgcH.sum(2), initial_BHS)
    before_BgcH = F.pad(total_BgcH[:, :, :-1].cumsum(2), (0, 0, 1, 0))
    entering_BgcHS = inside_BgcHS + torch.exp(before_BgcH)[..., None] * group_BgHS.unsqueeze(2)
    return from_chunks(entering_BgcHS, n_chunks), final_BHS


def _pass_group(made_cHS: Tensor, total_cH: Tensor, initial_HS: Tensor) -> tuple[Tensor, Tensor]:
    """`_pass_states` by one small (c+1) x (c+1) matrix per head; the initial state is what chunk -1 made.

    Any leading dimensions.
    """
    made_HcS = torch.cat([initial_HS.unsqueeze(-3), made_cHS], dim=-3).transpose(-3, -2)
    decay_Hcc = torch.exp(_segment_sums(F.pad(total_cH.transpose(-1, -2), (1, 0))))
    state_cHS = (decay_Hcc @ made_HcS).transpose(-3, -2)
    return state_cHS[..., :-1, :, :], state_cHS[..., -1, :, :]
