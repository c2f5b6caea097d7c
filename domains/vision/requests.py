"""Images and videos that clients of a served model send: pixels in JSON, or files."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from longseq.domains.requests import Asked, numbers
from longseq.domains.requests import Requests as BaseRequests
from longseq.domains.vision.stores import DECODE_ERRORS
from longseq.domains.vision.video import VideoStore
from longseq.errors import DataError

# Of one decoded image, or of all the frames of a clip: 50 million pixels are 150 MB.
MOST_PIXELS = 50_000_000
# Of all frames of an animation, which are decoded one after the other.
MOST_ANIMATED = 10 * MOST_PIXELS
IMAGES = (".png", ".jpg", ".jpeg")
# What such a file may really be. Pillow goes by the contents alone, and hands some of the kinds that it knows to other
# programs, such as PostScript to Ghostscript, which must not run on what strangers send.
DECODERS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
# What files begin with, and where. Decoders of videos go by the contents alone, and some kinds, such as playlists, name
# other files, which must not be opened.
BEGINNINGS: Mapping[str, tuple[int, tuple[bytes, ...]]] = {
    ".mp4": (4, (b"ftyp",)),
    ".m4v": (4, (b"ftyp",)),
    ".mov": (4, (b"ftyp", b"moov", b"mdat", b"wide", b"free")),
    ".mkv": (0, (b"\x1aE\xdf\xa3",)),
    ".webm": (0, (b"\x1aE\xdf\xa3",)),
    ".avi": (8, (b"AVI ",)),
    ".gif": (0, (b"GIF87a", b"GIF89a")),
}


class Requests(BaseRequests):
    """Images: `{"pixels": [[...]]}`, png, jpg; videos for models of tubelets."""

    keys: ClassVar[Mapping[str, str]] = {"pixels": "(H, W) or (H, W, C), videos with frames in front; 0 to 255, or 0.0 to 1.0"}

    @property
    def video(self) -> bool:
        """Whether the model reads clips."""
        return self.config.get("embedding", {}).get("name") == "tubelet"

    @property
    def suffixes(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(BEGINNINGS) if self.video else IMAGES

    def read(self, body: Mapping[str, Any]) -> Asked:
        pixels = numbers(body["pixels"], "pixels")
        dims = 3 if self.video else 2
        if pixels.ndim not in (dims, dims + 1) or pixels.size == 0:
            frames = "T, " if self.video else ""
            raise DataError(f"pixels must be ({frames}H, W) or ({frames}H, W, C), found the shape {pixels.shape}")
        if pixels.min() < 0 or pixels.max() > 255:
            raise DataError(f"pixels must lie between 0 and 255, found {pixels.min():.4g} to {pixels.max():.4g}")
        whole = pixels.max() > 1 or bool(np.equal(pixels, np.rint(pixels)).all() and is_whole(body["pixels"]))
        array = np.rint(pixels).astype(np.uint8) if whole else pixels.astype(np.float32)
        with tempfile.TemporaryDirectory(prefix="longseq-") as folder:
            path = Path(folder) / "pixels.npy"
            # An array of images, of one image here; a file of a video holds that alone.
            np.save(path, array if self.video else array[None], allow_pickle=False)
            data = self.open_file(path, self.file_options)
            rows = data.splits["predict"]
            collate: Any = data.loader("predict").collate_fn
            inputs = collate([rows[0]])["inputs"][0].numpy()
        return Asked([inputs], [{"id": "0"}])

    def check_file(self, path: Path) -> None:
        super().check_file(path)
        if self.video:
            self.check_video(path)
            return
        try:
            # The size stands in front; other questions to the file may decode all of it.
            with Image.open(path, formats=DECODERS) as image:
                width, height = image.size
        except DECODE_ERRORS as error:
            raise DataError(f"{path}: cannot be decoded as an image ({error})") from None
        if height * width > MOST_PIXELS:
            raise DataError(f"the image has {height} x {width} pixels, at most {MOST_PIXELS} are allowed")

    def check_video(self, path: Path) -> None:
        """Raises DataError for what is no video of the kind that its name says, or for frames beyond all measure."""
        place, beginnings = BEGINNINGS[path.suffix]
        with path.open("rb") as file:
            file.seek(place)
            if not file.read(16).startswith(beginnings):
                raise DataError(f"{path}: its contents are not those of a {path.suffix} file")
        found = VideoStore([path]).header(0)
        frames = int(self.config.get("tokenizer", {}).get("frames", 1))
        clip, whole = found.height * found.width * frames, found.height * found.width * found.frames
        if clip > MOST_PIXELS or (path.suffix == ".gif" and whole > MOST_ANIMATED):
            raise DataError(
                f"the video has {found.frames} frames of {found.height} x {found.width} pixels; at most {MOST_PIXELS} pixels "
                f"in the {frames} frames of a clip are allowed, and {MOST_ANIMATED} in all frames of an animation"
            )

    def facts(self) -> dict[str, Any]:
        described = self.config.get("tokenizer", {})
        return {name: described[name] for name in ("size", "channels", "frames") if name in described}

    def example(self) -> dict[str, Any]:
        height, width = self.config.get("tokenizer", {}).get("size", (8, 8))
        rows = [[(16 * (i + j)) % 256 for j in range(width)] for i in range(height)]
        return {"pixels": [rows] * int(self.config["tokenizer"].get("frames", 1)) if self.video else rows}


def is_whole(value: Any) -> bool:
    """Whether the first number of nested lists is written without a fraction: 0 and 1 are then bytes, 0.0 and 1.0 shares."""
    while isinstance(value, list):
        value = value[0]
    return isinstance(value, int)
