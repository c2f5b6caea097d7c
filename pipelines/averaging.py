"""Averaged weights beside those of the last step: both are validated, and the better ones are what a run leaves."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from longseq.pipelines.callbacks import RunCheckpoints
from longseq.pipelines.run_folder import AVERAGE, LAST_STEP


class MovingAverage(EMAWeightAveraging):
    """Validates and saves an exponential moving average of the weights while a model trains, and stands aside afterwards.

    Lightning's own gives a model that loads a checkpoint to be tested the weights of the last step in place of the averaged
    ones, so that what was tested is not what is saved.

    Args:
        *args: of `EMAWeightAveraging`.
        **options: of `EMAWeightAveraging`.
    """

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_validation_epoch_end(trainer, pl_module)


def keep_better_weights(trainer: L.Trainer, module: L.LightningModule, data: L.LightningDataModule) -> str | None:
    """Puts into the best checkpoint whichever of its weights validate better, the averaged ones or those of its step.

    A short run is over before an average has left the weights that it began with.

    Args:
        trainer: behind its training.
        module: to validate.
        data: with the split `val`.

    Returns:
        Which ones they are; None if the checkpoint holds no average.
    """
    keeper = next((found for found in trainer.checkpoint_callbacks if isinstance(found, RunCheckpoints)), None)
    callbacks: Any = getattr(trainer, "callbacks", [])
    if keeper is None or not keeper.best.is_file() or not any(isinstance(c, WeightAveraging) for c in callbacks):
        return None
    state = torch.load(keeper.best, map_location="cpu", weights_only=False)
    if "current_model_state" not in state:
        return None
    other = keeper.best.with_name("last_step.ckpt")
    if trainer.is_global_zero:
        torch.save({**state, "state_dict": state["current_model_state"]}, other)
    trainer.strategy.barrier()
    results = trainer.validate(module, data, other, verbose=False, weights_only=False)[0]
    found = {name: float(value) for name, value in results.items() if name.startswith("val/")}
    trainer.strategy.barrier()
    score, best = found[keeper.monitor], keeper.best_score
    better = best is None or (score > best if keeper.mode == "max" else score < best)
    if trainer.is_global_zero and better:
        other.replace(keeper.best)
    elif trainer.is_global_zero:
        other.unlink()
    trainer.strategy.barrier()
    if better:
        keeper.best_score, keeper.best_metrics = score, found
    return LAST_STEP if better else AVERAGE
