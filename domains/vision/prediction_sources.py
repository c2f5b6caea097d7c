"""What `data.predict` may name beside the other sources: single images and videos, lists of them, and patterns."""

import glob
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from longseq.domains.vision import preparation
from longseq.domains.vision.sources import ReadOptions, Records, is_frame_folder, read_source
from longseq.domains.vision.stores import ImageFiles
from longseq.domains.vision.video import IMAGES, VIDEOS, VideoStore
from longseq.errors import DataError


def read_unlabelled(source: Any, options: ReadOptions) -> Records:
    """The records of a source without their labels.

    Args:
        source: a file of pixels, a list of such files, a pattern, or whatever `read_source` takes.
        options: how it is read; label columns are passed over.

    Raises:
        DataError: if there is nothing, or nothing that is understood.
    """
    paths = media_files(source, options.video)
    if paths:
        store = VideoStore(paths) if options.video else ImageFiles(paths)
        return Records(store, np.arange(len(paths)), None)
    if isinstance(source, (list, tuple)):
        wanted = VIDEOS if options.video else IMAGES
        raise DataError(f"data.predict: a list must name files of {', '.join(wanted)} that are there, found {list(source)[:3]}")
    found = read_source(source, replace(options, label_column=None))
    if "all" not in found and "test" in found:
        return found["test"]
    return preparation.choose_split(found, "predict", source)


def media_files(source: Any, video: bool) -> list[Path]:
    """The images or videos that a path, a list of paths or a pattern names; empty if it names something else."""
    if isinstance(source, (list, tuple)):
        parts = [media_files(item, video) for item in source]
        return [path for part in parts for path in part] if all(parts) else []
    if not isinstance(source, (str, Path)):
        return []
    path = Path(source).expanduser()
    if path.exists():
        return [path] if is_media(path, video) else []
    found = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207  Path.glob takes no absolute pattern
    if glob.has_magic(str(path)) and not found:
        raise DataError(f"{path}: no file matches this pattern")
    return [match for match in found if is_media(match, video)]


def is_media(path: Path, video: bool) -> bool:
    """Whether a path is one item: an image, or a video file or a folder of frames."""
    if path.is_dir():
        return video and is_frame_folder(path)
    return path.suffix.lower() in ((*VIDEOS, ".gif") if video else IMAGES)
