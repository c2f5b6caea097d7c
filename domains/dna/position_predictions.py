"""Tracks and labels along sequences of any length, from windows that overlap and are stitched where both have context."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from longseq.domains.base import DomainModule
from longseq.domains.dna.prediction_rows import stretch, window_places
from longseq.domains.dna.sequences import SequenceTable
from longseq.domains.dna.tasks import BaseLabels, Profile
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.domains.likelihood import LikelihoodOptions, plan
from longseq.domains.loading import LengthBatches, pad_rows
from longseq.domains.prediction import Predictions
from longseq.errors import ConfigError

# One segment: sequence, number of the segment in it.
Segment = tuple[int, int]


class PositionPredictions(Predictions):
    """One row per bin with the tracks' values (`profile`), or per stretch of equal labels but the background (`base_labels`).

    A long sequence is tiled by segments; each is read with half of the overlap on either side of it, which is context alone.

    Args:
        module: of the tasks `profile` or `base_labels`, on its device.
        table: the sequences.
        options: `window` in bases, `overlap`, `part_tokens`.
        window: bases, unless the options say.
        batch_size: windows that are read side by side.
    """

    def __init__(
        self, module: DomainModule, table: SequenceTable, options: LikelihoodOptions, *, window: int, batch_size: int
    ) -> None:
        if options.resolution is not None:
            raise ConfigError(f"resolution is for language models; task={module.task.name} answers in its own bins")
        assert isinstance(module.task, (Profile, BaseLabels))
        self.module, self.task, self.table_, self.batch_size = module.eval(), module.task, table, batch_size
        self.bin_size = module.task.bin_size if isinstance(module.task, Profile) else 1
        unit, limit = 2 * self.bin_size, module.model.backbone.max_length
        wanted = options.window or window
        if limit is not None and wanted > limit:
            if options.window is not None:
                raise ConfigError(f"window={options.window} is more than the {limit} positions that this backbone reads")
            wanted = limit
        if wanted < unit:
            raise ConfigError(f"window={wanted} must hold two bins of {self.bin_size} bases at least")
        self.window = wanted // unit * unit
        self.half = min(int(self.window * options.overlap), self.window - unit) // unit * unit // 2
        self.step = self.window - 2 * self.half
        self.lengths = table.sequences.lengths
        self.parts = list(plan(self.lengths, max(self.window, options.part_tokens) // self.step * self.step))

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def sizes(self) -> Sequence[int]:
        return [sum(stop - start for _, start, stop in part) for part in self.parts]

    @property
    def unit(self) -> str:
        return "bases"

    def table(self, part: int) -> pd.DataFrame:
        spans = self.parts[part]
        answers = self._answers([(row, k) for row, start, stop in spans for k in self._numbers(row, start, stop)])
        make = self._bins if isinstance(self.task, Profile) else self._labels
        tables = [make(row, start, stop, answers) for row, start, stop in spans]
        filled = [table for table in tables if len(table)]
        return pd.concat(filled, ignore_index=True) if filled else tables[0]

    # -- segments

    def _numbers(self, row: int, start: int, stop: int) -> range:
        """The segments that answer for a stretch; one alone for a sequence that is no longer than a window."""
        if self.lengths[row] <= self.window:
            return range(1)
        return range(start // self.step, -(-stop // self.step))

    def _borders(self, segment: Segment) -> tuple[int, int, int, int]:
        """First and last base that are read, and those that are answered for."""
        row, k = segment
        length = int(self.lengths[row])
        if length <= self.window:
            return 0, length, 0, length
        start, stop = k * self.step, min((k + 1) * self.step, length)
        return max(0, start - self.half), min(length, stop + self.half), start, stop

    @torch.inference_mode()
    def _answers(self, segments: Sequence[Segment]) -> dict[Segment, np.ndarray]:
        """(bins, O) of each segment: values of tracks, or probabilities of labels."""
        borders = [self._borders(segment) for segment in segments]
        lengths = np.array([last - first for first, last, _, _ in borders], dtype=np.int64)
        found: dict[Segment, np.ndarray] = {}
        for chosen in LengthBatches(lengths, self.batch_size, shuffle=False).batches():
            rows = [stretch(self.table_, segments[i][0], *borders[i][:2]) for i in chosen]
            ids_BL, mask_BL = pad_rows(rows, NucleotideTokenizer.pad_id)
            batch = {"inputs": ids_BL.long(), "mask": mask_BL}
            outputs = self.module.evaluate_batch({name: tensor.to(self.module.device) for name, tensor in batch.items()})
            task = self.task
            values = task.values(outputs) if isinstance(task, Profile) else outputs.float().softmax(-1)
            for i, answer in zip(chosen, values.cpu().numpy(), strict=True):
                first, _, start, stop = borders[i]
                found[segments[i]] = answer[(start - first) // self.bin_size : -(-(stop - first) // self.bin_size)]
        return found

    # -- tables

    def _places(self, row: int, starts: np.ndarray, stops: np.ndarray) -> dict[str, Any]:
        names: dict[str, Any] = {"id": [self.table_.ids[row]] * len(starts)}
        return names | dict(window_places(self.table_, np.full(len(starts), row), starts, stops))

    def _bins(self, row: int, start: int, stop: int, answers: dict[Segment, np.ndarray]) -> pd.DataFrame:
        values = np.concatenate([answers[row, k] for k in self._numbers(row, start, stop)])
        starts = start + self.bin_size * np.arange(len(values))
        columns = self._places(row, starts, np.minimum(starts + self.bin_size, stop))
        return pd.DataFrame(columns | {f"predicted_{name}": values[:, i] for i, name in enumerate(self.task.labels)})

    def _labels(self, row: int, start: int, stop: int, answers: dict[Segment, np.ndarray]) -> pd.DataFrame:
        """Stretches that begin in this part; one that began before belongs to the part before, and one goes on to its end."""
        length = int(self.lengths[row])
        own = list(self._numbers(row, start, stop))
        before = self._answers([(row, own[0] - 1)])[row, own[0] - 1] if start > 0 else None
        chances = np.concatenate([answers[row, k] for k in own])
        said, k = chances.argmax(1), own[-1] + 1
        while start + len(said) < length and (said[stop - start :] == said[stop - start - 1]).all():
            chances = np.concatenate([chances, self._answers([(row, k)])[row, k]])
            said, k = chances.argmax(1), k + 1
        edges = np.flatnonzero(np.diff(said, prepend=-1))
        ends = np.append(edges[1:], len(said))
        kept = (edges < stop - start) & ~np.isin(said[edges], self._background)
        if before is not None and before[-1].argmax() == said[0]:
            kept &= edges > 0
        edges, ends = edges[kept], ends[kept]
        columns = self._places(row, start + edges, start + ends)
        columns["prediction"] = [self.task.labels[code] for code in said[edges]]
        mean = [chances[a:b, said[a]].mean() for a, b in zip(edges, ends, strict=True)]
        return pd.DataFrame({**columns, "probability": np.array(mean, dtype=np.float64)})

    @property
    def _background(self) -> list[int]:
        task = self.task
        return [i for i, name in enumerate(task.labels) if isinstance(task, BaseLabels) and name == task.background]
