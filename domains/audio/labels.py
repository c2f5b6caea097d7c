"""Labels as they stand in tables, and as a model wants them: class numbers, 0/1 per tag, quantities, characters, frames."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from longseq.domains.audio.clips import Clips
from longseq.domains.audio.sources import find_column
from longseq.domains.text_tables import decode, read_bytes
from longseq.errors import ConfigError, DataError

BLANK = "<blank>"
NO_EVENT = "none"


def text_labels(clips: Clips, column: str, *, option: str = "data.label_column", empty: bool = False) -> np.ndarray:
    """A column as text, (N,).

    Raises:
        DataError: the column is missing, or a cell is empty where that has no meaning.
    """
    name = find_column(clips.frame, column, clips.where(0), option)
    values = clips.frame[name]
    texts = values.where(values.notna(), "").astype(str).str.strip().to_numpy(dtype=object)
    missing = np.flatnonzero(texts == "")
    if len(missing) and not empty:
        raise DataError(
            f"{clips.where(int(missing[0]))}: no {name}; {len(missing)} of {len(clips)} rows lack one. Fill them in, or set "
            "data.on_bad=skip to leave such rows out"
        )
    return texts


def class_names(clips: Clips, column: str) -> list[str]:
    """The classes of train: numbers in numerical order, everything else in alphabetical order."""
    labels = text_labels(clips, column)
    names = sorted(set(labels), key=lambda name: (0, int(name), "") if name.lstrip("-").isdecimal() else (1, 0, name))
    if len(names) < 2:
        raise DataError(
            f"all {len(labels)} training clips have the label {names[0]!r}, but a classifier needs two classes or more"
        )
    if len(names) > max(20, len(labels) // 2):
        raise DataError(
            f"{len(names)} different labels in {len(labels)} clips are too many for classes; quantities need task=regression"
        )
    return names


def encode_classes(clips: Clips, column: str, names: Sequence[str]) -> np.ndarray:
    """Class numbers, int64 (N,).

    Raises:
        DataError: a label that train does not have.
    """
    labels = text_labels(clips, column)
    codes = pd.Index(list(names)).get_indexer(pd.Index(labels))
    unknown = np.flatnonzero(codes < 0)
    if len(unknown):
        raise absent(clips, int(unknown[0]), str(labels[unknown[0]]), names)
    return codes.astype(np.int64)


def absent(clips: Clips, row: int, label: str, names: Sequence[str]) -> DataError:
    """The error of a label that train does not have."""
    known = ", ".join(names[:20]) + (f", ... {len(names)} in all" if len(names) > 20 else "")
    return DataError(
        f"{clips.where(row)}: label {label!r} is absent from train, which has {known}; data.on_bad=skip leaves such rows out"
    )


def tag_names(clips: Clips, column: str, separator: str) -> list[str]:
    """All tags of train; a cell may hold several or none."""
    names = {tag.strip() for cell in text_labels(clips, column, empty=True) for tag in cell.split(separator)} - {""}
    if not names:
        raise DataError(f"no training clip has any tag in {column!r}")
    return sorted(names)


def join_lists(frame: pd.DataFrame, columns: Sequence[str], task: str, separator: str) -> pd.DataFrame:
    """Cells that hold a list of tags, as jsonl and parquet may, as text with the separator between them.

    Raises:
        DataError: for a list where a task takes one answer.
    """
    for column in columns:
        if column not in frame:
            continue
        lists = np.array([isinstance(cell, (list, tuple, np.ndarray)) for cell in frame[column]], dtype=bool)
        if not lists.any():
            continue
        row = int(np.argmax(lists))
        if task != "multilabel":
            raise DataError(
                f"{frame['where'].iloc[row]}: a list in {column!r}, {list(frame[column].iloc[row])}; task=multilabel takes "
                f"several labels of a clip, task={task} takes one"
            )
        joined = [
            separator.join(map(str, cell)) if is_list else cell for cell, is_list in zip(frame[column], lists, strict=True)
        ]
        frame = frame.assign(**{column: joined})
    return frame


def encode_tags(clips: Clips, column: str, names: Sequence[str], separator: str) -> np.ndarray:
    """0/1 per clip and tag, float32 (N, K)."""
    place = {name: i for i, name in enumerate(names)}
    found = np.zeros((len(clips), len(names)), dtype=np.float32)
    for row, cell in enumerate(text_labels(clips, column, empty=True)):
        for tag in filter(None, (part.strip() for part in cell.split(separator))):
            if tag not in place:
                raise absent(clips, row, tag, names)
            found[row, place[tag]] = 1.0
    return found


def numbers(clips: Clips, columns: Sequence[str]) -> np.ndarray:
    """Quantities, float32 (N, K)."""
    found = np.empty((len(clips), len(columns)), dtype=np.float32)
    for k, column in enumerate(columns):
        texts = text_labels(clips, column)
        values = np.asarray(pd.to_numeric(pd.Series(texts), errors="coerce"), dtype=float)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise DataError(f"{clips.where(int(bad[0]))}: {texts[bad[0]]!r} in {column!r} is not a finite number")
        found[:, k] = values
    return found


# -- transcripts


class Vocabulary:
    """What a transcript is written in: characters, or words if any entry is longer than one character.

    Args:
        symbols: without the blank, which gets the number 0.
    """

    def __init__(self, symbols: Sequence[str]) -> None:
        if len(set(symbols)) != len(symbols) or BLANK in symbols or "" in symbols or not len(symbols):
            raise ConfigError(
                f"data.vocabulary must hold different symbols, none empty, without {BLANK}; found {list(symbols)[:20]}"
            )
        self.symbols = [BLANK, *symbols]
        self.words = any(len(symbol) > 1 for symbol in symbols)
        self._numbers = {symbol: i for i, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def split(self, text: str) -> list[str]:
        """A text's symbols, known or not."""
        return text.split() if self.words else list(text)

    def encode(self, text: str) -> np.ndarray:
        """Numbers of the known symbols, int64; the others are left out."""
        return np.array([self._numbers[s] for s in self.split(text) if s in self._numbers], dtype=np.int64)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of numbers without blanks."""
        return (" " if self.words else "").join(self.symbols[i] for i in ids)

    def unknown(self, text: str) -> list[str]:
        """The symbols of a text that are not in the vocabulary."""
        return [symbol for symbol in self.split(text) if symbol not in self._numbers]


def read_vocabulary(given: str | Sequence[str] | None, texts: Sequence[str]) -> Vocabulary:
    """A vocabulary from the config, from a file of one symbol per line, or of all characters of the training transcripts."""
    if given is None:
        return Vocabulary(sorted(set("".join(texts))))
    if not isinstance(given, str):
        return Vocabulary([str(symbol) for symbol in given])
    path = Path(given).expanduser()
    if not path.is_file():
        raise DataError(f"data.vocabulary: there is no file {path}; give a file with one symbol per line, or a list of symbols")
    return Vocabulary([line for line in decode(read_bytes(path)).splitlines() if line])


def normalise(text: str, *, lowercase: bool) -> str:
    """Single blanks, and lower case if asked for."""
    text = " ".join(text.split())
    return text.lower() if lowercase else text


# -- events in time


Events = dict[Path, list[tuple[float, float, str]]]


def read_events(path: str | Path, recordings: Sequence[Path], on_bad: str = "error") -> tuple[Events, list[str]]:
    """Onset, offset and label of the events of every recording, from a table of events.

    Args:
        path: csv, tsv, parquet or jsonl with `filename` (or path), `onset`, `offset` and `event_label` (or label), seconds.
            A row with a file name alone says that nothing happens in that file.
        recordings: of all splits; an event's file name is the end of the path of one of them.
        on_bad: `error` refuses bad rows, `skip` leaves them out.

    Returns:
        Sorted events of each recording that has any, and what is wrong with the rows that were left out.

    Raises:
        DataError: a column is missing, or an event refers to no recording or to several, or ends before it begins.
    """
    from longseq.domains.audio.sources import PATH_NAMES, read_table

    path = Path(path).expanduser()
    if not path.is_file():
        raise DataError(f"data.events: there is no file {path}")
    table, places = read_table(path)
    names = [
        next((n for n in wanted if n in table), "")
        for wanted in (PATH_NAMES, ("onset", "start"), ("offset", "end"), ("event_label", "label"))
    ]
    if "" in names:
        raise DataError(f"{path}: expected the columns filename, onset, offset and event_label; found {list(table.columns)}")
    by_name: dict[str, list[Path]] = {}
    for recording in dict.fromkeys(recordings):
        by_name.setdefault(recording.name, []).append(recording)
    found: Events = {}
    skipped: list[str] = []
    cells = table[names].where(table[names].notna(), "")
    for where, row in zip(places, cells.itertuples(index=False), strict=True):
        try:
            recording = recording_of(str(row[0]), by_name, where)
            if any(str(cell).strip() for cell in row[1:]):
                found.setdefault(recording, []).append(event(row[1], row[2], row[3], where))
        except DataError as error:
            if on_bad == "error":
                raise
            skipped.append(str(error))
    return {recording: sorted(events) for recording, events in found.items()}, skipped


def recording_of(name: str, by_name: dict[str, list[Path]], where: str) -> Path:
    """The recording whose path ends with a name."""
    parts = Path(name).parts
    known = by_name.get(parts[-1] if parts else "", [])
    fitting = [path for path in known if path.parts[-len(parts) :] == parts]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"{where}: {name!r} names {len(fitting)} recordings, {fitting[0]} and {fitting[1]}; write the folder in front of it"
        )
    example = next(iter(by_name.values()))[0]
    raise DataError(f"{where}: {name!r} is none of the recordings, such as {known[0] if known else example}")


def event(onset: object, offset: object, label: object, where: str) -> tuple[float, float, str]:
    """A row's numbers and label."""
    try:
        start, end = float(str(onset)), float(str(offset))
    except ValueError:
        raise DataError(f"{where}: onset {onset!r} and offset {offset!r} must be seconds") from None
    if not 0 <= start < end:
        raise DataError(f"{where}: the event ends at {end:g} s, before it begins at {start:g} s")
    if not str(label).strip():
        raise DataError(f"{where}: the event has no label")
    return start, end, str(label).strip()


def frame_labels(
    events: Sequence[tuple[float, float, str]], names: Sequence[str], start_s: float, n_frames: int, frame_s: float, where: str
) -> np.ndarray:
    """The event at the middle of every frame, int64 (n_frames,).

    Raises:
        DataError: two different events at once, or one that train does not have.
    """
    middle = start_s + (np.arange(n_frames) + 0.5) * frame_s
    found = np.zeros(n_frames, dtype=np.int64)
    for onset, offset, label in events:
        if label not in names:
            raise DataError(f"{where}: the event {label!r} is absent from train, which has {', '.join(names)}")
        inside = (middle >= onset) & (middle < offset)
        other = inside & (found != 0) & (found != names.index(label))
        if other.any():
            both = names[int(found[other][0])]
            raise DataError(f"{where}: {both!r} and {label!r} overlap at {middle[other][0]:.3f} s; a frame has one label")
        found[inside] = names.index(label)
    return found
