"""Each task's labels for every row, encoded once, and looked up when a row is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from longseq.domains.audio.clips import Clips
from longseq.domains.audio.labels import (
    NO_EVENT,
    Vocabulary,
    class_names,
    encode_classes,
    encode_tags,
    frame_labels,
    normalise,
    numbers,
    read_vocabulary,
    tag_names,
    text_labels,
)
from longseq.domains.audio.rows import Targets
from longseq.domains.audio.tokenizer import AudioTokenizer
from longseq.errors import ConfigError, DataError


@dataclass
class Labelled:
    """What the labels are.

    Attributes:
        targets: by split, the function that gives a row's labels.
        labels: names of classes, tags, quantities or frame labels.
        arrays: by split, the labels of tasks that have one row of numbers for each clip.
        texts: by split, transcripts.
        vocabulary: of transcripts.
        counts: what was left out, for the report.
    """

    targets: dict[str, Targets] = field(default_factory=dict)
    labels: Sequence[str] = ()
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    vocabulary: Vocabulary | None = None
    counts: dict[str, str] = field(default_factory=dict)


def encode_targets(
    clips: Mapping[str, Clips],
    task: str,
    tokenizer: AudioTokenizer,
    *,
    label_columns: Sequence[str],
    text_column: str,
    tag_separator: str,
    vocabulary: str | Sequence[str] | None,
    lowercase: bool,
) -> Labelled:
    """Labels of train, val and test.

    Raises:
        DataError: naming the row whose label is missing, unreadable, or absent from train.
    """
    parts = {name: part for name, part in clips.items() if name != "predict"}
    if task in ("lm", "masked_sound"):
        return Labelled()
    if task == "ctc":
        return transcripts(parts, tokenizer, text_column, vocabulary, lowercase)
    if task == "frames":
        return events(parts, tokenizer)
    if len(label_columns) != 1 and task != "regression":
        raise ConfigError(f"data.label_column must name one column for task={task}, found {list(label_columns)}")
    column = label_columns[0]
    if task == "classification":
        names = class_names(parts["train"], column)
        arrays = {name: encode_classes(part, column, names) for name, part in parts.items()}
    elif task == "multilabel":
        names = tag_names(parts["train"], column, tag_separator)
        arrays = {name: encode_tags(part, column, names, tag_separator) for name, part in parts.items()}
    else:
        names = list(label_columns)
        arrays = {name: numbers(part, label_columns) for name, part in parts.items()}
    return Labelled({name: Lookup(array) for name, array in arrays.items()}, names, arrays)


class Lookup:
    """The label of a clip, whatever part of it is read."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values

    def __call__(self, row: int, start_s: float, n_samples: int) -> dict[str, Any]:
        del start_s, n_samples
        return {"label": self.values[row]}


class Transcripts:
    """A clip's transcript, as text and as the numbers of its known symbols."""

    def __init__(self, texts: Sequence[str], vocabulary: Vocabulary) -> None:
        self.texts, self.vocabulary = texts, vocabulary

    def __call__(self, row: int, start_s: float, n_samples: int) -> dict[str, Any]:
        del start_s, n_samples
        return {"text": self.texts[row], "symbols": self.vocabulary.encode(self.texts[row])}


class Frames:
    """The label of every frame of the part that is read."""

    def __init__(self, clips: Clips, names: Sequence[str], tokenizer: AudioTokenizer) -> None:
        self.clips, self.names, self.tokenizer = clips, names, tokenizer
        self.frame_s = tokenizer.stride / tokenizer.sample_rate_hz

    def __call__(self, row: int, start_s: float, n_samples: int) -> dict[str, Any]:
        found = self.clips.frame["events"].iloc[row]
        n_frames = self.tokenizer.n_positions(n_samples)
        return {"frames": frame_labels(found, self.names, start_s, n_frames, self.frame_s, self.clips.where(row))}


def transcripts(
    parts: Mapping[str, Clips], tokenizer: AudioTokenizer, column: str, given: str | Sequence[str] | None, lowercase: bool
) -> Labelled:
    """Texts and vocabulary; counts symbols that train lacks and transcripts that are longer than their clips."""
    texts = {
        name: [normalise(text, lowercase=lowercase) for text in text_labels(part, column, option="data.text_column")]
        for name, part in parts.items()
    }
    vocabulary = read_vocabulary(given, texts["train"])
    found = Labelled(texts=texts, vocabulary=vocabulary)
    for name, part in parts.items():
        found.targets[name] = Transcripts(texts[name], vocabulary)
        strange = [row for row, text in enumerate(texts[name]) if vocabulary.unknown(text)]
        if strange:
            symbols = sorted({symbol for row in strange for symbol in vocabulary.unknown(texts[name][row])})
            message = (
                f"{part.where(strange[0])}: {', '.join(map(repr, symbols[:10]))} in the transcript, absent from the vocabulary"
            )
            if name == "train":
                raise DataError(f"{message} of data.vocabulary ({len(strange)} such rows)")
            found.counts[f"unknown symbols in {name}"] = f"{len(strange)} of {len(part)} transcripts; {message}"
        short = too_short(part, texts[name], vocabulary, tokenizer)
        if len(short):
            found.counts[f"transcripts longer than their clips in {name}"] = (
                f"{len(short)} of {len(part)} have more symbols than positions; the first: {part.where(int(short[0]))}"
            )
    return found


def too_short(clips: Clips, texts: Sequence[str], vocabulary: Vocabulary, tokenizer: AudioTokenizer) -> np.ndarray:
    """Rows that CTC cannot align: a repeated symbol needs a blank between, so it costs two positions."""
    lengths = clips.lengths(tokenizer.sample_rate_hz)
    needed = []
    for text in texts:
        ids = vocabulary.encode(text)
        needed.append(len(ids) + int((ids[1:] == ids[:-1]).sum()))
    stride = tokenizer.stride
    return np.flatnonzero(-(-lengths // stride) < np.array(needed))


def events(parts: Mapping[str, Clips], tokenizer: AudioTokenizer) -> Labelled:
    """Frame labels from events; train says which there are."""
    for part in parts.values():
        if "events" not in part.frame:
            raise ConfigError("task=frames needs data.events, a table of filename, onset, offset and event_label")
    names = sorted({label for row in parts["train"].frame["events"] for _, _, label in row})
    if not names:
        raise DataError("no training clip has any event; check the file names in data.events")
    labels = [NO_EVENT, *(name for name in names if name != NO_EVENT)]
    return Labelled({name: Frames(part, labels, tokenizer) for name, part in parts.items()}, labels)
