"""Videos frame by frame: files through PyAV, folders of frames, GIFs and arrays; and which frames make a clip."""

import re
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageSequence

from longseq.domains.vision.arrays import load_member, read_npy
from longseq.domains.vision.stores import (
    DECODE_ERRORS,
    GRAY_MODES,
    ArrayStore,
    Header,
    ImageFiles,
    Store,
    as_pixels,
    check_file,
)
from longseq.errors import DataError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".gif")
VIDEOS = (
    ".mp4",
    ".avi",
    ".mov",
    ".mkv",
    ".webm",
    ".m4v",
    ".mpg",
    ".mpeg",
    ".wmv",
    ".flv",
    ".ts",
    ".ogv",
    ".gif",
    ".npy",
    ".npz",
)
# A file whose frames end before this share of what its header promises is cut off.
SHORTEST = 0.9
# Videos whose frames' times are remembered; a long film's are some megabytes.
REMEMBERED = 256


class VideoStore(Store):
    """Videos of any of the kinds, each found by its path.

    Args:
        paths: of files, or of folders with one image per frame.
        places: file and line that names each, for messages; None if they were found in a folder.
    """

    def __init__(self, paths: Sequence[Path], places: Sequence[str] | None = None) -> None:
        self.paths, self.places = list(paths), None if places is None else list(places)
        self._opened: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self.paths)

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def where(self, index: int) -> str:
        return f"{self.places[index]}: {self.paths[index]}" if self.places else str(self.paths[index])

    def open(self, index: int) -> "FrameFolder | GIF | VideoArray | VideoFile":
        """The reader of one video, of the recent ones from memory."""
        # Threads share the store: what one has just opened another may forget.
        found = self._opened.get(index)
        if found is None:
            path, where = self.paths[index], self.where(index)
            check_file(path, where)
            kinds: dict[str, Any] = {".gif": GIF, ".npy": VideoArray, ".npz": VideoArray}
            kind = FrameFolder if path.is_dir() else kinds.get(path.suffix.lower(), VideoFile)
            found = self._opened[index] = kind(path, where)
            while len(self._opened) > REMEMBERED:
                self._opened.popitem(last=False)
        return found

    def header(self, index: int) -> Header:
        return self.open(index).header()

    def check(self, index: int, *, every_frame: bool = False) -> Header:
        opened = self.open(index)
        found = opened.check()
        if every_frame and isinstance(opened, VideoFile):
            opened.decode_all()
        return found

    def read(self, index: int, frames: Sequence[int] = (0,)) -> np.ndarray:
        return self.open(index).read(frames)


class FrameFolder:
    """A folder with one image per frame, in the order of the numbers in their names."""

    def __init__(self, path: Path, where: str) -> None:
        files = [file for file in path.iterdir() if file.suffix.lower() in IMAGES and not file.name.startswith(".")]
        if not files:
            raise DataError(f"{where}: the folder holds no image files ({', '.join(IMAGES)})")
        self.images = ImageFiles(sorted(files, key=natural_key))

    def header(self) -> Header:
        first = self.images.header(0)
        return Header(len(self.images), first.height, first.width, first.channels)

    def check(self) -> Header:
        for i in range(len(self.images)):
            self.images.check(i)
        return self.header()

    def read(self, frames: Sequence[int]) -> np.ndarray:
        return stack_frames([self.images.read(int(k))[0] for k in frames], self.images.where(int(frames[0])))


class GIF:
    """An animated GIF (or any animation that PIL reads)."""

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where

    def header(self) -> Header:
        with self._opened() as image:
            mode = 1 if image.mode in GRAY_MODES else 3
            return Header(int(getattr(image, "n_frames", 1)), image.height, image.width, mode)

    def check(self) -> Header:
        header = self.header()
        self.read(range(header.frames))
        return header

    def read(self, frames: Sequence[int]) -> np.ndarray:
        wanted = set(map(int, frames))
        found = {}
        with self._opened() as image:
            for k, frame in enumerate(ImageSequence.Iterator(image)):
                if k in wanted:
                    found[k] = as_pixels(frame.convert("RGB") if image.mode not in GRAY_MODES else frame)
        return pick_frames(found, frames, self.where, None)

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        try:
            with Image.open(self.path) as image:
                yield image
        except DECODE_ERRORS as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{self.where}: cannot be decoded as an animation ({error}); or set data.on_bad=skip") from None


class VideoArray:
    """A video of its own in an npy file, or as the first array of an npz file: (T, H, W), (T, H, W, C) or (T, C, H, W)."""

    def __init__(self, path: Path, where: str) -> None:
        array = read_npy(path) if path.suffix == ".npy" else first_member(path)
        self.store = ArrayStore([array[None]], [where], video=True)

    def header(self) -> Header:
        return self.store.header(0)

    def check(self) -> Header:
        return self.header()

    def read(self, frames: Sequence[int]) -> np.ndarray:
        return self.store.read(0, frames)


