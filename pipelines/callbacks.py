"""What a training run needs around Lightning's loop: checkpoints that resume exactly, a stop on NaN, a progress bar."""

import os
import random
import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint, RichProgressBar, WeightAveraging
from lightning.pytorch.callbacks.progress.rich_progress import RichProgressBarTheme

from longseq.errors import ConfigError, LongseqError
from longseq.pipelines.run_folder import BEST, LAST

# What Python does at Ctrl-C.
KEYBOARD_INTERRUPT = signal.default_int_handler


class RunCheckpoints(Checkpoint):
    """Keeps `last.ckpt`, from which a run that ended early goes on exactly, and `best.ckpt`, by the task's own metric.

    The first Ctrl-C ends a run after the step in hand, where nothing is half done; a second one at once, with the last
    checkpoint as it is.

    Args:
        folder: where both stand.
        monitor: such as `val/mcc`.
        mode: `max` or `min`, whichever is better.
        every_n_steps: write `last` inside epochs too; None after each epoch only.
    """

    def __init__(self, folder: str, monitor: str, mode: str, every_n_steps: int | None = None) -> None:
        self.folder = Path(folder)
        self.monitor, self.mode, self.every_n_steps = monitor, mode, every_n_steps
        self.best_score: float | None = None
        self.best_metrics: dict[str, float] = {}
        self._random: dict[str, Any] | None = None
        self._interrupted = False

    @property
    def best(self) -> Path:
        """The best checkpoint so far; the file exists once a validation has run."""
        return self.folder / BEST

    @property
    def last(self) -> Path:
        """The newest checkpoint."""
        return self.folder / LAST

    def state_dict(self) -> dict[str, Any]:
        # A run that is resumed has drawn nothing of its own until its next step.
        random = random_state() if self._random is None else self._random
        return {"best_score": self.best_score, "best_metrics": self.best_metrics, "random": random}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_metrics = state_dict["best_score"], state_dict["best_metrics"]
        self._random = state_dict["random"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._interrupted = False
        # Who ignores Ctrl-C, as jobs in the background do, or has a handler of its own, keeps it.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is KEYBOARD_INTERRUPT:
            signal.signal(signal.SIGINT, self._note_interrupt)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        self._go_on_drawing()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Not while gradients are accumulated, which no checkpoint holds; what follows an epoch's last batch saves by itself.
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        interrupted = self._is_interrupted(trainer)
        if interrupted or (self.every_n_steps and trainer.global_step % self.every_n_steps == 0):
            trainer.save_checkpoint(self.last)
        if interrupted:
            raise KeyboardInterrupt

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        # Not here: several processes, which may have different numbers of these batches and so cannot agree, and averaged
        # weights, which have changed places with the trained ones.
        averaged = any(isinstance(callback, WeightAveraging) for callback in trainer.callbacks)  # type: ignore[attr-defined]
        if not self._interrupted or trainer.world_size > 1 or averaged:
            return
        # As if in the first batch: a loop that resumes from behind a finished one takes that much for validated.
        progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
        progress.reset()
        progress.increment_ready()
        progress.increment_started()
        trainer.save_checkpoint(self.last)
        raise KeyboardInterrupt

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        score = trainer.callback_metrics.get(self.monitor)
        if trainer.sanity_checking or trainer.state.fn != "fit" or score is None or not torch.isfinite(score):
            return
        value = float(score)
        better = self.best_score is None or (value > self.best_score if self.mode == "max" else value < self.best_score)
        if better or not self.best.exists():
            self.best_score = value
            found = trainer.callback_metrics.items()
            self.best_metrics = {name: float(metric) for name, metric in found if name.startswith("val/")}
            trainer.save_checkpoint(self.best)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.save_checkpoint(self.last)
        # A run that stops early by itself does so: no checkpoint holds that it has decided to.
        if self._is_interrupted(trainer) and not trainer.should_stop:
            raise KeyboardInterrupt

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._go_on_drawing()
        self._put_back()
        if self._is_interrupted(trainer) and not trainer.should_stop:
            raise KeyboardInterrupt

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # Any error leaves the last good checkpoint as it is.
        self._put_back()

    def _note_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._interrupted:
            raise KeyboardInterrupt
        self._interrupted = True
        # Not print, which a signal may have come in the middle of.
        os.write(2, b"\nCtrl-C: ending after this step; once more ends at once, with the last checkpoint as it is\n")

    def _is_interrupted(self, trainer: L.Trainer) -> bool:
        """Whether any process of the run has had a Ctrl-C, so that all end at the same batch."""
        if trainer.world_size == 1:
            return self._interrupted
        return trainer.strategy.reduce_boolean_decision(self._interrupted, all=False)

    def _go_on_drawing(self) -> None:
        """Building the model has drawn random numbers that the first run drew too: back to where the checkpoint was."""
        if self._random is not None:
            set_random_state(self._random)
            self._random = None

    def _put_back(self) -> None:
        if signal.getsignal(signal.SIGINT) == self._note_interrupt:
            signal.signal(signal.SIGINT, KEYBOARD_INTERRUPT)


class LengthWarmup(L.Callback):
    """Trains a language model on short pieces first: stages of length, with the same number of tokens in every batch.

    Args:
        stages: lengths in positions, rising; after the last one rows are whole.
        steps: of each stage: a share of all steps below 1, else a number.

    Paper: HyenaDNA, https://arxiv.org/abs/2306.15794, section 3.2 (sequence length warm-up).

    Raises:
        ConfigError: for lengths that do not rise.
    """

    def __init__(self, stages: Sequence[int], steps: float = 0.1) -> None:
        self.stages, self.steps = [int(stage) for stage in stages], float(steps)
        self._total_steps = 0
        if not self.stages or self.stages[0] < 1 or self.stages != sorted(set(self.stages)) or self.steps <= 0:
            raise ConfigError(
                f"length_warmup.stages must be rising lengths and length_warmup.steps above 0, found {list(stages)} and {steps}"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not getattr(pl_module.task, "per_position", False) or not hasattr(pl_module, "train_length"):
            raise ConfigError("length_warmup cuts rows into pieces, which needs a task along the sequence: task=lm or mlm")
        self._total_steps = int(trainer.estimated_stepping_batches)
        if self.steps * len(self.stages) >= (1 if self.steps < 1 else self._total_steps):
            raise ConfigError(f"length_warmup: {len(self.stages)} stages of {self.steps:g} leave no step for whole rows")

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        pl_module.train_length = self.length(trainer.global_step, self._total_steps)  # type: ignore[assignment]

    def length(self, step: int, total_steps: int) -> int | None:
        """Of the pieces at a step; None for whole rows."""
        each = max(1, round(self.steps * total_steps)) if self.steps < 1 else int(self.steps)
        stage = step // each
        return self.stages[stage] if stage < len(self.stages) else None


def random_state() -> dict[str, Any]:
    """The state of every random generator that training draws from."""
    state: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Puts back what `random_state` gave."""
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([s.cpu() for s in state["cuda"]])


class StopOnNaN(L.Callback):
    """Stops the run at the first loss that is NaN or infinite, and says which step it was.

    The check stays on the device and is read every `log_every_n_steps` and before every checkpoint, so that it does not
    hold up a GPU and no checkpoint with broken weights is ever written.
    """

    def __init__(self) -> None:
        self._first_bad: torch.Tensor | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._first_bad = torch.full((), -1, device=pl_module.device, dtype=torch.long)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        if not isinstance(loss, torch.Tensor) or self._first_bad is None:
            return
        step = torch.full_like(self._first_bad, trainer.global_step)
        bad = ~torch.isfinite(loss.detach()) & (self._first_bad < 0)
        self._first_bad = torch.where(bad, step, self._first_bad)
        on_cpu = self._first_bad.device.type == "cpu"
        if on_cpu or (batch_idx + 1) % max(1, int(getattr(trainer, "log_every_n_steps", 1))) == 0 or trainer.is_last_batch:
            self.check()

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self.check()

    def check(self) -> None:
        """Raises LongseqError if any step so far had a bad loss."""
        if self._first_bad is None or (step := int(self._first_bad)) < 0:
            return
        raise LongseqError(
            f"the loss became NaN or infinite at step {step}; the last good checkpoint is kept. "
            "Lower optimizer.lr, raise schedule.warmup, or set trainer.precision=32-true; "
            "trainer.detect_anomaly=true finds the layer"
        )


class Progress(RichProgressBar):
    """Rich's bar with loss, tokens/s, the deciding metric and the remaining time.

    Args:
        monitor: such as `val/mcc`.
    """

    def __init__(self, monitor: str) -> None:
        super().__init__(refresh_rate=5, leave=False, theme=RichProgressBarTheme(metrics_format=".4g"))
        self.monitor = monitor

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        found = trainer.progress_bar_metrics
        shown: dict[str, Any] = {"loss": found.get("train/loss_step"), "tokens/s": found.get("tokens/s")}
        shown[self.monitor] = trainer.callback_metrics.get(self.monitor)
        return {name: float(value) for name, value in shown.items() if value is not None}
