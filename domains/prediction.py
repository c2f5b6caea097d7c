"""Predictions in parts: what `longseq predict` writes piece by piece, so that it needs little memory and can be interrupted.

A domain's own ways of predicting, beyond the model's own task, are files of its folder: `longseq predict task=variant_effect
data.vcf=… data.genome=…` finds `variant_effect.py` there, and calls its function

    def predictions(module: DomainModule, *, vcf: str, genome: str, ...) -> Predictions

whose keyword arguments are the data options of that command.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from longseq.domains.base import DomainData, DomainModule
from longseq.domains.loading import LengthBatches
from longseq.domains.tasks import Batch


class Predictions(ABC):
    """A table that is made in parts.

    Part i always holds the same rows, all parts have the same columns, and one behind the other they are the whole table.
    They are asked for in order, but for the first, which after an interruption is the one that is missing.
    """

    @abstractmethod
    def __len__(self) -> int:
        """Number of parts."""

    @abstractmethod
    def table(self, part: int) -> pd.DataFrame:
        """The rows of a part; none is fine."""

    @property
    def sizes(self) -> Sequence[int]:
        """What each part weighs in the progress bar; by default all the same."""
        return [1] * len(self)

    @property
    def unit(self) -> str:
        """What the sizes count, for the progress bar."""
        return "parts"

    @property
    def notes(self) -> Mapping[str, Any]:
        """What was read and skipped, for the console."""
        return {}


class RowPredictions(Predictions):
    """The task's answers for the rows of the split `predict`, in the order of the input.

    Within a part, rows are sorted by length into batches, so that little is padding.

    Args:
        module: model and task, on the device that is to be used.
        data: with the split `predict`.
        part_rows: rows of a part.
    """

    def __init__(self, module: DomainModule, data: DomainData, part_rows: int) -> None:
        self.module, self.data = module.eval(), data
        self.rows = data.splits["predict"]
        self.part_rows = max(1, part_rows)

    def __len__(self) -> int:
        return -(-len(self.rows) // self.part_rows)

    @property
    def sizes(self) -> Sequence[int]:
        return [min(self.part_rows, len(self.rows) - first) for first in range(0, len(self.rows), self.part_rows)]

    @property
    def unit(self) -> str:
        return "rows"

    def table(self, part: int) -> pd.DataFrame:
        first = part * self.part_rows
        index = np.arange(first, min(first + self.part_rows, len(self.rows)))
        return rows_table([self.answers(batch) for batch in self.batches(index)], self.data)

    def batches(self, index: np.ndarray) -> Any:
        """Batches of some rows."""
        sampler = LengthBatches(self.rows.lengths[index], self.data.batch_size, shuffle=False, max_tokens=self.data.max_tokens)
        chosen = [[int(index[i]) for i in batch] for batch in sampler.batches()]
        return torch.utils.data.DataLoader(
            self.rows,
            batch_sampler=chosen,
            collate_fn=self.data.loader("predict").collate_fn,
            num_workers=self.data.num_workers,
        )

    @torch.inference_mode()
    def answers(self, batch: Batch) -> dict[str, np.ndarray]:
        """The answers for a batch, as columns."""
        moved = {name: tensor.to(self.module.device) for name, tensor in batch.items()}
        return self.module.predict_step(moved, 0)


def rows_table(batches: list[dict[str, np.ndarray]], data: DomainData) -> pd.DataFrame:
    """One row per answer with what identifies it first, in the order of the input."""
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = np.argsort(columns["index"], kind="stable")
    index = columns.pop("index")[order]
    names = data.row_names("predict", index)
    return pd.DataFrame({**names, **{name: values[order] for name, values in columns.items()}})


def to_device(module: DomainModule, device: str) -> DomainModule:
    """The module in evaluation mode on a device, with all that its own forward pass needs there."""
    module = module.to(device).eval()
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module
