"""Options that must fit each other: tasks, tokenizers, and what is done to training clips."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from longseq.domains.audio.augment import Augmentation
from longseq.domains.audio.tasks import TASKS
from longseq.errors import ConfigError


def check_task(task: str) -> None:
    """Raises ConfigError for a task that sound has not."""
    if task not in TASKS:
        raise ConfigError(f"domain=audio has no task={task}; it has {', '.join(TASKS)}")


def augmentation(options: Mapping[str, Any], task: str, tokenizer: str) -> Augmentation:
    """What is done to training clips.

    Raises:
        ConfigError: for changes that the task's labels or the tokenizer do not allow.
        TypeError: for an unknown option.
    """
    unknown = sorted(set(options) - set(Augmentation.__dataclass_fields__))
    if unknown:
        raise TypeError(f"AudioData has no option {unknown[0]!r}")
    values = dict(options)
    for key in ("noise_snr_db", "speeds"):
        given = values.get(key)
        if given is None:
            continue
        if isinstance(given, (str, int, float)):
            example = "[5, 30]" if key == "noise_snr_db" else "[0.9, 1.0, 1.1]"
            raise ConfigError(f"data.{key} must be a list such as {example}, found {given!r}")
        values[key] = tuple(float(v) for v in given)
    found = Augmentation(**values)
    if found.noise_files is not None and found.noise_snr_db is None:
        raise ConfigError("data.noise_files needs data.noise_snr_db, how loud the noise may be, such as [5, 30]")
    if found.mixup > 0 and task not in ("classification", "multilabel"):
        raise ConfigError(f"data.mixup mixes classes and tags; task={task} has none: set data.mixup=0")
    if found.speeds and task in ("frames", "regression", "lm"):
        raise ConfigError(f"data.speeds would move what task={task} has to find: set data.speeds=[]")
    if found.masks_spectrum and tokenizer not in ("logmel", "mfcc"):
        raise ConfigError(f"data.time_masks and data.freq_masks need data.tokenizer=logmel or mfcc, found {tokenizer}")
    return found
