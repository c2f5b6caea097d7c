"""Tables from whatever program: encodings, separators, line ends, cells too many and too few."""

import gzip
from pathlib import Path

import pytest

from longseq.domains.text_tables import read_text_table
from longseq.errors import DataError

ROWS = [["näme", "label"], ["a b", "x"], ["c,d", "y"]]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_form_of_one_table(tmp_path: Path, encoding: str, separator: str, end: str) -> None:
    text = end.join(separator.join(f'"{cell}"' for cell in row) for row in ROWS) + end
    found = read_text_table(write(tmp_path / "t.csv", text.encode(encoding)))
    assert [list(found.frame.columns), *found.frame.to_numpy().tolist()] == ROWS
    assert found.lines == [2, 3]


def test_gzipped_without_a_header_and_with_blank_lines(tmp_path: Path) -> None:
    found = read_text_table(write(tmp_path / "t.tsv.gz", gzip.compress(b"a,b\t1\n\n\nc\t2\n\n")), header=False)
    assert found.frame.to_dict("list") == {"1": ["a,b", "c"], "2": ["1", "2"]}
    assert found.lines == [1, 4]


def test_cells_missing_at_the_end_are_empty_and_trailing_separators_are_none(tmp_path: Path) -> None:
    found = read_text_table(write(tmp_path / "t.csv", 'path,label,\na,x,\nb\n"c\nd",y\ne,z,,\n'))
    assert found.frame.to_dict("list") == {"path": ["a", "b", "c\nd", "e"], "label": ["x", "", "y", "z"]}
    assert found.lines == [2, 3, 4, 6]


def test_a_cell_too_many_names_its_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"t\.csv, line 3: found 3 cells, expected 2 \(path, label\)"):
        read_text_table(write(tmp_path / "t.csv", "path,label\na,x\nb,y,z\n"))


def test_columns_of_one_name_stay_apart(tmp_path: Path) -> None:
    assert list(read_text_table(write(tmp_path / "t.csv", "a,a,a\n1,2,3\n")).frame.columns) == ["a", "a.1", "a.2"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b" \n", "is empty"), (gzip.compress(b"a,b\n" * 99, mtime=0)[:-9], "cut off or damaged")],
)
def test_files_that_hold_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_text_table(write(tmp_path / "t.csv", content))
    with pytest.raises(DataError, match="no such file"):
        read_text_table(tmp_path / "other.csv")
