"""Rows for tasks that answer along the sequence: intervals or windows of a genome with tracks or labels of bases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longseq.domains.dna.annotation import Annotation, read_annotation
from longseq.domains.dna.formats import FASTA_SUFFIXES, file_format
from longseq.domains.dna.genome import Genome, IntervalSequences, unknown_chromosome
from longseq.domains.dna.record_windows import RecordWindows
from longseq.domains.dna.sequences import Sequences, SequenceTable
from longseq.domains.dna.splits import split_regions
from longseq.domains.dna.targets import (
    AnnotationTargets,
    TargetRows,
    Targets,
    TrackTargets,
    encode_words,
    string_words,
)
from longseq.domains.dna.tracks import Track, check_chromosomes, check_lengths, open_tracks
from longseq.domains.tasks import IGNORE
from longseq.errors import ConfigError, DataError

POSITION_TASKS = ("profile", "base_labels")
SAMPLE = 500


@dataclass(frozen=True)
class PositionOptions:
    """What stands along the sequences; the options of `DNAData` by the same names."""

    tracks: Any = None
    bin_size: int = 128
    other_strand: Sequence[int] | None = None
    annotation: str | None = None
    features: Any = None
    label_column: Any = None


def is_genome(source: Any) -> bool:
    """Whether `data.train` is a whole genome, whose windows are the rows."""
    return isinstance(source, str | Path) and file_format(Path(source)) in FASTA_SUFFIXES


def genome_windows(
    path: str | Path,
    *,
    window: int,
    stride: int | None,
    val_chroms: Sequence[str],
    test_chroms: Sequence[str],
    fractions: Mapping[str, float],
    cache_dir: str | None,
) -> dict[str, SequenceTable]:
    """Windows of a genome, split by chromosome or by the last stretch of every record; a short rest is left out.

    Raises:
        DataError: No window fits into a part.
    """
    genome = Genome(Path(path).expanduser(), cache_dir)
    names = genome.names
    offsets = np.concatenate([[0], np.cumsum(list(genome.lengths.values()))]).astype(np.int64)
    # Only the lengths are asked for; the bases stay in the file.
    lengths = Sequences(np.empty(0, np.uint8), offsets)
    shares = {f"{name}_fraction": share for name, share in fractions.items()}
    regions = split_regions(lengths, names, val_chroms=val_chroms, test_chroms=test_chroms, **shares)
    tables = {}
    for part, found in regions.items():
        step = stride or window if part == "train" else window
        spans = [(names[r.record], s) for r in found for s in range(r.start, r.end - window + 1, step)]
        if not spans:
            longest = max((r.end - r.start for r in found), default=0)
            raise DataError(
                f"{path}: no window of {window} bases fits into {part}, whose longest stretch has {longest}; choose a smaller "
                "data.window, a larger fraction, or data.val_chroms and data.test_chroms"
            )
        starts = np.array([start for _, start in spans], dtype=np.int64)
        tables[part] = interval_table(genome, np.array([name for name, _ in spans], dtype=object), starts, window, str(path))
    return tables


def interval_table(genome: Any, chroms: NDArray[Any], starts: NDArray[np.int64], window: int, file: str) -> SequenceTable:
    """Equal windows of a genome as a table without labels."""
    ends, strands = starts + window, np.full(len(starts), ".", dtype=object)
    frame = pd.DataFrame({"chrom": chroms, "start": starts, "end": ends, "strand": strands})
    ids = np.array([f"{c}:{s}-{e}" for c, s, e in zip(chroms, starts, ends, strict=True)], dtype=object)
    store = IntervalSequences(genome, chroms, starts, ends, strands)
    lines = np.arange(1, len(ids) + 1)
    return SequenceTable(store, ids, None, (), frame, (file,), np.zeros(len(ids), np.int32), lines, "window")


# -- tracks


def read_tracks(options: PositionOptions, tables: Mapping[str, SequenceTable], counts: dict[str, Any]) -> list[Track]:
    """Opens the tracks and checks that they are of the rows' genome."""
    tracks = open_tracks(options.tracks)
    wanted = [str(name) for table in tables.values() for name in pd.unique(intervals_of(table).chroms)]
    genomes = {store.genome.path: store.genome for store in (intervals_of(table) for table in tables.values())}
    for track in tracks:
        for path, genome in genomes.items():
            check_lengths(track, genome.lengths, str(path))
        if absent := check_chromosomes(track, wanted):
            counts[f"track {track.name}"] = f"no values on {', '.join(absent[:8])}; they count as 0"
    if options.other_strand is not None and sorted(options.other_strand) != list(range(len(tracks))):
        raise ConfigError(
            f"data.other_strand must give for each of the {len(tracks)} tracks the number (from 0) of its partner, "
            f"such as [1, 0]; found {list(options.other_strand)}"
        )
    return tracks


def intervals_of(table: SequenceTable) -> Any:
    """The table's intervals.

    Raises:
        DataError: The sequences have no coordinates.
    """
    if not isinstance(table.sequences, IntervalSequences):
        raise DataError(
            f"{', '.join(table.files[:3])}: sequences without coordinates; tracks and annotations need intervals "
            "(BED, or columns chrom, start, end) with data.genome, or a genome FASTA as data.train"
        )
    return table.sequences


