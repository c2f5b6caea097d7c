"""Sound files as samples at the model's rate: the part of the audio predict.py that reads them."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError, needed

# -- behind this line goes into predict.py


WHOLE, REAL, EXTENSIBLE = 1, 3, 0xFFFE
CONVERT = "convert it: ffmpeg -i IN -c:a pcm_s16le OUT.wav"


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Samples between -1 and 1, channels averaged, and their rate."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    data = path.read_bytes()
    if data[:4] != b"RIFF" or data[8:12] != b"WAVE":
        raise InputError(f"{path}: no wav file, it does not begin with RIFF and WAVE; {CONVERT}")
    form, start, length = wav_chunks(path, data)
    kind, channels, rate, _, block, bits = struct.unpack_from("<HHIIHH", form)
    if kind == EXTENSIBLE and len(form) >= 26:
        kind = struct.unpack_from("<H", form, 24)[0]
    width = block // max(1, channels)
    if not rate or not channels or (kind, width) not in ((WHOLE, 1), (WHOLE, 2), (WHOLE, 3), (WHOLE, 4), (REAL, 4), (REAL, 8)):
        raise InputError(f"{path}: {bits} bits of coding {kind} are not read, only whole and real numbers; {CONVERT}")
    count = length // block
    if not count:
        raise InputError(f"{path}: holds no samples")
    values = numbers_of(data[start : start + count * block], kind, width).reshape(-1, channels)
    samples: np.ndarray = values[:, 0] if channels == 1 else values.mean(1, dtype=np.float32)
    return finite(samples, path), rate


def wav_chunks(path: Path, data: bytes) -> tuple[bytes, int, int]:
    """The description of a wav file's samples, where they begin, and how many bytes they are."""
    form, place = b"", 12
    while place + 8 <= len(data):
        name, length = struct.unpack_from("<4sI", data, place)
        place += 8
        if name == b"data" and len(form) >= 16:
            # A stream that was cut off by its listener does not know its length.
            missing = place + length - len(data)
            if missing > 0 and length < 0xFFFFFFF0:
                raise InputError(f"{path}: truncated, {missing} bytes fewer than its header promises; copy it again")
            return form, place, min(length, len(data) - place)
        if name == b"fmt ":
            form = data[place : place + length]
        place += length + length % 2
    raise InputError(f"{path}: truncated or no wav file: it has no samples behind their description")


def numbers_of(data: bytes, kind: int, width: int) -> np.ndarray:
    """Samples of so many bytes as float32 between -1 and 1."""
    if kind == REAL:
        return np.frombuffer(data, dtype=f"<f{width}").astype(np.float32)
    if width == 3:
        # The upper three bytes of four.
        packed = np.zeros((len(data) // 3, 4), dtype=np.uint8)
        packed[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        return packed.reshape(-1).view("<i4").astype(np.float32) / 2**31
    if width == 1:
        return (np.frombuffer(data, dtype=np.uint8).astype(np.float32) - 128) / 128
    return np.frombuffer(data, dtype=f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))


def read_other(path: Path) -> tuple[np.ndarray, int]:
    """The same for a file of another format."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    soundfile: Any = needed("soundfile")
    try:
        samples, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except RuntimeError as error:
        raise InputError(f"{path}: cannot be read as sound ({error})") from None
    if not len(samples):
        raise InputError(f"{path}: holds no samples")
    return finite(samples.mean(1), path), int(rate)


def finite(samples: np.ndarray, path: Path) -> np.ndarray:
    """The samples, if none is NaN or infinite."""
    good = np.isfinite(samples)
    if not good.all():
        raise InputError(f"{path}: sample {int(np.argmin(good))} is NaN or infinite")
    return samples


def resample(samples: np.ndarray, rate: int, wanted: int, width: int = 6, rolloff: float = 0.99) -> np.ndarray:
    """Samples at another rate, by a sinc filter of `width` zero crossings under a Hann window.

    Args:
        samples: (T,).
        rate: of the samples, in Hz.
        wanted: the new rate.
        width: zero crossings on either side.
        rolloff: cutoff, as a share of half the lower rate.
    """
    if rate == wanted:
        return samples
    common = int(np.gcd(rate, wanted))
    old, new = rate // common, wanted // common
    base = min(old, new) * rolloff
    reach = int(np.ceil(width * old / base))
    # Times, in old samples, from each of the `new` phases of an output to the inputs around it.
    times = np.arange(-reach, reach + old)[None, :] / old - np.arange(new)[:, None] / new
    times = np.clip(times * base, -width, width)
    kernels = np.sinc(times) * np.cos(times * np.pi / width / 2) ** 2 * (base / old)
    padded = np.pad(samples.astype(np.float64), (reach, reach + old))
    frames = np.lib.stride_tricks.sliding_window_view(padded, kernels.shape[1])[::old]
    return (frames @ kernels.T).reshape(-1)[: -(-len(samples) * new // old)].astype(np.float32)
