"""How likely a language model finds sequences of any length: one pass with a carried state, or windows that overlap."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from longseq.backbone import State
from longseq.domains.base import DomainModule
from longseq.domains.loading import LengthBatches, pad_rows
from longseq.domains.prediction import Predictions
from longseq.domains.tasks import IGNORE
from longseq.errors import ConfigError
from longseq.model import SequenceModel

# A masked model hides every manyth position in turn, which is near the share that it was trained with.
MASKED_PASSES = 7


class TokenSequences(ABC):
    """The sequences that a language model is asked about, read stretch by stretch.

    Attributes:
        lengths: (N,) tokens of each.
        unit: what a token is: `base`, `sample`.
        pad_id: stands behind shorter rows of a batch.
        mask_id: stands at hidden positions; None where models are causal alone.
    """

    lengths: np.ndarray
    unit: str = "token"
    pad_id: int = 0
    mask_id: int | None = None

    @abstractmethod
    def ids(self, row: int, start: int, stop: int) -> np.ndarray:
        """Token ids of a stretch."""

    @abstractmethod
    def names(self, row: int) -> dict[str, Any]:
        """Columns that identify a sequence."""

    def targets(self, ids: np.ndarray) -> np.ndarray:
        """The ids as int64, with the ignored label where no prediction counts."""
        return ids.astype(np.int64)

    def places(self, row: int, starts: np.ndarray, stops: np.ndarray) -> dict[str, np.ndarray]:
        """Columns that say where stretches of a sequence lie."""
        del row
        return {"start": starts, "end": stops}


@dataclass(frozen=True)
class LikelihoodOptions:
    """How long sequences are read.

    Attributes:
        chunk: positions of one piece of a pass with a carried state.
        window: positions of a window; None for such a pass where the backbone can, else what it was trained with.
        overlap: share of a window that it has in common with the next: context that is not scored again.
        resolution: tokens of each row of the result; None for one row per sequence.
        part_tokens: tokens after which something is written.
    """

    chunk: int = 16384
    window: int | None = None
    overlap: float = 0.5
    resolution: int | None = None
    part_tokens: int = 1 << 20

    def __post_init__(self) -> None:
        for name in ("chunk", "window", "resolution", "part_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, found {value}")
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap is a share of the window from 0 to below 1, found {self.overlap}")


@dataclass(frozen=True)
class Scores:
    """Log likelihoods of consecutive tokens of one sequence.

    Attributes:
        row: the sequence.
        first: its token that the first one belongs to.
        values: (n,) natural logarithms; NaN where none counts.
    """

    row: int
    first: int
    values: np.ndarray


class LikelihoodPredictions(Predictions):
    """Log likelihood and bits per token, for whole sequences or stretch by stretch.

    A causal model scores each token given all before it; the first one of a sequence has none and does not count. A masked
    model scores each given all others around it (its pseudo-likelihood: every position is hidden once).

    Args:
        module: a language model's, on its device.
        sequences: what is scored.
        options: how.
        batch_size: short sequences, or windows, that are read side by side.
        trained_window: positions that the model was trained with.

    Cost: with a carried state the memory is that of one chunk, whatever the length.
    """

    def __init__(
        self,
        module: DomainModule,
        sequences: TokenSequences,
        options: LikelihoodOptions,
        *,
        batch_size: int = 8,
        trained_window: int = 1024,
    ) -> None:
        self.model: SequenceModel = module.eval().model
        self.sequences, self.options, self.batch_size = sequences, options, batch_size
        self.masked = module.task.name == "mlm"
        backbone = self.model.backbone
        self.carries = options.window is None and not self.masked and backbone.can_step and not backbone.state_grows
        self.carries &= backbone.max_length is None
        limit = backbone.max_length
        window = options.window or trained_window
        if options.window is not None and limit is not None and options.window > limit:
            raise ConfigError(f"window={options.window} is more than the {limit} positions that this backbone reads")
        self.window = window if limit is None else min(window, limit)
        self.overlap = min(int(self.window * options.overlap), self.window - 1)
        self.parts = list(plan(sequences.lengths, self._step()))
        self._next, self._tables = 0, Bins(sequences, options.resolution)

    def _step(self) -> int:
        """Tokens of a part: whole windows, or whole chunks."""
        unit = self.options.chunk if self.carries else self.window - self.overlap
        return max(1, self.options.part_tokens // unit) * unit

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def sizes(self) -> Sequence[int]:
        return [sum(stop - start for _, start, stop in part) for part in self.parts]

    @property
    def unit(self) -> str:
        return f"{self.sequences.unit}s"

    def table(self, part: int) -> pd.DataFrame:
        if part != self._next:
            self._rewind(part)
        found = [self._tables.add(scores) for scores in self._scores(part)]
        # Empty ones would decide the columns' types.
        found = [rows for rows in found if len(rows)]
        self._next = part + 1
        return pd.concat(found, ignore_index=True) if found else self._tables.empty()

    def _rewind(self, part: int) -> None:
        """Goes back to where a part's first sequence begins, and reads up to the part again."""
        first = part
        while self.parts[first][0][1] > 0:
            first -= 1
        self._tables = Bins(self.sequences, self.options.resolution)
        self._next = first
        while self._next < part:
            for scores in self._scores(self._next):
                self._tables.add(scores)
            self._next += 1

    @torch.inference_mode()
    def _scores(self, part: int) -> Iterator[Scores]:
        """The scores of a part's tokens, in order."""
        spans = self.parts[part]
        row, start, stop = spans[0]
        if start > 0 or stop < int(self.sequences.lengths[row]):
            yield from self._carried(row, start, stop) if self.carries else self._windowed([(row, start, stop)])
        elif self.carries:
            short = [span for span in spans if span[2] <= self.options.chunk]
            found = {scores.row: [scores] for scores in self._batched([(r, 0, n, 0, n) for r, _, n in short])}
            for row, _, stop in spans:
                yield from found[row] if row in found else self._carried(row, 0, stop)
        else:
            yield from self._windowed(spans)

    # -- one pass with a carried state

    _state: State = None

    def _carried(self, row: int, start: int, stop: int) -> Iterator[Scores]:
        """Goes on behind the last chunk of the sequence; the state after it is kept for the next part."""
        length = int(self.sequences.lengths[row])
        if start == 0:
            self._state = self.model.init_state(1)
            yield Scores(row, 0, np.full(1, np.nan))
        for first in range(start, stop, self.options.chunk):
            last = min(first + self.options.chunk, stop)
            # The last token of all predicts nothing that is there.
            ids = self.sequences.ids(row, first, min(last + 1, length))
            if len(ids) < 2 and last == length:
                break
            inputs, targets = ids[: last - first], ids[1:]
            logits_1LV, self._state = self.model.forward_chunk(self._tensor(inputs[None]), self._state)
            yield Scores(row, first + 1, self._log_likelihood(logits_1LV[0, : len(targets)], targets))

    # -- windows

    def _windowed(self, spans: Sequence[tuple[int, int, int]]) -> Iterator[Scores]:
        """Windows that overlap: each token is scored where it has most context, and once."""
        yield from self._batched([window for span in spans for window in self._windows(*span)])

    def _windows(self, row: int, start: int, stop: int) -> Iterator[tuple[int, int, int, int, int]]:
        """(row, first and last token read, first and last token scored) of the windows that score a stretch."""
        length, done = int(self.sequences.lengths[row]), start
        # Causal windows need context in front alone, others on both sides.
        behind = self.overlap // 2 if self.masked else 0
        while done < stop:
            first = max(0, done - (self.overlap - behind))
            last = min(first + self.window + (0 if self.masked else 1), length)
            scored = min(stop, last if last == length else last - behind)
            yield row, first, last, done, scored
            done = scored

    def _batched(self, windows: Sequence[tuple[int, int, int, int, int]]) -> Iterator[Scores]:
        """Scores of windows, read in batches of similar lengths, given out in their order."""
        if not windows:
            return
        lengths = np.array([last - first for _, first, last, _, _ in windows], dtype=np.int64)
        found: dict[int, np.ndarray] = {}
        most = max(self.options.chunk, self.window)
        for chosen in LengthBatches(lengths, self.batch_size, shuffle=False, max_tokens=most).batches():
            rows = [self.sequences.ids(*windows[i][:3]) for i in chosen]
            for i, values in zip(chosen, self._masked_rows(rows) if self.masked else self._causal_rows(rows), strict=True):
                found[int(i)] = values
        for i, (row, first, _, done, stop) in enumerate(windows):
            yield Scores(row, done, found[i][done - first : stop - first])

    def _causal_rows(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """Log likelihoods of each row's tokens; NaN for the first, before which nothing stands."""
        # A row of one token is read too, for its batch needs a position.
        inputs = [row[:-1] if len(row) > 1 else row for row in rows]
        ids_BL, mask_BL = pad_rows(inputs, self.sequences.pad_id)
        logits_BLV = self.model(self._tensor(ids_BL.numpy()), mask_BL.to(self._device))
        found = []
        for row, logits_LV in zip(rows, logits_BLV, strict=True):
            values = self._log_likelihood(logits_LV[: len(row) - 1], row[1:]) if len(row) > 1 else np.empty(0)
            found.append(np.concatenate([[np.nan], values]))
        return found

    def _masked_rows(self, rows: list[np.ndarray]) -> list[np.ndarray]:
        """Log likelihoods of each row's tokens, each hidden once."""
        ids_BL, mask_BL = pad_rows(rows, self.sequences.pad_id)
        found = [np.full(len(row), np.nan) for row in rows]
        for turn in range(min(MASKED_PASSES, ids_BL.shape[1])):
            hidden_BL = ids_BL.clone()
            hidden_BL[:, turn::MASKED_PASSES] = int(self.sequences.mask_id or 0)
            logits_BLV = self.model(self._tensor(hidden_BL.numpy()), mask_BL.to(self._device))
            for row, logits_LV, values in zip(rows, logits_BLV, found, strict=True):
                own = row[turn::MASKED_PASSES]
                values[turn::MASKED_PASSES] = self._log_likelihood(logits_LV[: len(row)][turn::MASKED_PASSES], own)
        return found

    @property
    def _device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _tensor(self, ids: np.ndarray) -> Tensor:
        return torch.from_numpy(ids.astype(np.int64)).to(self._device)

    def _log_likelihood(self, logits_LV: Tensor, ids: np.ndarray) -> np.ndarray:
        """(L,) natural logarithms of the probabilities of ids; NaN where none counts."""
        targets_L = torch.from_numpy(self.sequences.targets(ids)).to(logits_LV.device)
        counted_L = targets_L != IGNORE
        chosen_L1 = targets_L.where(counted_L, 0).unsqueeze(-1)
        logits_LV = logits_LV.float()
        values_L = logits_LV.gather(-1, chosen_L1).squeeze(-1) - logits_LV.logsumexp(-1)
        return values_L.where(counted_L, torch.nan).double().cpu().numpy()


class Bins:
    """Sums scores up to rows of the result, as they come in.

    Args:
        sequences: what is scored.
        resolution: tokens of a row; None for a row per sequence.
    """

    def __init__(self, sequences: TokenSequences, resolution: int | None) -> None:
        self.sequences, self.resolution = sequences, resolution
        self.total, self.count = np.zeros(0), np.zeros(0, dtype=np.int64)
        # Of the first bin that is not given out yet.
        self.first = 0

    def add(self, scores: Scores) -> pd.DataFrame:
        """Adds scores, and gives the rows that are complete now."""
        length = int(self.sequences.lengths[scores.row])
        size = self.resolution or length
        done = scores.first + len(scores.values)
        bins = np.arange(scores.first, done) // size - self.first
        n_bins = max(len(self.total), int(bins[-1]) + 1 if len(bins) else 0)
        counted = ~np.isnan(scores.values)
        total, count = np.zeros(n_bins), np.zeros(n_bins, dtype=np.int64)
        total[: len(self.total)], count[: len(self.count)] = self.total, self.count
        total += np.bincount(bins[counted], scores.values[counted], n_bins)
        count += np.bincount(bins[counted], minlength=n_bins)
        complete = n_bins if done == length else done // size - self.first
        table = self._rows(scores.row, np.arange(self.first, self.first + complete), total[:complete], count[:complete])
        self.total, self.count, self.first = total[complete:], count[complete:], self.first + complete
        if done == length:
            self.first = 0
        return table

    def empty(self) -> pd.DataFrame:
        """No rows, with the columns of all."""
        return self._rows(0, np.arange(0), np.zeros(0), np.zeros(0, dtype=np.int64))

    def _rows(self, row: int, bins: np.ndarray, total: np.ndarray, count: np.ndarray) -> pd.DataFrame:
        length, unit = int(self.sequences.lengths[row]), self.sequences.unit
        columns: dict[str, Any] = {name: [value] * len(bins) for name, value in self.sequences.names(row).items()}
        if self.resolution is not None:
            starts = bins * self.resolution
            columns |= self.sequences.places(row, starts, np.minimum(starts + self.resolution, length))
        else:
            columns["length"] = np.full(len(bins), length)
        bits = np.where(count > 0, -total / np.maximum(1, count) / np.log(2), np.nan)
        return pd.DataFrame({**columns, f"scored_{unit}s": count, "log_likelihood": total, f"bits_per_{unit}": bits})


def plan(lengths: np.ndarray, part_tokens: int) -> Iterator[list[tuple[int, int, int]]]:
    """Parts of about so many tokens: several short sequences, or a stretch (row, start, stop) of a long one."""
    group: list[tuple[int, int, int]] = []
    weight = 0
    for row, length in enumerate(lengths.tolist()):
        if group and weight + length > part_tokens:
            yield group
            group, weight = [], 0
        if length > part_tokens:
            for start in range(0, length, part_tokens):
                yield [(row, start, min(start + part_tokens, length))]
            continue
        group.append((row, 0, length))
        weight += length
    if group:
        yield group
