"""Sequences to predict: read without labels, long ones cut into windows, and handed stretch by stretch to language models."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from longseq.domains.base import Rows
from longseq.domains.dna.bad_rows import BadRows
from longseq.domains.dna.formats import FASTA_SUFFIXES, file_format
from longseq.domains.dna.genome import IntervalSequences
from longseq.domains.dna.rows import targets
from longseq.domains.dna.sequences import SequenceTable
from longseq.domains.dna.sources import Source, read_sequences
from longseq.domains.dna.token_cache import build_token_cache
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.domains.likelihood import TokenSequences

# FASTA beyond this is read through the token cache, which is mapped from disk, not held in memory.
CACHED_BYTES = 1 << 28


def read_unlabelled(source: Source, options: dict[str, Any], bad: BadRows) -> SequenceTable:
    """The sequences of any supported source, without their labels; a large FASTA through the token cache."""
    files = large_fasta(source)
    # The cache holds whole files, without a record left out.
    if not files or bad.skip:
        return read_sequences(source, **{**options, "labels": "none"}, bad=bad)
    store = build_token_cache([str(file) for file in files], options["cache_dir"], invalid=options["invalid"])
    ids = np.array(store.names, dtype=object)
    return SequenceTable(
        sequences=store, ids=ids, labels=None, label_names=(), frame=pd.DataFrame({"header": ids}), files=tuple(map(str, files))
    )


def large_fasta(source: Source) -> list[Path]:
    """The files of a source that is all FASTA and large; empty for any other."""
    names = [source] if isinstance(source, (str, Path)) else list(source) if isinstance(source, Sequence) else []
    files: list[Path] = []
    for name in names:
        path = Path(name).expanduser()
        found = [path] if path.is_file() else sorted(map(Path, glob.glob(str(path))))  # noqa: PTH207  absolute patterns
        files += found
    fasta = bool(files) and all(file.is_file() and file_format(file) in FASTA_SUFFIXES for file in files)
    return files if fasta and sum(file.stat().st_size for file in files) > CACHED_BYTES else []


class UnlabelledRows(Rows):
    """Sequences, or windows of long ones, as rows to predict.

    Args:
        table: the sequences.
        max_length: the longest row that the model takes; None for any length.
        on_long: `crop` gives the middle of longer ones, `window` cuts them into windows.
        stride: bases from one window to the next; None for half a window.
    """

    def __init__(self, table: SequenceTable, *, max_length: int | None, on_long: str, stride: int | None) -> None:
        self.table = table
        lengths = table.sequences.lengths
        size = int(lengths.max()) if max_length is None else max_length
        self.windowed = on_long == "window" and bool((lengths > size).any())
        if not self.windowed:
            self.items = np.arange(len(table))
            self.starts = np.maximum(0, lengths - size) // 2
        else:
            self.items, self.starts = cut(lengths, size, stride or max(1, size // 2))
        self.lengths = np.minimum(lengths[self.items], size)

    def __getitem__(self, index: int) -> dict[str, Any]:
        start = int(self.starts[index])
        return {"ids": self.stretch(int(self.items[index]), start, start + int(self.lengths[index])), "index": index}

    def stretch(self, item: int, start: int, stop: int) -> np.ndarray:
        """Ids of a part of a sequence; of an interval only that part is fetched."""
        return stretch(self.table, item, start, stop)

    def names(self, index: np.ndarray) -> dict[str, Any]:
        """Id, place in the genome or in the sequence, and length of rows."""
        items = self.items[index]
        found: dict[str, Any] = {"id": self.table.ids[items].tolist()}
        starts = self.starts[index]
        if self.windowed:
            found |= window_places(self.table, items, starts, starts + self.lengths[index])
        else:
            for column in ("chrom", "start", "end", "strand"):
                if column in self.table.frame:
                    found[column] = self.table.frame[column].iloc[items].tolist()
        return {**found, "length": self.lengths[index]}


def cut(lengths: np.ndarray, size: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Item and first base of all windows; the last one of a sequence ends where the sequence ends."""
    room = np.maximum(0, lengths - size)
    counts = -(-room // stride) + 1
    items = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(items)) - np.repeat(np.cumsum(counts) - counts, counts)
    return items, np.minimum(number * stride, room[items])


def stretch(table: SequenceTable, item: int, start: int, stop: int) -> np.ndarray:
    """Ids of a part of a sequence; of an interval only that part is fetched."""
    store = table.sequences
    if not isinstance(store, IntervalSequences):
        return np.array(store[item][start:stop])
    first, last = genome_place(store, item, start, stop)
    return store.genome.fetch(store.chroms[item], first, last, store.strands[item])


def genome_place(store: IntervalSequences, item: int, start: int, stop: int) -> tuple[int, int]:
    """Where a part of an interval lies in the genome; on the other strand it counts from the interval's end."""
    begin, end = int(store.starts[item]), int(store.ends[item])
    return (end - stop, end - start) if store.strands[item] == "-" else (begin + start, begin + stop)


def window_places(table: SequenceTable, items: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> dict[str, Any]:
    """Coordinates of windows: in the genome for intervals, else in their own sequence; from 0, the end excluded."""
    store = table.sequences
    if not isinstance(store, IntervalSequences):
        return {"start": starts, "end": stops}
    placed = [genome_place(store, int(i), int(a), int(b)) for i, a, b in zip(items, starts, stops, strict=True)]
    return {
        "chrom": [store.chroms[int(i)] for i in items],
        "start": [first for first, _ in placed],
        "end": [last for _, last in placed],
        "strand": [store.strands[int(i)] for i in items],
    }


class GenomeSequences(TokenSequences):
    """Sequences as a language model reads them.

    Args:
        table: the sequences.
    """

    unit, pad_id, mask_id = "base", NucleotideTokenizer.pad_id, NucleotideTokenizer.mask_id

    def __init__(self, table: SequenceTable) -> None:
        self.table, self.lengths = table, table.sequences.lengths

    def ids(self, row: int, start: int, stop: int) -> np.ndarray:
        return stretch(self.table, row, start, stop)

    def targets(self, ids: np.ndarray) -> np.ndarray:
        # N and the like are nothing that could be predicted.
        return targets(ids, np.True_)

    def names(self, row: int) -> dict[str, Any]:
        return {"id": self.table.ids[row]}

    def places(self, row: int, starts: np.ndarray, stops: np.ndarray) -> dict[str, Any]:
        return window_places(self.table, np.full(len(starts), row), starts, stops)
