"""Rows for training and evaluation: decoded, sized, augmented, and for models without labels with their targets."""

from typing import Any

import numpy as np

from longseq.domains.base import Rows
from longseq.domains.loading import row_generator
from longseq.domains.vision.augment import Augmentation, fit_channels, fit_size
from longseq.domains.vision.sources import Records
from longseq.domains.vision.tokenizer import CellTokenizer, PixelValues
from longseq.domains.vision.video import Clips


class PixelRows(Rows):
    """Images or clips with their labels.

    Args:
        records: what is read.
        clips: which frames of which record make each row.
        labels: (N,) classes or (N, K) numbers per row; None for none.
        tokenizer: how the model will cut them.
        channels: 1 or 3.
        resize: `crop`, `squash` or `pad`.
        seed: of augmentation and of the clips' starts.
        augmentation: None in evaluation.
        draw_starts: draw each clip's start anew in every epoch.
        length: positions of a row; None for the tokenizer's cells.
    """

    def __init__(
        self,
        records: Records,
        clips: Clips,
        labels: np.ndarray | None,
        *,
        tokenizer: CellTokenizer,
        channels: int,
        resize: str,
        seed: int,
        augmentation: Augmentation | None = None,
        draw_starts: bool = False,
        length: int | None = None,
    ) -> None:
        self.records, self.clips, self.labels = records, clips, labels
        self.tokenizer, self.channels, self.resize = tokenizer, channels, resize
        self.seed, self.augmentation, self.draw_starts = seed, augmentation, draw_starts
        self.lengths = np.full(len(clips), tokenizer.length if length is None else length)

    def pixels(self, index: int) -> np.ndarray:
        """uint8 (T, C, H, W) as the model sees them in this epoch."""
        rng = row_generator(self.seed, self.epoch, index)
        frames = self.clips.chosen(index, rng if self.draw_starts else None)
        record = int(self.records.items[self.clips.items[index]])
        found = fit_channels(self.records.store.read(record, frames.tolist()), self.channels)
        augmentation = self.augmentation
        # A random resized crop wants the whole image.
        if augmentation is None or not augmentation.reshapes:
            found = fit_size(found, self.tokenizer.size, self.resize)
        if augmentation is not None:
            found = augmentation(found, rng)
        # A copy: what is mapped from disk cannot be written to, which torch warns about.
        return np.array(np.moveaxis(found, -1, 1), order="C")

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.pixels(index)
        label = None if self.labels is None else self.labels[index]
        return {"inputs": pixels if self.tokenizer.kind == "tubelet" else pixels[0], "label": label, "index": index}


class PixelModelRows(PixelRows):
    """Images as sequences of values, each to be predicted from those before it.

    Args:
        *args: of `PixelRows`.
        values: how pixels become tokens.
        **options: of `PixelRows`.
    """

    def __init__(self, *args: Any, values: PixelValues, **options: Any) -> None:
        super().__init__(*args, **options)
        self.values = values
        self.lengths = self.lengths * self.channels

    def __getitem__(self, index: int) -> dict[str, Any]:
        targets = self.values.encode(self.pixels(index)[0])
        # The first value is predicted too, or bits per dimension would be of fewer dimensions than the image has.
        ids = np.concatenate([[self.values.begin], targets[:-1]])
        return {"inputs": ids, "targets": targets, "index": index}


class MaskedRows(PixelRows):
    """Images or clips of which some cells are hidden (NaN), with the whole as targets.

    Args:
        *args: of `PixelRows`.
        mask_fraction: share of the cells that are hidden.
        fixed_masks: hide the same cells in every epoch, for validation and test.
        **options: of `PixelRows`.
    """

    def __init__(self, *args: Any, mask_fraction: float, fixed_masks: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self.mask_fraction, self.fixed_masks = mask_fraction, fixed_masks

    def __getitem__(self, index: int) -> dict[str, Any]:
        cells = self.tokenizer.cells(self.pixels(index).astype(np.float32) / np.float32(255))
        # Not the generator of the augmentation: its numbers would repeat.
        rng = row_generator(self.seed + 1, 0 if self.fixed_masks else self.epoch, index)
        n_hidden = min(len(cells) - 1, max(1, round(self.mask_fraction * len(cells))))
        hidden = np.zeros(len(cells), dtype=bool)
        hidden[rng.permutation(len(cells))[:n_hidden]] = True
        shown = self.tokenizer.assemble(np.where(hidden[:, None], np.float32(np.nan), cells), self.channels)
        inputs = shown if self.tokenizer.kind == "tubelet" else shown[0]
        return {"inputs": inputs, "targets": cells, "hidden": hidden, "index": index}
