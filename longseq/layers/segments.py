"""Packed rows, for mixers that have no reset of their own: one row per document, run, and put back."""

from typing import NamedTuple

import torch
from torch import Tensor

from longseq.ops.causal_conv1d.chunked import number_runs


class Segments(NamedTuple):
    """Where each packed position goes when every segment gets a row of its own.

    Attributes:
        row_BL: the segment's row, from 0 to S - 1.
        column_BL: the position inside the segment, from 0.
        n_rows: S, the number of segments in the batch.
        length: of the longest segment.
    """

    row_BL: Tensor
    column_BL: Tensor
    n_rows: int
    length: int


def number_segments(segment_ids_BL: Tensor | None, mask_BL: Tensor | None) -> Tensor | None:
    """A row's documents numbered from 0, padding with the document before it.

    An id that comes back behind another document then names a document of its own, also to mixers that compare ids and not
    neighbours.
    """
    return None if segment_ids_BL is None else number_runs(segment_ids_BL, mask_BL)


def find_segments(segment_ids_BL: Tensor) -> Segments:
    """Rows and columns of the segments; a segment is a run of equal ids in one row."""
    starts_BL = torch.ones_like(segment_ids_BL, dtype=torch.bool)
    starts_BL[:, 1:] = segment_ids_BL[:, 1:] != segment_ids_BL[:, :-1]
    row_BL = starts_BL.flatten().cumsum(0).sub(1).view_as(segment_ids_BL)
    place_L = torch.arange(segment_ids_BL.shape[1], device=segment_ids_BL.device)
    start_BL = torch.where(starts_BL, place_L, 0).cummax(1).values
    column_BL = place_L - start_BL
    return Segments(row_BL, column_BL, int(row_BL[-1, -1]) + 1, int(column_BL.max()) + 1)


def unpack(x_BLD: Tensor, segments: Segments) -> Tensor:
    """Rows of single segments, zero-padded on the right: (B, L, ...) -> (S, longest, ...)."""
    x_SLD = x_BLD.new_zeros(segments.n_rows, segments.length, *x_BLD.shape[2:])
    return x_SLD.index_put((segments.row_BL, segments.column_BL), x_BLD)


def pack(x_SLD: Tensor, segments: Segments) -> Tensor:
    """The inverse of `unpack`."""
    return x_SLD[segments.row_BL, segments.column_BL]


def segment_mask(mask_BL: Tensor | None, segments: Segments) -> Tensor:
    """True at the real positions of unpacked rows."""
    real_BL = torch.ones_like(segments.row_BL, dtype=torch.bool) if mask_BL is None else mask_BL
    return unpack(real_BL, segments)
