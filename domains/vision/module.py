"""Trains the vision tasks, with mixup and cutmix."""

from typing import Any

import torch
from torch import Tensor

from longseq.domains.base import DomainData, DomainModule
from longseq.domains.tasks import Batch, Classification
from longseq.domains.vision.datamodule import VisionData, check_grid
from longseq.errors import ConfigError


class VisionModule(DomainModule):
    """The shared module with timm's mixup and cutmix, and with throughput in positions.

    Args:
        mixup: alpha of the mixture of two images; 0 for none. Classification only.
        cutmix: alpha of the share that a pasted rectangle takes; with both, each batch draws one of them.
        mix_prob: share of the batches that are mixed.
        **options: of `DomainModule`.

    Raises:
        ConfigError: for mixup with a task that has no classes.
    """

    def __init__(self, *, mixup: float = 0.0, cutmix: float = 0.0, mix_prob: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.mix = None
        if mixup or cutmix:
            if not isinstance(self.task, Classification):
                raise ConfigError(f"module.mixup and module.cutmix need classes, but task={self.task.name} has none")
            from timm.data.mixup import Mixup

            # Smoothing is the task's own.
            self.mix = Mixup(mixup, cutmix, prob=mix_prob, label_smoothing=0.0, num_classes=len(self.task.labels))

    def prepare(self, data: DomainData) -> None:
        if isinstance(data, VisionData):
            check_grid(data, self.model)

    def on_test_start(self) -> None:
        data = getattr(self.trainer, "datamodule", None)
        if isinstance(data, VisionData):
            check_grid(data, self.model)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        before = self.tokens
        loss = super().training_step(self.mixed(batch), batch_idx)
        # The shared module counts (B, L) inputs; here they are images.
        if batch["inputs"].ndim > 2:
            self.tokens = before + batch["inputs"].shape[0] * int(self.model.config["n_positions"])
        return loss

    def mixed(self, batch: Batch) -> Batch:
        """The batch with images and labels mixed in pairs; a last batch of odd size stays as it is."""
        if self.mix is None or len(batch["inputs"]) % 2:
            return batch
        inputs = batch["inputs"]
        inputs = inputs.float() / 255 if not inputs.is_floating_point() else inputs.clone()
        images = inputs.flatten(1, 2) if inputs.ndim == 5 else inputs
        with torch.no_grad():
            images, labels = self.mix(images, batch["labels"])
        return {**batch, "inputs": images.view_as(inputs), "labels": labels}
