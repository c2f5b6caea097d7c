"""Sound that a language model makes up, or with which it goes on behind a recording, as wav."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from longseq.domains.audio.files import read_header, read_samples, resample, write_wav
from longseq.domains.audio.tokenizer import LEVELS, SILENCE, AudioTokenizer, mulaw_decode
from longseq.domains.generation import Generation, numbered


class Generated(Generation):
    """A sound file as prompt, or silence.

    Args:
        config: the model's.
    """

    suffixes = (".wav",)
    allowed = range(LEVELS)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        self.tokenizer = AudioTokenizer.from_dict(config["tokenizer"])
        self.default_tokens = self.tokenizer.sample_rate_hz

    def prompt(self, given: str | None, n_samples: int, seed: int) -> np.ndarray:
        if not given:
            return np.full((n_samples, 1), SILENCE, dtype=np.int64)
        path = Path(given).expanduser()
        rate = read_header(path).sample_rate_hz
        samples = resample(read_samples(path), rate, self.tokenizer.sample_rate_hz)
        return np.tile(self.tokenizer.encode(samples).astype(np.int64), (n_samples, 1))

    def write(self, given: str | None, prompt: np.ndarray, drawn: np.ndarray, output: Path | None) -> list[Path]:
        paths = numbered(output or Path("generated.wav"), len(drawn))
        # The level of silence before a sample without a prompt is no part of it.
        levels = np.concatenate([prompt, drawn], 1) if given else drawn
        for path, row in zip(paths, levels, strict=True):
            write_wav(path, mulaw_decode(row), self.tokenizer.sample_rate_hz)
        return paths
