"""The audio part of predict.py."""

import argparse
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError, Model, Row, needed, records
from longseq.pipelines.predict_scripts.transcripts import transcript

# -- behind this line goes into predict.py


SOUND = (".wav", ".flac", ".ogg", ".mp3", ".opus")


class Domain:
    """Reads wav files of 8 to 32 bits by the standard library, and with soundfile flac, ogg and mp3; or folders of them.

    Several channels are averaged, and other rates brought to the model's.

    Args:
        model: the graph.
        options: of the command line.
    """

    FILES = "wav files, with soundfile also flac, ogg and mp3; or folders of them"

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """What only sound has."""
        parser.add_argument(
            "--beams", type=int, help="texts searched side by side for a transcript (task=ctc); as trained if unset"
        )

    def __init__(self, model: Model, options: Any) -> None:
        if options.beams is not None and (options.beams < 1 or model.task != "ctc"):
            raise InputError(
                f"--beams {options.beams} must be 1 or more, and needs a model of task=ctc; this one's is {model.task}"
            )
        self.beams = int(model.config.get("beam_width", 1) if options.beams is None else options.beams)
        tokenizer = model.config["tokenizer"]
        self.model, self.rate = model, int(tokenizer["sample_rate_hz"])
        # Silence is 0 as a sample, and 128 as one of the 256 levels.
        self.levels = tokenizer["name"] == "mulaw"
        self.pad = 128 if self.levels else 0.0
        embedding = model.config["embedding"]
        strides = embedding.get("strides", [])
        self.stride = max(1, round(embedding["hop_s"] * self.rate)) if "hop_s" in embedding else int(np.prod(strides or [1]))

    def rows(self, path: Path) -> Iterator[Row]:
        """One row per file; those that are too long give their middle."""
        if path.is_dir():
            for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in SOUND):
                yield self.row(file, str(file.relative_to(path)))
        else:
            yield self.row(path, path.name)

    def row(self, path: Path, name: str) -> Row:
        """One file."""
        samples, rate = read_wav(path) if path.suffix.lower() == ".wav" else read_other(path)
        longest = -(-len(samples) * self.rate // rate)
        longest = min(longest, self.model.longest or longest)
        # Cut before it is resampled, as in training.
        most = min(len(samples), int(np.ceil(longest * rate / self.rate)))
        start = (len(samples) - most) // 2
        sound = resample(samples[start : start + most], rate, self.rate)[:longest]
        names = {"id": name, "start_s": 0.0, "duration_s": round(len(samples) / rate, 4)}
        return Row(names, mulaw(sound) if self.levels else sound)

    def records(self, model: Model, row: Row, answer: np.ndarray) -> Iterator[dict[str, Any]]:
        """Lines of the csv file for one file."""
        if model.task == "ctc":
            yield {**row.names, "prediction": transcript(answer, model.config["vocabulary"], self.beams)}
        else:
            yield from records(model, row, answer)


def read_wav(path: Path) -> tuple[np.ndarray, int]:
    """Samples between -1 and 1, channels averaged, and their rate."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    try:
        with wave.open(str(path), "rb") as file:
            rate, width, channels, count = file.getframerate(), file.getsampwidth(), file.getnchannels(), file.getnframes()
            data = file.readframes(count)
    except (wave.Error, EOFError) as error:
        hint = "convert it: ffmpeg -i IN -c:a pcm_s16le OUT.wav"
        raise InputError(f"{path}: no wav file of whole numbers ({error}); {hint}") from None
    if len(data) < count * width * channels:
        raise InputError(f"{path}: truncated, {count * width * channels - len(data)} bytes fewer than its header promises")
    if not count:
        raise InputError(f"{path}: holds no samples")
    if width == 3:
        # The upper three bytes of four.
        packed = np.zeros((count * channels, 4), dtype=np.uint8)
        packed[:, 1:] = np.frombuffer(data, dtype=np.uint8).reshape(-1, 3)
        values = packed.reshape(-1).view("<i4").astype(np.float32) / 2**31
    elif width == 1:
        values = (np.frombuffer(data, dtype=np.uint8).astype(np.float32) - 128) / 128
    else:
        values = np.frombuffer(data, dtype=f"<i{width}").astype(np.float32) / np.float32(2 ** (8 * width - 1))
    return values.reshape(-1, channels).mean(1, dtype=np.float32), rate


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
    return samples.mean(1), int(rate)


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


def mulaw(samples: np.ndarray) -> np.ndarray:
    """Samples as numbers from 0 to 255, finer near zero (ITU-T G.711)."""
    x = np.clip(samples.astype(np.float64), -1.0, 1.0)
    curved = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log1p(255)
    return ((curved + 1.0) / 2.0 * 255 + 0.5).astype(np.uint8).astype(np.int64)
