"""How pixels become positions: the grid of pixels, patches or tubelets, and the values that a pixel model predicts."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from longseq.embeddings_stem import stem_grid
from longseq.errors import ConfigError

TOKENIZERS = ("pixel", "patch", "tubelet")
# The fewest cells along a side that a patch size chosen by itself leaves.
FEWEST = 7


@dataclass(frozen=True)
class CellTokenizer:
    """Cuts clips (T, H, W) into cells.

    Attributes:
        kind: `pixel`, `patch` or `tubelet`.
        size: (H, W) of the frames.
        frames: of a clip; 1 for images.
        patch: side of a cell in pixels.
        tube: frames of a cell.
    """

    kind: str
    size: tuple[int, int]
    frames: int = 1
    patch: int = 1
    tube: int = 1

    def __post_init__(self) -> None:
        if self.kind not in TOKENIZERS:
            raise ConfigError(f"data.tokenizer must be one of {', '.join(TOKENIZERS)}, found {self.kind!r}")
        if self.patch < 1 or any(side < self.patch or side % self.patch for side in self.size):
            fits = [p for p in range(1, min(self.size) + 1) if all(side % p == 0 for side in self.size)]
            raise ConfigError(
                f"data.patch={self.patch} does not divide images of {self.size[0]} x {self.size[1]} pixels; "
                f"patches that do: {', '.join(map(str, fits))}; or set data.size to a multiple of the patch"
            )
        if self.tube < 1 or self.frames % self.tube:
            raise ConfigError(f"data.frames={self.frames} is no multiple of data.tube={self.tube}")

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells along (H, W), for videos (T, H, W)."""
        plane = (self.size[0] // self.patch, self.size[1] // self.patch)
        return (self.frames // self.tube, *plane) if self.kind == "tubelet" else plane

    @property
    def length(self) -> int:
        """Cells of a clip."""
        return int(np.prod(self.grid))

    def at(self, size: tuple[int, int]) -> "CellTokenizer":
        """The same cells for frames of another size."""
        return replace(self, size=size)

    def cells(self, pixels: np.ndarray) -> np.ndarray:
        """Raw cells (L, P) of a clip (T, C, H, W), each as channel, frame, row, column, in the embeddings' order."""
        frames, channels, height, width = pixels.shape
        shape = (frames // self.tube, self.tube, channels, height // self.patch, self.patch, width // self.patch, self.patch)
        return pixels.reshape(shape).transpose(0, 3, 5, 2, 1, 4, 6).reshape(-1, channels * self.tube * self.patch**2)

    def assemble(self, cells: np.ndarray, channels: int) -> np.ndarray:
        """A clip (T, C, H, W) from its cells (L, P); undoes `cells`."""
        frames, (height, width), p = self.frames // self.tube, self.size, self.patch
        blocks = cells.reshape(frames, height // p, width // p, channels, self.tube, p, p)
        return blocks.transpose(0, 4, 3, 1, 5, 2, 6).reshape(self.frames, channels, height, width)

    def embedding(self) -> dict[str, Any]:
        """Name and sizes of the embedding that makes these cells."""
        options: dict[str, Any] = {"name": self.kind, "size": list(self.size)}
        if self.kind != "pixel":
            options["patch"] = self.patch
        if self.kind == "tubelet":
            options |= {"frames": self.frames, "tube": self.tube}
        return options


@dataclass(frozen=True)
class StemTokenizer(CellTokenizer):
    """The cells are those of the feature map of one of timm's networks.

    Attributes:
        stem: timm's name of the network.
    """

    stem: str = ""

    @property
    def grid(self) -> tuple[int, ...]:
        """Cells of the feature map along (H, W)."""
        try:
            return stem_grid(self.stem, self.size)
        except ValueError as error:
            raise ConfigError(f"data.{error}") from None

    def embedding(self) -> dict[str, Any]:
        """Name and sizes of the embedding that holds the network."""
        return {"name": "stem", "size": list(self.size), "model": self.stem}


def default_patch(size: Sequence[int]) -> int:
    """The largest power of two up to 16 that divides both sides and leaves 7 cells or more along each; small images: 2 or 1."""
    for patch in (16, 8, 4, 2):
        if all(side % patch == 0 for side in size) and min(size) // patch >= (FEWEST if patch > 2 else 2):
            return patch
    return 1


@dataclass(frozen=True)
class PixelValues:
    """Pixels as tokens of a language model: quantised values, after a token that begins every image.

    Attributes:
        levels: values per channel, 2 to 256; 256 leaves bytes as they are.
    """

    levels: int = 256

    def __post_init__(self) -> None:
        if not 2 <= self.levels <= 256:
            raise ConfigError(f"data.levels must lie between 2 and 256, found {self.levels}")

    @property
    def begin(self) -> int:
        """The id in front of the first value."""
        return self.levels

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding: the levels, the beginning, and padding to a multiple of 8."""
        return -(-(self.levels + 1) // 8) * 8

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """Values (H * W * C,) of uint8 (C, H, W): row by row, the channels of a pixel next to each other."""
        return (np.moveaxis(pixels, 0, -1).reshape(-1).astype(np.int64) * self.levels) >> 8

    def decode(self, values: np.ndarray, size: Sequence[int], channels: int) -> np.ndarray:
        """uint8 (C, H, W) of values (H * W * C,): the middle of each level."""
        values = values.astype(np.int64)
        # The first byte of a level is ceil(256 v / levels).
        first, last = -(-values * 256 // self.levels), -(-(values + 1) * 256 // self.levels) - 1
        return np.moveaxis(((first + last) // 2).astype(np.uint8).reshape(*size, channels), -1, 0)
