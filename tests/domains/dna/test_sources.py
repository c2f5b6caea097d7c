"""Readers: every format and label layout gives the same table, and every kind of bad input a clear answer."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from longseq.domains.dna.bad_rows import BadRows
from longseq.domains.dna.sequences import SequenceTable
from longseq.domains.dna.sources import read_sequences
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.errors import DataError

SEQUENCES = ["ACGTACGT", "ttgaca", "NNRY", "GGCC"]
LABELS = ["b", "a", "b", "a"]


def texts(table: SequenceTable) -> list[str]:
    return [NucleotideTokenizer().decode(table.sequences[i]) for i in range(len(table))]


def labels(table: SequenceTable) -> list[Any]:
    assert table.labels is not None
    return table.labels.tolist()


def write(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(content.encode()))
    else:
        path.write_text(content, encoding="utf-8")
    return path


def fasta(names: list[str], sequences: list[str], width: int = 3) -> str:
    def wrapped(sequence: str) -> str:
        return "\n".join(sequence[i : i + width] for i in range(0, len(sequence), width))

    return "".join(f">{name}\n{wrapped(sequence)}\n" for name, sequence in zip(names, sequences, strict=True))


EXPECTED = ["ACGTACGT", "TTGACA", "NNNN", "GGCC"]


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".csv.gz", ".parquet"])
def test_tables(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"x{suffix}"
    frame = pd.DataFrame({"name": list("wxyz"), "dna": SEQUENCES, "kind": LABELS})
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        write(path, frame.to_csv(index=False, sep="\t" if suffix == ".tsv" else ","))
    table = read_sequences(path, sequence_column="dna", label_column="kind", id_column="name")
    assert texts(table) == EXPECTED
    assert labels(table) == LABELS
    assert table.ids.tolist() == list("wxyz")
    assert table.frame.columns.tolist() == ["name", "kind"]
    place = "row 2" if suffix == ".parquet" else "line 3"
    assert table.where(1) == f"{path}, {place}"


def test_table_without_header_by_column_number(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "".join(f"{a},{b}\n" for a, b in zip(LABELS, SEQUENCES, strict=True)))
    table = read_sequences(path, header=False, sequence_column=2, label_column=1)
    assert texts(table) == EXPECTED
    assert labels(table) == LABELS
    assert table.where(0).endswith("line 1")


def test_na_is_a_sequence_and_numbers_keep_their_class_names(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "sequence,label\nNA,1.0\nNAN,0\n")
    table = read_sequences(path)
    assert table.sequences.lengths.tolist() == [2, 3]
    assert labels(table) == ["1", "0"]


def test_several_label_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "sequence,p,q\nA,0,1\nC,1,1\n")
    table = read_sequences(path, label_column=["p", "q"])
    assert labels(table) == [["0", "1"], ["1", "1"]]
    assert table.label_names == ("p", "q")


@pytest.mark.parametrize("suffix", [".fa", ".fasta.gz", ".fna", ".fq", ".fastq.gz", ".txt", ".gb"])
def test_record_files(tmp_path: Path, suffix: str) -> None:
    names = ["r1 kind=b", "r2 kind=a", "r3 kind=b", "r4 kind=a"]
    if "q" in suffix:
        content = "".join(f"@{n}\n{s}\n+\n{'I' * len(s)}\n" for n, s in zip(names, SEQUENCES, strict=True))
    elif suffix == ".txt":
        content = "\n".join(SEQUENCES) + "\n\n"
    elif suffix == ".gb":
        content = genbank(SEQUENCES)
    else:
        content = fasta(names, SEQUENCES)
    table = read_sequences(write(tmp_path / f"x{suffix}", content))
    assert texts(table) == EXPECTED
    assert table.labels is None
    if suffix not in (".txt", ".gb"):
        assert table.ids.tolist() == ["r1", "r2", "r3", "r4"]
        table = read_sequences(tmp_path / f"x{suffix}", label_pattern=r"kind=(\w)")
        assert labels(table) == LABELS


def genbank(sequences: list[str]) -> str:
    from io import StringIO

    from Bio import SeqIO
    from Bio.Seq import Seq
    from Bio.SeqRecord import SeqRecord

    handle = StringIO()
    records = [
        SeqRecord(Seq(sequence), id=f"R{i}", name=f"R{i}", description="demo", annotations={"molecule_type": "DNA"})
        for i, sequence in enumerate(sequences)
    ]
    SeqIO.write(records, handle, "genbank")
    return handle.getvalue()


def test_windows_line_ends_lower_case_and_multi_line_records(tmp_path: Path) -> None:
    path = tmp_path / "x.fa"
    path.write_bytes(b">a one\r\nac gt\r\nAC\r\n\r\n>b\r\nTT")
    table = read_sequences(path)
    assert texts(table) == ["ACGTAC", "TT"]
    assert table.frame["header"].tolist() == ["a one", "b"]


def test_a_mark_in_front_of_the_text_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "x.fa").write_text(">a\nACGT\n", encoding="utf-8-sig")
    assert read_sequences(tmp_path / "x.fa", labels="none").ids.tolist() == ["a"]


def test_records_longer_than_a_block_and_lines_without_end(tmp_path: Path) -> None:
    from longseq.domains.dna.formats import iterate_fasta_pieces, open_binary

    path = write(tmp_path / "x.fa", ">long name > with mark\n" + "ACGTN" * 40 + "\n>b\nAC\n>c\nGG")
    whole = [("long name > with mark", "ACGTN" * 40), ("b", "AC"), ("c", "GG")]
    for block_size in (1, 2, 7, 64, 1000):
        records: list[tuple[str, str]] = []
        with open_binary(path) as handle:
            for header, piece in iterate_fasta_pieces(handle, path, block_size):
                if header is not None:
                    records.append((header, ""))
                else:
                    records[-1] = (records[-1][0], records[-1][1] + piece.decode())
        assert records == whole


def test_one_file_per_class(tmp_path: Path) -> None:
    write(tmp_path / "cat.fa.gz", fasta(["x"], ["AC"]))
    write(tmp_path / "dog.fa", fasta(["y", "z"], ["GG", "TT"]))
    files = [tmp_path / "cat.fa.gz", tmp_path / "dog.fa"]
    for source in (files, tmp_path, str(tmp_path / "*.fa*"), {"cat": files[0], "dog": [str(files[1])]}):
        table = read_sequences(source)
        assert labels(table) == ["cat", "dog", "dog"]
        assert texts(table) == ["AC", "GG", "TT"]
        assert table.where(2) == f"{files[1]}, record 2 ('z')"
    assert read_sequences(files, labels="none").labels is None


def test_folder_per_class_and_per_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name, sequence in (("negative", "AC"), ("positive", "GGT")):
            write(tmp_path / split / name / "0.txt", sequence)
            write(tmp_path / split / name / "1.txt", sequence + "A")
    table = read_sequences(tmp_path / "train")
    assert labels(table) == ["negative", "negative", "positive", "positive"]
    assert table.ids.tolist() == ["0", "1", "0", "1"]
    both = read_sequences(tmp_path)
    assert both.frame["split"].tolist() == ["test"] * 4 + ["train"] * 4
    assert texts(both) == ["AC", "ACA", "GGT", "GGTA"] * 2


def test_folder_of_train_and_test_files(tmp_path: Path) -> None:
    for name, label in (("train", "x"), ("dev", "y"), ("test", "x")):
        write(tmp_path / f"{name}.csv.gz", f"sequence,label\nACG,{label}\n")
    table = read_sequences(tmp_path)
    assert table.frame["split"].tolist() == ["val", "test", "train"]
    assert labels(table) == ["y", "x", "x"]


def test_labels_from_a_table(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", fasta(["r1 x", "r2"], ["AC", "GT"]))
    answers = write(tmp_path / "y.csv", "id,label\nr2,b\nr9,c\nr1,a\n")
    assert labels(read_sequences(path, label_table=answers)) == ["a", "b"]
    write(answers, "id,label\nr2,b\n")
    with pytest.raises(DataError, match=r"record 1 \('r1'\): no label in .*y.csv.*1 of 2 records"):
        read_sequences(path, label_table=answers)
    write(answers, "id,label\nr1,b\nr2,a\nr1,a\n")
    with pytest.raises(DataError, match=r"line 4: the id 'r1' stands there twice"):
        read_sequences(path, label_table=answers)


def test_lists_of_tables_are_joined(tmp_path: Path) -> None:
    first = write(tmp_path / "1.csv", "sequence,label\nA,x\n")
    second = write(tmp_path / "2.csv", "sequence,label\nC,y\n")
    table = read_sequences([first, second])
    assert (texts(table), labels(table)) == (["A", "C"], ["x", "y"])
    with pytest.raises(DataError, match="among files of another kind"):
        read_sequences([write(tmp_path / "3.fa", ">a\nA\n"), second])


BAD_TABLES = {
    "missing column": ("seq,label\nA,x\n", {}, r"no column 'sequence'.*\[seq, label\].*sequence_column='seq'"),
    "missing label column": ("sequence,Label\nA,x\n", {"labels": "required"}, r"no column 'label'.*label_column='Label'"),
    "no header": ("ACGTACGTACGT,x\nAAAACCCCGGGG,y\n", {}, "header=false"),
    "other separator": ("sequence|label\nA|x\n", {"sequence_column": "s"}, "no column 's'.*Another separator"),
    "column number": ("sequence,label\nA,x\n", {"sequence_column": 3}, r"sequence_column=3, but the table has columns 1 to 2"),
    "no rows": ("sequence,label\n", {}, "no rows"),
    "empty sequence": ("sequence,label\nA,x\n,y\nC,x\n", {}, r"line 3: the sequence is empty; 1 empty"),
    "protein": ("sequence,label\nA,x\nMKLV,y\n", {}, r"line 3 is not DNA.*'L'.*protein"),
    "ragged": ("sequence,label\nA,x\nC,y,z,w\n", {}, "line 3"),
    "columns beyond the last": ("sequence,p,q\nA,1,0\n", {"label_column": "2-9"}, "label_column=2-9.*columns 1 to 3"),
    "missing one of several labels": ("sequence,p,q\nA,1,0\nC,,1\n", {"label_column": ["p", "q"]}, "line 3: no label in 'p'"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_bad_tables(tmp_path: Path, case: str) -> None:
    content, options, message = BAD_TABLES[case]
    path = write(tmp_path / "x.csv", content)
    with pytest.raises(DataError, match=message) as caught:
        read_sequences(path, **options)
    assert str(path) in str(caught.value)


BAD_FILES = {
    "empty file": ("x.fa", b"", "the file is empty"),
    "no record": ("x.txt", b"\n\n", "no record"),
    "not FASTA": ("x.fa", b"ACGT\n", "begins with '>'"),
    "protein FASTA": ("x.fa", b">ok\nACGT\n>p53 human\nMEEPQSDPSV\n", r"record 2 \('p53'\) is not DNA.*'E', 'P', 'Q'.*protein"),
    "empty record": ("x.fa", b">a\nAC\n>b\n>c\nGT\n", r"record 2 \('b'\): the sequence is empty"),
    "truncated gzip": ("x.fa.gz", gzip.compress(b">a\n" + b"ACGTTGCA" * 4000, mtime=0)[:-20], "end early or are damaged"),
    "truncated csv.gz": (
        "x.csv.gz",
        gzip.compress(b"sequence,label\n" + b"ACGT,x\n" * 4000, mtime=0)[:-9],
        "cut off or damaged",
    ),
    "not gzip": ("x.fa.gz", b">a\nACGT\n", "content is not gzip"),
    "FASTQ without quality": ("x.fq", b"@a\nACGT\n@b\nACGT\n", "record 1: not a FASTQ record"),
    "not parquet": ("x.parquet", b"sequence,label\n", "not a parquet file"),
    "unknown format": ("x.docx", b"hello", r"unknown format .docx; supported are .csv, .tsv, .parquet, .fa"),
    "BED without genome": ("x.bed", b"chr1\t0\t5\n", "set genome to its FASTA file"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files(tmp_path: Path, case: str) -> None:
    name, content, message = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_sequences(path)
    assert str(path) in str(caught.value)


def test_absent_files_and_folders(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", "sequence,label\nA,x\n")
    with pytest.raises(DataError, match=r"no such file; did you mean train.csv"):
        read_sequences(tmp_path / "trian.csv")
    with pytest.raises(DataError, match=r"folder .* does not exist"):
        read_sequences(tmp_path / "nowhere" / "x.fa")
    with pytest.raises(DataError, match="no file matches"):
        read_sequences(str(tmp_path / "*.fa"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no sequence file; supported are"):
        read_sequences(tmp_path / "empty")
    with pytest.raises(DataError, match="both folders"):
        read_sequences(tmp_path)


def test_unlabelled_files_say_what_to_give(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ">a kind=1\nAC\n")
    with pytest.raises(DataError, match=r"label_pattern.*'a kind=1'.*label_table"):
        read_sequences(path, labels="required")
    with pytest.raises(DataError, match=r"record 1 \('a'\): label_pattern='class=.*' does not match the header 'a kind=1'"):
        read_sequences(path, label_pattern=r"class=(\d)")
    with pytest.raises(ValueError, match="has no group"):
        read_sequences(path, label_pattern="kind")
    with pytest.raises(ValueError, match="not a regular expression"):
        read_sequences(path, label_pattern="(")
    with pytest.raises(ValueError, match="labels must be"):
        read_sequences(path, labels="maybe")


def test_other_characters_as_n_on_request(tmp_path: Path) -> None:
    path = write(tmp_path / "x.fa", ">a\nACXX\n")
    assert texts(read_sequences(path, invalid="N")) == ["ACNN"]


def test_blank_lines_keep_line_numbers(tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "sequence,label\nA,x\n\nC,y\n\n")
    table = read_sequences(path)
    assert texts(table) == ["A", "C"]
    assert table.where(1).endswith("line 4")
    assert np.array_equal(table.lines, [2, 4])


def test_records_that_the_label_table_lacks_can_be_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "reads.fa", ">a\nACGT\n>b\nCCGT\n")
    answers = write(tmp_path / "labels.csv", "id,label\na,x\n")
    with pytest.raises(DataError, match=r"record 2 \('b'\): no label in .*1 of 2 records.*on_bad=skip"):
        read_sequences(path, label_table=answers)
    assert labels(read_sequences(path, label_table=answers, bad=BadRows("skip"))) == ["x", ""]
