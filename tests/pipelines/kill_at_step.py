"""A callback for the test of resuming; the test puts this folder on the path of the process that it kills."""

import os
import signal
from typing import Any

import lightning as L


class KillAtStep(L.Callback):
    """Ends the process as a power cut would, at a step of your choice: to try that a run resumes as it should.

    Args:
        step: the optimizer step after which the process sends itself SIGKILL.
    """

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)
