"""Windows of a genome for language models: cut on demand from the memory map, never across two chromosomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longseq.domains.dna.sequences import Sequences
from longseq.domains.dna.tokenizer import N_ID
from longseq.errors import DataError

_BLOCK = 1 << 24


@dataclass(frozen=True)
class Region:
    """A stretch of one record, 0-based and half open."""

    record: int
    start: int
    end: int


class GenomeWindows:
    """Windows of equal length, a fixed stride apart.

    Args:
        store: The genome, usually a TokenCache; only its map is kept.
        length: Bases of a window.
        stride: Bases from one window's start to the next; by default `length`, so that windows do not overlap.
        regions: Where windows may lie; by default all records. No window crosses the end of its region.
        min_length: Keep the shorter piece at a region's end if it has this many bases; by default it is dropped.
        max_n_fraction: Leave out windows with a larger share of N (runs of N fill the gaps of an assembly).

    Raises:
        DataError: No window fits.

    Cost: 16 bytes a window; with `max_n_fraction` below 1 one pass over the regions.
    """

    def __init__(
        self,
        store: Sequences,
        length: int,
        *,
        stride: int | None = None,
        regions: Sequence[Region] | None = None,
        min_length: int | None = None,
        max_n_fraction: float = 1.0,
    ) -> None:
        stride = length if stride is None else stride
        min_length = length if min_length is None else min_length
        if length < 1 or stride < 1 or not 1 <= min_length <= length:
            raise ValueError(
                f"length and stride must be at least 1 and min_length between 1 and length; "
                f"found length={length}, stride={stride}, min_length={min_length}"
            )
        self.store = store
        self.length = length
        if regions is None:
            regions = [Region(record, 0, int(size)) for record, size in enumerate(store.lengths)]
        starts, ends = _cut(store, regions, length, stride, min_length)
        if not len(starts):
            longest = max((region.end - region.start for region in regions), default=0)
            raise DataError(
                f"no window of {length} bases fits: the longest of {len(regions)} regions has {longest}; "
                "choose a smaller length, or min_length to keep shorter pieces"
            )
        if max_n_fraction < 1.0:
            keep = _n_fraction(store.tokens, starts, ends) <= max_n_fraction
            if not keep.any():
                raise DataError(
                    f"every one of {len(starts)} windows holds more than {max_n_fraction:.0%} N; raise max_n_fraction"
                )
            starts, ends = starts[keep], ends[keep]
        self._starts, self._ends = starts, ends

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        # A copy: the map is read-only, and a view would keep its pages in use.
        return np.array(self.store.tokens[self._starts[index] : self._ends[index]])

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Bases of each window, (N,)."""
        return self._ends - self._starts

    def select(self, indices: ArrayLike) -> GenomeWindows:
        """The windows with these indices, or of this boolean mask."""
        chosen = object.__new__(GenomeWindows)
        chosen.store, chosen.length = self.store, self.length
        chosen._starts, chosen._ends = self._starts[np.asarray(indices)], self._ends[np.asarray(indices)]
        return chosen

    def position(self, index: int) -> Region:
        """Which record a window lies in, and where."""
        record = int(np.searchsorted(self.store.offsets, self._starts[index], side="right")) - 1
        origin = int(self.store.offsets[record])
        return Region(record, int(self._starts[index]) - origin, int(self._ends[index]) - origin)


def _cut(
    store: Sequences, regions: Sequence[Region], length: int, stride: int, min_length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for region in regions:
        size = int(store.lengths[region.record])
        if not 0 <= region.start <= region.end <= size:
            raise DataError(f"region {region} lies outside its record of {size} bases")
        offset = int(store.offsets[region.record])
        first = np.arange(region.start, region.end - min_length + 1, stride, dtype=np.int64)
        last = np.minimum(first + length, region.end)
        # With overlapping windows, what follows the first to reach the region's end is contained in it.
        contained = np.flatnonzero(last[:-1] == region.end) + 1
        starts.append(np.delete(first, contained) + offset)
        ends.append(np.delete(last, contained) + offset)
    return np.concatenate(starts), np.concatenate(ends)


def _n_fraction(tokens: NDArray[np.uint8], starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.float64]:
    """Share of N in each window, from running counts taken in blocks, so that the genome is never in memory."""
    edges = np.unique(np.concatenate([starts, ends]))
    counts = np.zeros(len(edges), dtype=np.int64)
    total = 0
    for begin in range(0, len(tokens), _BLOCK):
        running = np.cumsum(tokens[begin : begin + _BLOCK] == N_ID)
        first, last = np.searchsorted(edges, [begin + 1, begin + len(running) + 1])
        counts[first:last] = total + running[edges[first:last] - begin - 1]
        total += int(running[-1])
    n_count = counts[np.searchsorted(edges, ends)] - counts[np.searchsorted(edges, starts)]
    return n_count / np.maximum(ends - starts, 1)