class VideoFile:
    """A video file through PyAV; frames are found by their time stamps, so that variable rates and seeking are exact.

    Raises:
        DataError: if the package av is missing, or the file is no video.
    """

    def __init__(self, path: Path, where: str) -> None:
        self.path, self.where = path, where
        self._found: tuple[np.ndarray, np.ndarray] | None = None
        self.numbered = False
        self.ends_s: float | None = None
        self.held, self.whole = 0, False
        with self._opened() as (container, stream):
            self.promised = int(stream.frames)
            # Only these say what is shown of them; of others the duration is estimated from what is there.
            shown_us = container.duration if "mp4" in container.format.name else None
            self.shown_s = None if shown_us is None else shown_us / 1e6
            # Matroska counts no frames, but says how long each stream is.
            self.promised_s = seconds(stream.metadata.get("DURATION", ""))
            gray = stream.codec_context.pix_fmt is not None and stream.codec_context.pix_fmt.startswith("gray")
            self.size = (int(stream.codec_context.height), int(stream.codec_context.width), 1 if gray else 3)

    @contextmanager
    def _opened(self) -> Iterator[tuple[Any, Any]]:
        av = import_av()
        try:
            with av.open(str(self.path)) as container:
                if not container.streams.video:
                    raise DataError(f"{self.where}: the file has no video stream")
                yield container, container.streams.video[0]
        except av.FFmpegError as error:
            raise DataError(
                f"{self.where}: cannot be decoded as a video ({error}); replace it, or set data.on_bad=skip"
            ) from None

    @property
    def times(self) -> np.ndarray:
        """Time stamps of all frames in order, read once without decoding."""
        return self._index()[0]

    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """Time stamps of all frames, and of those that decoding can begin at."""
        if self._found is None:
            with self._opened() as (container, stream):
                # The last packet only flushes the decoder.
                packets = [(p.pts, p.is_keyframe, p.duration or 0, p.is_discard) for p in container.demux(stream) if p.size]
                base = stream.time_base
            # Raw streams know no times: their frames are numbered, and decoded from the first on.
            self.held = len(packets)
            self.numbered = any(time is None for time, *_ in packets)
            # What was trimmed away without encoding anew stays in the file for decoding, but is not shown.
            stamps = range(len(packets)) if self.numbered else [time for time, _, _, hidden in packets if not hidden]
            keys = [] if self.numbered else [time for time, key, *_ in packets if key]
            if packets and base is not None and not self.numbered:
                self.ends_s = float(max(time + lasts for time, _, lasts, _ in packets) * base)
                # A header counts what was trimmed away, too, but not as time: a whole file goes on to its end.
                near_s = float(2 * max(lasts for _, _, lasts, _ in packets) * base)
                self.whole = self.shown_s is not None and self.ends_s + near_s >= self.shown_s
            self._found = np.sort(np.array(stamps, dtype=np.int64)), np.sort(np.array(keys, dtype=np.int64))
        return self._found

    def header(self) -> Header:
        return Header(self.promised or len(self.times), *self.size)

    def check(self) -> Header:
        if not len(self.times) or (self.held < self.promised and not self.whole):
            raise self._lies(self.held)
        if self.promised_s and self.ends_s is not None and self.ends_s < SHORTEST * self.promised_s:
            raise DataError(
                f"{self.where}: the header promises {self.promised_s:.1f} s, the last frame ends after {self.ends_s:.1f} s: it "
                "is truncated or damaged; replace it, or set data.on_bad=skip"
            )
        return Header(len(self.times), *self.size)

    def decode_all(self) -> None:
        """Decodes every frame without keeping any.

        Raises:
            DataError: if one cannot be decoded.
        """
        times, wanted = set(), set(self.times.tolist())
        with self._opened() as (_, stream):
            for number, frame in enumerate(stream.container.decode(stream)):
                times.add(number if self.numbered else frame.pts)
        if missing := wanted - times:
            place = int(np.searchsorted(self.times, min(missing)))
            raise DataError(
                f"{self.where}: frame {place} of {len(self.times)} cannot be decoded: the file is truncated or damaged; "
                "replace it, or set data.on_bad=skip"
            )

    def read(self, frames: Sequence[int]) -> np.ndarray:
        times, keys = self._index()
        if self.whole and len(times):
            # The header counts what was trimmed away.
            frames = np.minimum(frames, len(times) - 1).tolist()
        wanted = sorted(set(map(int, frames)))
        if wanted[-1] >= len(times):
            raise self._lies(self.held)
        before = keys[keys <= times[wanted[0]]]
        found = self._decode(wanted, int(before[-1]) if len(before) else None)
        if len(found) < len(wanted) and len(before):
            # Some containers seek to a place from which the first frames cannot be decoded.
            found = self._decode(wanted, None)
        return pick_frames(found, frames, self.where, self.promised)

    def _decode(self, wanted: Sequence[int], start: int | None) -> dict[int, np.ndarray]:
        """Decodes from the keyframe at a time, or from the beginning, until all wanted frames are found."""
        places = {int(self.times[k]): k for k in wanted}
        last, found = int(self.times[wanted[-1]]), {}
        with self._opened() as (container, stream):
            if start is not None:
                container.seek(start, stream=stream, backward=True)
            for number, frame in enumerate(container.decode(stream)):
                time = number if self.numbered else frame.pts
                if time in places:
                    pixels = frame.to_ndarray(format="gray" if self.size[2] == 1 else "rgb24")
                    found[places[time]] = pixels[..., None] if pixels.ndim == 2 else pixels
                if len(found) == len(wanted) or (time is not None and time > last):
                    break
        return found

    def _lies(self, n_found: int) -> DataError:
        return DataError(
            f"{self.where}: the header promises {self.promised} frames, the file holds {n_found}: it is truncated or damaged; "
            "replace it, or set data.on_bad=skip"
        )


