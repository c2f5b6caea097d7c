"""What the domains share: the data module they derive from and the LightningModule that trains any of their tasks."""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics import MetricCollection

from longseq.backbone import Backbone
from longseq.domains.loading import LengthBatches, ResumableLoader, split_rows
from longseq.domains.tasks import Batch, LanguageModel, Task
from longseq.errors import ConfigError
from longseq.losses import LOGITS_AT_ONCE, chunked_cross_entropy, position_chunks
from longseq.model import SequenceModel
from longseq.optim import SCHEDULES, parameter_groups, parameter_options

if TYPE_CHECKING:
    from longseq.domains.prediction import Predictions

Row = Mapping[str, float | str]


class Rows(Dataset[dict[str, Any]], ABC):
    """A split's rows, of known lengths.

    Attributes:
        lengths: of every row, in positions.
        epoch: chooses the random numbers of augmentation; set before each epoch.
    """

    lengths: np.ndarray
    epoch: int = 0

    def __len__(self) -> int:
        return len(self.lengths)


class DomainData(L.LightningDataModule, ABC):
    """A domain's data module: reads the user's files in `setup`, then answers what the model and the report need.

    Args:
        task: the task's name.
        batch_size: rows per process and step.
        max_tokens: if set, batches hold at most so many positions, padding included.
        num_workers: loader processes; 0 reads in the training process.
        seed: of splits, shuffling and augmentation.

    Attributes:
        splits: rows by the names train, val, test and predict; filled by `setup`.
        counts: what was read, skipped, cropped and so on, for the report.
    """

    domain: str
    # What a language model's token is, in the names of its columns: bits_per_base.
    token_unit: str = "token"

    def __init__(
        self, *, task: str, batch_size: int, max_tokens: int | None = None, num_workers: int = 0, seed: int = 1
    ) -> None:
        super().__init__()
        for name, number, least in (
            ("batch_size", batch_size, 1),
            ("max_tokens", max_tokens, 1),
            ("num_workers", num_workers, 0),
        ):
            if number is not None and number < least:
                raise ConfigError(f"data.{name} must be {least} or more, found {number}")
        self.task_name = task
        self.batch_size, self.max_tokens, self.num_workers, self.seed = batch_size, max_tokens, num_workers, seed
        self.splits: dict[str, Rows] = {}
        self.counts: dict[str, int | float | str] = {}

    @abstractmethod
    def task_options(self) -> dict[str, Any]:
        """What the data says of the task: labels, vocabulary, means, class weights."""

    @abstractmethod
    def model_options(self, backbone: Backbone) -> dict[str, Any]:
        """The model config's `embedding`, and `tokenizer` and whatever else inference needs."""

    @property
    @abstractmethod
    def max_length(self) -> int:
        """The longest sequence that the model will see, in positions; backbones with a fixed length are built for it."""

    @property
    def grid(self) -> tuple[int, ...]:
        """Sizes of 2-D and 3-D input in positions, for backbones that read them in several orders."""
        raise ConfigError(f"backbone.scan_orders needs images or video; domain={self.domain} has one order of positions")

    @property
    def grid_token(self) -> int | None:
        """Place in the sequence of a token that is no cell of the grid, such as a class token; None for none."""
        return None

    @abstractmethod
    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        """A batch from rows."""

    def head_options(self, backbone: Backbone, head: dict[str, Any]) -> dict[str, Any]:
        """The model config's `head`: the task's own unless the domain has reason to change it."""
        del backbone
        return head

    def model_files(self) -> dict[str, str]:
        """Further text files for the model folder, by name."""
        return {}

    def summary(self) -> dict[str, Any]:
        """Counts, lengths and the domain's own facts per split, for the console and the report."""
        return {name: {"rows": len(rows)} for name, rows in self.splits.items()}

    def start(self, model: SequenceModel, task: Task) -> None:
        """Gives a fresh model what can be known from the training data before the first step, such as a closed-form part."""
        del model, task

    def baselines(self, task: Task) -> dict[str, Row]:
        """Trivial baselines by name, each with the test metrics that the model is judged by."""
        del task
        return {}

    def self_supervised(self, causal: bool) -> "DomainData":
        """The same training inputs under a task that needs no labels, for a pretraining on the task's own data.

        Args:
            causal: whether the backbone sees the past alone.

        Raises:
            ConfigError: if the domain has none for these data.
        """
        del causal
        raise ConfigError(
            f"self_pretrain: domain={self.domain} has no way to pretrain on the inputs of task={self.task_name} by itself; "
            "name a task of the domain that needs no labels, self_pretrain.task=..., or pretrain with longseq fit task=... "
            "and go on with longseq finetune pretrained=<that run>"
        )

    # -- predicting without training data

    @classmethod
    def options_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The data options that a saved model's config.json decides, such as the sampling rate or the images' size."""
        del config
        return {}

    def setup_predict(self, config: Mapping[str, Any]) -> None:
        """Reads `data.predict` alone, without labels, into the split `predict`, as the model of this config.json wants it.

        Raises:
            ConfigError: if there is nothing to predict.
        """
        raise ConfigError(f"domain={self.domain} cannot predict new files: its data module has no setup_predict")

    def long_predictions(self, module: "DomainModule", options: Mapping[str, Any]) -> "Predictions | None":
        """The domain's own `Predictions` for tasks that answer at every position of long inputs; None if rows answer.

        Args:
            module: model and task.
            options: `chunk`, `window`, `overlap`, `resolution` and `part_tokens` of the verb predict.
        """
        del module, options
        return None

    @staticmethod
    def long_window(task: str, options: Mapping[str, Any], sample_rate_hz: int | None = None) -> int | None:
        """Tokens or samples that `long_predictions` reads at once where no state is carried; None for tasks without it.

        Args:
            task: its name.
            options: of the data, as in training.
            sample_rate_hz: of sound.
        """
        del task, options, sample_rate_hz
        return None

    def row_names(self, split: str, index: np.ndarray) -> dict[str, Sequence[Any]]:
        """Columns that identify rows in predictions.csv."""
        del split
        return {"row": index.tolist()}

    def loader(self, split: str, *, shuffle: bool = False, epoch: int = 0) -> DataLoader[Any]:
        """Batches of a split for this process."""
        rows = self.splits[split]
        rows.epoch = epoch
        trainer = self.trainer
        sampler = LengthBatches(
            rows.lengths,
            self.batch_size,
            shuffle=shuffle,
            seed=self.seed,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
            max_tokens=self.max_tokens,
            epoch=epoch,
        )
        return ResumableLoader(
            rows,
            batch_sampler=sampler,
            collate_fn=self.collate,
            num_workers=self.num_workers,
            pin_memory=torch.cuda.is_available(),
            # Its own generator: making an iterator then leaves the global random state alone, so that a
            # resumed run draws the same numbers as one that never stopped.
            generator=torch.Generator().manual_seed(self.seed),
            progress=lambda: finished(trainer.fit_loop.epoch_loop.batch_progress) if trainer else 0,
        )

    def train_dataloader(self) -> DataLoader[Any]:
        """Made anew for every epoch (`reload_dataloaders_every_n_epochs=1`), whose number chooses order and augmentation."""
        # Not trainer.current_epoch, which is one behind while a run is being resumed.
        epoch = finished(self.trainer.fit_loop.epoch_progress) if self.trainer else 0
        return self.loader("train", shuffle=True, epoch=epoch)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        return self.loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.loader("predict")


class DomainModule(L.LightningModule):
    """Trains a task's model; domains derive from it to add augmentation, test-time averaging and the like.

    Args:
        task: loss, metrics and head.
        model: with its config, so that it can be saved.
        optimizer: `name` (adamw), `lr`, `weight_decay`, `betas`.
        schedule: `name` (cosine, linear, constant), `warmup` (share of all steps, or a number of steps above 1), `min_ratio`.
        compile: compile the network (not the module) with torch.compile.
    """

    def __init__(
        self,
        task: Task,
        model: SequenceModel,
        *,
        optimizer: Mapping[str, Any] | None = None,
        schedule: Mapping[str, Any] | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.task = task
        self.model = model
        self.optimizer_config = dict(optimizer or {})
        self.schedule_config = dict(schedule or {})
        # Compiled in place: the network keeps its parameters' names, and the module stays as Python.
        if compile:
            self.model.compile()
        self.metrics: dict[str, MetricCollection] = {}
        self.test_predictions: list[dict[str, np.ndarray]] = []
        # In a warm-up of the length: rows are cut into pieces of so many positions.
        self.train_length: int | None = None
        self.tokens = 0
        self.seconds = 0.0
        self._last_log = (0, 0.0)
        self._started: float | None = None
        # Read from the marks now: wrappers such as FSDP replace the parameters that carry them.
        self.parameter_options = parameter_options(
            self.model, lr=self.optimizer_config.get("lr", 1e-3), weight_decay=self.optimizer_config.get("weight_decay", 0.0)
        )

    # -- running the model

    def prepare(self, data: DomainData) -> None:
        """Fits the model to how the data come, where it can be; called before it is run without a trainer."""
        del data

    def forward(self, batch: Batch) -> Tensor:
        """The model's outputs for a batch."""
        return self.model(batch["inputs"], batch.get("mask"), batch.get("segment_ids"))

    def views(self, batch: Batch) -> list[Batch]:
        """The batch as it is evaluated: once, or several times over, such as both strands, whose outputs are combined."""
        return [batch]

    def evaluate_batch(self, batch: Batch) -> Tensor:
        """Outputs for metrics and predictions."""
        outputs = [self(view) for view in self.views(batch)]
        return outputs[0] if len(outputs) == 1 else self.task.combine(outputs)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        if self.train_length is not None:
            batch = split_rows(batch, self.train_length)
        if self._in_chunks(batch):
            x_ND, labels_N = self._labelled_features(batch)
            loss = chunked_cross_entropy(self.model.head, x_ND, labels_N, self._n_outputs)
        else:
            loss = self.task.loss(self(batch), batch)
        size = len(batch["inputs"])
        self.log("train/loss", loss, prog_bar=True, on_step=True, on_epoch=True, batch_size=size)
        # On a GPU counting the real positions would wait for it; there padding counts.
        mask = batch.get("mask")
        self.tokens += int(mask.sum()) if mask is not None and not mask.is_cuda else batch["inputs"].shape[:2].numel()
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate("test", batch)

    def predict_step(self, batch: Batch, batch_idx: int) -> dict[str, np.ndarray]:
        return self._predictions(self.evaluate_batch(batch), batch)

    def _predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        return {"index": batch["index"].cpu().numpy(), **self.task.predictions(outputs, batch)}

    def _in_chunks(self, batch: Batch) -> bool:
        """Whether the logits of all positions are too many to stand in memory at once."""
        if not isinstance(self.task, LanguageModel) or not hasattr(self.model.head, "projection"):
            return False
        # Sharded weights are whole only inside the wrapped model's own forward.
        sharded = self._trainer is not None and "FSDP" in type(self.trainer.strategy).__name__
        return not sharded and batch["labels"].numel() * self._n_outputs > LOGITS_AT_ONCE

    @property
    def _n_outputs(self) -> int:
        return int(self.model.head.projection.out_features)  # type: ignore[union-attr]

    def _labelled_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Features and labels with the positions of all rows one behind the other."""
        x_BLD = self.model.features(batch["inputs"], batch.get("mask"), batch.get("segment_ids"))
        return x_BLD.flatten(0, 1), batch["labels"].flatten()

    def _evaluate_in_chunks(self, split: str, batch: Batch) -> None:
        x_ND, labels_N = self._labelled_features(batch)
        for part in position_chunks(len(labels_N), self._n_outputs):
            outputs = self.model.head(x_ND[part].unsqueeze(0))
            self.task.update(self.metrics[split], outputs, {"labels": labels_N[part].unsqueeze(0)})

    def _evaluate(self, split: str, batch: Batch) -> None:
        if self._in_chunks(batch):
            self._evaluate_in_chunks(split, batch)
            return
        outputs = self.evaluate_batch(batch)
        if split == "test" and not self.task.per_position:
            self.test_predictions.append(self._predictions(outputs, batch))
        if not self.task.per_position:
            self.log(f"{split}/loss", self.task.loss(outputs, batch), batch_size=len(batch["inputs"]), sync_dist=True)
        self.task.update(self.metrics[split], outputs, batch)

    # -- metrics

    def _start_metrics(self, split: str) -> None:
        self.metrics[split] = self.task.metrics().to(self.device)

    def _log_metrics(self, split: str) -> None:
        values = {f"{split}/{name}": value.float() for name, value in self.metrics[split].compute().items()}
        self.log_dict(values)

    def on_validation_epoch_start(self) -> None:
        self._start_metrics("val")

    def on_validation_epoch_end(self) -> None:
        self._log_metrics("val")

    def on_test_epoch_start(self) -> None:
        self._start_metrics("test")
        self.test_predictions.clear()

    def on_test_epoch_end(self) -> None:
        self._log_metrics("test")

    # -- resuming

    def on_train_start(self) -> None:
        # The schedule has had the batches counted, and so made, before a resumed run's place among them was known.
        loop = self.trainer.fit_loop
        if loop._combined_loader_states_to_load:
            loop._combined_loader = None  # Made again, at that place.

    # -- throughput

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        if self._started is None:
            self._started = time.perf_counter()

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        every = max(1, int(getattr(self.trainer, "log_every_n_steps", 1)))
        if (batch_idx + 1) % every == 0 or self.trainer.is_last_batch:
            self._measure_throughput()

    def _measure_throughput(self) -> None:
        if self._started is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds += time.perf_counter() - self._started
        self._started = time.perf_counter()
        tokens, seconds = self._last_log
        rate = (self.tokens - tokens) / max(1e-9, self.seconds - seconds)
        self._last_log = (self.tokens, self.seconds)
        self.log("tokens/s", rate * self.trainer.world_size, prog_bar=True, batch_size=1)

    def on_validation_start(self) -> None:
        # Validation inside a training epoch is not training time.
        self._stop_clock()

    def on_train_end(self) -> None:
        # A run that ends within an epoch has steps since the last measurement.
        self._stop_clock()

    def _stop_clock(self) -> None:
        if self._started is not None:
            self.seconds += time.perf_counter() - self._started
            self._started = None

    # -- optimisation

    def configure_optimizers(self) -> dict[str, Any]:
        config = self.optimizer_config
        names = [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]
        trained = [(name, parameter) for name, parameter in self.model.named_parameters() if name in set(names)]
        groups = parameter_groups(trained, self.parameter_options)
        for group in groups:
            del group["names"]
        if config.get("name", "adamw") != "adamw":
            raise ConfigError(f"optimizer.name must be adamw, found {config['name']!r}")
        optimizer = torch.optim.AdamW(groups, betas=tuple(config.get("betas", (0.9, 0.999))), eps=config.get("eps", 1e-8))
        total = int(self.trainer.estimated_stepping_batches)
        factor = build_schedule(self.schedule_config, total)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def finished(progress: Any) -> int:
    """How many epochs, or batches of the epoch, Lightning's counter has behind it."""
    return progress.current.processed


def build_schedule(config: Mapping[str, Any], total_steps: int) -> Any:
    """The factor on the learning rate at every step; `warmup` below 1 is a share of all steps."""
    name = config.get("name", "cosine")
    if name not in SCHEDULES:
        raise ConfigError(f"schedule.name must be one of {', '.join(SCHEDULES)}, found {name!r}")
    warmup = config.get("warmup", 0.0)
    steps = round(warmup * total_steps) if warmup < 1 else int(warmup)
    return SCHEDULES[name](total_steps, steps, config.get("min_ratio", 0.0))
