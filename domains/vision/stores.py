"""Where pixels are read from when a row is asked for: image files, and arrays in memory or mapped from disk."""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from longseq.errors import DataError

GRAY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
# What PIL raises for files that are no images, are cut off, or pretend to be enormous.
DECODE_ERRORS = (UnidentifiedImageError, OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


@dataclass(frozen=True)
class Header:
    """What is known of an item before it is decoded: frames (of an image its pages), height and width in pixels, channels."""

    frames: int
    height: int
    width: int
    channels: int


class Store(ABC):
    """Items whose pixels are decoded when asked for, so that a data set may be larger than memory."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, index: int) -> str:
        """What identifies an item in predictions."""

    @abstractmethod
    def where(self, index: int) -> str:
        """File and record, for messages."""

    @abstractmethod
    def header(self, index: int) -> Header:
        """Sizes, from the file's header where it has one.

        Raises:
            DataError: if the file is missing, empty, or not what its name says.
        """

    @abstractmethod
    def read(self, index: int, frames: Sequence[int] = (0,)) -> np.ndarray:
        """Pixels as uint8 (len(frames), H, W, C) with C of 1 or 3.

        Raises:
            DataError: if the item cannot be decoded.
        """

    def check(self, index: int, *, every_frame: bool = False) -> Header:
        """The header, after making sure that the whole item can be read.

        Args:
            index: of the item.
            every_frame: decode all of a video file too, which takes long.

        Raises:
            DataError: if it cannot.
        """
        del every_frame
        self.read(index)
        return self.header(index)


class ImageFiles(Store):
    """Image files, decoded by PIL one at a time.

    Args:
        paths: of the files.
        places: file and line that names each, for messages; None if they were found in a folder.
    """

    def __init__(self, paths: Sequence[Path], places: Sequence[str] | None = None) -> None:
        self.paths, self.places = list(paths), None if places is None else list(places)

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def where(self, index: int) -> str:
        return f"{self.places[index]}: {self.paths[index]}" if self.places else str(self.paths[index])

    def header(self, index: int) -> Header:
        check_file(self.paths[index], self.where(index))
        try:
            with Image.open(self.paths[index]) as image:
                # A camera held upright says so in the file instead of turning the pixels.
                turned = image.getexif().get(0x0112, 1) >= 5
                width, height = image.size[::-1] if turned else image.size
                # Pages of a TIFF, frames of an animation: of images the first is read.
                return Header(int(getattr(image, "n_frames", 1)), height, width, 1 if image.mode in GRAY_MODES else 3)
        except DECODE_ERRORS as error:
            raise self._bad(index, error) from None

    def read(self, index: int, frames: Sequence[int] = (0,)) -> np.ndarray:
        check_file(self.paths[index], self.where(index))
        try:
            with Image.open(self.paths[index]) as image:
                return as_pixels(ImageOps.exif_transpose(image))[None]
        except DECODE_ERRORS as error:
            raise self._bad(index, error) from None

    def _bad(self, index: int, error: BaseException) -> DataError:
        size = self.paths[index].stat().st_size
        return DataError(
            f"{self.where(index)}: {size:,} bytes that cannot be decoded as an image ({error}); "
            "remove or replace the file, or set data.on_bad=skip"
        )


class ArrayStore(Store):
    """Arrays of images or videos, one after the other, in memory or mapped from disk.

    Args:
        arrays: each (N, H, W), (N, H, W, C) or (N, C, H, W); videos with T behind N. C is 1, 3, or 4 (alpha is dropped).
        sources: file (and key) of each array, for messages.
        video: whether there is a T.

    Raises:
        DataError: for other shapes, and for values that are no pixels.
    """

    def __init__(self, arrays: Sequence[np.ndarray], sources: Sequence[str], *, video: bool = False) -> None:
        self.arrays, self.sources, self.video = list(arrays), list(sources), video
        self.axes = [channel_axis(array, source, video) for array, source in zip(arrays, sources, strict=True)]
        self.scales = [value_scale(array, source) for array, source in zip(arrays, sources, strict=True)]
        self.starts = np.cumsum([0, *(len(array) for array in arrays)]).tolist()

    def __len__(self) -> int:
        return self.starts[-1]

    def _place(self, index: int) -> tuple[int, int]:
        part = bisect_right(self.starts, index) - 1
        return part, index - self.starts[part]

    def name(self, index: int) -> str:
        part, row = self._place(index)
        return f"{Path(self.sources[part]).name}[{row}]"

    def where(self, index: int) -> str:
        part, row = self._place(index)
        return f"{self.sources[part]}, record {row}"

    def header(self, index: int) -> Header:
        part, _ = self._place(index)
        shape, axis = list(self.arrays[part].shape[1:]), self.axes[part]
        channels = 1 if axis is None else shape.pop(axis - 1)
        frames = shape.pop(0) if self.video else 1
        return Header(frames, shape[0], shape[1], min(3, channels))

    def read(self, index: int, frames: Sequence[int] = (0,)) -> np.ndarray:
        part, row = self._place(index)
        item = np.asarray(self.arrays[part][row])
        axis = self.axes[part]
        item = item[..., None] if axis is None else np.moveaxis(item, axis - 1, -1)
        item = item[np.asarray(frames)] if self.video else item[None]
        return np.ascontiguousarray(as_bytes(item[..., : min(3, item.shape[-1])], self.scales[part]))

    def check(self, index: int, *, every_frame: bool = False) -> Header:
        del every_frame
        return self.header(index)


def channel_axis(array: np.ndarray, source: str, video: bool) -> int | None:
    """Which axis holds the channels; None if there is none.

    Raises:
        DataError: if the shape is not that of images, or of videos.
    """
    extra = 1 if video else 0
    if array.ndim == 3 + extra:
        return None
    if array.ndim == 4 + extra:
        if array.shape[-1] in (1, 3, 4):
            return array.ndim - 1
        if array.shape[1 + extra] in (1, 3, 4):
            return 1 + extra
    frames = "T, " if video else ""
    raise DataError(
        f"{source}: found an array of shape {array.shape}; expected (N, {frames}H, W), (N, {frames}H, W, C) or "
        f"(N, {frames}C, H, W) with C of 1, 3 or 4"
    )


def value_scale(array: np.ndarray, source: str) -> float | None:
    """What values are multiplied by to lie between 0 and 255; None for bytes, which stay as they are.

    Raises:
        DataError: for values that are neither bytes, 16 bits, booleans, nor floats from 0 to 1 or to 255.
    """
    if array.dtype == np.uint8:
        return None
    if array.dtype == np.bool_:
        return 255.0
    if array.dtype.kind not in "fiu" or array.size == 0:
        raise DataError(f"{source}: found values of type {array.dtype}; expected pixels as uint8, or floats from 0 to 1")
    blocks = [array[start : start + 256] for start in range(0, len(array), 256)]
    low, high = min(float(block.min()) for block in blocks), max(float(block.max()) for block in blocks)
    if array.dtype == np.uint16 and high > 255:
        return 255.0 / 65535.0
    if not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise DataError(
            f"{source}: found values from {low:.4g} to {high:.4g}; expected pixels from 0 to 255, or from 0 to 1 without NaN "
            "(undo a normalisation that was applied before: it is learned from train and part of the model)"
        )
    # Black and white as 0 and 1, or shares.
    return 255.0 if high <= 1.0 else 1.0


def as_bytes(item: np.ndarray, scale: float | None) -> np.ndarray:
    """Values as uint8."""
    if scale is None:
        return item
    return np.rint(item.astype(np.float32) * np.float32(scale)).clip(0, 255).astype(np.uint8)


def as_pixels(image: Image.Image) -> np.ndarray:
    """A PIL image as uint8 (H, W, 1) or (H, W, 3); transparency is dropped, 16 bits become 8."""
    if image.mode.startswith("I;16"):
        # Whatever its brightest pixel: a dark image must not become as bright as the others.
        return as_bytes(np.asarray(image), 255.0 / 65535.0)[..., None]
    if image.mode == "I" or image.mode == "F":
        values = np.asarray(image, dtype=np.float32)
        # Such files hold anything up to 16 bits, or shares from 0 to 1.
        top = float(values.max(initial=0.0))
        scale = 255.0 if top <= 1.0 and image.mode == "F" else 1.0 if top <= 255.0 else 255.0 / 65535.0
        return as_bytes(values, scale)[..., None]
    if image.mode in GRAY_MODES:
        return np.asarray(image.convert("L"))[..., None]
    # Straight to RGB, PIL warns about palettes with transparency.
    flat = image.convert("RGBA") if image.mode == "P" else image
    return np.asarray(flat.convert("RGB"))


def check_file(path: Path, where: str) -> None:
    """Raises DataError if a file is missing or empty."""
    if not path.exists():
        raise DataError(f"{where}: there is no such file; correct the path, or set data.on_bad=skip")
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{where}: the file is empty (0 bytes); remove or replace it, or set data.on_bad=skip")
