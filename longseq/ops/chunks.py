"""Cutting a sequence into chunks and finding where packed documents start; the chunked operators share these."""

import torch
from torch import Tensor
from torch.nn import functional as F


def to_chunks(t: Tensor, chunk: int) -> Tensor:
    """(B, L, ...) -> (B, c, T, ...), with zeros up to a whole chunk."""
    length = t.shape[1]
    # Export specialises on a symbolic count that may be one, so it gets a chunk of zeros more. The count stays a single
    # floor division: of `(L + T - 1) // T + 1` export cannot prove that it divides the padded length.
    n_chunks = (length + chunk - 1) // chunk if isinstance(length, int) else (length + 2 * chunk - 1) // chunk
    padding = [0] * (2 * t.ndim - 3) + [n_chunks * chunk - length]
    return F.pad(t, padding).unflatten(1, (n_chunks, chunk))


def from_chunks(t: Tensor, length: int) -> Tensor:
    """The inverse of `to_chunks`: (B, c, T, ...) -> (B, L, ...)."""
    if isinstance(length, int):
        return t.flatten(1, 2)[:, :length]
    place_L = torch.arange(length, device=t.device)
    return t[:, place_L // t.shape[2], place_L % t.shape[2]]


def segment_starts(segment_ids_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
    """True at the real positions whose segment is another than that of the real position before them.

    Padding belongs to no segment: nothing starts there, so the state after it is the state after the last real position.
    The row's first real position starts nothing either: a state carried into the row belongs to its segment.
    """
    if mask_BL is None:
        return F.pad(segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1], (1, 0), value=False)
    place_L = torch.arange(segment_ids_BL.shape[1], device=segment_ids_BL.device)
    last_real_BL = torch.where(mask_BL, place_L, -1).cummax(dim=1).values
    filled_BL = segment_ids_BL.gather(1, last_real_BL.clamp(min=0))
    changed_BL = (filled_BL[:, 1:] != filled_BL[:, :-1]) & (last_real_BL[:, :-1] >= 0)
    return F.pad(changed_BL, (1, 0), value=False)
