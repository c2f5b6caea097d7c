"""Labels of single bases from an annotation: BED, bedGraph, GFF3 or GTF; splice sites from the exons of transcripts."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longseq.domains.dna.bed import read_bed
from longseq.domains.dna.formats import BED_SUFFIXES, file_format, open_binary
from longseq.domains.dna.labels import as_numbers, label_text
from longseq.domains.dna.tables import find_column
from longseq.domains.dna.tracks import BEDGRAPH_SUFFIXES
from longseq.errors import ConfigError, DataError

GFF_SUFFIXES = (".gff", ".gff3", ".gtf")
NONE = "none"
SPLICE_SITES = "splice_sites"
_PARENT = re.compile(r"(?:^|;)\s*(?:Parent=|transcript_id[ =])\"?([^\";]+)")


@dataclass(frozen=True)
class Features:
    """Labelled stretches of a genome, 0-based and half open.

    Attributes:
        chroms: Chromosome of each, (N,).
        starts: First base, (N,).
        ends: Behind the last base, (N,).
        strands: "+", "-" or ".", (N,).
        labels: Text, (N,).
    """

    chroms: NDArray[Any]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    strands: NDArray[Any]
    labels: NDArray[Any]


def read_annotation(path: Path, features: str | Sequence[str] | None, label_column: str | int | None) -> Features:
    """Reads labelled stretches.

    Args:
        path: BED (the label is the fourth column unless `label_column` names another), bedGraph (the value is the
            label), GFF3 or GTF (the label is the feature's type), also gzipped.
        features: Types or labels to take; None for all; "splice_sites" makes donors and acceptors from the exons of a
            GFF3 or GTF: the last base of an exon and the first base of the next of the same transcript.
        label_column: Name or number of a BED file's label.

    Raises:
        DataError: The file cannot be read as its name says, or nothing in it is asked for.
    """
    suffix = file_format(path)
    if suffix in GFF_SUFFIXES:
        found = _read_gff(path, exons=features == SPLICE_SITES)
    elif suffix in BED_SUFFIXES or suffix in BEDGRAPH_SUFFIXES:
        if features == SPLICE_SITES:
            raise ConfigError(f"data.features={SPLICE_SITES} needs the exons of a GFF3 or GTF file, found {path}")
        found = _read_bed(path, 4 if label_column is None else label_column)
    else:
        known = ", ".join((*BED_SUFFIXES, *BEDGRAPH_SUFFIXES, *GFF_SUFFIXES))
        raise DataError(f"{path}: unknown annotation format {suffix or '(no suffix)'}; supported are {known}, also .gz")
    if features is None or features == SPLICE_SITES:
        return found
    wanted = [features] if isinstance(features, str) else [str(name) for name in features]
    for name in wanted:
        if name not in found.labels:
            raise DataError(f"{path}: data.features names {name!r}, but it holds {sorted(set(found.labels))[:20]}")
    chosen = np.isin(found.labels.astype(str), wanted)
    return Features(found.chroms[chosen], found.starts[chosen], found.ends[chosen], found.strands[chosen], found.labels[chosen])


def _read_bed(path: Path, column: str | int) -> Features:
    frame, lines = read_bed(path)
    labels = label_text(frame[find_column(frame, column, path, "label", "label_column")])
    spans = _spans(frame["start"], frame["end"], path, lines)
    if (labels == "").any():
        raise DataError(f"{path}, line {lines[int(np.argmax(labels == ''))]}: the label is empty")
    strands = np.full(len(frame), ".", dtype=object)
    if "strand" in frame:
        strands = np.where(np.isin(frame["strand"].to_numpy(dtype=str), ["+", "-"]), frame["strand"], ".").astype(object)
    return Features(frame["chrom"].to_numpy(dtype=object), spans[0], spans[1], strands, labels)


def _spans(
    starts: Any, ends: Any, path: Path, lines: NDArray[np.int64], origin: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    first, last = as_numbers(starts) - origin, as_numbers(ends)
    bad = ~(np.isfinite(first) & np.isfinite(last)) | (first < 0) | (last <= first)
    if bad.any():
        row = int(np.argmax(bad))
        raise DataError(f"{path}, line {lines[row]}: from {starts.iloc[row]} to {ends.iloc[row]} is not an interval with bases")
    return first.astype(np.int64), last.astype(np.int64)


def _read_gff(path: Path, *, exons: bool) -> Features:
    rows: list[list[str]] = []
    lines: list[int] = []
    with open_binary(path) as handle, io.TextIOWrapper(handle, encoding="utf-8", errors="replace") as text:
        for number, line in enumerate(text, start=1):
            if line.startswith("##FASTA"):
                break
            if line.startswith("#") or not line.strip():
                continue
            fields = line.rstrip("\r\n").split("\t")
            if len(fields) != 9:
                raise DataError(f"{path}, line {number}: {len(fields)} columns between tabs, where GFF and GTF have nine")
            rows.append(fields)
            lines.append(number)
    if not rows:
        raise DataError(f"{path}: the file holds no feature")
    frame = pd.DataFrame(rows, dtype=object)
    # GFF counts from 1 and includes the end.
    starts, ends = _spans(frame[3], frame[4], path, np.array(lines), origin=1)
    strands = np.where(np.isin(frame[6].to_numpy(dtype=str), ["+", "-"]), frame[6], ".").astype(object)
    found = Features(frame[0].to_numpy(dtype=object), starts, ends, strands, frame[2].to_numpy(dtype=object))
    return _splice_sites(found, frame[8].tolist(), path, lines) if exons else found


def _splice_sites(found: Features, attributes: list[str], path: Path, lines: list[int]) -> Features:
    """Donors and acceptors of every transcript with two exons or more, each once."""
    transcripts: dict[str, list[int]] = {}
    for row in np.flatnonzero(found.labels == "exon").tolist():
        match = _PARENT.search(attributes[row])
        if match is None:
            raise DataError(f"{path}, line {lines[row]}: the exon names no transcript (Parent= or transcript_id)")
        for parent in match[1].split(","):
            transcripts.setdefault(f"{found.chroms[row]} {parent}", []).append(row)
    sites: set[tuple[str, int, str, str]] = set()
    for rows in transcripts.values():
        ordered = sorted(rows, key=lambda row: int(found.starts[row]))
        for before, behind in pairwise(ordered):
            chrom, strand = str(found.chroms[before]), str(found.strands[before])
            # The intron's left side is its end on the minus strand.
            left, right = ("acceptor", "donor") if strand == "-" else ("donor", "acceptor")
            sites.add((chrom, int(found.ends[before]) - 1, strand, left))
            sites.add((chrom, int(found.starts[behind]), strand, right))
    if not sites:
        raise DataError(f"{path}: no transcript has two exons, so there is no splice site")
    chroms, starts, strands, labels = (np.array(column, dtype=object) for column in zip(*sorted(sites), strict=True))
    return Features(chroms, starts.astype(np.int64), starts.astype(np.int64) + 1, strands, labels)


class Annotation:
    """Label numbers of any stretch of a genome.

    Where features lie over each other the shorter one counts: an exon over its gene. A stretch that is read on one
    strand has the labels of that strand alone, and of features without a strand; one without a strand has all.

    Args:
        features: From `read_annotation`.

    Attributes:
        names: The labels; number 0 is "none".
    """

    def __init__(self, features: Features) -> None:
        self.names = (NONE, *sorted({str(label) for label in features.labels} - {NONE}))
        numbers = {name: i for i, name in enumerate(self.names)}
        codes = np.array([numbers[str(label)] for label in features.labels], dtype=np.int64)
        self._parts: dict[str, tuple[NDArray[Any], ...]] = {}
        for chrom in dict.fromkeys(features.chroms.tolist()):
            rows = np.flatnonzero(features.chroms == chrom)
            rows = rows[np.argsort(features.starts[rows], kind="stable")]
            starts, ends = features.starts[rows], features.ends[rows]
            self._parts[str(chrom)] = (starts, ends, codes[rows], features.strands[rows], np.maximum.accumulate(ends))

    @property
    def chroms(self) -> Sequence[str]:
        """The chromosomes with a feature."""
        return tuple(self._parts)

    def last_start(self, chrom: str) -> int:
        """First base of the chromosome's last feature, from 0."""
        return int(self._parts[chrom][0][-1])

    def codes(self, chrom: str, start: int, end: int, strand: str = ".") -> NDArray[np.int64]:
        """Label numbers of an interval, from left to right whatever the strand, (end - start,)."""
        codes = np.zeros(end - start, dtype=np.int64)
        if chrom not in self._parts:
            return codes
        starts, ends, labels, strands, reach = self._parts[chrom]
        first, last = np.searchsorted(reach, start, side="right"), np.searchsorted(starts, end)
        rows = np.arange(first, max(first, last))
        rows = rows[ends[rows] > start]
        if strand in ("+", "-"):
            rows = rows[np.isin(strands[rows].astype(str), [strand, "."])]
        for row in rows[np.argsort(starts[rows] - ends[rows], kind="stable")].tolist():
            codes[max(0, starts[row] - start) : ends[row] - start] = labels[row]
        return codes
