"""Changes to training clips that leave their labels alone; all random numbers come from the generator that the row brings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from longseq.domains.audio.files import find_sound, read_header, read_samples, resample
from longseq.errors import ConfigError, DataError


@dataclass(frozen=True)
class Augmentation:
    """What is done to training clips.

    Attributes:
        random_crop: clips longer than the model takes give a random stretch, else their middle.
        noise_snr_db: smallest and largest ratio of signal to noise; None for no noise.
        noise_files: folder of recordings to add; None for white noise.
        speeds: factors to choose from, which change length and pitch.
        time_masks: stretches of frames set to the mean (SpecAugment), for spectral tokenizers.
        time_mask_s: longest of them, in seconds.
        freq_masks: bands of features set to the mean.
        freq_mask_bins: widest of them.
        mixup: alpha of the Beta distribution of mixup's weights; 0 for none.
    """

    random_crop: bool = True
    noise_snr_db: tuple[float, float] | None = None
    noise_files: str | None = None
    speeds: tuple[float, ...] = ()
    time_masks: int = 0
    time_mask_s: float = 0.1
    freq_masks: int = 0
    freq_mask_bins: int = 8
    mixup: float = 0.0

    def __post_init__(self) -> None:
        if self.noise_snr_db is not None and (len(self.noise_snr_db) != 2 or self.noise_snr_db[0] > self.noise_snr_db[1]):
            raise ConfigError(f"data.noise_snr_db must be [smallest, largest] in dB, found {list(self.noise_snr_db)}")
        if any(not 0.5 <= speed <= 2.0 for speed in self.speeds):
            raise ConfigError(f"data.speeds must lie between 0.5 and 2, found {list(self.speeds)}")
        for name in ("time_masks", "time_mask_s", "freq_masks", "freq_mask_bins", "mixup"):
            if getattr(self, name) < 0:
                raise ConfigError(f"data.{name} must not be negative, found {getattr(self, name)}")

    @property
    def masks_spectrum(self) -> bool:
        """Whether SpecAugment is on."""
        return self.time_masks > 0 or self.freq_masks > 0


NONE = Augmentation(random_crop=False)


def add_noise(samples: np.ndarray, noise: np.ndarray, snr_db: float) -> np.ndarray:
    """`x + a n` with a such that the mean squares of x and a n differ by the given ratio.

    Args:
        samples: (T,).
        noise: (T,).
        snr_db: `10 log10(mean(x^2) / mean((a n)^2))`.
    """
    power, other = float(np.mean(np.square(samples))), float(np.mean(np.square(noise)))
    if power == 0.0 or other == 0.0:
        return samples
    scale = np.sqrt(power / other / 10.0 ** (snr_db / 10.0))
    return (samples + scale * noise).astype(np.float32)


def change_speed(samples: np.ndarray, speed: float) -> np.ndarray:
    """Played faster (above 1) or slower, by resampling: (T,) to (ceil(T / speed),)."""
    return samples if speed == 1.0 else resample(samples, round(100 * speed), 100)


class Noise:
    """Noise for any number of samples: white, or stretches of recordings.

    Args:
        folder: of recordings; None for white noise.
        sample_rate_hz: of the clips.
    """

    def __init__(self, folder: str | None, sample_rate_hz: int) -> None:
        self.sample_rate_hz = sample_rate_hz
        self.files: Sequence[Path] = [] if folder is None else find_sound(Path(folder).expanduser())
        if folder is not None and not self.files:
            raise DataError(f"data.noise_files={folder}: the folder holds no sound file")

    def draw(self, length: int, rng: np.random.Generator) -> np.ndarray:
        """(length,) float32."""
        if not self.files:
            return rng.standard_normal(length).astype(np.float32)
        path = self.files[int(rng.integers(len(self.files)))]
        header = read_header(path)
        wanted = min(header.n_frames, -(-length * header.sample_rate_hz // self.sample_rate_hz))
        start = int(rng.integers(header.n_frames - wanted + 1))
        noise = resample(read_samples(path, start, wanted), header.sample_rate_hz, self.sample_rate_hz)
        # A short recording is repeated.
        return np.resize(noise, length)


def draw_masks(
    augmentation: Augmentation, n_frames: int, n_features: int, hop_s: float, rng: np.random.Generator
) -> np.ndarray:
    """SpecAugment's stretches as (masks, 4): first and last frame, first and last feature, ends excluded.

    Paper: SpecAugment, https://arxiv.org/abs/1904.08779, section 2, without time warping.
    """
    longest = round(augmentation.time_mask_s / hop_s)
    masks = []
    for _ in range(augmentation.time_masks):
        width = int(rng.integers(min(longest, n_frames) + 1))
        start = int(rng.integers(n_frames - width + 1))
        masks.append((start, start + width, 0, n_features))
    for _ in range(augmentation.freq_masks):
        width = int(rng.integers(min(augmentation.freq_mask_bins, n_features) + 1))
        start = int(rng.integers(n_features - width + 1))
        masks.append((0, n_frames, start, start + width))
    return np.array(masks, dtype=np.int64).reshape(-1, 4)
