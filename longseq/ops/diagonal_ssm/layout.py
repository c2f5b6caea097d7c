"""Where positions stand while a time-invariant operator runs: padding leaves, and packed documents start their own chunk.

A time-invariant chunk has no place for an identity step or a reset in its middle. Taking padding out of the row makes
every masked position an identity step; moving each document to the beginning of a chunk makes a reset a zeroed chunk state.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from longseq.ops.chunks import segment_starts

SMALLEST_CHUNK = 8


class Layout(NamedTuple):
    """Slots of the positions of each row.

    Attributes:
        slot_BL: each real position's slot; `n_slots` for the masked ones.
        mask_BL: True at real positions; None if all are.
        n_slots: slots of a row.
        chunk_size: positions of a chunk.
        end_B: the slot after each row's last real position.
        fresh_Bc: True where a chunk begins a document.
        start_BS: True at the slots that begin a document.
    """

    slot_BL: Tensor
    mask_BL: Tensor | None
    n_slots: int
    chunk_size: int
    end_B: Tensor
    fresh_Bc: Tensor | None = None
    start_BS: Tensor | None = None

    def place(self, x_BLD: Tensor) -> Tensor:
        """(B, L, D) -> (B, slots, D); empty slots are zero."""
        x_BSD = x_BLD.new_zeros(x_BLD.shape[0], self.n_slots + 1, x_BLD.shape[2])
        return x_BSD.index_put((_rows(self.slot_BL), self.slot_BL), x_BLD)[:, : self.n_slots]

    def take(self, y_BSD: Tensor) -> Tensor:
        """(B, slots, D) -> (B, L, D); masked positions are zero."""
        y_BLD = y_BSD[_rows(self.slot_BL), self.slot_BL.clamp(max=self.n_slots - 1)]
        return y_BLD if self.mask_BL is None else y_BLD.masked_fill(~self.mask_BL.unsqueeze(-1), 0.0)


def compact(mask_BL: Tensor | None, segment_ids_BL: Tensor | None, like_BL: Tensor, chunk_size: int) -> Layout:
    """Real positions moved together to the left, in as many slots as there were positions; traceable."""
    real_BL = torch.ones_like(like_BL, dtype=torch.bool) if mask_BL is None else mask_BL
    length = real_BL.shape[1]
    place_BL = real_BL.long().cumsum(1) - 1
    slot_BL = place_BL.masked_fill(~real_BL, length)
    start_BS = None
    if segment_ids_BL is not None:
        start_BL = segment_starts(segment_ids_BL, mask_BL)
        start_BS = start_BL.new_zeros(start_BL.shape[0], length + 1).scatter(1, slot_BL, start_BL)[:, :length]
    return Layout(slot_BL, mask_BL, length, chunk_size, place_BL[:, -1] + 1, start_BS=start_BS)


def align(mask_BL: Tensor | None, segment_ids_BL: Tensor, chunk_size: int, smallest: int = SMALLEST_CHUNK) -> Layout:
    """Each document's real positions together, from the beginning of a chunk; the number of slots depends on the data."""
    real_BL = torch.ones_like(segment_ids_BL, dtype=torch.bool) if mask_BL is None else mask_BL
    document_BL = segment_starts(segment_ids_BL, mask_BL).long().cumsum(1)
    n_documents = int(document_BL.max()) + 1
    n_batch, length = real_BL.shape
    # Many short documents in chunks that they cannot fill would be mostly padding.
    while chunk_size > smallest and chunk_size * n_documents > length:
        chunk_size //= 2
    length_BS = torch.zeros(n_batch, n_documents, dtype=torch.long, device=real_BL.device)
    length_BS = length_BS.scatter_add(1, document_BL, real_BL.long())
    chunks_BS = (length_BS + chunk_size - 1) // chunk_size
    first_BS = chunks_BS.cumsum(1) - chunks_BS
    n_chunks = max(1, int(chunks_BS.sum(1).max()))
    inside_BL = real_BL.long().cumsum(1) - 1 - (length_BS.cumsum(1) - length_BS).gather(1, document_BL)
    slot_BL = first_BS.gather(1, document_BL) * chunk_size + inside_BL
    slot_BL = slot_BL.masked_fill(~real_BL, n_chunks * chunk_size)
    end_B = (slot_BL + 1).masked_fill(~real_BL, 0).amax(1)
    fresh_Bc = torch.zeros(n_batch, n_chunks + 1, dtype=torch.bool, device=real_BL.device)
    fresh_Bc = fresh_Bc.scatter(1, first_BS[:, 1:].clamp(max=n_chunks), True)[:, :n_chunks]
    return Layout(slot_BL, mask_BL, n_chunks * chunk_size, chunk_size, end_B, fresh_Bc=fresh_Bc)


def _rows(slot_BL: Tensor) -> Tensor:
    return torch.arange(slot_BL.shape[0], device=slot_BL.device).unsqueeze(1)
