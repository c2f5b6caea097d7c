"""What a model is asked for along a sequence: tracks over bins, labels of bases; read when a row is asked for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from longseq.domains.base import Rows
from longseq.domains.dna.annotation import Annotation
from longseq.domains.dna.sequences import SequenceStore, SequenceTable
from longseq.domains.dna.tokenizer import N_ID, reverse_complement_ids
from longseq.domains.dna.tracks import Track
from longseq.domains.loading import row_generator
from longseq.domains.tasks import IGNORE
from longseq.errors import DataError


class Targets(Protocol):
    """Targets of rows, in the direction in which the rows are read."""

    def __getitem__(self, index: int, /) -> NDArray[Any]:
        """(bins, T) float32, NaN where there is none; or (L,) int64."""
        ...

    def turn(self, values: NDArray[Any], /) -> NDArray[Any]:
        """The same as read from the other strand."""
        ...


class TrackTargets:
    """Tracks over the bins of intervals.

    Args:
        intervals: The rows; their lengths are multiples of the bin.
        tracks: The T tracks.
        bin_size: Bases of a bin.
        other_strand: The track that takes each track's place on the other strand; None if that is itself.
    """

    def __init__(
        self, intervals: Any, tracks: Sequence[Track], bin_size: int, other_strand: Sequence[int] | None = None
    ) -> None:
        self.intervals, self.tracks, self.bin_size = intervals, list(tracks), bin_size
        self.order = list(range(len(self.tracks))) if other_strand is None else list(other_strand)

    def __getitem__(self, index: int) -> NDArray[np.float32]:
        chrom, start, end = (getattr(self.intervals, name)[index] for name in ("chroms", "starts", "ends"))
        n_bins = int(end - start) // self.bin_size
        values = np.stack([track.bins(chrom, int(start), n_bins, self.bin_size) for track in self.tracks], -1)
        edges = int(start) + self.bin_size * np.arange(n_bins)
        # Bins outside of the chromosome have no value.
        values[(edges + self.bin_size <= 0) | (edges >= self.intervals.genome.lengths[chrom])] = np.nan
        return self.turn(values) if self.intervals.strands[index] == "-" else values

    def turn(self, values: NDArray[Any]) -> NDArray[Any]:
        """Reversed, with the tracks of the other strand."""
        return np.ascontiguousarray(values[::-1, self.order])


class AnnotationTargets:
    """Label numbers of the bases of intervals; bases outside of the chromosome have none.

    Args:
        intervals: The rows.
        annotation: The labels.
    """

    def __init__(self, intervals: Any, annotation: Annotation) -> None:
        self.intervals, self.annotation = intervals, annotation

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        chrom, start, end = (getattr(self.intervals, name)[index] for name in ("chroms", "starts", "ends"))
        strand = str(self.intervals.strands[index])
        codes = self.annotation.codes(chrom, int(start), int(end), strand)
        place = np.arange(int(start), int(end))
        codes[(place < 0) | (place >= self.intervals.genome.lengths[chrom])] = IGNORE
        return self.turn(codes) if strand == "-" else codes

    def turn(self, values: NDArray[Any]) -> NDArray[Any]:
        """Reversed."""
        return np.ascontiguousarray(values[::-1])


class StringTargets:
    """Label numbers that stand in a column: a letter for each base, or words between blanks or commas.

    Args:
        codes: Numbers of each row's bases.
    """

    def __init__(self, codes: Sequence[NDArray[np.int64]]) -> None:
        self.codes = list(codes)

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        return self.codes[index]

    def turn(self, values: NDArray[Any]) -> NDArray[Any]:
        """Reversed."""
        return np.ascontiguousarray(values[::-1])


def split_label_string(text: str, length: int) -> list[str] | None:
    """The labels of `length` bases in one cell; None if it holds another number of them."""
    if len(text) == length:
        return list(text)
    words = [word for word in re.split(r"[\s,;]+", text.strip()) if word]
    return words if len(words) == length else None


def string_words(table: SequenceTable) -> list[list[str]]:
    """The labels of every base of every row.

    Raises:
        DataError: The data have no labels, or a row has another number of labels than bases.
    """
    if table.labels is None or table.labels.ndim != 1:
        raise DataError(
            f"{', '.join(table.files[:3])}: task=base_labels needs one column with a letter for each base "
            "(data.label_column), or data.annotation with a genome"
        )
    found = []
    for i, cell in enumerate(table.labels.tolist()):
        words = split_label_string(str(cell), int(table.sequences.lengths[i]))
        if words is None:
            raise DataError(
                f"{table.where(i)}: {table.label_names[0]!r} holds {len(str(cell))} letters for "
                f"{table.sequences.lengths[i]} bases, where one label for each base was expected"
            )
        found.append(words)
    return found


def encode_words(table: SequenceTable, words: list[list[str]], names: Sequence[str]) -> StringTargets:
    """Numbers of labels.

    Raises:
        DataError: A label that train does not have.
    """
    numbers = {name: i for i, name in enumerate(names)}
    codes = []
    for i, row in enumerate(words):
        unknown = next((word for word in row if word not in numbers), None)
        if unknown is not None:
            raise DataError(f"{table.where(i)}: label {unknown!r} is not among those of train, {list(names)[:12]}")
        codes.append(np.array([numbers[word] for word in row], dtype=np.int64))
    return StringTargets(codes)


class TargetRows(Rows):
    """Sequences with targets along them.

    Args:
        store: The token ids.
        targets: Of the same rows.
        seed: Of the augmentation.
        max_length: Longer sequences give their middle; only for targets of single bases.
        augment: Read half of the rows from the other strand, chosen by (seed, epoch, row).
    """

    def __init__(
        self, store: SequenceStore, targets: Targets, *, seed: int, max_length: int | None = None, augment: bool = False
    ) -> None:
        self.store, self.targets, self.seed, self.max_length, self.augment = store, targets, seed, max_length, augment
        lengths = np.asarray(store.lengths)
        self.lengths = lengths if max_length is None else np.minimum(lengths, max_length)

    def __getitem__(self, index: int) -> dict[str, Any]:
        ids, values = self.store[index], self.targets[index]
        if self.max_length is not None and len(ids) > self.max_length:
            start = (len(ids) - self.max_length) // 2
            ids, values = ids[start : start + self.max_length], values[start : start + self.max_length]
        if values.ndim == 1:
            # Nobody knows what a base is that nobody has read.
            values = np.where(ids == N_ID, IGNORE, values)
        if self.augment and row_generator(self.seed, self.epoch, index).random() < 0.5:
            ids, values = reverse_complement_ids(ids), self.targets.turn(values)
        return {"ids": ids, "targets": values, "index": index}


class MemoryGenome:
    """A genome in memory with the interface of `Genome`, for the demo and for tests.

    Args:
        sequences: Token ids of every record.
        names: The records' names.
    """

    def __init__(self, sequences: Sequence[NDArray[np.uint8]], names: Sequence[str]) -> None:
        self.path = "demo genome"
        self._records = dict(zip(names, sequences, strict=True))
        self.lengths = {name: len(ids) for name, ids in self._records.items()}

    @property
    def names(self) -> tuple[str, ...]:
        """The records."""
        return tuple(self._records)

    def fetch(self, name: str, start: int, end: int, strand: str = "+") -> NDArray[np.uint8]:
        """The token ids of an interval; what lies outside the record is N."""
        ids = np.full(end - start, N_ID, dtype=np.uint8)
        first, last = max(start, 0), min(end, self.lengths[name])
        if first < last:
            ids[first - start : last - start] = self._records[name][first:last]
        return reverse_complement_ids(ids) if strand == "-" else ids
