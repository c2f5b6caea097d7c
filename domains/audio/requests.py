"""Sounds that clients of a served model send: samples in JSON, or files."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from longseq.domains.audio.decode import greedy_decode
from longseq.domains.audio.files import read_header, resample, resampled_length
from longseq.domains.audio.labels import Vocabulary
from longseq.domains.audio.recordings import events_table
from longseq.domains.audio.tokenizer import AudioTokenizer
from longseq.domains.requests import Asked, kind, numbers
from longseq.domains.requests import Requests as BaseRequests
from longseq.errors import DataError

# Resampling between two rates costs their product, once common factors are taken out: 44,100 to 16,000 Hz is 441 x 160.
COSTLIEST = 4_000_000
# Of all channels of a file before it is resampled: 256 MB.
MOST_VALUES = 2**26


class Requests(BaseRequests):
    """Sound: `{"samples": [...], "sample_rate_hz": 16000}`, wav, flac, ogg, mp3; resampled to the model's rate."""

    keys: ClassVar[Mapping[str, str]] = {"samples": "numbers from -1 to 1, one channel", "sample_rate_hz": "of the samples"}
    suffixes = (".wav", ".flac", ".ogg", ".mp3")
    file_options: ClassVar[Mapping[str, Any]] = {"on_long": "error"}

    @property
    def tokenizer(self) -> AudioTokenizer:
        """The model's."""
        return AudioTokenizer.from_dict(self.config["tokenizer"])

    @property
    def rate(self) -> int:
        """Samples per second as the model hears them."""
        return int(self.config["tokenizer"]["sample_rate_hz"])

    def read(self, body: Mapping[str, Any]) -> Asked:
        rate = body.get("sample_rate_hz")
        if rate is None:
            raise DataError(f"sample_rate_hz is missing; the model hears {self.rate} Hz, and other rates are resampled to that")
        # `rate % 1` is NaN for what is no number, and for infinity.
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or rate % 1 != 0:
            raise DataError(f"sample_rate_hz must be a whole number, found {rate!r:.40}")
        samples = self.samples(body["samples"])
        self.check_sound(len(samples), int(rate))
        heard = resample(samples, int(rate), self.rate)
        names = {"id": "0", "duration_s": round(len(samples) / rate, 4)}
        return Asked([self.tokenizer.encode(heard)], [names])

    def samples(self, given: Any) -> np.ndarray:
        """Finite float32 samples (T,)."""
        found = numbers(given, "samples")
        if found.ndim != 1:
            raise DataError(f"samples must be one list of numbers (mono), found {found.ndim} dimensions")
        return found.astype(np.float32)

    def check_sound(self, count: int, rate: int) -> None:
        """Raises DataError for rates that cannot be resampled at reasonable cost, and for lengths out of range."""
        if rate != self.rate:
            common = math.gcd(rate, self.rate)
            if not 1000 <= rate <= 768_000 or (rate // common) * (self.rate // common) > COSTLIEST:
                raise DataError(f"sample_rate_hz is {rate}: resample it to the model's {self.rate} Hz first")
        self.check_length(int(resampled_length(count, rate, self.rate)), "the sound", f"samples at {self.rate} Hz")

    def check_file(self, path: Path) -> None:
        super().check_file(path)
        header = read_header(path)
        # Silence packs well: a megabyte of flac may hold hours of many channels.
        if header.n_frames * header.n_channels > MOST_VALUES:
            raise DataError(
                f"{path.name}: {header.n_frames} samples in {header.n_channels} channels, at most {MOST_VALUES} in all of them "
                "are allowed"
            )
        self.check_sound(header.n_frames, header.sample_rate_hz)

    def chunk(self, message: Mapping[str, Any] | bytes | str) -> np.ndarray:
        if isinstance(message, str):
            raise DataError('a message must be float32 samples as bytes, or JSON such as {"samples": [0.1, 0.2]}; found text')
        if isinstance(message, bytes):
            if len(message) % 4:
                raise DataError(f"{len(message)} bytes are no float32 samples of 4 bytes each (little-endian, mono)")
            samples = self.samples(np.frombuffer(message, dtype="<f4"))
        elif "samples" not in message or set(message) - set(self.keys):
            raise DataError(f"a message must hold samples, and may say sample_rate_hz; found {', '.join(message) or '-'}")
        else:
            samples = self.samples(message["samples"])
            rate = message.get("sample_rate_hz", self.rate)
            if rate != self.rate:
                raise DataError(f"a stream is not resampled: send {self.rate} Hz, found {rate!r:.40} {kind(rate)}")
        self.check_length(len(samples), "the piece", "samples")
        return self.tokenizer.encode(samples)

    def more(self, outputs: np.ndarray, names: Mapping[str, Any]) -> dict[str, Any]:
        task, frame_s = self.config.get("task"), self.tokenizer.stride / self.rate
        if task == "ctc":
            return {"text": Vocabulary(self.config["vocabulary"][1:]).decode(greedy_decode(outputs)), "frame_s": frame_s}
        if task == "frames":
            times = {"start_s": 0.0, "duration_s": names.get("duration_s", len(outputs) * frame_s)}
            events = events_table(times, outputs, self.config["labels"], frame_s)
            return {"frame_s": frame_s, "events": events.to_dict("records")}
        return {}

    def facts(self) -> dict[str, Any]:
        return {"sample_rate_hz": self.rate}

    def example(self) -> dict[str, Any]:
        n = min(self.max_length, max(self.tokenizer.stride * 4, self.rate // 50))
        tone = np.sin(2 * np.pi * 440 * np.arange(n) / self.rate) * 0.3
        return {"samples": tone.round(4).tolist(), "sample_rate_hz": self.rate}
