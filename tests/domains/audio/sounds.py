"""Small sound files for the tests, good and bad."""

from pathlib import Path
from typing import Any

import numpy as np
import soundfile as sf


def wave(seconds: float = 0.2, rate_hz: int = 8000, frequency_hz: float = 440.0, seed: int = 0) -> np.ndarray:
    """A tone with a little noise, float32."""
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    noise = 0.01 * np.random.default_rng(seed).standard_normal(len(t))
    return (0.3 * np.sin(2 * np.pi * frequency_hz * t) + noise).astype(np.float32)


def write(path: Path, samples: np.ndarray | None = None, rate_hz: int = 8000, **options: Any) -> Path:
    """Writes a file of the format that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(str(path), wave(rate_hz=rate_hz) if samples is None else samples, rate_hz, **options)
    return path


def class_folders(folder: Path, per_class: int = 6, classes: tuple[str, ...] = ("high", "low")) -> Path:
    """A folder per class with short files."""
    for k, name in enumerate(classes):
        for i in range(per_class):
            write(folder / name / f"{i}.wav", wave(0.1 + 0.02 * i, frequency_hz=300.0 * (k + 1), seed=i))
    return folder
