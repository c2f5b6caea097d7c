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


def check_fit(
    task: str,
    *,
    own_data: bool,
    tokenizer: str,
    clip_s: float | None,
    on_long: str,
    hop_s: float | None,
    events: str | None,
    vocabulary: object,
    lowercase: bool,
) -> None:
    """Raises ConfigError for an option that would have no effect beside the others.

    Args:
        task: the task's name.
        own_data: the user's files, not the demo's, whose own options may stand beside any task.
        tokenizer: and all others: the options of the same names.
    """
    if task == "lm" and own_data and tokenizer in ("logmel", "mfcc"):
        raise ConfigError(
            f"data.tokenizer={tokenizer}: task=lm tells mu-law levels, one after the other; leave it out, or choose "
            "task=masked_sound, which tells spectra"
        )
    if on_long == "window" and clip_s is None and task != "lm":
        raise ConfigError("data.on_long=window needs data.clip_s, the seconds of a window")
    if hop_s is not None and on_long != "window" and task != "lm":
        raise ConfigError("data.hop_s is the step between windows: it needs data.on_long=window and data.clip_s")
    for name, value, wanted in (
        ("events", events, "frames"),
        ("vocabulary", vocabulary, "ctc"),
        ("lowercase", lowercase, "ctc"),
    ):
        if value and task != wanted:
            raise ConfigError(f"data.{name} is for task={wanted}; task={task} does not read it")


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
