"""One size and one number of channels for all images, and augmentation of those of train, alike for all frames of a clip."""

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from longseq.errors import ConfigError

RESIZES = ("crop", "squash", "pad")
# Rec. 601, as PIL's conversion to L.
LUMA = np.array([299, 587, 114], dtype=np.uint32)


def fit_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Grey from RGB, or RGB from grey; uint8 (T, H, W, C)."""
    if pixels.shape[-1] == channels:
        return pixels
    if channels == 3:
        return pixels.repeat(3, axis=-1)
    return ((pixels.astype(np.uint32) @ LUMA + 500) // 1000).astype(np.uint8)[..., None]


def fit_size(pixels: np.ndarray, size: Sequence[int], how: str) -> np.ndarray:
    """Frames in another size; those that have it already stay as they are.

    Args:
        pixels: uint8 (T, H, W, C).
        size: (H, W).
        how: `crop` scales until both sides are covered and keeps the middle, `squash` changes the shape, `pad` scales until
            the whole fits and fills with black.
    """
    height, width = size
    if pixels.shape[1:3] == (height, width):
        return pixels
    return np.stack([fit_frame(frame, height, width, how) for frame in pixels])


def fit_frame(frame: np.ndarray, height: int, width: int, how: str) -> np.ndarray:
    """One frame of `fit_size`."""
    scales = (height / frame.shape[0], width / frame.shape[1])
    scale = {"crop": max(scales), "pad": min(scales)}.get(how)
    rows, columns = (height, width) if scale is None else (max(1, round(side * scale)) for side in frame.shape[:2])
    resized = from_image(to_image(frame).resize((columns, rows), Image.Resampling.BILINEAR))
    top, left = (rows - height) // 2, (columns - width) // 2
    if how == "crop":
        top, left = max(0, top), max(0, left)
        return resized[top : top + height, left : left + width]
    canvas = np.zeros((height, width, frame.shape[-1]), np.uint8)
    canvas[-top if top < 0 else 0 :, -left if left < 0 else 0 :][:rows, :columns] = resized[:height, :width]
    return canvas


def to_image(frame: np.ndarray) -> Image.Image:
    """uint8 (H, W, 1) or (H, W, 3) as a PIL image."""
    return Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame)


def from_image(image: Image.Image) -> np.ndarray:
    """A PIL image as uint8 (H, W, 1) or (H, W, 3)."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


class Augmentation:
    """Random changes of training images by timm and torchvision, drawn anew for each row and epoch.

    Args:
        size: (H, W) that comes out.
        hflip: probability of mirroring left and right.
        shift: pixels by which the frame is padded and cropped back at a random place.
        scale: smallest and largest share of the area that a random resized crop keeps; None for none.
        color_jitter: strength of random brightness, contrast and saturation.
        auto_augment: timm's policies, such as `rand-m9-mstd0.5-inc1`, `augmix-m3-w3` or `original`.
        erase: probability of blacking out a random rectangle.

    Raises:
        ConfigError: for a value out of range or an unknown policy.
    """

    def __init__(
        self,
        size: Sequence[int],
        *,
        hflip: float = 0.0,
        shift: int = 0,
        scale: Sequence[float] | None = None,
        color_jitter: float = 0.0,
        auto_augment: str | None = None,
        erase: float = 0.0,
    ) -> None:
        for name, value in (("hflip", hflip), ("erase", erase)):
            if not 0 <= value <= 1:
                raise ConfigError(f"data.{name} is a probability between 0 and 1, found {value}")
        if scale is not None and (len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1):
            raise ConfigError(f"data.scale must be two shares of the area, 0 < smallest <= largest <= 1; found {list(scale)}")
        self.active = bool(hflip or shift or scale or color_jitter or auto_augment or erase)
        self.reshapes = scale is not None
        self.steps = self._build(tuple(size), hflip, shift, scale, color_jitter, auto_augment) if self.active else []
        self.erase = erase

    def _build(
        self, size: tuple[int, ...], hflip: float, shift: int, scale: Sequence[float] | None, jitter: float, policy: str | None
    ) -> list[Callable[[Image.Image], Image.Image]]:
        from timm.data.transforms import RandomResizedCropAndInterpolation
        from torchvision import transforms

        steps: list[Any] = []
        if scale is not None:
            steps.append(RandomResizedCropAndInterpolation(size, scale=tuple(scale), interpolation="bilinear"))
        if shift:
            steps.append(transforms.RandomCrop(size, padding=shift))
        if hflip:
            steps.append(transforms.RandomHorizontalFlip(hflip))
        if policy:
            steps.append(build_policy(policy, size))
        if jitter:
            steps.append(transforms.ColorJitter(jitter, jitter, jitter))
        return steps

    def __call__(self, pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Changes all frames in the same way; uint8 (T, H, W, C) in and out."""
        if not self.active:
            return pixels
        seed = int(rng.integers(2**31))
        frames = []
        for frame in pixels:
            # The policies know coloured images only.
            image = to_image(fit_channels(frame[None], 3)[0])
            with seeded(seed):
                for step in self.steps:
                    image = step(image)
            frames.append(from_image(image))
        changed = fit_channels(np.stack(frames), pixels.shape[-1])
        return self._erase(changed, seed)

    def _erase(self, pixels: np.ndarray, seed: int) -> np.ndarray:
        if not self.erase:
            return pixels
        from timm.data.random_erasing import RandomErasing

        # As channels of one image, so that all frames lose the same rectangle.
        planes = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).flatten(0, 1)
        with seeded(seed):
            planes = RandomErasing(self.erase, device="cpu")(planes)
        return planes.unflatten(0, (pixels.shape[0], -1)).permute(0, 2, 3, 1).numpy()


def build_policy(policy: str, size: Sequence[int]) -> Any:
    """One of timm's policies by its description.

    Raises:
        ConfigError: if timm does not know it.
    """
    from timm.data.auto_augment import augment_and_mix_transform, auto_augment_transform, rand_augment_transform

    options = {"translate_const": int(min(size) * 0.45), "img_mean": (124, 116, 104)}
    builders = {"rand": rand_augment_transform, "augmix": augment_and_mix_transform}
    try:
        found = builders.get(policy.split("-")[0], auto_augment_transform)(policy, options)
    except (AssertionError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"data.auto_augment={policy!r} is no policy of timm's ({error}); such as rand-m9-mstd0.5-inc1"
        ) from None
    for operation in getattr(found, "ops", None) or [one for several in found.policy for one in several]:
        if operation.name.startswith("Posterize"):
            operation.level_fn = at_least_one_bit(operation.level_fn)
    return found


def at_least_one_bit(level: Callable[..., tuple[int]]) -> Callable[..., tuple[int]]:
    """A level of posterizing that keeps a bit: timm's strongest keep none, which Pillow refuses from version 13 on."""
    return lambda magnitude, options: (max(1, level(magnitude, options)[0]),)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds the global random states that timm and torchvision draw from, and gives them back as they were."""
    # Not torch.manual_seed, which would seed the GPU's dropout too.
    generator = torch.default_generator
    before = (random.getstate(), np.random.get_state(), generator.get_state())
    random.seed(seed)
    np.random.seed(seed % 2**32)
    generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        generator.set_state(before[2])
