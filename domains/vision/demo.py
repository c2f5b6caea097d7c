"""Real data small enough to be part of scikit-learn: 1,797 handwritten digits of 8 x 8 pixels."""

from typing import Any

import numpy as np

from longseq.domains.loading import stratified_split
from longseq.domains.vision.sources import Records
from longseq.domains.vision.stores import ArrayStore

NOTE = "1,797 real scans of handwritten digits, 8 x 8 pixels (scikit-learn's digits, from the UCI repository)"


def digit_arrays() -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (1797, 8, 8), their 17 values spread over 0 to 255, and digits (1797,)."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    images = np.rint(digits["images"] * (255.0 / 16.0)).astype(np.uint8)
    return images, np.asarray(digits["target"])


def demo_records(seed: int, n_frames: int | None = None) -> dict[str, Records]:
    """The digits in three splits; as videos, each moves over a canvas of 16 x 16 pixels.

    Args:
        seed: of the splits and the movements.
        n_frames: of each video; None for images.
    """
    images, digits = digit_arrays()
    if n_frames is not None:
        images = moving(images, n_frames, np.random.default_rng(seed))
    store = ArrayStore([images], ["scikit-learn digits"], video=n_frames is not None)
    labels = np.array([str(digit) for digit in digits.tolist()], dtype=object)
    everything = Records(store, np.arange(len(store)), labels)
    split = stratified_split(digits, len(store), val=0.15, test=0.2, seed=seed)
    return {name: everything.select(rows) for name, rows in split.items()}


def moving(images: np.ndarray, n_frames: int, rng: np.random.Generator, size: int = 16) -> np.ndarray:
    """Videos uint8 (N, T, size, size): each image crosses a black canvas on a straight line, bouncing at its edges."""
    n, height, width = images.shape
    room = np.array([size - height, size - width])
    start = rng.uniform(0, 1, (n, 2)) * room
    speed = rng.uniform(-1.5, 1.5, (n, 2))
    videos = np.zeros((n, n_frames, size, size), np.uint8)
    for t in range(n_frames):
        place = np.abs((start + speed * t + room) % (2 * room) - room)
        rows, columns = np.rint(place).astype(np.int64).T
        for i in range(n):
            videos[i, t, rows[i] : rows[i] + height, columns[i] : columns[i] + width] = images[i]
    return videos
