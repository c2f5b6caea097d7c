"""Reversing and shifting rows that hold padding and packed documents: only the real positions of a segment move."""

import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.layers.compaction import Compaction


class RowOrder:
    """The real positions of each row, segment by segment, as something to reverse and to shift.

    Padding stays where it is: with real positions p_1 < ... < p_n of a segment, what stood at p_i stands at p_{n+1-i}
    after `reverse`, and at p_{i+1} after `shift`. The mask and the segment ids are therefore the same before and after.

    Args:
        mask_BL: bool (B, L), True = real; None for all.
        segment_ids_BL: integers (B, L); a segment is a run of equal ids among the real positions. None for one a row.

    Cost: O(L) a row, and one gather each way; a plain flip where there is neither mask nor segments.
    """

    def __init__(self, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> None:
        self.plain = mask_BL is None and segment_ids_BL is None
        if self.plain:
            return
        shape_of = segment_ids_BL if mask_BL is None else mask_BL
        assert shape_of is not None
        self.real_BL = torch.ones_like(shape_of, dtype=torch.bool) if mask_BL is None else mask_BL
        compaction = Compaction(self.real_BL)
        self._source_BL = compaction.source_BL
        self._rank_BL = compaction.rank_BL
        if segment_ids_BL is None:
            self._first_BL = torch.zeros_like(self._rank_BL)
            self._last_BL = (compaction.count_B - 1).clamp(min=0).unsqueeze(1)
        else:
            self._first_BL, self._last_BL = self._segment_ends(segment_ids_BL)

    def reverse(self, x_BLX: Tensor) -> Tensor:
        """Each segment's real positions in the opposite order; its own inverse."""
        if self.plain:
            return x_BLX.flip(1)
        place_L = torch.arange(x_BLX.shape[1], device=x_BLX.device)
        mirrored_BL = (self._first_BL + self._last_BL - self._rank_BL).clamp(min=0)
        index_BL = torch.where(self.real_BL, self._source_BL.gather(1, mirrored_BL), place_L)
        return x_BLX.gather(1, index_BL.unsqueeze(-1).expand_as(x_BLX))

    def shift(self, x_BLX: Tensor) -> Tensor:
        """Each real position's predecessor in its segment; zeros at the first one and at padding."""
        if self.plain:
            return F.pad(x_BLX, (0, 0, 1, 0))[:, :-1]
        has_previous_BL = self.real_BL & (self._rank_BL > self._first_BL)
        index_BL = self._source_BL.gather(1, (self._rank_BL - 1).clamp(min=0))
        previous = x_BLX.gather(1, index_BL.unsqueeze(-1).expand_as(x_BLX))
        return previous.masked_fill(~has_previous_BL.unsqueeze(-1), 0.0)

    def _segment_ends(self, segment_ids_BL: Tensor) -> tuple[Tensor, Tensor]:
        """For each real position, the ranks of the first and of the last real position of its segment."""
        rank_BL = self._rank_BL
        ids_by_rank_BL = segment_ids_BL.gather(1, self._source_BL)
        changes_BL = F.pad(ids_by_rank_BL[:, 1:] != ids_by_rank_BL[:, :-1], (1, 0), value=True)
        place_L = torch.arange(rank_BL.shape[1], device=rank_BL.device)
        first_by_rank_BL = torch.where(changes_BL, place_L, 0).cummax(1).values
        count_B1 = self.real_BL.sum(1, keepdim=True)
        ends_BL = F.pad(changes_BL[:, 1:], (0, 1), value=True) | (place_L == count_B1 - 1)
        length = rank_BL.shape[1]
        last_by_rank_BL = torch.where(ends_BL, place_L, length).flip(1).cummin(1).values.flip(1)
        return first_by_rank_BL.gather(1, rank_BL), last_by_rank_BL.gather(1, rank_BL)
