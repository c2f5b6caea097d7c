"""Batches of similar lengths, in an order that depends on seed and epoch alone, for any number of processes."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler


class LengthBatches(Sampler[list[int]]):
    """Row numbers batch by batch: rows of similar length together, shuffled by (seed, epoch), shared out over processes.

    In training every process gets the same number of batches (the last few may be left out so that none waits for
    another); in evaluation every row comes exactly once over all processes, so metrics count nothing twice.

    Args:
        lengths: of every row, in positions.
        batch_size: rows per batch.
        shuffle: whether the order changes with the epoch; also selects training's sharing out.
        seed: of the shuffle.
        rank: of this process.
        world_size: number of processes.
        max_tokens: if set, batches are cut so that rows x longest stays within it.
        epoch: chooses the order.
        bucket: how many batches' rows are sorted by length together; larger pads less and mixes less.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_tokens: int | None = None,
        epoch: int = 0,
        bucket: int = 50,
    ) -> None:
        self.lengths = np.asarray(lengths)
        # Every process needs a batch: with few rows, batches are smaller.
        self.batch_size = min(batch_size, max(1, len(self.lengths) // world_size))
        self.shuffle, self.seed = shuffle, seed
        self.rank, self.world_size = rank, world_size
        self.max_tokens, self.bucket = max_tokens, bucket
        self.epoch = epoch
        self.skip = 0

    def batches(self) -> list[np.ndarray]:
        """All batches of this epoch, over all processes."""
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(len(self.lengths)) if self.shuffle else np.arange(len(self.lengths))
        if np.ptp(self.lengths) > 0:
            order = self._sort_within_buckets(order)
        batches = self._cut(order)
        if self.shuffle:
            batches = [batches[i] for i in rng.permutation(len(batches))]
        return batches

    def _sort_within_buckets(self, order: np.ndarray) -> np.ndarray:
        size = self.batch_size * (self.bucket if self.shuffle else len(order))
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        return np.concatenate([chunk[np.argsort(self.lengths[chunk], kind="stable")] for chunk in chunks])

    def _cut(self, order: np.ndarray) -> list[np.ndarray]:
        if self.max_tokens is None:
            return [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        batches, start, longest = [], 0, 0
        for i, length in enumerate(self.lengths[order]):
            longest = max(longest, int(length))
            if i > start and (i - start == self.batch_size or longest * (i - start + 1) > self.max_tokens):
                batches.append(order[start:i])
                start, longest = i, int(length)
        return [*batches, order[start:]]

    def __iter__(self) -> Iterator[list[int]]:
        batches = self.batches()
        if self.shuffle and self.world_size > 1:
            batches = batches[: len(batches) // self.world_size * self.world_size]
        own = batches[self.rank :: self.world_size]
        # A run that was interrupted inside an epoch goes on with the batches that it had not seen.
        skip, self.skip = self.skip, 0
        for batch in own[skip:]:
            yield batch.tolist()

    def __len__(self) -> int:
        n = len(self.batches()) if self.max_tokens is not None else -(-len(self.lengths) // self.batch_size)
        if self.shuffle and self.world_size > 1:
            return n // self.world_size
        return len(range(self.rank, n, self.world_size))


class ResumableLoader(DataLoader[Any]):
    """A loader over `LengthBatches` that goes on inside an epoch after a resume.

    Args:
        progress: how many batches of this epoch the trainer has finished; what the workers have read ahead does not count.
    """

    def __init__(self, *args: Any, progress: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.progress = progress

    def state_dict(self) -> dict[str, int]:
        """The batches that a resumed run must not see again."""
        return {"seen": self.progress()}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Skips the batches seen before; none if the epoch was finished."""
        sampler = self.batch_sampler
        if isinstance(sampler, LengthBatches):
            sampler.skip = state["seen"] if state["seen"] < len(sampler) else 0


def pad_rows(rows: Sequence[np.ndarray | Tensor], value: float, multiple: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of different lengths as one tensor padded on the right, and its mask.

    Args:
        rows: each (L_i,) or (L_i, C), of one dtype.
        value: stands at padded positions.
        multiple: the padded length is rounded up to it, which gives a GPU fewer different shapes.

    Returns:
        `(B, L)` or `(B, L, C)`, and `(B, L)` bool with True at real positions.
    """
    tensors = [row if isinstance(row, Tensor) else torch.from_numpy(row) for row in rows]
    lengths = torch.tensor([len(row) for row in tensors])
    longest = -(-int(lengths.max()) // multiple) * multiple
    padded = torch.full((len(tensors), longest, *tensors[0].shape[1:]), value, dtype=tensors[0].dtype)
    for target, row in zip(padded, tensors, strict=True):
        target[: len(row)] = row
    return padded, torch.arange(longest) < lengths.unsqueeze(1)


def row_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """Random numbers for one row in one epoch: the same whatever worker reads it, and after a resume."""
    return np.random.default_rng((seed, epoch, index))


def stratified_split(labels: np.ndarray | None, n_rows: int, *, val: float, test: float, seed: int) -> dict[str, np.ndarray]:
    """Random row numbers for train, val and test; each class is shared out in the same proportions.

    Args:
        labels: class of each row; None for a plain random split.
        n_rows: number of rows.
        val: share of the rows, from 0 to 1.
        test: share of the rows.
        seed: of the shuffle.
    """
    rng = np.random.default_rng(seed)
    groups: list[Any] = [np.arange(n_rows)] if labels is None else [np.flatnonzero(labels == c) for c in np.unique(labels)]
    parts: dict[str, list[np.ndarray]] = {"train": [], "val": [], "test": []}
    for rows in groups:
        rows = rng.permutation(rows)
        n_val, n_test = round(val * len(rows)), round(test * len(rows))
        parts["val"].append(rows[:n_val])
        parts["test"].append(rows[n_val : n_val + n_test])
        parts["train"].append(rows[n_val + n_test :])
    return {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}
