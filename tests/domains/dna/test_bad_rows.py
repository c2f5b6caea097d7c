"""Rows that cannot be used: named with file and line, or left out and counted."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longseq.domains.dna.datamodule import DNAData
from longseq.errors import ConfigError, DataError


def dna(seed: int, length: int = 40) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), length))


GOOD = [f"{dna(i)},{'ab'[i % 2]}" for i in range(40)]
BAD_ROWS = {
    f"{dna(90)},": "no label in 'label'",
    "ACGTPROTEIN,a": "holds 'P'",
    ",a": "the sequence is empty",
}


def data(task: str, train: Path, **options: Any) -> DNAData:
    found = DNAData(task=task, train=str(train), **options)
    found.setup()
    return found


def rows(found: DNAData) -> int:
    return sum(len(split) for split in found.splits.values())


@pytest.mark.parametrize("row", BAD_ROWS)
def test_bad_rows_of_tables(tmp_path: Path, row: str) -> None:
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["sequence,label", *GOOD[:20], row, *GOOD[20:]]) + "\n")
    with pytest.raises(DataError, match=rf"x\.csv, line 22.*{BAD_ROWS[row]}"):
        data("classification", path)
    found = data("classification", path, on_bad="skip")
    assert rows(found) == 40
    assert str(found.counts["skipped in train"]).startswith(f"1; the first: {path}, line 22")


def test_bad_quantities_and_labels(tmp_path: Path) -> None:
    lines = [f"{dna(i)},{i / 7:.2f},{i % 2}" for i in range(40)]
    (tmp_path / "x.csv").write_text("\n".join(["sequence,y,z", *lines, f"{dna(50)},inf,1", f"{dna(51)},1,2"]) + "\n")
    assert rows(data("regression", tmp_path / "x.csv", label_column="y", on_bad="skip")) == 41
    found = data("multilabel", tmp_path / "x.csv", label_column=["z"], on_bad="skip")
    assert rows(found) == 41
    assert "'2' in 'z' is no label" in str(found.counts["skipped in train"])


def test_labels_that_train_lacks_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("\n".join(["sequence,label", *GOOD]) + "\n")
    (tmp_path / "t.csv").write_text(f"sequence,label\n{dna(60)},a\n{dna(61)},zebra\n")
    with pytest.raises(DataError, match="zebra"):
        data("classification", tmp_path / "x.csv", test=str(tmp_path / "t.csv"))
    found = data("classification", tmp_path / "x.csv", test=str(tmp_path / "t.csv"), on_bad="skip")
    assert len(found.splits["test"]) == 1
    assert "zebra" in str(found.counts["labels in test that train lacks"])


def test_bad_records_and_intervals(tmp_path: Path) -> None:
    for name in "ab":
        records = [f">{name}{i}\n{dna(i + ord(name))}\n" for i in range(20)]
        (tmp_path / f"{name}.fa").write_text("".join([*records, f">{name}x\nMKLV*\n", f">{name}y\n\n"]))
    found = data("classification", tmp_path / "*.fa", on_bad="skip")
    assert rows(found) == 40
    assert str(found.counts["skipped in train"]).startswith("4; the first:")
    assert "record 21 ('ax')" in str(found.counts["skipped in train"])
    (tmp_path / "g.fasta").write_text(f">chr1\n{dna(0, 2000)}\n")
    good = [f"chr1\t{i}\t{i + 50}\t{'ab'[i % 2]}" for i in range(0, 1000, 25)]
    bad = ["chr2\t1\t5\ta", "chr1\t1990\t2001\ta", "chr1\t-1\t5\ta", "chr1\t9\t9\ta", "chr1\tx\t9\ta"]
    (tmp_path / "x.bed").write_text("\n".join(good + bad) + "\n")
    options: dict[str, Any] = {"genome": str(tmp_path / "g.fasta"), "label_column": 4}
    found = data("classification", tmp_path / "x.bed", **options, on_bad="skip")
    assert rows(found) == 40
    assert str(found.counts["skipped in train"]).startswith("5; the first:")
    (tmp_path / "x.bed").write_text("\n".join(good + bad[:1]) + "\n")
    with pytest.raises(DataError, match="line 41: unknown chromosome 'chr2'"):
        data("classification", tmp_path / "x.bed", **options)


def test_nothing_left_is_an_error_either_way(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("sequence,label\nPROTEIN,a\n")
    with pytest.raises(DataError, match="none of its 1 rows"):
        data("classification", tmp_path / "x.csv", on_bad="skip")
    with pytest.raises(ConfigError, match="on_bad"):
        data("classification", tmp_path / "x.csv", on_bad="ignore")


def test_many_label_columns_by_pattern_and_range(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    names = [f"tf_{i}" for i in range(919)]
    lines = [f"r{i},{dna(i)},{','.join(map(str, rng.integers(0, 2, 919).tolist()))}" for i in range(60)]
    (tmp_path / "x.csv").write_text("\n".join([f"id,sequence,{','.join(names)}", *lines]) + "\n")
    for column in ("tf_*", "3-921", "3-"):
        found = data("multilabel", tmp_path / "x.csv", label_column=column)
        assert found.labels == tuple(names)
        assert found.task_options()["labels"] == names
    assert data("multilabel", tmp_path / "x.csv", label_column="3-5").labels == ("tf_0", "tf_1", "tf_2")
