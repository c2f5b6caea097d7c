"""Random access into genomes, and BED intervals over them."""

import gzip
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from longseq.domains.dna.genome import Genome, IntervalSequences
from longseq.domains.dna.sources import read_sequences
from longseq.domains.dna.tokenizer import NucleotideTokenizer, reverse_complement_text
from longseq.errors import DataError

LETTERS = {
    name: "".join(np.random.default_rng(i).choice(list("ACGTacgtN"), 137 + i)) for i, name in enumerate(("chr1", "chr2"))
}
DECODE = NucleotideTokenizer().decode


def _wrap(letters: str, width: int) -> str:
    return "\n".join(letters[i : i + width] for i in range(0, len(letters), width))


@pytest.fixture(params=["plain", "crlf", "one line", "uneven", "gzip"])
def fasta(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    width = 1000 if request.param == "one line" else 10
    content = "".join(f">{name} note\n{_wrap(letters, width)}\n" for name, letters in LETTERS.items())
    if request.param == "crlf":
        content = content.replace("\n", "\r\n")
    if request.param == "uneven":
        content = content.replace("\n", "", 3).replace(">chr1 note", ">chr1 note\n", 1)
    path = tmp_path / ("g.fa.gz" if request.param == "gzip" else "g.fa")
    path.write_bytes(gzip.compress(content.encode()) if request.param == "gzip" else content.encode())
    return path


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    path = tmp_path / "g.fa"
    path.write_text("".join(f">{name}\n{_wrap(letters, 10)}\n" for name, letters in LETTERS.items()), encoding="utf-8")
    return path


def test_fetch_is_slicing(fasta: Path, tmp_path: Path) -> None:
    genome = Genome(fasta, tmp_path / "cache")
    assert genome.names == ("chr1", "chr2")
    assert genome.lengths == {name: len(letters) for name, letters in LETTERS.items()}
    for name, letters in LETTERS.items():
        for start, end in ((0, 1), (9, 11), (0, 137), (10, 20), (5, 96), (136, 137)):
            assert DECODE(genome.fetch(name, start, end)) == letters[start:end].upper()
            assert DECODE(genome.fetch(name, start, end, "-")) == reverse_complement_text(letters[start:end].upper())
    again = pickle.loads(pickle.dumps(genome))
    assert DECODE(again.fetch("chr2", 3, 60)) == LETTERS["chr2"][3:60].upper()


def test_what_lies_outside_is_n(plain: Path) -> None:
    genome = Genome(plain)
    size = len(LETTERS["chr1"])
    assert DECODE(genome.fetch("chr1", -3, 2)) == "NNN" + LETTERS["chr1"][:2].upper()
    assert DECODE(genome.fetch("chr1", size - 1, size + 2)) == LETTERS["chr1"][-1].upper() + "NN"
    assert DECODE(genome.fetch("chr1", size + 5, size + 7)) == "NN"


def test_the_index_is_built_once_and_again_when_the_genome_changes(plain: Path) -> None:
    Genome(plain)
    index = plain.with_name("g.fa.fai")
    first = index.stat().st_mtime_ns
    Genome(plain)
    assert index.stat().st_mtime_ns == first
    plain.write_text(">only\nACGT\n", encoding="utf-8")
    os.utime(plain, ns=(first + 10**9, first + 10**9))
    assert Genome(plain).lengths == {"only": 4}


@pytest.mark.parametrize("damage", ["empty", "words", "cut", "first record alone", "another genome's"])
def test_an_index_that_is_damaged_or_of_another_file_is_made_anew(plain: Path, tmp_path: Path, damage: str) -> None:
    whole = Genome(plain, tmp_path)
    expected = {name: whole.fetch(name, 0, size) for name, size in whole.lengths.items()}
    index = plain.with_name(plain.name + ".fai")
    text = index.read_text()
    name, size, *rest = text.splitlines()[0].split("\t")
    other = "\t".join([name, str(int(size) - 1), *rest])
    content = {"empty": "", "words": "hello\n", "cut": text[:-8], "first record alone": text.splitlines()[0] + "\n"}
    index.write_text(content.get(damage, "\n".join([other, *text.splitlines()[1:]]) + "\n"))
    found = Genome(plain, tmp_path)
    assert found.lengths == whole.lengths
    for name, ids in expected.items():
        np.testing.assert_array_equal(found.fetch(name, 0, len(ids)), ids)


def test_bad_genomes(tmp_path: Path) -> None:
    path = tmp_path / "g.fa"
    for content, message in ((">a\nAC\n>a\nGT\n", "must be unique"), ("ACGT\n", "not a FASTA file"), ("", "the file is empty")):
        path.write_text(content, encoding="utf-8")
        with pytest.raises(DataError, match=message):
            Genome(path, tmp_path / "cache")
    with pytest.raises(DataError, match="must be FASTA"):
        Genome(tmp_path / "g.bed")
    path.write_text(">a\nMKLVEE\n", encoding="utf-8")
    with pytest.raises(DataError, match="a:0-6 is not DNA"):
        Genome(path).fetch("a", 0, 6)


def test_bed_with_strand_label_and_length(plain: Path, tmp_path: Path) -> None:
    bed = tmp_path / "x.bed"
    bed.write_text("track name=x\nchr1\t20\t30\tup\t0\t+\nchr2\t50\t61\tdown\t0\t-\nchr1\t0\t4\tup\t0\t.\n", encoding="utf-8")
    table = read_sequences(bed, genome=plain, label_column=4)
    one, two = LETTERS["chr1"].upper(), LETTERS["chr2"].upper()
    assert [DECODE(table.sequences[i]) for i in range(3)] == [one[20:30], reverse_complement_text(two[50:61]), one[:4]]
    assert table.labels is not None and table.labels.tolist() == ["up", "down", "up"]
    assert table.frame["chrom"].tolist() == ["chr1", "chr2", "chr1"]
    assert table.frame["start"].tolist() == [20, 50, 0]
    assert table.ids.tolist()[0] == "chr1:20-30"
    assert table.where(0) == f"{bed}, line 2"
    resized = read_sequences(bed, genome=plain, label_column=4, length=8)
    expected = [one[21:29], reverse_complement_text(two[51:59]), "NN" + one[:6]]
    assert [DECODE(resized.sequences[i]) for i in range(3)] == expected
    assert resized.sequences.lengths.tolist() == [8, 8, 8]
    part = resized.select([1])
    assert isinstance(part.sequences, IntervalSequences)
    assert DECODE(part.sequences[0]) == expected[1]


def test_bed_files_with_a_header_and_one_per_class(plain: Path, tmp_path: Path) -> None:
    header = tmp_path / "x.bed"
    header.write_text("#chrom\tstart\tend\tlabel\nchr1\t0\t5\ta\nchr2\t1\t5\tb\n", encoding="utf-8")
    assert read_sequences(header, genome=plain).labels.tolist() == ["a", "b"]  # type: ignore[union-attr]
    for name in ("on", "off"):
        (tmp_path / f"{name}.bed").write_text("chr1 0 5\nchr2 1 5\n", encoding="utf-8")
    table = read_sequences([tmp_path / "on.bed", tmp_path / "off.bed"], genome=plain)
    assert table.labels is not None and table.labels.tolist() == ["on", "on", "off", "off"]
    assert DECODE(table.sequences[3]) == LETTERS["chr2"][1:5].upper()


def test_tables_of_intervals(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("chr,start,stop,strand,label\nchr1,2,9,-,1\n", encoding="utf-8")
    table = read_sequences(path, genome=plain)
    assert DECODE(table.sequences[0]) == reverse_complement_text(LETTERS["chr1"][2:9].upper())
    assert table.frame.columns.tolist() == ["chrom", "start", "end", "strand", "label"]


BAD_BED = {
    "beyond the end": (
        "chr1\t0\t5\nchr1\t130\t138\n",
        r"line 2: interval chr1:130-138 lies beyond the chromosome's end at 137",
    ),
    "without chr": (
        "1\t0\t5\n",
        r"line 1: unknown chromosome '1'; the genome calls it 'chr1': its names are written with 'chr'",
    ),
    "unknown": ("chr7\t0\t5\n", r"unknown chromosome 'chr7'.*the genome has chr1, chr2"),
    "no bases": ("chr1\t5\t5\n", r"line 1: interval 5-5 has no bases"),
    "not a number": ("chr1\tfive\t9\n", r"line 1: start is 'five'"),
    "two columns": ("chr1\t5\n", r"line 1: found 2 columns, expected 3"),
    "ragged": ("chr1\t5\t9\ta\nchr1\t5\t9\n", r"line 2: found 3 columns, expected 4"),
    "nothing": ("track x\n", "holds no interval"),
    "strand": ("#chrom\tstart\tend\tstrand\nchr1\t1\t4\tplus\n", r"line 2: strand 'plus'"),
}


@pytest.mark.parametrize("case", BAD_BED)
def test_bad_bed(plain: Path, tmp_path: Path, case: str) -> None:
    content, message = BAD_BED[case]
    bed = tmp_path / "x.bed"
    bed.write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=message) as caught:
        read_sequences(bed, genome=plain)
    assert str(bed) in str(caught.value)


def test_names_with_chr_against_a_genome_without(tmp_path: Path) -> None:
    genome, bed = tmp_path / "g.fa", tmp_path / "x.bed"
    genome.write_text(">1\nACGTACGT\n>MT\nACGT\n", encoding="utf-8")
    for name, other in (("chr1", "'1'"), ("chrM", "'MT'")):
        bed.write_text(f"{name}\t0\t3\n", encoding="utf-8")
        with pytest.raises(DataError, match=f"calls it {other}: its names are written without 'chr'"):
            read_sequences(bed, genome=genome)


def test_peaks_have_named_columns(plain: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.narrowPeak"
    path.write_text("chr1\t2\t9\tp\t0\t.\t7.5\t3\t2\t4\n", encoding="utf-8")
    table = read_sequences(path, genome=plain, label_column="signal_value")
    assert table.labels is not None and table.labels.tolist() == ["7.5"]


def test_a_folder_that_cannot_be_written(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_writable(path: Path, mode: int, access: Callable[..., bool] = os.access) -> bool:
        return mode != os.W_OK and access(path, mode)

    monkeypatch.setattr(os, "access", not_writable)
    genome = Genome(plain, tmp_path / "cache")
    assert not plain.with_name("g.fa.fai").exists()
    assert DECODE(genome.fetch("chr1", 0, 4)) == LETTERS["chr1"][:4].upper()
