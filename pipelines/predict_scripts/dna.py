"""The DNA part of predict.py."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.answers import records
from longseq.pipelines.predict_scripts.shared import InputError, Model, Row
from longseq.pipelines.predict_scripts.tables import read_table, read_text

# -- behind this line goes into predict.py


FASTA, FASTQ = (".fa", ".fasta", ".fna", ".ffn", ".frn", ".fas"), (".fq", ".fastq")
COMPRESSED = (".gz", ".bgz", ".bgzf")
NOT_READ = (".bed", ".narrowpeak", ".broadpeak", ".gb", ".gbk", ".gbff", ".genbank", ".vcf", ".2bit")


class Domain:
    """Reads FASTA and FASTQ, csv and tsv tables, and plain text with a sequence on each line; all also gzipped.

    Args:
        model: the graph.
        options: of the command line.
    """

    FILES = "FASTA, FASTQ, csv or tsv (a column `sequence`), or text with one sequence a line; also .gz"
    records = staticmethod(records)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """What only DNA has."""
        parser.add_argument("--column", help="the column with the letters in csv and tsv files; as in training if unset")

    def __init__(self, model: Model, options: Any) -> None:
        tokenizer = model.config["tokenizer"]
        vocabulary = tokenizer["vocab"]
        # How the files of the training were read.
        self.reading = model.config.get("reading", {})
        self.model, self.column = model, str(options.column or self.reading.get("sequence_column", "sequence"))
        self.stride = int(model.config.get("bin_size", 1))
        self.pad = vocabulary["[PAD]"]
        self.unknown = vocabulary["[UNK]"]
        self.bases = [vocabulary[letter] for letter in "ACGT"]
        self.before = [vocabulary["[CLS]"]] if tokenizer.get("add_cls") else []
        self.behind = [vocabulary["[SEP]"]] if tokenizer.get("add_sep") else []
        # With invalid=N any other character was read as N.
        other = vocabulary["N"] if self.reading.get("invalid") == "N" else self.unknown
        self.table = np.full(256, other, dtype=np.int64)
        for character, number in tokenizer["characters"].items():
            self.table[ord(character)] = number

    def rows(self, path: Path) -> Iterator[Row]:
        """One row per sequence or window; one that is too long gives its middle if one answer is for all of it."""
        for name, letters in self.sequences(path):
            ids = self.table[np.frombuffer(letters.encode("ascii", "replace"), dtype=np.uint8)]
            if not len(ids):
                raise InputError(f"{path}, {name}: the sequence is empty")
            if (ids == self.unknown).any():
                place = int(np.argmax(ids == self.unknown))
                raise InputError(f"{path}, {name}: {letters[place]!r} at base {place + 1} is no nucleotide code")
            for places, start, stop in self.stretches(len(ids)):
                inputs = np.concatenate([self.before, ids[start:stop], self.behind]).astype(np.int64)
                yield Row({"id": name, **places, "length": stop - start}, inputs, np.isin(inputs, self.bases))

    def stretches(self, length: int) -> Iterator[tuple[dict[str, int], int, int]]:
        """What is read of a sequence, with columns that say where it is: windows if the model was trained on windows."""
        size = None if self.model.along else self.reading.get("window")
        if size is None:
            yield {}, *self.model.middle(length, len(self.before) + len(self.behind))
            return
        room, step = max(0, length - size), self.reading.get("stride") or max(1, size // 2)
        for k in range(-(-room // step) + 1):
            start = min(k * step, room)
            stop = min(length, start + size)
            yield {"start": start, "end": stop}, start, stop

    def sequences(self, path: Path) -> Iterator[tuple[str, str]]:
        """Names and letters."""
        suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() not in COMPRESSED]
        suffix = suffixes[-1] if suffixes else ""
        if suffix in (".csv", ".tsv"):
            yield from self.cells(path)
            return
        if suffix in NOT_READ:
            raise InputError(f"{path}: a file that `longseq predict` reads and this script does not; it reads {self.FILES}")
        lines = [line.strip() for line in read_text(path).splitlines()]
        if suffix in FASTA or (suffix not in FASTQ and lines[0].startswith(">")):
            yield from fasta(path, lines)
        elif suffix in FASTQ:
            yield from fastq(path, lines)
        else:
            yield from ((str(i), line) for i, line in enumerate(lines, start=1) if line)

    def cells(self, path: Path) -> Iterator[tuple[str, str]]:
        """Letters of a table; named by a column, or by their lines in the file, of which the first is the header."""
        table = read_table(path, bool(self.reading.get("header", True)))
        place = table.place(self.column, "--column")
        names = [str(line) for line in table.lines]
        if (own := self.reading.get("id_column")) is not None and str(own) in table.header:
            names = [row[table.place(str(own), "--column")] for row in table.rows]
        yield from zip(names, (row[place] for row in table.rows), strict=True)


def fasta(path: Path, lines: list[str]) -> Iterator[tuple[str, str]]:
    """The records of a FASTA file."""
    name, parts = None, []
    for line in lines:
        if line.startswith(">"):
            if name is not None:
                yield name, "".join(parts)
            name, parts = (line[1:].split() or [""])[0], []
        elif name is None and line:
            raise InputError(f"{path}: does not begin with a '>' line, so it is no FASTA file")
        else:
            # Some files number or group their letters by blanks.
            parts.append("".join(line.split()))
    if name is not None:
        yield name, "".join(parts)


def fastq(path: Path, lines: list[str]) -> Iterator[tuple[str, str]]:
    """The records of a FASTQ file of four lines each: a name behind @, letters, a +, and as many qualities as letters."""
    while lines and not lines[-1]:
        lines.pop()
    for i in range(0, len(lines), 4):
        name, letters, plus, qualities = (*lines[i : i + 4], "", "", "")[:4]
        if not name.startswith("@") or not plus.startswith("+") or len(qualities) != len(letters):
            raise InputError(
                f"{path}, line {i + 1}: not a FASTQ record of @name, letters, + and as many qualities; is it cut off?"
            )
        yield (name[1:].split() or [""])[0], letters
