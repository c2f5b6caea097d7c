"""Pictures whose class is easy to learn."""

import numpy as np


def picture(label: int, rng: np.random.Generator, size: int = 12) -> np.ndarray:
    """Noise with a bright half: the left of class 0, the right of class 1, the top of class 2."""
    image = rng.integers(0, 80, (size, size)).astype(np.uint8)
    half = [np.s_[:, : size // 2], np.s_[:, size // 2 :], np.s_[: size // 2]][label]
    image[half] += 150
    return image


def pictures(n: int, n_classes: int = 2, size: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, size, size) and labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    return np.stack([picture(int(label), rng, size) for label in labels]), labels
