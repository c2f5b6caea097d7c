"""`run_chunks` as plain differentiable operations in real arithmetic, for torch.compile, torch.export and ONNX."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.ops.chunks import from_chunks, to_chunks
from longseq.ops.diagonal_ssm.blocks import ChunkOperators, is_dense, toeplitz

# Doublings when the number of chunks is symbolic: enough for 2^17 of them, 33 million
# positions. Export fails, and does not give a wrong graph, if more are asked for.
SYMBOLIC_LEVELS = 17


def run_chunks_traced(
    x_BLD: Tensor, operators: ChunkOperators, initial_BDM: Tensor, start_BL: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`longseq.ops.diagonal_ssm.blocks.run_chunks`, where a segment may start at any position.

    Args:
        x_BLD: input.
        operators: of the chunk size to use.
        initial_BDM: state before the first position.
        start_BL: bool, True at positions that start from zero instead of from the state before them.

    Returns:
        y (B, L, D), and states (D, B, c + 1, M); a state is the one before a reset at its chunk's first position.
    """
    size = operators.taps_DT.shape[1]
    x_BcTD = to_chunks(x_BLD.to(initial_BDM.dtype), size)
    if start_BL is None:
        local_BcTD, into_BcTD, carried_BcT, kept_Bc = _convolve(x_BcTD, operators.taps_DT), x_BcTD, None, None
    else:
        rank_BcT = to_chunks(start_BL.to(torch.int32).unsqueeze(-1), size).squeeze(-1).cumsum(2)
        local_BcTD = _convolve_segments(x_BcTD, operators.taps_DT, rank_BcT)
        into_BcTD = x_BcTD.masked_fill((rank_BcT != rank_BcT[:, :, -1:]).unsqueeze(-1), 0.0)
        carried_BcT, kept_Bc = rank_BcT == 0, rank_BcT[:, :, -1] == 0
    made_DBcM = _per_channel(into_BcTD, operators.in_DMT.transpose(1, 2))
    states_DBcM = _scan_doubling(made_DBcM, operators.step, initial_BDM.transpose(0, 1), kept_Bc)
    entering_BcMD = states_DBcM[:, :, :-1].permute(1, 2, 3, 0)
    from_state_BcTD = _per_channel(entering_BcMD, operators.out_DTM.transpose(1, 2)).permute(1, 2, 3, 0)
    if carried_BcT is not None:
        from_state_BcTD = from_state_BcTD.masked_fill(~carried_BcT.unsqueeze(-1), 0.0)
    # Contiguous: the exporter would otherwise guard on how the strides of a batch of one compare with those of more.
    y_BcTD = local_BcTD.contiguous() + from_state_BcTD.contiguous()
    return from_chunks(y_BcTD, x_BLD.shape[1]), states_DBcM


def _per_channel(x_BcTD: Tensor, weight_DTM: Tensor) -> Tensor:
    """One (rows, T) x (T, M) product per channel: (B, c, T, D) -> (D, B, c, M)."""
    n_batch, n_chunks, size, width = x_BcTD.shape
    x_DRT = x_BcTD.permute(3, 0, 1, 2).reshape(width, n_batch * n_chunks, size)
    return torch.bmm(x_DRT, weight_DTM).reshape(width, n_batch, n_chunks, weight_DTM.shape[2])


def _convolve(x_BcTD: Tensor, taps_DT: Tensor) -> Tensor:
    """Each chunk with the first T taps."""
    return _per_channel(x_BcTD, toeplitz(taps_DT).transpose(1, 2)).permute(1, 2, 3, 0)


def _convolve_segments(x_BcTD: Tensor, taps_DT: Tensor, rank_BcT: Tensor) -> Tensor:
    """`_convolve` in which a position only sees those of its own segment; one shifted product per tap."""
    size = taps_DT.shape[1]
    y_BcTD = torch.zeros_like(x_BcTD)
    for lag in range(size):
        seen_BcTD = F.pad(x_BcTD, (0, 0, lag, 0))[:, :, :size]
        same_BcT = F.pad(rank_BcT, (lag, 0), value=-1)[:, :, :size] == rank_BcT
        y_BcTD = y_BcTD + taps_DT[:, lag] * seen_BcTD.masked_fill(~same_BcT.unsqueeze(-1), 0.0)
    return y_BcTD


def _scan_doubling(made_DBcM: Tensor, step: Tensor, initial_DBM: Tensor, kept_Bc: Tensor | None) -> Tensor:
    """All states by doubling: after k rounds each holds what the last 2^k chunks made."""
    initial_DB1M = initial_DBM.unsqueeze(2)
    # A state of zeros stands first: the one from which everything comes that reaches back beyond the initial state.
    states_DBcM = torch.cat([torch.zeros_like(initial_DB1M), initial_DB1M, made_DBcM], dim=2)
    n_states = made_DBcM.shape[2] + 1
    symbolic = not isinstance(n_states, int)
    if symbolic:
        torch._check(n_states <= 2**SYMBOLIC_LEVELS)
    dense = is_dense(step, made_DBcM.shape[-1])
    # Real and imaginary parts apart: pairs of numbers as the last axis are slow to walk along.
    states = (states_DBcM,) if dense else (states_DBcM[..., 0::2], states_DBcM[..., 1::2])
    power = (step.transpose(1, 2).unsqueeze(1),) if dense else (step[:, None, None, :, 0], step[:, None, None, :, 1])
    place_c = torch.arange(n_states + 1, device=made_DBcM.device)
    # The factor of state c + 1 belongs to chunk c; before the initial state there is nothing.
    kept_Bc1 = None if kept_Bc is None else F.pad(kept_Bc.to(made_DBcM.dtype), (2, 0), value=1.0).unsqueeze(-1)
    for level in range(SYMBOLIC_LEVELS if symbolic else math.ceil(math.log2(n_states))):
        before_c = (place_c - 2**level).clamp(min=0)
        moved = _multiply(tuple(part.index_select(2, before_c) for part in states), power)
        if kept_Bc1 is not None:
            moved = tuple(part * kept_Bc1 for part in moved)
            kept_Bc1 = kept_Bc1 * kept_Bc1.index_select(1, before_c)
        states = tuple(part + more for part, more in zip(states, moved, strict=True))
        power = _multiply(power, power)
    states_DBcM = states[0] if dense else torch.stack(states, dim=-1).flatten(-2)
    return states_DBcM.index_select(2, torch.arange(n_states, device=made_DBcM.device) + 1)


def _multiply(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Of matrices, or elementwise of complex numbers given by their real and imaginary parts."""
    if len(left) == 1:
        return (left[0] @ right[0],)
    (a, b), (c, d) = left, right
    return a * c - b * d, a * d + b * c
