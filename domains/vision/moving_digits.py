"""Makes a folder of videos from still images: `python -m longseq.domains.vision.moving_digits mnist.npz videos/`.

Each image crosses a black canvas on a straight line and bounces at its edges, encoded as MPEG-4. The videos of train images
lie in `train/`, those of test images in `test/`, one folder per label: a source for `data.train=videos/`.
"""

import argparse
from pathlib import Path

import numpy as np

from longseq.checkpoint import replacing_folder
from longseq.domains.vision.arrays import LabelledArrays, read_npz
from longseq.domains.vision.demo import moving
from longseq.errors import DataError


def write_video(path: Path, frames: np.ndarray, frames_per_s: int = 12) -> None:
    """Encodes gray frames uint8 (T, H, W) as an mp4 file; H and W even."""
    try:
        import av
    except ImportError:
        raise DataError("writing videos needs PyAV: pip install 'longseq[video]'") from None
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=frames_per_s)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:], "yuv420p"
        stream.bit_rate = 1_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="gray")))
        container.mux(stream.encode())


def write_videos(
    images: np.ndarray, labels: np.ndarray, folder: Path, *, n_frames: int, size: int, rng: np.random.Generator
) -> None:
    """One video per image uint8 (N, H, W), as `folder/<label>/<number>.mp4`."""
    for number, (video, label) in enumerate(zip(moving(images, n_frames, rng, size), labels.tolist(), strict=True)):
        path = folder / str(label) / f"{number:05d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_video(path, video)


def labelled_images(arrays: dict[str, LabelledArrays], split: str, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """A split's gray images (N, H, W) and labels (N,).

    Raises:
        DataError: if the file has no such split, no labels, or images in colour.
    """
    found = arrays.get(split)
    if found is None or found.labels is None:
        raise DataError(f"{path}: expected the arrays x_{split} and y_{split}; found {', '.join(arrays)}")
    images = np.concatenate(found.arrays)
    if images.ndim != 3:
        raise DataError(f"{path}: x_{split} must be gray images (N, H, W), found {images.shape}")
    return images, found.labels


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m longseq.domains.vision.moving_digits", description=__doc__)
    parser.add_argument("images", type=Path, help="npz with x_train, y_train, x_test, y_test, gray, 8 bits")
    parser.add_argument("output", type=Path, help="folder to make; an existing one is replaced")
    parser.add_argument("--train", type=int, default=3000, help="videos from x_train (default: %(default)s)")
    parser.add_argument("--test", type=int, default=600, help="videos from x_test (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="of each video (default: %(default)s)")
    parser.add_argument("--size", type=int, default=48, help="side of the canvas in pixels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the choice and the movements (default: %(default)s)")
    args = parser.parse_args(argv)
    arrays = read_npz(args.images)
    rng = np.random.default_rng(args.seed)
    with replacing_folder(args.output) as folder:
        for split, n in (("train", args.train), ("test", args.test)):
            images, labels = labelled_images(arrays, split, args.images)
            chosen = rng.choice(len(images), min(n, len(images)), replace=False)
            write_videos(images[chosen], labels[chosen], folder / split, n_frames=args.frames, size=args.size, rng=rng)


if __name__ == "__main__":
    main()
