"""Split rules and the leak check."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from longseq.domains.dna.genome import IntervalSequences
from longseq.domains.dna.sequences import Sequences, SequenceTable
from longseq.domains.dna.splits import (
    Split,
    count_overlaps,
    drop_leaks,
    find_leaks,
    make_split,
    split_random,
    split_regions,
)
from longseq.domains.dna.tokenizer import reverse_complement_text
from longseq.domains.dna.windows import Region
from longseq.errors import DataError


def _table(n: int = 100, **columns: Any) -> SequenceTable:
    labels = columns.pop("labels", None)
    return SequenceTable(
        Sequences.from_strings(["ACGT"] * n),
        np.arange(n).astype(str).astype(object),
        None if labels is None else np.array(labels, dtype=object),
        ("label",),
        pd.DataFrame(columns, index=range(n)),
        ("x.csv",),
        np.zeros(n, np.int32),
        np.arange(2, n + 2),
        "line",
    )


def _is_partition(split: Split, n: int) -> bool:
    return np.array_equal(np.sort(np.concatenate([split.train, split.val, split.test])), np.arange(n))


def test_by_column() -> None:
    table = _table(4, split=["train", "Dev", "test", "training"])
    split = make_split(table)
    assert (split.train.tolist(), split.val.tolist(), split.test.tolist()) == ([0, 3], [1], [2])
    assert make_split(_table(2, part=["train", "valid"]), split_column="part").val.tolist() == [1]
    with pytest.raises(DataError, match=r"x.csv, line 3: 'holdout' in 'split', where train, val"):
        make_split(_table(2, split=["train", "holdout"]))
    with pytest.raises(DataError, match="leaves no row of 1 for train"):
        make_split(_table(1, split=["test"]))
    with pytest.raises(DataError, match=r"no column 'splt'.*split_column='split'"):
        make_split(_table(1, split=["test"]), split_column="splt")


def test_by_chromosome() -> None:
    table = _table(5, chr=["chr1", "chr8", "chr9", "chr1", "chr8"])
    split = make_split(table, val_chroms=["chr8"], test_chroms=["chr9"])
    assert (split.train.tolist(), split.val.tolist(), split.test.tolist()) == ([0, 3], [1, 4], [2])
    assert split.rule == "by chromosome: val chr8; test chr9"
    with pytest.raises(DataError, match=r"val_chroms.*unknown chromosome '8'; the genome calls it 'chr8'"):
        make_split(table, val_chroms=["8"])
    with pytest.raises(DataError, match="chr8: in val_chroms and in test_chroms"):
        make_split(table, val_chroms=["chr8"], test_chroms=["chr8"])
    with pytest.raises(DataError, match="no chrom column"):
        make_split(_table(5), val_chroms=["chr1"])
    numbered = make_split(_table(2, chrom=["1", "2"]), test_chroms=[2])  # type: ignore[list-item]
    assert numbered.test.tolist() == [1]


def test_by_group() -> None:
    groups = np.repeat(np.arange(20), 5).astype(str)
    table = _table(100, patient=groups)
    split = make_split(table, group_column="patient", val_fraction=0.2, test_fraction=0.1, seed=3)
    assert _is_partition(split, 100)
    assert (len(split.val), len(split.test)) == (20, 10)
    parts = [set(groups[rows]) for rows in (split.train, split.val, split.test)]
    assert not (parts[0] & parts[1] or parts[0] & parts[2] or parts[1] & parts[2])
    other = make_split(table, group_column="patient", val_fraction=0.2, test_fraction=0.1, seed=4)
    assert not np.array_equal(split.test, other.test)
    with pytest.raises(DataError, match="2 groups in 'g' are too few"):
        make_split(_table(4, g=list("aabb")), group_column="g")


def test_stratified_at_random() -> None:
    labels = ["a"] * 700 + ["b"] * 200 + ["c"] * 100
    table = _table(1000, labels=labels)
    split = split_random(table, 0.1, 0.2, seed=0)
    assert _is_partition(split, 1000)
    counts = pd.Series(np.array(labels)[split.test]).value_counts().to_dict()
    assert counts == {"a": 140, "b": 40, "c": 20}
    assert len(split.val) == 100
    assert np.array_equal(split.train, split_random(table, 0.1, 0.2, seed=0).train)
    assert not np.array_equal(split.train, split_random(table, 0.1, 0.2, seed=1).train)
    assert split.rule == "stratified at random, seed 0"
    quantities = split_random(_table(100, labels=[str(i / 7) for i in range(100)]), 0.1, 0.1, seed=0)
    assert quantities.rule == "at random, seed 0"
    assert len(split_random(_table(50), 0.1, 0.0, seed=0).test) == 0
    with pytest.raises(DataError, match="leave something for train"):
        split_random(table, 0.5, 0.5, seed=0)


def test_the_part_whose_chromosomes_are_not_named_is_drawn_by_chromosome() -> None:
    table = _table(100, chrom=[f"chr{i % 10}" for i in range(100)])
    split = make_split(table, test_chroms=["chr3"], val_fraction=0.2, seed=1)
    parts = {name: {f"chr{row % 10}" for row in getattr(split, name)} for name in ("train", "val", "test")}
    assert parts["test"] == {"chr3"} and len(parts["val"]) == 2 and len(parts["train"]) == 7
    assert not parts["val"] & (parts["train"] | parts["test"])
    assert "val chr" in split.rule and "test chr3" in split.rule


def test_regions_of_a_genome() -> None:
    store = Sequences.from_strings(["A" * 100, "C" * 40, "G" * 60])
    names = ("chr1", "chr2", "chr3")
    parts = split_regions(store, names, val_chroms=["chr2"], test_chroms=["chr3"])
    assert parts == {"train": [Region(0, 0, 100)], "val": [Region(1, 0, 40)], "test": [Region(2, 0, 60)]}
    parts = split_regions(store, names, val_fraction=0.1, test_fraction=0.2)
    assert parts["train"] == [Region(0, 0, 70), Region(1, 0, 28), Region(2, 0, 42)]
    assert parts["val"] == [Region(0, 70, 80), Region(1, 28, 32), Region(2, 42, 48)]
    assert parts["test"] == [Region(0, 80, 100), Region(1, 32, 40), Region(2, 48, 60)]
    parts = split_regions(store, names, test_chroms=["chr3"], val_fraction=0.1)
    assert parts["test"] == [Region(2, 0, 60)]
    assert parts["val"] == [Region(0, 90, 100), Region(1, 36, 40)]
    assert parts["train"] == [Region(0, 0, 90), Region(1, 0, 36)]
    with pytest.raises(DataError, match="unknown chromosome 'chr9'"):
        split_regions(store, names, val_chroms=["chr9"])
    with pytest.raises(DataError, match="leave no chromosome for train"):
        split_regions(store, names, val_chroms=["chr1"], test_chroms=["chr2", "chr3"])


def test_leaks_are_found_on_both_strands_and_dropped() -> None:
    train = _table(4)
    texts = ["AACC", "GATTACA", "GATTACA", "TTTT"]
    train.sequences = Sequences.from_strings(texts)
    test = Sequences.from_strings([reverse_complement_text("GATTACA"), "AACC", "AACG", "AAAA", "AAC"])
    report = find_leaks(train.sequences, test)
    assert report.rows.tolist() == [0, 1, 3]
    assert report.train_rows.tolist() == [0, 1, 2, 3]
    assert report.message().startswith(
        "3 of 5 test sequences (or their reverse complements) also stand in train, in 4 train rows"
    )
    with pytest.raises(DataError, match="every training sequence"):
        drop_leaks(train, [report])
    val = find_leaks(train.sequences, Sequences.from_strings(["GATTACA"]), "val")
    assert [len(drop_leaks(train, [val]).sequences[i]) for i in range(2)] == [4, 4]
    nothing = find_leaks(train.sequences, Sequences.from_strings(["CCCC"]))
    assert drop_leaks(train, [nothing]) is train
    assert "drop_leaks" not in nothing.message()


def test_overlapping_intervals_are_counted() -> None:
    def intervals(*rows: tuple[str, int, int]) -> IntervalSequences:
        chroms, starts, ends = zip(*rows, strict=True)
        strands = np.full(len(rows), ".", dtype=object)
        return IntervalSequences(None, np.array(chroms, object), np.array(starts), np.array(ends), strands)  # type: ignore[arg-type]

    train = intervals(("1", 0, 100), ("1", 10, 20), ("1", 200, 300), ("2", 0, 10))
    other = intervals(("1", 50, 60), ("1", 100, 200), ("1", 299, 310), ("2", 10, 20), ("3", 0, 10))
    assert count_overlaps(train, other) == 2
