"""What the tests of resuming share: a signal at a place of theirs, and what the last checkpoint holds.

A test puts this folder on the path of the process that it ends.
"""

import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import torch


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


def signal_at(hook: str, times: int, **options: Any) -> str:
    """The override that sends a run a signal of its own: `SignalAt`."""
    entry = {"_target_": "resuming.SignalAt", "hook": hook, "times": times, **options}
    return f"+callbacks.signal={{{', '.join(f'{key}: {value}' for key, value in entry.items())}}}"


def last_checkpoint(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)


def ends_with_the_weights_of(folder: Path, whole: Path) -> bool:
    """Whether both runs' last checkpoints hold the same weights, bit by bit; the model is the best one's and may be older."""
    weights, expected = (last_checkpoint(run)["state_dict"] for run in (folder, whole))
    return weights.keys() == expected.keys() and all(torch.equal(weights[name], tensor) for name, tensor in expected.items())