def import_av() -> Any:
    """PyAV, which is optional.

    Raises:
        DataError: naming the extra to install.
    """
    try:
        import av
    except ImportError:
        raise DataError(
            "reading video files needs the package av: pip install 'longseq[video]' (frame folders and GIFs do not)"
        ) from None
    return av


def seconds(text: str) -> float | None:
    """The seconds of `00:01:02.500000000`; None for anything else."""
    found = re.fullmatch(r"(\d+):(\d\d):(\d\d(?:\.\d+)?)", text.strip())
    return None if found is None else int(found[1]) * 3600 + int(found[2]) * 60 + float(found[3])


def natural_key(path: Path) -> list[tuple[int, int, str]]:
    """frame2 before frame10."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


def first_member(path: Path) -> np.ndarray:
    """The first array of an npz file."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            return load_member(path, archive.infolist()[0])
    except (zipfile.BadZipFile, IndexError, OSError) as error:
        raise DataError(f"{path}: not a readable npz file ({error})") from None


def pick_frames(found: dict[int, np.ndarray], frames: Sequence[int], where: str, promised: int | None) -> np.ndarray:
    """The decoded frames in the order asked for.

    Raises:
        DataError: if one could not be decoded.
    """
    missing = [int(k) for k in frames if int(k) not in found]
    if missing:
        says = f" of the {promised} that the header promises" if promised else ""
        raise DataError(
            f"{where}: frame {missing[0]}{says} cannot be decoded: the file is truncated or damaged; replace it, "
            "or set data.on_bad=skip"
        )
    return stack_frames([found[int(k)] for k in frames], where)


def stack_frames(images: list[np.ndarray], where: str) -> np.ndarray:
    """Frames as one array; a single coloured one makes all of them coloured.

    Raises:
        DataError: if their sizes differ.
    """
    sizes = {image.shape[:2] for image in images}
    if len(sizes) > 1:
        raise DataError(f"{where}: frames of one video have different sizes, {sorted(sizes)[:4]}; make them equal")
    channels = max(image.shape[-1] for image in images)
    return np.stack([image if image.shape[-1] == channels else image.repeat(channels, -1) for image in images])


@dataclass(frozen=True)
class Clips:
    """Which frames of which items make the rows.

    Attributes:
        items: (N,) item of each row.
        starts: (N,) its first frame.
        n_frames: (N,) frames of its item.
        frames: frames of a clip.
        stride: frames from one to the next.
    """

    items: np.ndarray
    starts: np.ndarray
    n_frames: np.ndarray
    frames: int
    stride: int

    def __len__(self) -> int:
        return len(self.items)

    @property
    def span(self) -> int:
        """Frames from a clip's first to its last, both counted."""
        return (self.frames - 1) * self.stride + 1

    def chosen(self, row: int, rng: np.random.Generator | None) -> np.ndarray:
        """Frame numbers of a row's clip; with random numbers its start is drawn. What lies behind the end is the last frame."""
        last = int(self.n_frames[row]) - 1
        start = int(self.starts[row]) if rng is None else int(rng.integers(0, max(0, last + 1 - self.span) + 1))
        return np.minimum(start + np.arange(self.frames) * self.stride, last)


def make_clips(n_frames: np.ndarray, frames: int, stride: int, window_stride: int | None) -> Clips:
    """One clip from each item's middle, or clips all along it.

    Args:
        n_frames: (N,) of each item.
        frames: of a clip.
        stride: frames from one of them to the next.
        window_stride: frames from one clip to the next; None for one clip per item.
    """
    span = (frames - 1) * stride + 1
    items, starts = [], []
    for item, count in enumerate(n_frames.tolist()):
        room = max(0, count - span)
        # The last window may be cut short only if it is also the first.
        own = [room // 2] if window_stride is None else list(range(0, room + 1, window_stride))
        items += [item] * len(own)
        starts += own
    index = np.array(items, dtype=np.int64)
    return Clips(index, np.array(starts, dtype=np.int64), n_frames[index], frames, stride)
