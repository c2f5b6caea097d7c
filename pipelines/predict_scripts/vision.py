"""The vision part of predict.py."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.answers import records
from longseq.pipelines.predict_scripts.pictures import (
    PICTURES,
    as_bytes,
    fit,
    fit_channels,
    frame_folder,
    open_picture,
    read_array,
    same_size,
)
from longseq.pipelines.predict_scripts.shared import InputError, Model, Row

# -- behind this line goes into predict.py


class Domain:
    """Reads npy and npz arrays, and with Pillow picture files or folders of them, at any size; GIFs and folders as videos.

    Args:
        model: the graph.
        options: of the command line.
    """

    FILES = (
        "npy or npz arrays (N, H, W[, C]), videos ([N,] T, H, W[, C]); with Pillow also picture files and folders of them, "
        "or of a video's frames, and GIFs"
    )
    pad, stride = 0.0, 1
    records = staticmethod(records)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """What only images have."""
        parser.add_argument("--key", help="the array of an npz file with the images")

    def __init__(self, model: Model, options: Any) -> None:
        self.model, self.key = model, options.key or model.config.get("reading", {}).get("image_key")
        tokenizer = model.config["tokenizer"]
        self.how, self.levels = tokenizer["resize"], tokenizer.get("levels")
        self.size, self.channels = tuple(tokenizer["size"]), int(tokenizer["channels"])
        self.video = tokenizer["name"] == "tubelet"
        self.frames, self.frame_stride = int(tokenizer["frames"]), int(tokenizer["frame_stride"])

    def rows(self, path: Path) -> Iterator[Row]:
        """One row per image or video, resized as in training."""
        for name, pixels in self.read(path):
            for start in self.starts(len(pixels)):
                # What lies behind the end is the last frame.
                chosen = np.minimum(start + self.frame_stride * np.arange(self.frames), len(pixels) - 1)
                clip = np.stack([fit(fit_channels(frame, self.channels), self.size, self.how) for frame in pixels[chosen]])
                names: dict[str, Any] = {"id": name} | ({"first_frame": start} if self.video else {})
                # Frames, channels, rows, columns.
                yield Row(names, self.inputs(np.moveaxis(clip, -1, 1)))

    def inputs(self, clip: np.ndarray) -> np.ndarray:
        """What the graph takes: bytes, shares of 1, or the values of a pixel model."""
        if self.model.task == "lm":
            values = (np.moveaxis(clip[0], 0, -1).reshape(-1).astype(np.int64) * self.levels) >> 8
            return np.concatenate([[self.levels], values])
        clip = clip if self.video else clip[0]
        return clip if self.model.dtype == "uint8" else clip.astype(np.float32) / 255

    def starts(self, count: int) -> list[int]:
        """First frames of the clips of a video: of one from its middle, or of clips all along it as in training."""
        room = max(0, count - (self.frames - 1) * self.frame_stride - 1)
        stride = self.model.config.get("reading", {}).get("window_stride")
        return [room // 2] if stride is None else list(range(0, room + 1, stride))

    def read(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Names and bytes (T, H, W, C)."""
        suffix = path.suffix.lower()
        if path.is_dir():
            yield from self.videos(path) if self.video else self.pictures(path)
        elif suffix in (".npy", ".npz"):
            yield from self.arrays(path)
        elif suffix not in PICTURES and path.is_file():
            raise InputError(f"{path}: not read; expected {self.FILES}")
        else:
            yield str(path), open_picture(path, self.video)

    def pictures(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Those anywhere below a folder."""
        for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES):
            yield str(file), open_picture(file)

    def videos(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Folders of frames, and GIFs, anywhere below a folder or that folder itself."""
        frames = frame_folder(path)
        if frames:
            yield str(path), same_size([open_picture(file)[0] for file in frames], path)
            return
        for child in sorted(path.iterdir()):
            if child.is_dir():
                yield from self.videos(child)
            elif child.suffix.lower() == ".gif":
                yield str(child), open_picture(child, animated=True)

    def arrays(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """The items of an array."""
        images, key = read_array(path, self.key)
        single = self.video and (images.ndim == 3 or (images.ndim == 4 and {images.shape[-1], images.shape[1]} & {1, 3, 4}))
        images = images[None] if single else images
        axis = channel_axis(images.shape, path, self.video)
        for i, image in enumerate(as_bytes(images, path)):
            image = image[..., None] if axis is None else np.moveaxis(image, axis - 1, -1)
            image = image[..., : min(3, image.shape[-1])]
            yield str(path) if single else f"{path.name}{key}[{i}]", image if self.video else image[None]


def channel_axis(shape: tuple[int, ...], path: Path, video: bool) -> int | None:
    """Which axis of an array of items holds the channels; None if there is none."""
    extra = 1 if video else 0
    if len(shape) == 3 + extra:
        return None
    if len(shape) == 4 + extra and shape[-1] in (1, 3, 4):
        return len(shape) - 1
    if len(shape) == 4 + extra and shape[1 + extra] in (1, 3, 4):
        return 1 + extra
    frames = "T, " if video else ""
    raise InputError(
        f"{path}: an array of shape {shape}; expected (N, {frames}H, W), (N, {frames}H, W, C) or (N, {frames}C, H, W) with C "
        "of 1, 3 or 4"
    )
