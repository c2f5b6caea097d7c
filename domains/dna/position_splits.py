"""The parts of a data set for tasks that answer along the sequence, from the user's files or from the demo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from longseq.domains.dna import demo_tasks
from longseq.domains.dna.annotation import NONE, Annotation
from longseq.domains.dna.positions import PositionOptions, annotation_rows, read_tracks, string_rows, track_rows
from longseq.domains.dna.sequences import SequenceTable
from longseq.domains.dna.targets import AnnotationTargets, TargetRows
from longseq.errors import ConfigError

# Bins narrower than a bump of the demo's coverage.
DEMO_BIN = 32


@dataclass(frozen=True)
class PositionSplits:
    """What a task along the sequence reads.

    Attributes:
        tables: the sequences of each part.
        rows: with their targets.
        labels: names of the tracks or of the labels.
        background: the label that most bases have.
        bin_size: bases of a bin.
    """

    tables: Mapping[str, SequenceTable]
    rows: Mapping[str, TargetRows]
    labels: tuple[str, ...]
    background: str
    bin_size: int


def read_splits(
    task: str,
    tables: Mapping[str, SequenceTable],
    options: PositionOptions,
    counts: dict[str, Any],
    *,
    window: int | None,
    stride: int | None,
    max_length: int | None,
    augment: bool,
    seed: int,
) -> PositionSplits:
    """Reads tracks, an annotation or a column of labels for the user's sequences.

    Args:
        task: `profile` or `base_labels`.
        tables: the sequences of each part.
        options: where the targets stand.
        counts: takes notes for the report.
        window: longer sequences are cut into windows of so many bases.
        stride: bases from one window to the next in train.
        max_length: longer sequences give their middle.
        augment: read half of the training rows from the other strand.
        seed: of the augmentation.
    """
    if task == "profile":
        if options.tracks is None:
            raise ConfigError("task=profile needs data.tracks: bedGraph or bigWig files")
        tracks = read_tracks(options, tables, counts)
        rows = {
            name: track_rows(table, tracks, options, augment=augment and name == "train", seed=seed)
            for name, table in tables.items()
        }
        return PositionSplits(tables, rows, tuple(track.name for track in tracks), NONE, options.bin_size)
    cut: dict[str, Any] = {"window": window, "stride": stride, "augment": augment, "seed": seed}
    cut["max_length"] = None if window else max_length
    found = annotation_rows(tables, options, **cut) if options.annotation is not None else string_rows(tables, **cut)
    return PositionSplits(tables, *found, options.bin_size)


def demo_splits(task: str, demo_rows: int, bin_size: int, *, augment: bool, seed: int) -> PositionSplits:
    """The embedded synthetic genome with its coverage or its sites.

    Args:
        task: `profile` or `base_labels`.
        demo_rows: windows of train.
        bin_size: bases of a bin, at most 32 here.
        augment: read half of the training rows from the other strand.
        seed: of the genome.
    """
    genome, places = demo_tasks.make_genome(demo_rows * demo_tasks.WINDOW, seed)
    tables = demo_tasks.demo_windows(genome)
    bin_size = min(bin_size, DEMO_BIN)
    track = demo_tasks.DemoTrack(genome, places, seed)
    annotation = Annotation(demo_tasks.demo_features(places))
    rows = {}
    for name, table in tables.items():
        rest: dict[str, Any] = {"seed": seed, "augment": augment and name == "train"}
        if task == "profile":
            rows[name] = track_rows(table, [track], PositionOptions(bin_size=bin_size), **rest)
        else:
            rows[name] = TargetRows(table.sequences, AnnotationTargets(table.sequences, annotation), **rest)
    labels = (track.name,) if task == "profile" else annotation.names
    return PositionSplits(tables, rows, labels, NONE, bin_size)
