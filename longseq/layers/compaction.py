"""Real positions moved to the front of their rows and back, for mixers that would otherwise read the padding."""

import torch
from torch import Tensor


class Compaction:
    """Gathers each row's real positions to its front, in order, and scatters results back to where they came from.

    After it, a causal mixer needs no mask: padding stands on the right only, where no real position looks.

    Args:
        mask_BL: bool (B, L), True = real.

    Attributes:
        count_B: real positions in each row.

    Cost: O(L) a row for the indices, and one gather each way.
    """

    def __init__(self, mask_BL: Tensor) -> None:
        length = mask_BL.shape[1]
        rank_BL = mask_BL.long().cumsum(dim=1) - 1
        place_L = torch.arange(length, device=mask_BL.device)
        self.mask_BL = mask_BL
        self.count_B = rank_BL[:, -1] + 1
        self.rank_BL = rank_BL.clamp(min=0)
        # Padded positions all write into one extra column, which is dropped.
        target_BL = rank_BL.masked_fill(~mask_BL, length)
        empty_BL = torch.zeros_like(rank_BL)
        empty_BL = torch.cat((empty_BL, empty_BL[:, :1]), dim=1)
        self.source_BL = empty_BL.scatter(1, target_BL, place_L.expand_as(target_BL)).narrow(1, 0, length)

    def to_front(self, x_BLX: Tensor) -> Tensor:
        """(B, L, ...) with the real positions first; what follows them repeats the row's first position."""
        return x_BLX.gather(1, _like(self.source_BL, x_BLX))

    def to_place(self, y_BLX: Tensor) -> Tensor:
        """The inverse of `to_front`, with zeros at padded positions."""
        placed_BLX = y_BLX.gather(1, _like(self.rank_BL, y_BLX))
        return placed_BLX.masked_fill(~_unsqueezed(self.mask_BL, y_BLX), 0.0)

    def last(self, y_BLX: Tensor) -> Tensor:
        """(B, ...) at each row's last real position, for compacted y; the first position where there is none."""
        index_B1 = (self.count_B - 1).clamp(min=0).unsqueeze(1)
        return y_BLX.gather(1, _like(index_B1, y_BLX)).squeeze(1)


def rows_from(x_BMX: Tensor, start_B: Tensor, size: int) -> Tensor:
    """(B, size, ...): `size` positions of each row from its own start on, which must all exist."""
    index_BS = start_B.unsqueeze(1) + torch.arange(size, device=x_BMX.device)
    return x_BMX.gather(1, _like(index_BS, x_BMX))


def _unsqueezed(index_BL: Tensor, x_BLX: Tensor) -> Tensor:
    return index_BL.view(*index_BL.shape, *(1,) * (x_BLX.dim() - 2))


def _like(index_BL: Tensor, x_BLX: Tensor) -> Tensor:
    return _unsqueezed(index_BL, x_BLX).expand(-1, -1, *x_BLX.shape[2:])
