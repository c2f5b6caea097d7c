"""Recordings of any length: answers at every frame, in one pass with a carried state or from windows that overlap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from longseq.domains.audio.clips import Clips
from longseq.domains.audio.decode import decode_batch
from longseq.domains.audio.files import read_samples, resample
from longseq.domains.audio.tasks import CTC, FrameLabels
from longseq.domains.audio.tokenizer import SILENCE, AudioTokenizer
from longseq.domains.base import DomainData, DomainModule
from longseq.domains.likelihood import LikelihoodOptions, TokenSequences
from longseq.domains.prediction import Predictions
from longseq.errors import ConfigError, DataError
from longseq.streaming import Stream


class Recordings:
    """Clips of any lengths, read stretch by stretch at the model's sampling rate.

    Args:
        clips: the table.
        tokenizer: says the rate, and what the model takes.
    """

    def __init__(self, clips: Clips, tokenizer: AudioTokenizer) -> None:
        self.clips, self.tokenizer = clips, tokenizer
        self.lengths = clips.lengths(tokenizer.sample_rate_hz)
        # What had to be resampled is resampled whole, so that stretches join without a seam; the last one is kept.
        self._held: tuple[int, np.ndarray] | None = None

    def samples(self, row: int, start: int, stop: int) -> np.ndarray:
        """float32 samples of a stretch.

        Raises:
            DataError: naming the row, if its file cannot be read.
        """
        if int(self.clips.rate_hz[row]) == self.tokenizer.sample_rate_hz:
            return self._read(row, start, stop - start)
        if self._held is None or self._held[0] != row:
            whole = self._read(row, 0, int(self.clips.count[row]))
            self._held = row, resample(whole, int(self.clips.rate_hz[row]), self.tokenizer.sample_rate_hz)
        return self._held[1][start:stop]

    def _read(self, row: int, start: int, count: int) -> np.ndarray:
        first = int(self.clips.first[row]) + start
        if self.clips.memory is not None:
            return self.clips.memory[row][first : first + count]
        try:
            return read_samples(self.clips.frame["path"].iloc[row], first, count)
        except DataError as error:
            raise DataError(f"{self.clips.where(row)}: {error}") from None

    def inputs(self, row: int, start: int, stop: int) -> np.ndarray:
        """What the model takes: samples, or mu-law levels."""
        return self.tokenizer.encode(self.samples(row, start, stop))


class SoundSequences(TokenSequences):
    """Recordings as a language model reads them.

    Args:
        recordings: that are read.
        data: names them.
    """

    unit, pad_id = "sample", SILENCE

    def __init__(self, recordings: Recordings, data: DomainData) -> None:
        self.recordings, self.data, self.lengths = recordings, data, recordings.lengths

    def ids(self, row: int, start: int, stop: int) -> np.ndarray:
        return self.recordings.inputs(row, start, stop)

    def names(self, row: int) -> dict[str, Any]:
        return {name: values[0] for name, values in self.data.row_names("predict", np.array([row])).items()}

    def places(self, row: int, starts: np.ndarray, stops: np.ndarray) -> dict[str, np.ndarray]:
        rate, begin = self.recordings.tokenizer.sample_rate_hz, self.names(row)["start_s"]
        return {"onset": (begin + starts / rate).round(5), "offset": (begin + stops / rate).round(5)}


class FramePredictions(Predictions):
    """Events, or a transcript, of each recording, however long it is.

    A causal model hears a recording in one pass, chunk by chunk, in the memory of one chunk; any other hears windows that
    overlap, of which the middles count. Only the frames' answers are held for a whole recording.

    Args:
        module: of the tasks `frames` or `ctc`, on its device.
        data: names the recordings.
        recordings: that are heard.
        options: `chunk`, in positions; `window`, in samples; `overlap`, a share of it.
        window: samples of a window unless the options say.
    """

    def __init__(
        self, module: DomainModule, data: DomainData, recordings: Recordings, options: LikelihoodOptions, window: int
    ) -> None:
        self.module, self.data, self.recordings, self.options = module.eval(), data, recordings, options
        if options.resolution is not None:
            raise ConfigError(f"resolution is for language models; task={module.task.name} answers with events or text")
        self.stride = recordings.tokenizer.stride
        backbone = module.model.backbone
        self.carries = options.window is None and backbone.can_step and not backbone.state_grows
        self.carries &= backbone.max_length is None
        window = options.window or window
        if backbone.max_length is not None:
            window = min(window, backbone.max_length * self.stride)
        # Whole positions, so that windows' frames lie on those of the recording.
        self.window = max(1, window // self.stride) * self.stride
        self.overlap = min(int(self.window * options.overlap), self.window - self.stride) // (2 * self.stride) * 2 * self.stride

    def __len__(self) -> int:
        return len(self.recordings.lengths)

    @property
    def sizes(self) -> Sequence[int]:
        seconds = self.recordings.lengths // self.recordings.tokenizer.sample_rate_hz
        return np.maximum(1, seconds).tolist()

    @property
    def unit(self) -> str:
        return "s of sound"

    @torch.inference_mode()
    def table(self, part: int) -> pd.DataFrame:
        pieces = self._stream(part) if self.carries else self._windows(part)
        outputs_LO = torch.cat([piece.float().cpu() for piece in pieces])
        names = {name: values[0] for name, values in self.data.row_names("predict", np.array([part])).items()}
        task = self.module.task
        if isinstance(task, CTC):
            chances = outputs_LO.log_softmax(-1).numpy()
            text = task.vocabulary.decode(decode_batch([chances], task.beam_width)[0])
            return pd.DataFrame([{**names, "prediction": text}])
        assert isinstance(task, FrameLabels)
        return events_table(names, outputs_LO.softmax(-1).numpy(), task.labels, self._frame_s)

    @property
    def _frame_s(self) -> float:
        return self.stride / self.recordings.tokenizer.sample_rate_hz

    def _inputs(self, row: int, start: int, stop: int) -> Tensor:
        return torch.from_numpy(self.recordings.inputs(row, start, stop)).unsqueeze(0).to(self.module.device)

    def _stream(self, row: int) -> Iterator[Tensor]:
        """(l, O) outputs of consecutive pieces of a recording, by a carried state."""
        stream, length = Stream(self.module.model), int(self.recordings.lengths[row])
        size = self.options.chunk * self.stride
        for start in range(0, length, size):
            yield stream.push(self._inputs(row, start, min(start + size, length)))[0]
        yield stream.finish()[0]

    def _windows(self, row: int) -> Iterator[Tensor]:
        """The same from windows: half of each overlap belongs to the window before, half to the one behind."""
        length, done, half = int(self.recordings.lengths[row]), 0, self.overlap // 2
        while done < length:
            start = max(0, done - half)
            stop = min(start + self.window, length)
            until = length if stop == length else stop - half
            outputs_LO = self.module.model(self._inputs(row, start, stop))[0]
            first = (done - start) // self.stride
            yield outputs_LO[first : first + -(-(until - done) // self.stride)]
            done = until


def events_table(names: Mapping[str, Any], chances_LO: np.ndarray, labels: Sequence[str], frame_s: float) -> pd.DataFrame:
    """One row per stretch of equal labels, without those of the first label, which says that nothing is there.

    Args:
        names: columns that identify the recording; `start_s` is added to the times.
        chances_LO: probabilities of the labels at each frame.
        labels: in the order of the probabilities.
        frame_s: seconds from one frame to the next.
    """
    said = chances_LO.argmax(1)
    edges = np.flatnonzero(np.diff(said, prepend=-1))
    ends = np.append(edges[1:], len(said))
    kept = said[edges] != 0
    edges, ends = edges[kept], ends[kept]
    begin, last = float(names["start_s"]), float(names["start_s"] + names["duration_s"])
    columns: dict[str, Any] = {name: [value] * len(edges) for name, value in names.items() if not name.endswith("_s")}
    columns["onset"] = (begin + edges * frame_s).round(5)
    columns["offset"] = np.minimum(begin + ends * frame_s, last).round(5)
    columns["event_label"] = [labels[said[edge]] for edge in edges]
    columns["probability"] = np.array(
        [chances_LO[a:b, said[a]].mean() for a, b in zip(edges, ends, strict=True)], dtype=np.float64
    )
    return pd.DataFrame(columns)
