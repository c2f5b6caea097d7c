"""The audio part of predict.py."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.answers import records
from longseq.pipelines.predict_scripts.shared import InputError, Model, Row
from longseq.pipelines.predict_scripts.transcripts import transcript
from longseq.pipelines.predict_scripts.waves import read_other, read_wav, resample

# -- behind this line goes into predict.py


SOUND = (".wav", ".flac", ".ogg", ".mp3", ".opus", ".aiff", ".aif", ".au", ".w64", ".caf")


class Domain:
    """Reads wav files of whole and real numbers, and with soundfile flac, ogg and mp3; or folders of them.

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
        """One row per file; where one answer is for all of it, those that are too long give their middle."""
        if path.is_dir():
            for file in sorted(file for file in path.rglob("*") if file.suffix.lower() in SOUND):
                yield from self.file(file, str(file.relative_to(path)))
        else:
            yield from self.file(path, path.name)

    def file(self, path: Path, name: str) -> Iterator[Row]:
        """One file; in windows if the model was trained on windows and answers for them as wholes."""
        samples, rate = read_wav(path) if path.suffix.lower() == ".wav" else read_other(path)
        reading = self.model.config.get("reading", {})
        if self.model.along or reading.get("on_long") != "window" or not reading.get("clip_s"):
            yield self.row(samples, rate, name, 0)
            return
        size = round(reading["clip_s"] * rate)
        hop = max(1, round((reading.get("hop_s") or reading["clip_s"]) * rate))
        starts = list(range(0, max(1, len(samples) - size + 1), hop))
        if len(samples) > size and starts[-1] + size < len(samples):
            starts.append(len(samples) - size)
        for start in starts:
            yield self.row(samples[start : start + size], rate, name, start)

    def row(self, samples: np.ndarray, rate: int, name: str, place: int) -> Row:
        """A stretch of a file."""
        start, stop = self.model.middle(-(-len(samples) * self.rate // rate))
        # Cut before it is resampled, as in training.
        most = min(len(samples), int(np.ceil((stop - start) * rate / self.rate)))
        first = (len(samples) - most) // 2
        sound = resample(samples[first : first + most], rate, self.rate)[: stop - start]
        start_s, duration_s = np.round(np.array([place, len(samples)]) / rate, 4).tolist()
        names = {"id": name, "start_s": start_s, "duration_s": duration_s}
        return Row(names, mulaw(sound) if self.levels else sound)

    def records(self, model: Model, row: Row, answer: np.ndarray) -> Iterator[dict[str, Any]]:
        """Lines of the csv file for one file."""
        if model.task == "ctc":
            yield {**row.names, "prediction": transcript(answer, model.config["vocabulary"], self.beams)}
        else:
            yield from records(model, row, answer)


def mulaw(samples: np.ndarray) -> np.ndarray:
    """Samples as numbers from 0 to 255, finer near zero (ITU-T G.711)."""
    x = np.clip(samples.astype(np.float64), -1.0, 1.0)
    curved = np.sign(x) * np.log1p(255 * np.abs(x)) / np.log1p(255)
    return ((curved + 1.0) / 2.0 * 255 + 0.5).astype(np.uint8).astype(np.int64)
