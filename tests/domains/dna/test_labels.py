"""Labels as class numbers, quantities and sets of labels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longseq.domains.dna.labels import (
    class_names,
    encode_classes,
    encode_multilabel,
    label_text,
    multilabel_names,
    numeric_labels,
)
from longseq.domains.dna.sequences import SequenceTable
from longseq.domains.dna.sources import read_sequences
from longseq.errors import DataError


def table(tmp_path: Path, *labels: str, **options: Any) -> SequenceTable:
    path = tmp_path / "x.csv"
    path.write_text("sequence,label\n" + "".join(f"ACG,{label}\n" for label in labels), encoding="utf-8")
    return read_sequences(path, **options)


def test_label_text() -> None:
    assert label_text([0, 1.0, "2", None, float("nan")]).tolist() == ["0", "1", "2", "", ""]
    assert label_text(["0.5", "1"]).tolist() == ["0.5", "1"]
    assert label_text(["a", "NA", " b "]).tolist() == ["a", "", "b"]
    assert label_text([True, False]).tolist() == ["True", "False"]


def test_classes(tmp_path: Path) -> None:
    train = table(tmp_path, "10", "9", "9", "-1")
    names = class_names(train)
    assert names == ("-1", "9", "10")
    assert encode_classes(train, names).tolist() == [2, 1, 1, 0]
    assert class_names(table(tmp_path, "b", "a", "b")) == ("a", "b")


def test_a_label_that_train_does_not_have(tmp_path: Path) -> None:
    test = table(tmp_path, "a", "b", "c", "c")
    with pytest.raises(DataError, match=r"line 4: label 'c' is not among the classes of train, \[a, b\]; 2 of 4"):
        encode_classes(test, ("a", "b"))


@pytest.mark.parametrize("missing", ["", "nan", "NaN", "NA"])
def test_missing_labels(tmp_path: Path, missing: str) -> None:
    with pytest.raises(DataError, match=r"line 3: no label in 'label'.*1 of 3 rows"):
        class_names(table(tmp_path, "a", missing, "b"))


def test_what_cannot_be_classes(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"all 3 labels are 'a'.*two classes"):
        class_names(table(tmp_path, "a", "a", "a"))
    with pytest.raises(DataError, match="task=regression"):
        class_names(table(tmp_path, *(str(i / 7) for i in range(1, 60))))
    with pytest.raises(DataError, match="have no labels"):
        class_names(table(tmp_path, "a", "b", labels="none"))


def test_quantities(tmp_path: Path) -> None:
    values = numeric_labels(table(tmp_path, "0.5", "-2", "1e3"))
    assert values.dtype == np.float32 and values.tolist() == [0.5, -2.0, 1000.0]
    with pytest.raises(DataError, match=r"line 3: 'high' in 'label' is not a finite number"):
        numeric_labels(table(tmp_path, "0.5", "high"))
    with pytest.raises(DataError, match="line 2: 'inf'"):
        numeric_labels(table(tmp_path, "inf", "1"))


def test_sets_of_labels_in_one_column(tmp_path: Path) -> None:
    train = table(tmp_path, "a;b", "", "c")
    names = multilabel_names(train)
    assert names == ("a", "b", "c")
    assert encode_multilabel(train, names).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]
    with pytest.raises(DataError, match=r"line 2: label 'b' is not among those of train"):
        encode_multilabel(train, ("a", "c"))


def test_sets_of_labels_in_several_columns(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("sequence,p,q\nA,0,1\nC,1,1\n", encoding="utf-8")
    train = read_sequences(path, label_column=["p", "q"])
    assert multilabel_names(train) == ("p", "q")
    assert encode_multilabel(train, ("p", "q")).tolist() == [[0, 1], [1, 1]]
    with pytest.raises(DataError, match="2 label columns"):
        class_names(train)
    path.write_text("sequence,p,q\nA,0,1\nC,2,1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"line 3: '2' in 'p', where 0 or 1"):
        encode_multilabel(read_sequences(path, label_column=["p", "q"]), ("p", "q"))
