"""Seeded synthetic data for the tasks beside classification: quantities, several labels, tracks and labels of bases."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from longseq.domains.dna.annotation import Features
from longseq.domains.dna.demo import MOTIFS, make_pairing_task
from longseq.domains.dna.positions import interval_table
from longseq.domains.dna.sequences import SequenceTable, concatenate_tables
from longseq.domains.dna.targets import MemoryGenome
from longseq.domains.dna.tokenizer import A_ID, encode_bytes

ABOUT = {
    "regression": "the number of pairs of motifs that are turned towards each other",
    "multilabel": "whether two motifs point at each other, and whether the sequence holds many of them",
    "profile": "coverage that rises around one motif, and falls where another one follows it",
    "base_labels": "the first bases of a motif's copies, of two kinds by which motif comes next behind",
}
WINDOW = 512
NAMES = ("chr1", "chr2", "chr3")


def make_labelled(task: str, n_train: int, n_other: int, seed: int) -> SequenceTable:
    """Rows of the pairing task with a quantity or two labels, and a "split" column.

    The pairs differ in how many there are, so that both tasks have something that k-mers tell, and something they do not.
    """
    few, many = (
        make_pairing_task(n_train // 2, n_other // 2, n_other // 2, n_pairs=n, n_copies=4, seed=seed + n) for n in (1, 3)
    )
    tables = []
    for n_pairs, table in ((1, few), (3, many)):
        convergent = np.array([label == "convergent" for label in table.labels.tolist()])  # type: ignore[union-attr]
        if task == "regression":
            labels = np.array([f"{value:.2f}" for value in np.where(convergent, n_pairs, 0.0)], dtype=object)
            tables.append(replace(table, labels=labels, label_names=("pairs turned inwards",)))
        else:
            cells = np.stack([convergent, np.full(len(table), n_pairs > 1)], axis=1).astype(int).astype(str).astype(object)
            tables.append(replace(table, labels=cells, label_names=("inwards", "many")))
    table = concatenate_tables(tables)
    return table.select(np.random.default_rng(seed).permutation(len(table)))


def make_genome(length: int, seed: int) -> tuple[MemoryGenome, dict[str, list[tuple[int, int]]]]:
    """Three chromosomes of random bases with motifs in them, and where: (position, which motif) by chromosome."""
    rng = np.random.default_rng(seed)
    patterns = [encode_bytes(motif.encode()) for motif in MOTIFS]
    records: list[NDArray[np.uint8]] = []
    places: dict[str, list[tuple[int, int]]] = {}
    for name in NAMES:
        ids = (rng.integers(0, 4, length) + A_ID).astype(np.uint8)
        position, found = 50, []
        while (position := position + int(rng.integers(40, 200))) < length - 60:
            which = int(rng.integers(0, 2))
            ids[position : position + len(patterns[which])] = patterns[which]
            found.append((position, which))
        records.append(ids)
        places[name] = found
    return MemoryGenome(records, NAMES), places


def demo_windows(genome: MemoryGenome, window: int = WINDOW) -> dict[str, SequenceTable]:
    """Windows of the demo genome, a chromosome for each part but train, which has the longest."""
    sizes = {"train": NAMES[:1], "val": NAMES[1:2], "test": NAMES[2:]}
    tables = {}
    for part, names in sizes.items():
        # Val and test need not be as large as train.
        share = 1.0 if part == "train" else 0.3
        spans = [(name, s) for name in names for s in range(0, int(genome.lengths[name] * share) - window + 1, window)]
        chroms = np.array([name for name, _ in spans], dtype=object)
        starts = np.array([start for _, start in spans], dtype=np.int64)
        tables[part] = interval_table(genome, chroms, starts, window, "demo data")
    return tables


class DemoTrack:
    """Coverage around the first motif, half of it where the second motif is the next one behind.

    Args:
        genome: The demo genome.
        places: Its motifs.
        seed: Of the counting noise.
    """

    name, path = "coverage", "demo data"

    def __init__(self, genome: MemoryGenome, places: dict[str, list[tuple[int, int]]], seed: int) -> None:
        rng = np.random.default_rng(seed)
        bump = np.exp(-0.5 * (np.arange(-60, 61) / 20.0) ** 2)
        self.values: dict[str, NDArray[np.float64]] = {}
        for name, length in genome.lengths.items():
            rate = np.full(length + 120, 0.2)
            for (position, which), (_, following) in zip(places[name], [*places[name][1:], (0, 0)], strict=True):
                if which == 0:
                    rate[position + 6 : position + 6 + 121] += bump * (4.0 if following == 0 else 2.0)
            self.values[name] = rng.poisson(rate[60:-60]).astype(np.float64)

    @property
    def chroms(self) -> tuple[str, ...]:
        """The chromosomes."""
        return tuple(self.values)

    def end(self, chrom: str) -> int:
        """Bases of a chromosome."""
        return len(self.values[chrom])

    def bins(self, chrom: str, start: int, n_bins: int, bin_size: int) -> NDArray[np.float32]:
        """Means over bins."""
        part = self.values[chrom][start : start + n_bins * bin_size]
        return part.reshape(n_bins, bin_size).mean(1).astype(np.float32)


def demo_features(places: dict[str, list[tuple[int, int]]]) -> Features:
    """The first base of every copy of the first motif: `open` if the next motif behind is of the other kind, else `closed`."""
    rows: list[tuple[Any, ...]] = []
    for name, found in places.items():
        for (position, which), (_, following) in pairwise(found):
            if which == 0:
                rows.append((name, position, "open" if following else "closed"))
    chroms, starts, labels = (np.array(column, dtype=object) for column in zip(*rows, strict=True))
    first = starts.astype(np.int64)
    return Features(chroms, first, first + 1, np.full(len(first), ".", dtype=object), labels)
