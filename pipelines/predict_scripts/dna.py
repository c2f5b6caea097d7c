"""The DNA part of predict.py."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from longseq.pipelines.predict_scripts.shared import InputError, Model, Row, open_text, read_csv, records

# -- behind this line goes into predict.py


FASTA, FASTQ = (".fa", ".fasta", ".fna", ".ffn"), (".fq", ".fastq")


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
        parser.add_argument("--column", default="sequence", help="the column with the letters in csv and tsv files")

    def __init__(self, model: Model, options: Any) -> None:
        tokenizer = model.config["tokenizer"]
        vocabulary = tokenizer["vocab"]
        self.model, self.column = model, options.column
        self.stride = int(model.config.get("bin_size", 1))
        self.pad = vocabulary["[PAD]"]
        self.unknown = vocabulary["[UNK]"]
        self.bases = [vocabulary[letter] for letter in "ACGT"]
        self.before = [vocabulary["[CLS]"]] if tokenizer.get("add_cls") else []
        self.behind = [vocabulary["[SEP]"]] if tokenizer.get("add_sep") else []
        self.table = np.full(256, self.unknown, dtype=np.int64)
        for character, number in tokenizer["characters"].items():
            self.table[ord(character)] = number

    def rows(self, path: Path) -> Iterator[Row]:
        """One row per sequence; those that are too long give their middle, as in training."""
        for name, letters in self.sequences(path):
            ids = self.table[np.frombuffer(letters.encode("ascii", "replace"), dtype=np.uint8)]
            if not len(ids):
                raise InputError(f"{path}, {name}: the sequence is empty")
            if (ids == self.unknown).any():
                place = int(np.argmax(ids == self.unknown))
                raise InputError(f"{path}, {name}: {letters[place]!r} at base {place + 1} is no nucleotide code")
            inputs = np.concatenate([self.before, ids, self.behind]).astype(np.int64)
            longest = self.model.longest or len(inputs)
            start = max(0, len(inputs) - longest) // 2
            inputs = inputs[start : start + longest]
            yield Row({"id": name, "length": len(ids)}, inputs, np.isin(inputs, self.bases))

    def sequences(self, path: Path) -> Iterator[tuple[str, str]]:
        """Names and letters."""
        suffixes = [suffix.lower() for suffix in path.suffixes if suffix.lower() != ".gz"]
        suffix = suffixes[-1] if suffixes else ""
        if suffix in FASTA:
            yield from self.fasta(path)
        elif suffix in FASTQ:
            with open_text(path) as file:
                lines = [line.strip() for line in file if line.strip()]
            for i in range(0, len(lines) - 3, 4):
                yield lines[i][1:].split()[0], lines[i + 1]
        elif suffix in (".csv", ".tsv"):
            header, cells = read_csv(path)
            if self.column not in header:
                raise InputError(
                    f"{path}: there is no column {self.column!r}, it has {', '.join(header)}; name it with --column"
                )
            place = header.index(self.column)
            # Named by their lines in the file, of which the first is the header.
            yield from ((str(i), row[place].strip()) for i, row in enumerate(cells, start=2))
        else:
            with open_text(path) as file:
                yield from ((str(i), line.strip()) for i, line in enumerate(file, start=1) if line.strip())

    @staticmethod
    def fasta(path: Path) -> Iterator[tuple[str, str]]:
        """The records of a FASTA file."""
        name, parts = None, []
        with open_text(path) as file:
            for line in file:
                if line.startswith(">"):
                    if name is not None:
                        yield name, "".join(parts)
                    name, parts = line[1:].strip().split(" ")[0].split("\t")[0], []
                elif name is None and line.strip():
                    raise InputError(f"{path}: does not begin with a '>' line, so it is no FASTA file")
                else:
                    parts.append(line.strip())
        if name is not None:
            yield name, "".join(parts)
