"""The DNA data module: splits, lengths, labels, leaks, masks and language-model targets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longseq.domains.dna.datamodule import DNAData
from longseq.domains.dna.rows import SequenceRows, WindowRows
from longseq.domains.dna.tokenizer import NucleotideTokenizer, reverse_complement_ids
from longseq.domains.tasks import IGNORE, Classification
from longseq.errors import ConfigError, DataError


def dna(rng: np.random.Generator, length: int) -> str:
    return "".join(rng.choice(list("ACGT"), length))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    rows = [f"{dna(rng, int(rng.integers(20, 60)))},{'ab'[i % 2]}" for i in range(100)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["sequence,label", *rows]) + "\n")
    return path


def data(path: Path, task: str = "classification", **options: Any) -> DNAData:
    found = DNAData(task=task, train=str(path), **options)
    found.setup()
    return found


def test_batches_are_padded_and_masked(table: Path) -> None:
    found = data(table, batch_size=8)
    batch = next(iter(found.loader("train", shuffle=True)))
    lengths = batch["mask"].sum(1)
    assert batch["inputs"].shape == batch["mask"].shape
    assert (batch["inputs"][~batch["mask"]] == NucleotideTokenizer.pad_id).all()
    assert torch.equal(lengths, torch.tensor(found.splits["train"].lengths[batch["index"]]))
    assert found.task_options()["labels"] == ["a", "b"]
    assert sum(len(rows) for rows in found.splits.values()) == 100


def test_long_sequences_are_cropped_or_refused(table: Path) -> None:
    found = data(table, max_length=30)
    assert max(found.splits["train"].lengths) == 30
    assert any(key.startswith("cropped to 30") for key in found.counts)
    with pytest.raises(DataError, match="max_length=30"):
        data(table, max_length=30, on_long="error")
    with pytest.raises(ConfigError, match="on_long"):
        data(table, on_long="cut")


def test_leaks_are_counted_on_both_strands_and_dropped(tmp_path: Path, table: Path) -> None:
    lines = table.read_text().splitlines()
    tokenizer = NucleotideTokenizer()
    other = tokenizer.decode(reverse_complement_ids(tokenizer.encode(lines[2].split(",")[0])))
    (tmp_path / "test.csv").write_text("\n".join([lines[0], lines[1], f"{other},a", *lines[90:]]) + "\n")
    (tmp_path / "train.csv").write_text("\n".join(lines[:80]) + "\n")
    (tmp_path / "val.csv").write_text("\n".join([lines[0], *lines[80:90]]) + "\n")
    files = {"val": str(tmp_path / "val.csv"), "test": str(tmp_path / "test.csv")}
    found = data(tmp_path / "train.csv", **files)
    assert str(found.counts["leaks in test"]).startswith("2 of ")
    assert len(data(tmp_path / "train.csv", **files, drop_leaks=True).splits["train"]) == 77


def test_labels_that_train_does_not_have_are_named(tmp_path: Path, table: Path) -> None:
    (tmp_path / "test.csv").write_text("sequence,label\nACGTACGT,a\nACGTACGA,zebra\n")
    with pytest.raises(DataError, match=r"test\.csv.*zebra"):
        data(table, test=str(tmp_path / "test.csv"))


def test_augmentation_depends_on_epoch_and_keeps_the_strands(table: Path) -> None:
    rows = data(table, rc_augment=True).splits["train"]
    assert isinstance(rows, SequenceRows)
    seen = []
    for epoch in range(8):
        rows.epoch = epoch
        seen.append(rows[3]["ids"].tolist())
    plain = rows.store[3]
    both = [plain.tolist(), reverse_complement_ids(plain).tolist()]
    assert all(ids in both for ids in seen)
    assert both[0] in seen and both[1] in seen
    rows.epoch = 5
    assert rows[3]["ids"].tolist() == seen[5]


def test_causal_targets_are_the_next_bases_and_never_n(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "g.fa").write_text(">c\n" + dna(rng, 3000) + "NNNN" + dna(rng, 3000) + "\n")
    found = data(tmp_path / "g.fa", "lm", window=100, cache_dir=str(tmp_path))
    rows = found.splits["train"]
    assert isinstance(rows, WindowRows)
    asked = 0
    for i in range(len(rows)):
        row, ids = rows[i], rows.store[i]
        assert np.array_equal(row["ids"], ids[:-1])
        base = (ids[1:] >= 7) & (ids[1:] <= 10)
        assert np.array_equal(row["targets"] == IGNORE, ~base)
        assert np.array_equal(row["targets"][base], ids[1:][base])
        asked += int(base.sum())
    # Windows share one base, so that every base but each region's first is asked for once.
    covered = sum(len(rows.store[i]) - 1 for i in range(len(rows)))
    assert covered - asked in (0, 4)


def test_masks_hide_what_they_ask_for(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">c\n" + dna(np.random.default_rng(0), 60_000) + "\n")
    found = data(tmp_path / "g.fa", "mlm", window=1000, cache_dir=str(tmp_path))
    train, val = found.splits["train"], found.splits["val"]
    assert isinstance(train, WindowRows)
    row, ids = train[0], train.store[0]
    chosen = row["targets"] != IGNORE
    assert 0.1 < chosen.mean() < 0.2
    assert np.array_equal(row["ids"][~chosen], ids[~chosen])
    assert 0.6 < (row["ids"][chosen] == NucleotideTokenizer.mask_id).mean() < 0.95
    train.epoch = val.epoch = 1
    assert not np.array_equal(train[0]["targets"], row["targets"])
    first = val[0]["targets"]
    val.epoch = 2
    assert np.array_equal(val[0]["targets"], first)


def test_baselines_are_scored_with_the_tasks_metrics(table: Path) -> None:
    found = data(table)
    task = Classification(**found.task_options())
    scores = found.baselines(task)
    assert set(scores) == {"majority", "k-mer logistic regression"}
    assert scores["majority"]["mcc"] == 0.0
    assert all({"accuracy", "mcc", "f1", "auroc", "auprc"} <= set(row) for row in scores.values())


def test_the_demo_is_declared_synthetic() -> None:
    found = DNAData(task="classification", demo_rows=40)
    found.setup()
    assert "synthetic" in found.counts
    assert found.max_length == 1024
