"""Any linear time-invariant state-space model over masked, packed and continued rows, given its operators over a chunk."""

from collections.abc import Callable

import torch
from torch import Tensor

from longseq.ops.diagonal_ssm.blocks import ChunkOperators, run_chunks
from longseq.ops.diagonal_ssm.layout import Layout, align, compact
from longseq.ops.diagonal_ssm.traced import run_chunks_traced

# A traced reset costs one shifted product per position of a chunk, and a symbolic length a fixed number of doublings.
TRACED_SEGMENT_CHUNK = 16
SYMBOLIC_LENGTH_CHUNK = 256


def run_lti(
    x_BLD: Tensor,
    build: Callable[[int], ChunkOperators],
    advance: Callable[[Tensor, Tensor], Tensor],
    initial_BDM: Tensor,
    *,
    mask_BL: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    reverse: bool = False,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """`h_t = A h_{t-1} + B x_t`, `y_t = C h_t`, in chunks.

    Masked positions are identity steps with output 0; where a document starts, the state restarts from zero.

    Args:
        x_BLD: input, any floating dtype.
        build: makes the operators for a chunk size; called once.
        advance: `A^r h` for states (B, D, M) and a number of steps per row (B,), each from 0 to chunk size - 1.
        initial_BDM: the state before the first position (the last with `reverse`), in the computing dtype.
        mask_BL: bool, True = real.
        segment_ids_BL: equal for the positions of one document.
        reverse: from the last position to the first.
        chunk_size: at most this many positions per chunk.

    Returns:
        y (B, L, D) in the computing dtype, and the state after the last real position (B, D, M).
    """
    tracing = torch.compiler.is_compiling()
    if reverse:
        x_BLD, mask_BL, segment_ids_BL = (None if t is None else t.flip(1) for t in (x_BLD, mask_BL, segment_ids_BL))  # type: ignore[assignment]
    if mask_BL is not None:
        x_BLD = x_BLD.masked_fill(~mask_BL.unsqueeze(-1), 0.0)
    size = _chunk_size(x_BLD, segment_ids_BL, chunk_size, tracing)
    layout = _layout(x_BLD, mask_BL, segment_ids_BL, size, tracing)
    x_BSD = x_BLD if layout is None else layout.place(x_BLD)
    operators = build(size if layout is None else layout.chunk_size)
    if tracing:
        y_BSD, states_DBcM = run_chunks_traced(x_BSD, operators, initial_BDM, None if layout is None else layout.start_BS)
    else:
        y_BSD, states_DBcM = run_chunks(x_BSD, operators, initial_BDM, None if layout is None else layout.fresh_Bc)
    y_BLD = y_BSD if layout is None else layout.take(y_BSD)
    end_B = x_BLD.new_full((x_BLD.shape[0],), x_BLD.shape[1], dtype=torch.long) if layout is None else layout.end_B
    state_BDM = _state_at(states_DBcM, x_BSD, operators, end_B, advance, layout)
    return (y_BLD.flip(1) if reverse else y_BLD), state_BDM


def _chunk_size(x_BLD: Tensor, segment_ids_BL: Tensor | None, chunk_size: int, tracing: bool) -> int:
    length = x_BLD.shape[1]
    if tracing and segment_ids_BL is not None:
        return TRACED_SEGMENT_CHUNK
    if not isinstance(length, int):
        return max(chunk_size, SYMBOLIC_LENGTH_CHUNK)
    return min(chunk_size, length)


def _layout(
    x_BLD: Tensor, mask_BL: Tensor | None, segment_ids_BL: Tensor | None, chunk_size: int, tracing: bool
) -> Layout | None:
    if segment_ids_BL is not None and not tracing:
        return align(mask_BL, segment_ids_BL, chunk_size)
    if mask_BL is None and segment_ids_BL is None:
        return None
    return compact(mask_BL, segment_ids_BL, x_BLD[:, :, 0], chunk_size)


def _state_at(
    states_DBcM: Tensor,
    x_BSD: Tensor,
    operators: ChunkOperators,
    end_B: Tensor,
    advance: Callable[[Tensor, Tensor], Tensor],
    layout: Layout | None,
) -> Tensor:
    """The state after `end` slots: that at its chunk's beginning moved on, and what the chunk's positions before `end` add."""
    size = operators.taps_DT.shape[1]
    chunk_B, rest_B = end_B // size, end_B % size
    row_B = torch.arange(end_B.shape[0], device=end_B.device)
    state_BDM = advance(states_DBcM[:, row_B, chunk_B].transpose(0, 1), rest_B)
    if layout is not None and layout.fresh_Bc is not None:
        fresh_B = layout.fresh_Bc[row_B, chunk_B.clamp(max=layout.fresh_Bc.shape[1] - 1)] & (rest_B > 0)
        state_BDM = state_BDM.masked_fill(fresh_B[:, None, None], 0.0)
    place_T = torch.arange(size, device=end_B.device)
    # The chunk's positions shifted to end with the last one, where the operator expects the chunk's end.
    place_BT = (end_B.unsqueeze(1) - size + place_T).clamp(min=0)
    counted_BT = place_T >= size - rest_B.unsqueeze(1)
    if layout is not None and layout.start_BS is not None:
        started_BT = layout.start_BS[row_B.unsqueeze(1), place_BT] & counted_BT
        state_BDM = state_BDM.masked_fill(started_BT.any(1)[:, None, None], 0.0)
        # Only what stands after the last start counts.
        counted_BT = counted_BT & (started_BT.flip(1).long().cumsum(1).flip(1) - started_BT.long() == 0)
    part_BTD = x_BSD[row_B.unsqueeze(1), place_BT].to(state_BDM.dtype).masked_fill(~counted_BT.unsqueeze(-1), 0.0)
    return state_BDM + torch.einsum("btd,dmt->bdm", part_BTD, operators.in_DMT)
