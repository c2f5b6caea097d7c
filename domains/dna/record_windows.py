"""Records cut into windows, each of which is classified; the windows of a record then vote."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from longseq.domains.dna.sequences import SequenceStore
from longseq.errors import ConfigError


class RecordWindows:
    """Windows of equal length of every record, a fixed stride apart.

    A shorter piece at a record's end is kept if it has at least half of the window's bases; a record shorter than the
    window is one window. The records' own split decides where a window belongs, so none stands in two parts.

    Args:
        store: The records.
        window: Bases of a window.
        stride: Bases from one window's start to the next; None for `window`.

    Attributes:
        records: The record of each window, (N,).
        starts: Its first base within the record, from 0, (N,).
    """

    def __init__(self, store: SequenceStore, window: int, stride: int | None = None) -> None:
        stride = window if stride is None else stride
        if window < 1 or stride < 1:
            raise ConfigError(f"data.window and data.stride must be at least 1, found {window} and {stride}")
        sizes = np.asarray(store.lengths)
        # The first window always; more while at least half a window is left.
        counts = 1 + np.maximum(0, (sizes - (window + 1) // 2) // stride)
        # With overlapping windows, what follows the first to reach the end is contained in it.
        counts = np.minimum(counts, 1 + np.maximum(0, -(-(sizes - window) // stride)))
        self.store, self.window = store, window
        self.records = np.repeat(np.arange(len(sizes)), counts)
        firsts = np.cumsum(counts) - counts
        self.starts = (np.arange(len(self.records)) - np.repeat(firsts, counts)) * stride
        self.ends = np.minimum(self.starts + window, sizes[self.records])

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        return self.store[int(self.records[index])][int(self.starts[index]) : int(self.ends[index])]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Bases of each window, (N,)."""
        return self.ends - self.starts

    def select(self, indices: ArrayLike) -> RecordWindows:
        """The windows with these indices, or of this boolean mask."""
        chosen = object.__new__(RecordWindows)
        rows = np.asarray(indices)
        chosen.store, chosen.window = self.store, self.window
        chosen.records, chosen.starts, chosen.ends = self.records[rows], self.starts[rows], self.ends[rows]
        return chosen
