"""Batches: every row once, similar lengths together, the same order for the same seed and epoch."""

import time

import numpy as np
import pytest
import torch

from longseq.domains.loading import LengthBatches, loader_rate, pad_rows, stratified_split

LENGTHS = np.random.default_rng(0).integers(10, 500, 337)


def rows(**options: object) -> list[list[int]]:
    return list(LengthBatches(LENGTHS, 16, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_comes_once(shuffle: bool) -> None:
    batches = rows(shuffle=shuffle)
    assert sorted(i for batch in batches for i in batch) == list(range(337))
    assert len(batches) == len(LengthBatches(LENGTHS, 16, shuffle=shuffle))


def test_order_depends_on_seed_and_epoch_alone() -> None:
    assert rows(shuffle=True, seed=1, epoch=2) == rows(shuffle=True, seed=1, epoch=2)
    assert rows(shuffle=True, seed=1, epoch=2) != rows(shuffle=True, seed=1, epoch=3)
    assert rows(shuffle=True, seed=1) != rows(shuffle=True, seed=2)


def test_bucketing_pads_little() -> None:
    padded = sum(LENGTHS[batch].max() * len(batch) for batch in rows(shuffle=True))
    assert padded / LENGTHS.sum() < 1.1


def test_evaluation_shares_rows_out_without_repeats_and_training_evenly() -> None:
    shares = [rows(shuffle=False, rank=r, world_size=3) for r in range(3)]
    assert sorted(i for share in shares for batch in share for i in batch) == list(range(337))
    counts = {len(rows(shuffle=True, rank=r, world_size=3)) for r in range(3)}
    assert len(counts) == 1


@pytest.mark.parametrize(("n", "world_size"), [(5, 4), (20, 2), (3, 3)])
def test_every_process_gets_a_batch_of_few_rows(n: int, world_size: int) -> None:
    for shuffle in (True, False):
        samplers = [LengthBatches(np.full(n, 9), 32, shuffle=shuffle, rank=r, world_size=world_size) for r in range(world_size)]
        assert all(len(sampler) == len(list(sampler)) >= 1 for sampler in samplers)


def test_max_tokens_bounds_every_batch() -> None:
    for batch in rows(shuffle=True, max_tokens=2000):
        assert len(batch) == 1 or LENGTHS[batch].max() * len(batch) <= 2000


def test_resuming_skips_what_was_seen() -> None:
    sampler = LengthBatches(LENGTHS, 16, shuffle=True)
    every = list(sampler)
    sampler.skip = 5
    assert list(sampler) == every[5:]
    assert list(sampler) == every


def test_padding_and_mask() -> None:
    padded, mask = pad_rows([np.array([1, 2], np.int64), np.array([3], np.int64)], 9)
    assert padded.tolist() == [[1, 2], [3, 9]]
    assert mask.tolist() == [[True, True], [True, False]]
    assert pad_rows([torch.zeros(3, 2)], 0.0, multiple=8)[0].shape == (1, 8, 2)


def test_stratified_split_keeps_proportions() -> None:
    labels = np.repeat([0, 1], [900, 100])
    split = stratified_split(labels, 1000, val=0.1, test=0.2, seed=3)
    assert sorted(np.concatenate(list(split.values()))) == list(range(1000))
    assert labels[split["test"]].sum() == 20
    assert labels[split["val"]].sum() == 10


def test_the_loaders_rate_counts_rows() -> None:
    class Counted:
        """Two batches an epoch."""

        def __init__(self) -> None:
            self.epochs: list[int] = []

        def loader(self, split: str, *, shuffle: bool = False, epoch: int = 0) -> list[dict[str, torch.Tensor]]:
            assert split == "train" and shuffle
            self.epochs.append(epoch)
            time.sleep(0.01)
            return [{"index": torch.arange(5)}, {"index": torch.arange(3)}]

    data = Counted()
    rate = loader_rate(data, 0.1)  # type: ignore[arg-type]
    assert data.epochs == list(range(len(data.epochs))) and len(data.epochs) > 2
    # Eight rows for at least ten milliseconds.
    assert 0 < rate < 8 / 0.01
