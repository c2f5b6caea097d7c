"""What a model of frame labels hears in the test clips: the confusions of all frames, and the clips of most errors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from longseq.domains.audio.sounds import INDEX, WORST, save_clip
from longseq.domains.tasks import IGNORE

if TYPE_CHECKING:
    from longseq.domains.audio.datamodule import AudioData

FRAMES = "frames.json"


class HeardFrames:
    """Counts confusions over batches, and keeps the rows that went worst.

    Args:
        labels: of the frames; the first says that nothing is there.
        most: rows to keep.
    """

    def __init__(self, labels: Sequence[str], most: int) -> None:
        self.labels, self.most = list(labels), most
        self.counts = np.zeros((len(self.labels), len(self.labels)), dtype=np.int64)
        # Share of wrong frames, row number, what was heard and what was right.
        self.worst: list[tuple[float, int, np.ndarray, np.ndarray]] = []

    def add(self, outputs_BLO: Tensor, labels_BL: Tensor, index_B: Tensor) -> None:
        """A batch; padded frames do not count."""
        said_BL, true_BL = outputs_BLO.argmax(-1).cpu().numpy(), labels_BL.cpu().numpy()
        for said_L, true_L, row in zip(said_BL, true_BL, index_B.tolist(), strict=True):
            real = true_L != IGNORE
            said, true = said_L[real], true_L[real]
            np.add.at(self.counts, (true, said), 1)
            if (said != true).any():
                self.worst.append((float((said != true).mean()), row, said, true))
        self.worst = sorted(self.worst, key=lambda row: (-row[0], row[1]))[: self.most]

    def save(self, folder: Path, data: AudioData) -> None:
        """Writes frames.json and the sound of the worst clips into a run folder; nothing if they are there."""
        if (folder / FRAMES).exists():
            return
        (folder / FRAMES).write_text(
            json.dumps({"labels": self.labels, "counts": self.counts.tolist()}) + "\n", encoding="utf-8"
        )
        entries: list[dict[str, Any]] = []
        frame_s = data.tokenizer.stride / data.sample_rate_hz
        for rank, (error, row, said, true) in enumerate(self.worst, start=1):
            name = save_clip(folder, data, row, rank)
            words = {"true": in_words(true, self.labels, frame_s), "said": in_words(said, self.labels, frame_s)}
            entries.append({"file": name, "id": str(data.clips["test"].frame["id"].iloc[row]), "error": error, **words})
        if entries:
            (folder / WORST / INDEX).write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def in_words(frames: np.ndarray, labels: Sequence[str], frame_s: float, most: int = 5) -> str:
    """The events in a row of frame labels, such as `dog 0.10-0.32 s`."""
    edges = np.flatnonzero(np.diff(frames, prepend=-1))
    ends = np.append(edges[1:], len(frames))
    found = [
        f"{labels[int(frames[a])]} {a * frame_s:.2f}-{b * frame_s:.2f} s"
        for a, b in zip(edges, ends, strict=True)
        if frames[a] != 0
    ]
    more = f", {len(found) - most} more" if len(found) > most else ""
    return (", ".join(found[:most]) + more) or "nothing"
