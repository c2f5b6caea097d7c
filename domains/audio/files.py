"""Sound files through soundfile: what their headers say, and samples from any place of them, mono, at one sampling rate."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import torch

from longseq.errors import DataError

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".au", ".w64", ".caf")
# Floating-point files may go a little beyond 1; 16-bit numbers go far.
LOUDEST = 64.0
# Headers and samples are read by C code that leaves Python's lock alone.
THREADS = 8


@dataclass(frozen=True)
class Header:
    """What a sound file says of itself.

    Attributes:
        sample_rate_hz: samples per second.
        n_channels: one for mono.
        n_frames: samples of each channel.
    """

    sample_rate_hz: int
    n_channels: int
    n_frames: int


def read_header(path: Path) -> Header:
    """The header alone, without the samples.

    Raises:
        DataError: the file is missing, empty, cut off (wav), without samples, or in no format that libsndfile reads.
    """
    if not path.is_file():
        raise DataError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty (0 bytes)")
    try:
        info = sf.info(str(path))
    except (sf.LibsndfileError, RuntimeError) as error:
        raise DataError(
            f"{path}: not a sound file that can be read ({reason(error)}); supported are {', '.join(SUFFIXES)}"
        ) from None
    # libsndfile adjusts a cut wav file's length without a word.
    missing = missing_wav_bytes(path)
    if missing > 0:
        raise DataError(f"{path}: truncated, {missing} bytes fewer than its header promises; copy or download it again")
    if info.frames <= 0:
        raise DataError(f"{path}: holds no samples")
    return Header(int(info.samplerate), int(info.channels), int(info.frames))


def missing_wav_bytes(path: Path) -> int:
    """How many bytes of samples a RIFF wav file lacks; 0 for other formats and for streams of unknown length."""
    with path.open("rb") as file:
        if file.read(4) != b"RIFF" or file.seek(8) != 8 or file.read(4) != b"WAVE":
            return 0
        size = path.stat().st_size
        while len(chunk := file.read(8)) == 8:
            name, length = struct.unpack("<4sI", chunk)
            if name == b"data":
                return 0 if length >= 0xFFFFFFF0 else max(0, length - (size - file.tell()))
            file.seek(length + length % 2, 1)
    return 0


def read_headers(paths: Sequence[Path]) -> list[Header | DataError]:
    """Each file's header, or what is wrong with it."""

    def read(path: Path) -> Header | DataError:
        try:
            return read_header(path)
        except DataError as error:
            return error

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(read, paths))


def read_samples(path: Path, start: int = 0, count: int | None = None) -> np.ndarray:
    """Samples of a file, all channels averaged, by seeking and without reading the rest.

    Args:
        path: the file.
        start: first sample, at the file's own rate.
        count: number of samples; None for all that follow.

    Returns:
        float32 (T,), from -1 to 1.

    Raises:
        DataError: the file cannot be decoded, ends before its header says, or holds NaN or infinity.
    """
    try:
        with sf.SoundFile(str(path)) as file:
            expected = file.frames - start if count is None else count
            file.seek(start)
            samples = file.read(expected, dtype="float32", always_2d=True)
    except (sf.LibsndfileError, RuntimeError, OSError) as error:
        raise DataError(
            f"{path}: cannot be decoded at sample {start} ({reason(error)}); the file is damaged or truncated"
        ) from None
    if len(samples) < expected:
        raise DataError(f"{path}: truncated, it ends at sample {start + len(samples)} where {start + expected} were expected")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise DataError(f"{path}: sample {start + int(np.argmin(np.isfinite(mono)))} is NaN or infinite")
    return np.ascontiguousarray(mono)


def check_samples(path: Path, start: int, count: int, *, silence: float = 1e-5) -> DataError | None:
    """What is wrong with a stretch of a file, decoded in blocks; None if it is sound.

    Args:
        path: the file.
        start: first sample.
        count: number of samples.
        silence: a stretch whose samples all lie within this of each other is silent.
    """
    low, high, block = np.inf, -np.inf, 1 << 20
    try:
        for place in range(start, start + count, block):
            samples = read_samples(path, place, min(block, start + count - place))
            low, high = min(low, float(samples.min())), max(high, float(samples.max()))
    except DataError as error:
        return error
    if max(high, -low) > LOUDEST:
        return DataError(
            f"{path}: samples reach {max(high, -low):.6g}, where -1 to 1 was expected: whole numbers in a file of floating-"
            "point samples; divide them by 32768 (16 bits)"
        )
    if high - low < silence:
        return DataError(f"{path}: silent from sample {start} to {start + count} (all samples within {silence:g} of {low:.3g})")
    return None


def check_all(stretches: Sequence[tuple[Path, int, int]]) -> list[DataError | None]:
    """`check_samples` for many stretches at once."""
    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(lambda stretch: check_samples(*stretch), stretches))


def resample(samples: np.ndarray, rate_hz: int, wanted_hz: int) -> np.ndarray:
    """Samples at another rate, low-passed before they are thinned out.

    Args:
        samples: float32 (T,).
        rate_hz: of the samples.
        wanted_hz: of the result, which has `resampled_length(T, ...)` samples.
    """
    if rate_hz == wanted_hz or not len(samples):
        return samples
    from torchaudio.functional import resample as torch_resample

    return torch_resample(torch.from_numpy(samples), rate_hz, wanted_hz).numpy()


def resampled_length(n_samples: int | np.ndarray, rate_hz: int | np.ndarray, wanted_hz: int) -> np.ndarray:
    """Samples after resampling, rounded up."""
    return -(-np.asarray(n_samples, dtype=np.int64) * wanted_hz // np.asarray(rate_hz, dtype=np.int64))


def write_wav(path: Path, samples: np.ndarray, sample_rate_hz: int) -> None:
    """Writes 16-bit wav; what lies beyond -1 and 1 is clipped."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(str(path), np.clip(samples, -1.0, 1.0), sample_rate_hz, subtype="PCM_16")


def reason(error: Exception) -> str:
    """libsndfile's words, without the path that it repeats."""
    text = str(error)
    return (text.rsplit(": ", 1)[-1] if ": " in text else text).rstrip(".")


def find_sound(folder: Path) -> list[Path]:
    """All sound files below a folder, in order of their paths; without the `._` files that a Mac lays beside them."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and not path.name.startswith("._"))
    return sorted(path for path in found if path.is_file())
