"""From samples to what the model's embedding takes: the waveform, or mu-law numbers; and the embedding that goes with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from longseq.embeddings_audio import AUDIO_EMBEDDINGS
from longseq.errors import ConfigError

TOKENIZERS = ("waveform", "mulaw", "logmel", "mfcc")
MU = 255
LEVELS = MU + 1
# The number that stands for silence, at padded positions.
SILENCE = 128


def mulaw_encode(samples: np.ndarray) -> np.ndarray:
    """Samples from -1 to 1 as numbers from 0 to 255, finer near zero: `sign(x) log(1 + 255 |x|) / log 256` (ITU-T G.711).

    Args:
        samples: float, any shape; what lies outside -1 and 1 is clipped.

    Returns:
        uint8 of the same shape.
    """
    x = np.clip(samples.astype(np.float64), -1.0, 1.0)
    curved = np.sign(x) * np.log1p(MU * np.abs(x)) / np.log1p(MU)
    return ((curved + 1.0) / 2.0 * MU + 0.5).astype(np.uint8)


def mulaw_decode(numbers: np.ndarray) -> np.ndarray:
    """The samples in the middle of each level, float32."""
    curved = 2.0 * np.asarray(numbers, dtype=np.float64) / MU - 1.0
    return (np.sign(curved) * np.expm1(np.abs(curved) * np.log1p(MU)) / MU).astype(np.float32)


@dataclass(frozen=True)
class AudioTokenizer:
    """How samples become the model's input.

    Attributes:
        name: `waveform`, `mulaw`, `logmel` or `mfcc`.
        sample_rate_hz: of the input.
        stem_strides: of the waveform's convolutions; empty for a linear map of single samples.
        stem_kernels: their kernels; None for twice the strides.
        n_mels: mel filters.
        n_mfcc: cepstral coefficients.
        frame_s: seconds of an analysis window.
        hop_s: seconds between windows.
        f_min: lowest frequency in Hz.
        f_max: highest; None for half the sampling rate.
    """

    name: str
    sample_rate_hz: int
    stem_strides: tuple[int, ...] = (4, 4)
    stem_kernels: tuple[int, ...] | None = None
    n_mels: int = 64
    n_mfcc: int = 20
    frame_s: float = 0.025
    hop_s: float = 0.010
    f_min: float = 64.0
    f_max: float | None = None

    def __post_init__(self) -> None:
        if self.name not in TOKENIZERS:
            raise ConfigError(f"data.tokenizer must be one of {', '.join(TOKENIZERS)}, found {self.name!r}")

    @property
    def discrete(self) -> bool:
        """Whether the input is numbers, not samples."""
        return self.name == "mulaw"

    @property
    def spectral(self) -> bool:
        """Whether the model's embedding computes features of frames."""
        return self.name in ("logmel", "mfcc")

    def embedding(self) -> dict[str, Any]:
        """Name and options of the model's embedding, without what training data say."""
        if self.name == "mulaw":
            return {"name": "token", "vocab_size": LEVELS}
        if self.name == "waveform":
            kernels = None if self.stem_kernels is None else list(self.stem_kernels)
            return {"name": "waveform", "strides": list(self.stem_strides), "kernel_sizes": kernels}
        options: dict[str, Any] = {
            "name": self.name,
            "sample_rate_hz": self.sample_rate_hz,
            "n_mels": self.n_mels,
            "window_s": self.frame_s,
            "hop_s": self.hop_s,
            "f_min": self.f_min,
            "f_max": self.f_max,
        }
        return options if self.name == "logmel" else {**options, "n_mfcc": self.n_mfcc}

    def front_end(self) -> torch.nn.Module | None:
        """The embedding itself, as narrow as can be, for its features and lengths; None for mu-law."""
        options = self.embedding()
        name = options.pop("name")
        try:
            return None if name == "token" else AUDIO_EMBEDDINGS[name](1, **options)
        except ValueError as error:
            raise ConfigError(f"data.tokenizer={self.name}: {error}") from None

    @property
    def stride(self) -> int:
        """Samples of one position."""
        front = self.front_end()
        return 1 if front is None else int(front.stride)  # type: ignore[arg-type]

    @property
    def n_values(self) -> int:
        """Numbers of one position, as pretraining tells them: features of a frame, or samples."""
        front = self.front_end()
        return int(front.n_features) if front is not None and self.spectral else self.stride  # type: ignore[arg-type]

    def n_positions(self, n_samples: int) -> int:
        """Positions of a row of so many samples."""
        return -(-n_samples // self.stride)

    def encode(self, samples: np.ndarray) -> np.ndarray:
        """Mono samples (T,) as what the embedding takes: float32 samples, or int64 numbers."""
        return mulaw_encode(samples).astype(np.int64) if self.discrete else samples.astype(np.float32)

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> AudioTokenizer:
        """The inverse of `to_dict`."""
        values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in options.items()}
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """For the model's config.json."""
        return {
            "name": self.name,
            **{key: list(v) if isinstance(v, tuple) else v for key, v in asdict(self).items() if key != "name"},
        }
