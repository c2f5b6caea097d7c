"""Images that a pixel model makes up, or whose rest it fills in, as png."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from longseq.domains.generation import Generation, numbered
from longseq.domains.vision.augment import fit_channels, fit_size
from longseq.domains.vision.stores import ImageFiles
from longseq.domains.vision.tokenizer import PixelValues
from longseq.errors import ConfigError


class Generated(Generation):
    """Whole images from nothing; with an image as prompt, its upper half is kept and the lower one drawn.

    Args:
        config: the model's.
    """

    suffixes = (".png",)

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        described = config["tokenizer"]
        self.values = PixelValues(described["levels"])
        self.size, self.channels, self.resize = described["size"], described["channels"], described["resize"]
        self.allowed = range(self.values.levels)
        self.n_values = self.size[0] * self.size[1] * self.channels
        self.default_tokens = self.n_values

    def prompt(self, given: str | None, n_samples: int, seed: int) -> np.ndarray:
        ids = np.array([self.values.begin], dtype=np.int64)
        if given:
            store = ImageFiles([Path(given).expanduser()])
            store.header(0)
            pixels = fit_size(fit_channels(store.read(0, [0]), self.channels), self.size, self.resize)
            kept = self.size[0] // 2 * self.size[1] * self.channels
            ids = np.concatenate([ids, self.values.encode(np.moveaxis(pixels[0], -1, 0))[:kept]])
            self.default_tokens = self.n_values - kept
        return np.tile(ids, (n_samples, 1))

    def write(self, given: str | None, prompt: np.ndarray, drawn: np.ndarray, output: Path | None) -> list[Path]:
        values = np.concatenate([prompt[:, 1:], drawn], 1)
        if values.shape[1] != self.n_values:
            raise ConfigError(
                f"an image has {self.n_values} values, found {values.shape[1]}: leave max_new_tokens out, or set it to "
                f"{self.n_values - prompt.shape[1] + 1}"
            )
        paths = numbered(output or Path("generated.png"), len(drawn))
        for path, row in zip(paths, values, strict=True):
            pixels = np.moveaxis(self.values.decode(row, self.size, self.channels), 0, -1)
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels[..., 0] if self.channels == 1 else pixels).save(path)
        return paths
