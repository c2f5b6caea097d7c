"""Pretraining on a task's own images: hidden cells from those around them, or for causal backbones the next cell."""

from typing import Any

import numpy as np
import torch

from longseq.backbone import Backbone
from longseq.domains.base import DomainData, Rows
from longseq.domains.tasks import Batch
from longseq.domains.vision.rows import MaskedRows, PixelRows
from longseq.domains.vision.tasks import MaskedPatch
from longseq.errors import ConfigError


class NextCellRows(PixelRows):
    """Images or clips whose every cell is to be predicted from those before it.

    Paper: AIM, https://arxiv.org/abs/2401.08541, section 3.1 (patches in raster order, squared error).
    """

    def __getitem__(self, index: int) -> dict[str, Any]:
        pixels = self.pixels(index)
        cells = self.tokenizer.cells(pixels.astype(np.float32) / np.float32(255))
        known = np.arange(len(cells)) < len(cells) - 1
        inputs = pixels if self.tokenizer.kind == "tubelet" else pixels[0]
        return {"inputs": inputs, "targets": np.roll(cells, -1, axis=0), "hidden": known, "index": index}


class Permuted(Rows):
    """Rows whose targets stand in the order in which the embedding puts the pixels.

    Args:
        rows: in raster order.
        order: the embedding's permutation.
        ahead: targets are the next cell's.
    """

    def __init__(self, rows: Rows, order: np.ndarray, *, ahead: bool) -> None:
        self.rows, self.order, self.ahead = rows, order, ahead
        self.lengths = rows.lengths

    def __getitem__(self, index: int) -> dict[str, Any]:
        self.rows.epoch = self.epoch
        row = self.rows[index]
        cells = np.roll(row["targets"], 1, axis=0) if self.ahead else row["targets"]
        cells = cells[self.order]
        if self.ahead:
            return {**row, "targets": np.roll(cells, -1, axis=0)}
        return {**row, "targets": cells, "hidden": row["hidden"][self.order]}


class HiddenCells(DomainData):
    """A task's training and validation images under the task masked_patch, with the embedding of the task itself.

    Args:
        data: the domain's data module, read, of a task with labels.
        causal: whether the backbone sees the past alone; then every cell is predicted from those before it.

    Raises:
        ConfigError: for a task that needs no labels as it is, and for features of a network in place of cells.
    """

    domain = "vision"

    def __init__(self, data: Any, causal: bool) -> None:
        if data.task_name in ("lm", MaskedPatch.name):
            raise ConfigError(f"self_pretrain: task={data.task_name} needs no labels as it is; train it for more epochs")
        if data.stem is not None:
            raise ConfigError(
                f"self_pretrain: data.stem={data.stem} gives features, not cells of pixels to be told: set it to null"
            )
        super().__init__(
            task=MaskedPatch.name,
            batch_size=data.batch_size,
            max_tokens=data.max_tokens,
            num_workers=data.num_workers,
            seed=data.seed,
        )
        self.data, self.causal = data, causal
        for name in ("train", "val"):
            self.splits[name] = self._rows(name)

    def _rows(self, name: str) -> Rows:
        rows, train = self.data.rows(name), name == "train"
        options: dict[str, Any] = {
            key: getattr(rows, key) for key in ("tokenizer", "channels", "resize", "seed", "augmentation", "draw_starts")
        }
        if not self.causal:
            options |= {"mask_fraction": self.data.mask_fraction, "fixed_masks": not train}
        found = (NextCellRows if self.causal else MaskedRows)(rows.records, rows.clips, None, **options)
        if self.data.permutation_seed is None:
            return found
        generator = torch.Generator().manual_seed(self.data.permutation_seed)
        order = torch.randperm(self.data.tokenizer.length, generator=generator).numpy()
        return Permuted(found, order, ahead=self.causal)

    @property
    def max_length(self) -> int:
        # The task's own, class token included: filters of a fixed length must be the same.
        return self.data.max_length

    @property
    def grid(self) -> tuple[int, ...]:
        return self.data.grid

    def task_options(self) -> dict[str, Any]:
        return self.data.cell_options()

    def model_options(self, backbone: Backbone) -> dict[str, Any]:
        found = self.data.model_options(backbone)
        embedding = {key: value for key, value in found["embedding"].items() if key != "class_token"}
        if not self.causal:
            embedding["mask_token"] = True
        return {**found, "embedding": embedding, "n_positions": self.data.tokenizer.length}

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        found = {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("inputs", "targets", "hidden")}
        return {**found, "index": torch.tensor([row["index"] for row in rows])}
