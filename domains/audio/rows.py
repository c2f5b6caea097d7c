"""Rows of clips: read from disk when asked for, resampled, cropped, augmented, and with their targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from longseq.domains.audio.augment import NONE, Augmentation, Noise, add_noise, change_speed, draw_masks
from longseq.domains.audio.clips import Clips
from longseq.domains.audio.files import read_samples, resample
from longseq.domains.audio.tokenizer import AudioTokenizer
from longseq.domains.base import Rows
from longseq.domains.loading import row_generator
from longseq.errors import DataError

Targets = Callable[[int, float, int], dict[str, Any]]


@dataclass(frozen=True)
class Stretch:
    """A piece of a row's clip.

    Attributes:
        samples: float32 (T,) at the common rate.
        start_s: seconds from the beginning of the recording.
    """

    samples: np.ndarray
    start_s: float


class ClipRows(Rows):
    """Clips as rows.

    Args:
        clips: the table.
        tokenizer: says what the model takes, and the sampling rate.
        max_samples: longest row at that rate; longer clips are cropped.
        seed: of the augmentation, with epoch and row.
        targets: (row, start in seconds, number of samples) -> the row's labels; None to predict.
        augmentation: of training rows.
        n_classes: for mixup, which mixes labels as well; None where they are 0/1 per tag already.
        next_token: inputs without the last position, and targets without the first (language models).
    """

    def __init__(
        self,
        clips: Clips,
        tokenizer: AudioTokenizer,
        *,
        max_samples: int,
        seed: int,
        targets: Targets | None = None,
        augmentation: Augmentation = NONE,
        n_classes: int | None = None,
        next_token: bool = False,
    ) -> None:
        self.clips, self.tokenizer, self.max_samples, self.seed = clips, tokenizer, max_samples, seed
        self.targets, self.augmentation, self.n_classes, self.next_token = targets, augmentation, n_classes, next_token
        self.noise = Noise(augmentation.noise_files, tokenizer.sample_rate_hz)
        front = tokenizer.front_end() if augmentation.masks_spectrum else None
        self.n_features = 0 if front is None else int(front.n_features)  # type: ignore[arg-type]
        lengths = np.minimum(clips.lengths(tokenizer.sample_rate_hz), max_samples)
        self.lengths = lengths - 1 if next_token else lengths

    def __getitem__(self, index: int) -> dict[str, Any]:
        rng = row_generator(self.seed, self.epoch, index)
        change = self.augmentation
        stretch = self.read(index, rng)
        samples = stretch.samples
        row: dict[str, Any] = {"index": index}
        if self.targets is not None:
            row |= self.targets(index, stretch.start_s, len(samples))
        if change.mixup > 0:
            samples, row["label"] = self.mix(samples, row["label"], rng)
        if change.noise_snr_db is not None:
            samples = add_noise(samples, self.noise.draw(len(samples), rng), rng.uniform(*change.noise_snr_db))
        if change.masks_spectrum:
            frames = self.tokenizer.n_positions(len(samples))
            row["masks"] = draw_masks(change, frames, self.n_features, self.tokenizer.hop_s, rng)
        return self.shifted(row, self.tokenizer.encode(samples))

    def shifted(self, row: dict[str, Any], inputs: np.ndarray) -> dict[str, Any]:
        """The row with its inputs and, for a language model, the next position of each as target."""
        if not self.next_token:
            return {**row, "inputs": inputs}
        return {**row, "inputs": inputs[:-1], "targets": inputs[1:].astype(np.int64)}

    def read(self, index: int, rng: np.random.Generator | None = None) -> Stretch:
        """A row's samples; without random numbers, the middle of a clip that is too long, and nothing changed.

        Raises:
            DataError: naming the row, if its file cannot be read.
        """
        speed = 1.0
        if rng is not None and self.augmentation.speeds:
            speed = float(rng.choice(self.augmentation.speeds))
        rate, count = int(self.clips.rate_hz[index]), int(self.clips.count[index])
        wanted_hz = self.tokenizer.sample_rate_hz
        most = min(count, int(np.ceil(self.max_samples * rate / wanted_hz * speed)))
        room = count - most
        offset = int(rng.integers(room + 1)) if rng is not None and self.augmentation.random_crop and room else room // 2
        first = int(self.clips.first[index]) + offset
        if self.clips.memory is not None:
            samples = self.clips.memory[index][first : first + most]
        else:
            try:
                samples = read_samples(self.clips.frame["path"].iloc[index], first, most)
            except DataError as error:
                raise DataError(f"{self.clips.where(index)}: {error}") from None
        samples = change_speed(resample(samples, rate, wanted_hz), speed)[: self.max_samples]
        return Stretch(samples, first / rate)

    def mix(self, samples: np.ndarray, label: Any, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """`w x + (1 - w) x'` with another row, and labels mixed alike; w from Beta(alpha, alpha).

        Paper: mixup, https://arxiv.org/abs/1710.09412, section 2.
        """
        assert self.targets is not None
        weight = float(rng.beta(self.augmentation.mixup, self.augmentation.mixup))
        other = int(rng.integers(len(self)))
        partner = self.read(other, rng)
        mixed = weight * samples
        shared = min(len(samples), len(partner.samples))
        mixed[:shared] += (1.0 - weight) * partner.samples[:shared]
        labels = [self.soft(value) for value in (label, self.targets(other, partner.start_s, shared)["label"])]
        return mixed.astype(np.float32), (weight * labels[0] + (1.0 - weight) * labels[1]).astype(np.float32)

    def soft(self, label: Any) -> np.ndarray:
        """A class as 0/1 per class; 0/1 per tag as it is."""
        return np.asarray(label) if self.n_classes is None else np.eye(self.n_classes, dtype=np.float32)[int(label)]


class HiddenClipRows(ClipRows):
    """Clips with stretches of positions that are to be told from the others.

    Args:
        *args: of `ClipRows`.
        hide: share of the positions that is hidden.
        hide_s: mean length of a hidden stretch in seconds.
        fixed: hide the same stretches in every epoch.
        **options: of `ClipRows`.
    """

    def __init__(self, *args: Any, hide: float, hide_s: float, fixed: bool, **options: Any) -> None:
        super().__init__(*args, **options)
        self.hide, self.fixed = hide, fixed
        self.span = max(1, round(hide_s * self.tokenizer.sample_rate_hz / self.tokenizer.stride))

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = super().__getitem__(index)
        # Not the generator of the augmentation: its numbers would repeat.
        rng = row_generator(self.seed + 1, 0 if self.fixed else self.epoch, index)
        return {**row, "hidden": hidden_stretches(rng, self.tokenizer.n_positions(len(row["inputs"])), self.hide, self.span)}


def hidden_stretches(rng: np.random.Generator, length: int, share: float, span: int) -> np.ndarray:
    """Which of `length` positions are hidden: stretches of about `span` that together take the given share, one at least."""
    hidden = np.zeros(length, dtype=bool)
    for size in np.maximum(1, rng.geometric(1 / span, max(1, round(share * length / span)))):
        begin = int(rng.integers(0, length))
        hidden[begin : begin + int(size)] = True
    return hidden


def feature_statistics(rows: ClipRows, most: int = 200) -> dict[str, Sequence[float]]:
    """Mean and deviation of each spectral feature over up to so many clips, evenly spread; empty for other tokenizers."""
    import torch

    front = rows.tokenizer.front_end()
    if front is None or not rows.tokenizer.spectral:
        return {}
    features = []
    with torch.no_grad():
        for row in np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)):
            samples = torch.from_numpy(rows.read(int(row)).samples)
            features.append(front.features(samples.unsqueeze(0))[0])  # type: ignore[operator]
    every = torch.cat(features).double()
    mean, std = every.mean(0), every.std(0, correction=0).clamp(min=1e-3)
    return {"mean": [round(float(v), 5) for v in mean], "std": [round(float(v), 5) for v in std]}
