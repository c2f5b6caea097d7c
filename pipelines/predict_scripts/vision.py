"""The vision part of predict.py."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError, Model, Row, needed, records

# -- behind this line goes into predict.py


LUMA = np.array([299, 587, 114], dtype=np.uint32)
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


class Domain:
    """Reads npy and npz arrays, and with Pillow picture files or folders of them, at any size.

    Args:
        model: the graph.
        options: of the command line.
    """

    FILES = "npy or npz arrays (N, H, W[, C]), videos (N, T, H, W[, C]); with Pillow also picture files and folders of them"
    pad, stride = 0.0, 1
    records = staticmethod(records)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """What only images have."""
        parser.add_argument("--key", help="the array of an npz file with the images")

    def __init__(self, model: Model, options: Any) -> None:
        self.model, self.key = model, options.key
        tokenizer = model.config["tokenizer"]
        self.how, self.levels = tokenizer["resize"], tokenizer.get("levels")
        self.size, self.channels = tuple(tokenizer["size"]), int(tokenizer["channels"])
        self.video = tokenizer["name"] == "tubelet"
        self.frames, self.frame_stride = int(tokenizer["frames"]), int(tokenizer["frame_stride"])

    def rows(self, path: Path) -> Iterator[Row]:
        """One row per image or video, resized as in training."""
        for name, pixels in self.read(path):
            clip = pixels[self.chosen(len(pixels))]
            clip = np.stack([fit(fit_channels(frame, self.channels), self.size, self.how) for frame in clip])
            # Frames, channels, rows, columns.
            clip = np.moveaxis(clip, -1, 1)
            names: dict[str, Any] = {"id": name}
            if self.video:
                names["first_frame"] = int(self.chosen(len(pixels))[0])
            yield Row(names, self.inputs(clip))

    def inputs(self, clip: np.ndarray) -> np.ndarray:
        """What the graph takes: bytes, shares of 1, or the values of a pixel model."""
        if self.model.task == "lm":
            values = (np.moveaxis(clip[0], 0, -1).reshape(-1).astype(np.int64) * self.levels) >> 8
            return np.concatenate([[self.levels], values])
        clip = clip if self.video else clip[0]
        return clip if self.model.dtype == "uint8" else clip.astype(np.float32) / 255

    def chosen(self, count: int) -> np.ndarray:
        """Frames of the clip from the middle of a video; a short one's last frame is repeated."""
        span = (self.frames - 1) * self.frame_stride + 1
        start = max(0, count - span) // 2
        return np.minimum(start + self.frame_stride * np.arange(self.frames), count - 1)

    def read(self, path: Path) -> Iterator[tuple[str, np.ndarray]]:
        """Names and bytes (T, H, W, C)."""
        if path.is_dir():
            for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in PICTURES):
                yield str(file), open_picture(file)
        elif path.suffix.lower() in (".npy", ".npz"):
            images, key = self.array(path)
            for i, image in enumerate(as_bytes(images, path)):
                yield f"{path.name}{key}[{i}]", self.arranged(image, path)
        else:
            yield str(path), open_picture(path)

    def array(self, path: Path) -> tuple[np.ndarray, str]:
        """The images of an npy or npz file, and what names the array in it."""
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
        try:
            found = np.load(path, allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(f"{path}: no npy or npz file that can be read ({error})") from None
        if isinstance(found, np.ndarray):
            return found, ""
        keys = [key for key in found.files if found[key].ndim >= 3]
        key = self.key or next((k for k in keys if k in ("images", "image", "x", "data")), keys[0] if keys else None)
        if key not in found.files:
            raise InputError(f"{path}: no array {key!r} of images; it has {', '.join(found.files)}; name one with --key")
        return found[key], f":{key}"

    def arranged(self, image: np.ndarray, path: Path) -> np.ndarray:
        """One item as (T, H, W, C)."""
        dims = image.ndim - (1 if self.video else 0)
        if dims == 2:
            image = image[..., None]
        elif dims == 3 and image.shape[-1] not in (1, 3, 4) and image.shape[-3] in (1, 3, 4):
            image = np.moveaxis(image, -3, -1)
        elif dims != 3:
            raise InputError(f"{path}: items of shape {image.shape} are no {'videos' if self.video else 'images'}")
        image = image[..., : min(3, image.shape[-1])]
        return image if self.video else image[None]


def as_bytes(images: np.ndarray, path: Path) -> np.ndarray:
    """Pixels as uint8, from bytes, booleans, 16 bits, or floats from 0 to 1 or to 255."""
    if images.dtype == np.uint8:
        return images
    if images.dtype == np.bool_:
        scale = 255.0
    elif images.dtype == np.uint16:
        scale = 255.0 / 65535.0
    else:
        if images.dtype.kind not in "fiu" or not np.isfinite(images).all() or images.min() < 0 or images.max() > 255:
            raise InputError(
                f"{path}: expected pixels from 0 to 255 or from 0 to 1, without a normalisation: the model does that"
            )
        scale = 255.0 if images.dtype.kind == "f" and images.max() <= 1.0 else 1.0
    return np.rint(images.astype(np.float32) * np.float32(scale)).clip(0, 255).astype(np.uint8)


def open_picture(path: Path) -> np.ndarray:
    """A picture file as (1, H, W, C)."""
    needed("PIL")
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            grey = image.mode in ("1", "L", "LA")
            flat = image.convert("RGBA") if image.mode == "P" else image
            pixels = np.asarray(flat.convert("L" if grey else "RGB"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error})") from None
    return (pixels[..., None] if grey else pixels)[None]


def fit_channels(frame: np.ndarray, channels: int) -> np.ndarray:
    """Grey from RGB, or RGB from grey."""
    if frame.shape[-1] == channels:
        return frame
    if channels == 3:
        return frame.repeat(3, axis=-1)
    return ((frame.astype(np.uint32) @ LUMA + 500) // 1000).astype(np.uint8)[..., None]


def fit(frame: np.ndarray, size: tuple[int, ...], how: str) -> np.ndarray:
    """A frame at the model's size: cropped around the middle, squashed, or padded with black."""
    height, width = size
    if frame.shape[:2] == (height, width):
        return frame
    needed("PIL")
    from PIL import Image

    scales = (height / frame.shape[0], width / frame.shape[1])
    scale = {"crop": max(scales), "pad": min(scales)}.get(how)
    rows, columns = (height, width) if scale is None else (max(1, round(side * scale)) for side in frame.shape[:2])
    picture = Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)
    small = np.asarray(picture.resize((columns, rows), Image.Resampling.BILINEAR))
    small = small[..., None] if small.ndim == 2 else small
    top, left = (rows - height) // 2, (columns - width) // 2
    if how == "crop":
        return small[max(0, top) :, max(0, left) :][:height, :width]
    canvas = np.zeros((height, width, frame.shape[-1]), np.uint8)
    canvas[max(0, -top) :, max(0, -left) :][:rows, :columns] = small[:height, :width]
    return canvas
