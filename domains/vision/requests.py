"""Images and videos that clients of a served model send: pixels in JSON, or files."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longseq.domains.requests import Asked, numbers
from longseq.domains.requests import Requests as BaseRequests
from longseq.domains.vision.stores import ImageFiles
from longseq.domains.vision.video import VIDEOS
from longseq.errors import DataError

# Of one decoded image: 50 million pixels are 150 MB.
MOST_PIXELS = 50_000_000
IMAGES = (".png", ".jpg", ".jpeg")


class Requests(BaseRequests):
    """Images: `{"pixels": [[...]]}`, png, jpg; videos for models of tubelets."""

    keys: ClassVar[Mapping[str, str]] = {"pixels": "(H, W) or (H, W, C), videos with frames in front; 0 to 255, or 0.0 to 1.0"}

    @property
    def video(self) -> bool:
        """Whether the model reads clips."""
        return self.config.get("embedding", {}).get("name") == "tubelet"

    @property
    def suffixes(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*VIDEOS, ".gif") if self.video else IMAGES

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
            np.save(path, array[None], allow_pickle=False)
            data = self.open_file(path, self.file_options)
            rows = data.splits["predict"]
            collate: Any = data.loader("predict").collate_fn
            inputs = collate([rows[0]])["inputs"][0].numpy()
        return Asked([inputs], [{"id": "0"}])

    def check_file(self, path: Path) -> None:
        super().check_file(path)
        if path.suffix in IMAGES:
            header = ImageFiles([path]).header(0)
            if header.height * header.width > MOST_PIXELS:
                raise DataError(f"the image has {header.height} x {header.width} pixels, at most {MOST_PIXELS} are allowed")

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
