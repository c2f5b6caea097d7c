"""The table of clips: which stretch of which file, and what people say of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from longseq.domains.audio.files import Header, check_all, read_headers
from longseq.domains.audio.files import resampled_length as resampled
from longseq.errors import DataError


@dataclass(frozen=True)
class Clips:
    """Stretches of recordings, one per row.

    Attributes:
        frame: columns `path` (pathlib.Path), `where` (file and line, for errors), `start_s` and `duration_s` (NaN: to the
            end), `id`, and all columns of the user's, such as label, text, split and speaker.
        rate_hz: (N,) sampling rate of each file.
        first: (N,) first sample, at the file's rate.
        count: (N,) samples, at the file's rate.
        memory: samples of each row where there are no files.
    """

    frame: pd.DataFrame
    rate_hz: np.ndarray
    first: np.ndarray
    count: np.ndarray
    memory: Sequence[np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.frame)

    def select(self, rows: np.ndarray) -> Clips:
        """Some of the rows."""
        memory = None if self.memory is None else [self.memory[row] for row in rows]
        frame = self.frame.iloc[rows].reset_index(drop=True)
        return Clips(frame, self.rate_hz[rows], self.first[rows], self.count[rows], memory)

    def where(self, row: int) -> str:
        """File and line of a row, for errors."""
        return str(self.frame["where"].iloc[row])

    @property
    def seconds(self) -> np.ndarray:
        """(N,) durations."""
        return self.count / self.rate_hz

    def lengths(self, sample_rate_hz: int) -> np.ndarray:
        """(N,) samples at a common rate."""
        return resampled(self.count, self.rate_hz, sample_rate_hz)


@dataclass(frozen=True)
class Checked:
    """Clips that can be used, and what was left out.

    Attributes:
        clips: the rows that are good.
        skipped: the reason of each row that was left out.
        channels: files of more than one channel, which are mixed down.
    """

    clips: Clips
    skipped: list[str]
    channels: int


def open_clips(frame: pd.DataFrame, *, on_bad: str, decode: bool | None, decode_limit_s: float) -> Checked:
    """Reads every file's header, and looks at the samples where that is asked for or quick.

    Args:
        frame: `path`, `where`, `start_s`, `duration_s` and the user's columns.
        on_bad: `error` raises for the first bad row, `skip` leaves bad rows out.
        decode: look for damage, NaN and silence in the samples; None: if rows are to be skipped or there is little sound.
        decode_limit_s: how much sound is little.

    Raises:
        DataError: for a bad row, or if no row is left.
    """
    paths = list(dict.fromkeys(frame["path"]))
    headers = dict(zip(paths, read_headers(paths), strict=True))
    problems: dict[int, str] = {}
    rate, first, count = (np.zeros(len(frame), dtype=np.int64) for _ in range(3))
    for row, (path, where, start_s, duration_s) in enumerate(
        zip(frame["path"], frame["where"], frame["start_s"], frame["duration_s"], strict=True)
    ):
        try:
            rate[row], first[row], count[row] = stretch(headers[path], where, start_s, duration_s)
        except DataError as error:
            problems[row] = at(where, error)
            if on_bad == "error":
                raise DataError(f"{problems[row]}; data.on_bad=skip leaves such rows out") from None
    good = np.array([row for row in range(len(frame)) if row not in problems], dtype=np.int64)
    clips = Clips(frame, rate, first, count).select(good)
    if decode or (decode is None and (on_bad == "skip" or clips.seconds.sum() <= decode_limit_s)):
        clips, more = sound_ones(clips, on_bad)
        problems |= dict(enumerate(more, start=len(frame)))
    if not len(clips):
        raise DataError(f"none of {len(frame)} clips can be used; the first: {next(iter(problems.values()), 'there are none')}")
    used = set(clips.frame["path"])
    channels = sum(isinstance(h, Header) and h.n_channels > 1 for path, h in headers.items() if path in used)
    return Checked(clips, list(problems.values()), channels)


def stretch(header: Header | DataError, where: str, start_s: float, duration_s: float) -> tuple[int, int, int]:
    """Sampling rate, first sample and number of samples of a row."""
    if isinstance(header, DataError):
        raise header
    rate = header.sample_rate_hz
    first = 0 if np.isnan(start_s) else round(start_s * rate)
    count = header.n_frames - first if np.isnan(duration_s) else round(duration_s * rate)
    total = header.n_frames / rate
    # A duration that was rounded to milliseconds may end a little behind the file.
    if first + count > header.n_frames and (first + count - header.n_frames) / rate < 0.01:
        count = header.n_frames - first
    if first < 0 or count <= 0 or first + count > header.n_frames:
        begin = f"start {0.0 if np.isnan(start_s) else start_s:g} s"
        stretched = f"{begin} does" if np.isnan(duration_s) else f"{begin} and duration {duration_s:g} s do"
        raise DataError(f"{stretched} not lie within the file's {total:g} s")
    return rate, first, count


def sound_ones(clips: Clips, on_bad: str) -> tuple[Clips, list[str]]:
    """The clips whose samples can be decoded and are not silent, and what is wrong with the others."""
    stretches = list(zip(clips.frame["path"], clips.first.tolist(), clips.count.tolist(), strict=True))
    found = check_all(stretches)
    bad = [row for row, error in enumerate(found) if error is not None]
    messages = [at(clips.where(row), found[row]) for row in bad]
    if bad and on_bad == "error":
        raise DataError(f"{messages[0]}; {len(bad)} of {len(clips)} clips are bad. data.on_bad=skip leaves them out")
    return clips.select(np.setdiff1d(np.arange(len(clips)), bad)), messages


def at(where: str, error: DataError | None) -> str:
    """An error with the manifest's line in front, if there is one."""
    text = str(error)
    return text if text.startswith(where) else f"{where}: {text}"


def cut_windows(clips: Clips, clip_s: float, hop_s: float, *, apart: bool = False) -> Clips:
    """Long clips cut into windows, each a row of its own; the last one of a clip ends where the clip ends.

    Args:
        clips: of any lengths.
        clip_s: seconds of a window.
        hop_s: seconds from the beginning of one window to the next.
        apart: the last window of a clip is what the others leave, however short; else it is moved back to its full length.
    """
    rows, first, count = [], [], []
    for row, (rate, start, n) in enumerate(zip(clips.rate_hz, clips.first, clips.count, strict=True)):
        size, hop = round(clip_s * rate), max(1, round(hop_s * rate))
        starts = list(range(0, max(1, n - size + 1), hop))
        if n > size and starts[-1] + size < n:
            starts.append(starts[-1] + size if apart else n - size)
        rows += [row] * len(starts)
        first += [start + place for place in starts]
        count += [min(size, n - place) for place in starts]
    cut = clips.select(np.array(rows, dtype=np.int64))
    return replace(cut, first=np.array(first, dtype=np.int64), count=np.array(count, dtype=np.int64))
