"""Batches of similar lengths, in an order that depends on seed and epoch alone, for any number of processes."""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
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


def start_worker(worker_id: int) -> None:
    """Seeds a loader's process, and leaves Ctrl-C to the training process, which still needs the batches in hand."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    pl_worker_init_function(worker_id)


class ResumableLoader(DataLoader[Any]):
    """A loader over `LengthBatches` that goes on inside an epoch after a resume.

    Args:
        progress: how many batches of this epoch the trainer has finished; what the workers have read ahead does not count.
    """

    def __init__(self, *args: Any, progress: Callable[[], int], **kwargs: Any) -> None:
        super().__init__(*args, **{"worker_init_fn": start_worker, **kwargs})
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


def split_rows(batch: dict[str, Tensor], length: int) -> dict[str, Tensor]:
    """The batch's rows cut into pieces of `length` positions, so that the number of tokens stays what it was.

    Args:
        batch: with tensors (B, L) or (B, L, C), which are cut, and (B,), which are repeated.
        length: of the pieces; pieces of padding alone are left out.
    """
    n_positions = batch["inputs"].shape[1]
    if n_positions <= length:
        return batch
    n_pieces = -(-n_positions // length)
    missing = n_pieces * length - n_positions
    mask = batch.get("mask")
    real_BL = torch.ones(batch["inputs"].shape[:2], dtype=torch.bool) if mask is None else mask
    real_BL = real_BL.to(batch["inputs"].device)
    found = {}
    for name, tensor in {**batch, "mask": real_BL}.items():
        if tensor.ndim > 1 and tensor.shape[1] == n_positions:
            # Labels are filled up with what counts for nothing, inputs with anything, since the mask says so.
            value = -100 if name == "labels" else 0
            filler = tensor.new_full((len(tensor), missing, *tensor.shape[2:]), value)
            found[name] = torch.cat([tensor, filler], 1).unflatten(1, (n_pieces, length)).flatten(0, 1)
        else:
            found[name] = tensor.repeat_interleave(n_pieces, 0)
    filled_B = found["mask"].any(1)
    return {name: tensor[filled_B] for name, tensor in found.items()}


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
        for name, chosen in zip(("val", "test", "train"), cut(rows, val, test), strict=True):
            parts[name].append(chosen)
    return {name: np.sort(np.concatenate(rows)) for name, rows in parts.items()}


def cut(order: np.ndarray, val: float, test: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows of val, test and train from rows in random order; inside `holding_out` the fold is what is held out.

    Args:
        order: row numbers.
        val: share of the rows.
        test: share of the rows; 0 where a test file is given: then the fold is val.
    """
    fold = _FOLD.get()
    if fold is None or not (val or test):
        n_val, n_test = round(val * len(order)), round(test * len(order))
        return order[:n_val], order[n_val : n_val + n_test], order[n_val + n_test :]
    fold.used = True
    blocks = np.array_split(order, fold.folds)
    held, rest = blocks[fold.index], np.concatenate([b for i, b in enumerate(blocks) if i != fold.index])
    if not test:
        return held, held[:0], rest
    n_val = round(val * len(rest))
    return rest[:n_val], held, rest[n_val:]


@dataclass
class Fold:
    """One fold of a cross-validation.

    Attributes:
        index: from 0.
        folds: how many there are.
        used: whether a split has held it out.
    """

    index: int
    folds: int
    used: bool = False


_FOLD: ContextVar[Fold | None] = ContextVar("fold", default=None)


def in_fold() -> bool:
    """Whether splits are being made for a fold of a cross-validation."""
    return _FOLD.get() is not None


@contextmanager
def holding_out(index: int, folds: int) -> Iterator[Fold]:
    """Random splits made inside this block hold out the same fold, whatever the domain; each row is in one of the folds."""
    fold = Fold(index, folds)
    token = _FOLD.set(fold)
    try:
        yield fold
    finally:
        _FOLD.reset(token)


class HasLoader(Protocol):
    """What is asked for batches: a domain's data module."""

    def loader(self, split: str, *, shuffle: bool = False, epoch: int = 0) -> DataLoader[Any]: ...


def loader_rate(data: HasLoader, seconds: float) -> float:
    """Rows per second that the training loader alone gives, after its first batch: what a training step may ask for at most.

    Args:
        data: after `setup`.
        seconds: to measure for; at least one epoch's second batch is waited for.
    """
    count, start, epoch = 0, 0.0, 0
    while True:
        for batch in data.loader("train", shuffle=True, epoch=epoch):
            if not start:
                start = time.perf_counter()
                continue
            count += len(batch["index"])
            if time.perf_counter() - start > seconds:
                return count / (time.perf_counter() - start)
        epoch += 1