def track_rows(table: SequenceTable, tracks: Sequence[Track], options: PositionOptions, **rest: Any) -> TargetRows:
    """Rows with tracks.

    Raises:
        DataError: Lengths differ, or the bin does not divide them.
    """
    intervals = intervals_of(table)
    sizes = np.unique(intervals.lengths)
    if len(sizes) > 1:
        raise DataError(
            f"{', '.join(table.files[:3])}: intervals of {sizes[0]} to {sizes[-1]} bases; profiles need one length: "
            "set data.length"
        )
    if sizes[0] % options.bin_size:
        raise ConfigError(
            f"data.bin_size={options.bin_size} does not divide the rows' {sizes[0]} bases; choose data.length or it anew"
        )
    targets = TrackTargets(intervals, tracks, options.bin_size, options.other_strand)
    return TargetRows(intervals, targets, **rest)


def track_means(table: SequenceTable, tracks: Sequence[Track]) -> NDArray[np.float32]:
    """The mean of every track over every interval, (N, T)."""
    store = intervals_of(table)
    spans = zip(store.chroms, store.starts, store.ends, strict=True)
    means = [[float(track.bins(c, int(s), 1, int(e - s))[0]) for track in tracks] for c, s, e in spans]
    return np.array(means, dtype=np.float32)


def track_statistics(rows: TargetRows) -> dict[str, Any]:
    """Mean and standard deviation of every track's bins and their smallest value, from up to 500 rows evenly spread."""
    values = np.concatenate([rows.targets[i] for i in sample_rows(len(rows))])
    return {
        "mean": np.nanmean(values, 0).tolist(),
        "std": np.nanstd(values, 0).tolist(),
        "smallest": float(np.nanmin(values)),
    }


def sample_rows(n: int, most: int = SAMPLE) -> list[int]:
    """Row numbers, evenly spread."""
    return np.unique(np.linspace(0, n - 1, min(most, n)).astype(np.int64)).tolist()


# -- labels of bases


def annotation_rows(
    tables: Mapping[str, SequenceTable], options: PositionOptions, window: int | None, stride: int | None, **rest: Any
) -> tuple[dict[str, TargetRows], tuple[str, ...], str]:
    """Rows with the labels of an annotation, the labels, and the background's name."""
    path = Path(str(options.annotation)).expanduser()
    column = None if options.label_column == "label" else options.label_column
    annotation = Annotation(read_annotation(path, options.features, column))
    wanted = [str(name) for table in tables.values() for name in pd.unique(intervals_of(table).chroms)]
    if not set(wanted) & set(annotation.chroms):
        raise DataError(f"{path}: no feature on any chromosome of the rows: {unknown_chromosome(wanted[0], annotation.chroms)}")
    genome = intervals_of(next(iter(tables.values()))).genome
    for chrom in annotation.chroms:
        # Features may run over the end of a circular chromosome, but none begins there.
        if chrom in genome.lengths and annotation.last_start(chrom) >= genome.lengths[chrom]:
            raise DataError(
                f"{path}: a feature on {chrom} begins at base {annotation.last_start(chrom) + 1:,}, behind the chromosome's "
                f"end at {genome.lengths[chrom]:,} in {genome.path}; is the annotation of the same assembly?"
            )
    rows = {}
    for name, table in tables.items():
        targets = AnnotationTargets(intervals_of(table), annotation)
        rows[name] = cut_rows(name, table, targets, window, stride, **rest)
    return rows, annotation.names, annotation.names[0]


def cut_rows(
    name: str,
    table: SequenceTable,
    targets: Targets,
    window: int | None,
    stride: int | None,
    augment: bool = False,
    **rest: Any,
) -> TargetRows:
    """Rows of a part, longer sequences cut into windows; only training rows are augmented and overlap."""
    rest["augment"] = augment and name == "train"
    if window is None or int(table.sequences.lengths.max()) <= window:
        return TargetRows(table.sequences, targets, **rest)
    windows = RecordWindows(table.sequences, window, stride if name == "train" else None)
    return TargetRows(windows, WindowTargets(windows, targets), **rest)


class WindowTargets:
    """Targets of windows of records.

    Args:
        windows: Of the records.
        targets: Of the records.
    """

    def __init__(self, windows: RecordWindows, targets: Targets) -> None:
        self.windows, self.targets = windows, targets

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        start, end = int(self.windows.starts[index]), int(self.windows.ends[index])
        return self.targets[int(self.windows.records[index])][start:end]

    def turn(self, values: NDArray[Any]) -> NDArray[Any]:
        """Reversed."""
        return self.targets.turn(values)


def string_rows(
    tables: Mapping[str, SequenceTable], window: int | None, stride: int | None, **rest: Any
) -> tuple[dict[str, TargetRows], tuple[str, ...], str]:
    """Rows whose labels stand in a column, the labels of train, and the most frequent one."""
    words = {name: string_words(table) for name, table in tables.items()}
    found, counts = np.unique(
        np.concatenate([np.array(row, dtype=object) for row in words["train"]]).astype(str), return_counts=True
    )
    names = tuple(found.tolist())
    rows = {}
    for name, table in tables.items():
        rows[name] = cut_rows(name, table, encode_words(table, words[name], names), window, stride, **rest)
    return rows, names, names[int(np.argmax(counts))]


def label_counts(rows: TargetRows, n_labels: int) -> list[int]:
    """How many bases each label has, in up to 500 rows evenly spread."""
    counts = np.zeros(n_labels, dtype=np.int64)
    for i in sample_rows(len(rows)):
        values = rows.targets[i]
        counts += np.bincount(values[values != IGNORE], minlength=n_labels)
    return counts.tolist()
