"""The UCR archive's formats hold the same series."""

from pathlib import Path

import numpy as np
import pytest

from longseq.domains.timeseries.grid import ReadOptions
from longseq.domains.timeseries.labelled import check_number_of_classes, read_labelled
from longseq.errors import DataError

FILES = {
    "a.tsv": "1\t0.5\t1.5\tNaN\n2\t2.5\t-1\t4\n",
    "a.txt": "  1.0000000e+00   5.0e-01   1.5   NaN\n  2.0   2.5   -1   4\n",
    "a.ts": "# c\n@timeStamps false\n@univariate true\n@classLabel true 1 2\n@data\n0.5,1.5,?:1\n2.5,-1,4:2\n\n",
    "a.arff": "%c\n@relation a\n@attribute x numeric\n@attribute y numeric\n@attribute z numeric\n@attribute target {1,2}\n\n"
    "@data\n0.5,1.5,?,1\n2.5,-1,4,2\n",
}


def read(tmp_path: Path, name: str, text: str):
    (tmp_path / name).write_text(text)
    return read_labelled(str(tmp_path / name), ReadOptions(), {})


@pytest.mark.parametrize("name", FILES)
def test_every_format_holds_the_same(tmp_path: Path, name: str) -> None:
    found = read(tmp_path, name, FILES[name])
    assert found.labels.tolist() == ["1", "2"]
    np.testing.assert_array_equal(found.values_NL1[..., 0], np.array([[0.5, 1.5, np.nan], [2.5, -1, 4]]))
    line = FILES[name].splitlines().index(next(row for row in FILES[name].splitlines() if "2.5" in row)) + 1
    assert found.where[1].endswith(f"{name}, line {line}")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.ts", "@univariate false\n@classLabel true a b\n@data\n1,2:3,4:a\n", "line 4: 2 dimensions"),
        ("t.ts", "@timeStamps true\n@data\n(1,2):a\n", "timestamps are not read"),
        ("n.ts", "@problemName x\n1,2:a\n", "no line @data"),
        ("e.ts", "@data\n\n", "no series behind @data"),
        ("x.ts", "@data\n1,much:a\n", "line 2: .*much"),
        ("r.arff", "@attribute x numeric\n@data\n1\n", "classes in braces"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, name, text)


def test_times_are_no_classes(tmp_path: Path) -> None:
    found = read(tmp_path, "w.csv", "\n".join(f"2024-01-{day:02d},1.5,2" for day in range(1, 31)))
    with pytest.raises(DataError, match=r"30 different labels in 30 series.*first column"):
        check_number_of_classes(found)
