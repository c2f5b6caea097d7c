"""Rows of token ids for training and evaluation: cropped, augmented and, for language models, with their targets."""

from typing import Any

import numpy as np

from longseq.domains.base import Rows
from longseq.domains.dna.record_windows import RecordWindows
from longseq.domains.dna.sequences import SequenceStore
from longseq.domains.dna.tokenizer import NucleotideTokenizer, reverse_complement_ids
from longseq.domains.dna.windows import GenomeWindows
from longseq.domains.loading import row_generator
from longseq.domains.tasks import IGNORE

FIRST_BASE, LAST_BASE = min(NucleotideTokenizer.base_ids), max(NucleotideTokenizer.base_ids)


class SequenceRows(Rows):
    """Labelled sequences.

    Args:
        store: the token ids.
        labels: (N,) classes or (N, K) numbers; None to predict.
        max_length: longer sequences give their middle.
        seed: of the augmentation.
        augment: reverse-complement half of the rows, chosen by (seed, epoch, row).
    """

    def __init__(
        self, store: SequenceStore, labels: np.ndarray | None, *, max_length: int, seed: int, augment: bool = False
    ) -> None:
        self.store, self.max_length, self.seed, self.augment = store, max_length, seed, augment
        self._labels = labels
        self.lengths = np.minimum(store.lengths, max_length)

    @property
    def labels(self) -> np.ndarray:
        """The labels of rows that have them."""
        if self._labels is None:
            raise ValueError("these rows have no labels")
        return self._labels

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.store[index]
        if len(ids) > self.max_length:
            start = (len(ids) - self.max_length) // 2
            ids = ids[start : start + self.max_length]
        if self.augment and row_generator(self.seed, self.epoch, index).random() < 0.5:
            ids = reverse_complement_ids(ids)
        row = {"ids": ids, "label": None if self._labels is None else self._labels[index], "index": index}
        if isinstance(self.store, RecordWindows):
            row["record"] = int(self.store.records[index])
        return row


class RowIds:
    """The ids of labelled rows, cropped as those are, in the place of a genome's windows."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.lengths = rows.lengths

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[index]["ids"]


class WindowRows(Rows):
    """Windows of genomes with the targets of a language model.

    Causal: the ids without the last, and the ids without the first as targets. Masked: 15 % of the bases are targets;
    of those 80 % are hidden, 10 % replaced by a random base, 10 % left. N is never a target.

    Args:
        store: the windows, or the ids of other rows.
        seed: of augmentation and masks.
        augment: reverse-complement half of the windows.
        mask_fraction: share of the bases that are targets of a masked model; None for a causal one.
        fixed_masks: draw the same mask in every epoch, for validation and test.
    """

    def __init__(
        self,
        store: GenomeWindows | RowIds,
        *,
        seed: int,
        augment: bool = False,
        mask_fraction: float | None = None,
        fixed_masks: bool = False,
    ) -> None:
        self.store, self.seed, self.augment = store, seed, augment
        self.mask_fraction, self.fixed_masks = mask_fraction, fixed_masks
        self.lengths = store.lengths - (1 if mask_fraction is None else 0)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids = self.store[index]
        rng = row_generator(self.seed, 0 if self.fixed_masks else self.epoch, index)
        if self.augment and rng.random() < 0.5:
            ids = reverse_complement_ids(ids)
        if self.mask_fraction is None:
            return {"ids": ids[:-1], "targets": targets(ids[1:], np.True_), "index": index}
        chosen = rng.random(len(ids)) < self.mask_fraction
        return {"ids": corrupt(ids, chosen, rng), "targets": targets(ids, chosen), "index": index}


def targets(ids: np.ndarray, chosen: np.ndarray | np.bool_) -> np.ndarray:
    """Ids as int64 where they are chosen and a base, and the ignored label elsewhere."""
    is_base = (ids >= FIRST_BASE) & (ids <= LAST_BASE)
    return np.where(is_base & chosen, ids.astype(np.int64), IGNORE)


def corrupt(ids: np.ndarray, chosen: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hides 80 % of the chosen ids behind [MASK] and replaces 10 % by random bases."""
    draw = rng.random(len(ids))
    hidden = np.where(chosen & (draw < 0.8), np.uint8(NucleotideTokenizer.mask_id), ids)
    random_bases = rng.integers(FIRST_BASE, LAST_BASE + 1, len(ids), dtype=np.uint8)
    return np.where(chosen & (draw >= 0.8) & (draw < 0.9), random_bases, hidden)
