"""Picture and array files as pixels: the part of the vision predict.py that reads them."""

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError, needed

# -- behind this line goes into predict.py


LUMA = np.array([299, 587, 114], dtype=np.uint32)
PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
KEYS = ("x", "images", "image", "imgs", "data", "videos", "video", "frames", "clips")
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test")


def read_array(path: Path, wanted: str | None) -> tuple[np.ndarray, str]:
    """The images of an npy or npz file, and what names the array in it."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        # Opened here, for numpy leaves a file open that it cannot read.
        with path.open("rb") as file:
            found = np.load(file, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return found, ""
            key = wanted or image_key(found.files, path)
            if key not in found.files:
                raise InputError(f"{path}: there is no array {key!r}; it has {', '.join(found.files)}; name one with --key")
            return found[key], f":{key}"
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: no npy or npz file that can be read ({error})") from None


def image_key(names: list[str], path: Path) -> str:
    """The array that is named like images; of those of several splits the one of test."""
    split = {name: [part for part in name.lower().split("_") if part in SPLITS] for name in names}
    bare = {name: "_".join(part for part in name.lower().split("_") if part not in SPLITS) for name in names}
    images = [name for name in names if bare[name] in KEYS or (split[name] and not bare[name])]
    chosen = [name for name in images if not split[name]] or [name for name in images if "test" in split[name]]
    if len(chosen) != 1:
        raise InputError(f"{path}: which array holds the images? It has {', '.join(names)}; name one with --key")
    return chosen[0]


def as_bytes(images: np.ndarray, path: Path) -> np.ndarray:
    """Pixels as uint8, from bytes, booleans, 16 bits, or numbers from 0 to 1 or to 255."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind not in "fiub" or not images.size:
        raise InputError(f"{path}: values of type {images.dtype} are no pixels")
    low, high = float(images.min()), float(images.max())
    if images.dtype == np.uint16 and high > 255:
        scale = 255.0 / 65535.0
    elif not (np.isfinite(low) and np.isfinite(high)) or low < 0 or high > 255:
        raise InputError(
            f"{path}: values from {low:.4g} to {high:.4g}; expected pixels from 0 to 255 or from 0 to 1, without a "
            "normalisation: the model does that"
        )
    else:
        # Black and white as 0 and 1, or shares.
        scale = 255.0 if high <= 1.0 else 1.0
    return np.rint(images.astype(np.float32) * np.float32(scale)).clip(0, 255).astype(np.uint8)


def open_picture(path: Path, animated: bool = False) -> np.ndarray:
    """A picture file as (T, H, W, C); one frame unless all of an animation are asked for."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    needed("PIL")
    from PIL import Image, ImageOps, ImageSequence

    try:
        with Image.open(path) as image:
            if not animated:
                return as_pixels(ImageOps.exif_transpose(image), path)[None]
            grey = image.mode in GREY
            frames = [as_pixels(frame if grey else frame.convert("RGB"), path) for frame in ImageSequence.Iterator(image)]
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as a picture ({error})") from None
    return same_size(frames, path)


def as_pixels(image: Any, path: Path) -> np.ndarray:
    """A picture as (H, W, 1) or (H, W, 3); transparency is dropped, 16 bits become 8."""
    if image.mode.startswith("I;16"):
        # Whatever its brightest pixel: a dark image must not become as bright as the others.
        return (np.rint(np.asarray(image).astype(np.float32) * np.float32(255.0 / 65535.0)).astype(np.uint8))[..., None]
    if image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float32)
        # Such files hold anything up to 16 bits, or shares from 0 to 1.
        top = float(values.max(initial=0.0))
        scale = 255.0 if top <= 1.0 and image.mode == "F" else 1.0 if top <= 255.0 else 255.0 / 65535.0
        return np.rint(values * np.float32(scale)).clip(0, 255).astype(np.uint8)[..., None]
    if image.mode in GREY:
        return np.asarray(image.convert("L"))[..., None]
    flat = image.convert("RGBA") if image.mode == "P" else image
    return np.asarray(flat.convert("RGB"))


def frame_folder(path: Path) -> list[Path]:
    """The pictures that lie in a folder itself, frame2 before frame10."""
    files = [file for file in path.iterdir() if file.suffix.lower() in PICTURES[:-1] and not file.name.startswith(".")]
    return sorted(files, key=natural)


def natural(path: Path) -> list[tuple[int, int, str]]:
    """Numbers in names as numbers."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def same_size(frames: list[np.ndarray], path: Path) -> np.ndarray:
    """Frames as one array; a coloured one makes all of them coloured."""
    if len({frame.shape[:2] for frame in frames}) > 1:
        raise InputError(f"{path}: frames of one video have different sizes; make them equal")
    channels = max(frame.shape[-1] for frame in frames)
    return np.stack([frame if frame.shape[-1] == channels else frame.repeat(channels, -1) for frame in frames])


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
