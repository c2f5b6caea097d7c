"""A callback for the tests of resuming; a test puts this folder on the path of the process that it ends."""

import os
import signal
from typing import Any

import lightning as L


class SignalAt(L.Callback):
    """Sends the process a signal when training reaches a place, as a power cut or a press of Ctrl-C would.

    Args:
        hook: Lightning's name of the place, such as `on_train_batch_end`.
        times: which time of reaching it, from 1.
        name: of the signal.
        presses: how often it is sent.
    """

    def __init__(self, hook: str, times: int, name: str = "SIGINT", presses: int = 1) -> None:
        self._left, self._signal, self._presses = times, signal.Signals[name], presses
        setattr(self, hook, self._reached)

    def _reached(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.sanity_checking:
            return
        self._left -= 1
        for _ in range(self._presses if self._left == 0 else 0):
            os.kill(os.getpid(), self._signal)
