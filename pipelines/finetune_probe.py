"""The linear probe: the backbone runs once over every row, and the head is trained on what it gave."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from longseq.domains.base import DomainData, DomainModule, finished
from longseq.domains.loading import LengthBatches, ResumableLoader
from longseq.domains.tasks import Batch
from longseq.errors import ConfigError
from longseq.pipelines.fit import checkpoint_weights

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What the frozen part of the model consumes; the rest of a batch is the task's.
INPUTS = ("inputs", "mask", "segment_ids", "spectrum_masks")


def can_cache(cfg: "DictConfig", module: DomainModule) -> bool:
    """Whether features may stand in for the backbone: it is frozen, and the head begins with a summary of the row.

    Raises:
        ConfigError: if what changes the inputs in every step would be left out.
    """
    frozen = not any(p.requires_grad for part in (module.model.backbone, module.model.embedding) for p in part.parameters())
    summary = hasattr(module.model.head, "summarize") and not module.task.per_position
    if not (cfg.finetune.cache_features and frozen and summary):
        return False
    if getattr(module, "mix", None) is not None:
        raise ConfigError(
            "module.mixup and module.cutmix change the inputs in every step, which features computed once cannot follow: "
            "set them to 0, or finetune.cache_features=false"
        )
    return True


class FeatureTap(nn.Module):
    """Takes the head's place and gives its summary of the row, whatever path the module's forward takes there."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.summarize = head.summarize

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """`(B, L, D)` to `(B, ...)`."""
        return self.summarize(x_BLD, mask_BL)  # type: ignore[operator]


class HeadAlone(nn.Module):
    """A model that begins where the head's summary ends; its parameters keep the whole model's names."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        """`(B, ...)` to the task's outputs."""
        del mask_BL, segment_ids_BL
        return self.head.answer(features)  # type: ignore[operator]


class ProbeModule(DomainModule):
    """Trains a head on kept features; in evaluation every view's features are answered and the answers combined."""

    def views(self, batch: Batch) -> list[Batch]:
        return [{**batch, "inputs": view} for view in batch["inputs"].unbind(1)]


class KeptRows(Dataset[Batch]):
    """Rows of features with what the task needs beside them, read batch by batch."""

    def __init__(self, columns: Batch) -> None:
        self.columns = columns

    def __len__(self) -> int:
        return len(self.columns["inputs"])

    def __getitems__(self, rows: list[int]) -> Batch:
        return {name: column[rows] for name, column in self.columns.items()}


class KeptFeatures(L.LightningDataModule):
    """Features in place of the domain's rows.

    Args:
        passes: over the training rows; epoch e is trained on pass e modulo their number.
        val: of the validation rows, with a second axis for the views.
        batch_size: rows per process and step.
        seed: of the order.
    """

    def __init__(self, passes: list[Batch], val: Batch, *, batch_size: int, seed: int) -> None:
        super().__init__()
        self.passes, self.val = passes, val
        self.batch_size, self.seed = batch_size, seed

    def train_dataloader(self) -> DataLoader[Any]:
        epoch = finished(self.trainer.fit_loop.epoch_progress) if self.trainer else 0
        return self._loader(self.passes[epoch % len(self.passes)], shuffle=True, epoch=epoch)

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val, shuffle=False, epoch=0)

    def _loader(self, columns: Batch, *, shuffle: bool, epoch: int) -> DataLoader[Any]:
        rows, trainer = KeptRows(columns), self.trainer
        sampler = LengthBatches(
            np.ones(len(rows), dtype=np.int64),
            self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            epoch=epoch,
        )
        return ResumableLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            generator=torch.Generator().manual_seed(self.seed),
            progress=lambda: finished(trainer.fit_loop.epoch_loop.batch_progress) if trainer else 0,
        )


def _as_it_is(batch: Batch) -> Batch:
    return batch


class Probe:
    """Everything a linear probe needs: features of the training and validation rows, and a module for the head.

    Args:
        module: the whole one, whose head is trained in place of it.
        data: read.
        cfg: of the verb finetune.
        trainer: says the device.
    """

    def __init__(self, module: DomainModule, data: DomainData, cfg: "DictConfig", trainer: L.Trainer) -> None:
        self.whole = module
        device, dtype = trainer.strategy.root_device, autocast_dtype(str(trainer.precision))
        passes = max(1, int(cfg.finetune.cache_passes))
        train = [features(module, data, "train", device, dtype, epoch=i, views=False) for i in range(passes)]
        val = features(module, data, "val", device, dtype, epoch=0, views=True)
        self.data = KeptFeatures(train, val, batch_size=data.batch_size, seed=data.seed)
        self.module = ProbeModule(
            task=module.task,
            model=HeadAlone(module.model.head),  # type: ignore[arg-type]
            optimizer=module.optimizer_config,
            schedule=module.schedule_config,
        )
        self.module.parameter_options = {
            name: found for name, found in module.parameter_options.items() if name.startswith("head.")
        }
        if trainer.is_global_zero:
            size = sum(batch["inputs"].numel() * batch["inputs"].element_size() for batch in (*train, val)) / 2**20
            Console().print(
                f"  features of {len(train[0]['inputs']):,} training and {len(val['inputs']):,} validation rows are kept, "
                f"{size:,.1f} MiB",
                highlight=False,
            )

    def give_head(self, checkpoint: Path | None) -> None:
        """Puts the best head into the whole module, which holds the weights to test from then on."""
        if checkpoint is not None:
            weights = checkpoint_weights(checkpoint)
            head = {name.removeprefix("head."): tensor for name, tensor in weights.items() if name.startswith("head.")}
            self.whole.model.head.load_state_dict(head)


def autocast_dtype(precision: str) -> torch.dtype | None:
    """The dtype that a trainer's precision computes in; None for its parameters' own."""
    if precision.startswith("bf16"):
        return torch.bfloat16
    return torch.float16 if precision.startswith("16") else None


@torch.no_grad()
def features(
    module: DomainModule,
    data: DomainData,
    split: str,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    epoch: int,
    views: bool,
) -> Batch:
    """The head's summaries of a split's rows, in their order, with what else their batches hold.

    Args:
        module: the whole one; its head is not run.
        data: read.
        split: of the rows.
        device: to compute on; what is kept stays on the CPU.
        dtype: of autocast.
        epoch: chooses the augmentation.
        views: keep one summary per view of the evaluation, on a second axis.
    """
    head, training = module.model.head, module.training
    module.to(device).eval()
    module.model.head = FeatureTap(head)
    found: list[Batch] = []
    try:
        module.prepare(data)
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            for batch in data.loader(split, epoch=epoch):
                moved = {name: tensor.to(device) for name, tensor in batch.items()}
                seen = [module(view).float().cpu() for view in (module.views(moved) if views else [moved])]
                rest = {name: tensor for name, tensor in batch.items() if name not in INPUTS}
                found.append({**rest, "inputs": torch.stack(seen, 1) if views else seen[0]})
    finally:
        module.model.head = head
        module.train(training)
    return in_order(found)


def in_order(batches: Iterable[Batch]) -> Batch:
    """Batches as one, its rows sorted by their number."""
    found = list(batches)
    columns = {name: torch.cat([batch[name] for batch in found]) for name in found[0]}
    order = columns["index"].argsort(stable=True)
    return {name: column[order] for name, column in columns.items()}
