"""Who is trained on and who is tested on: by a column, by chromosome, by group, or stratified at random.

Random windows of one genome, or the same sequence twice, make a test easy for the wrong reason; so there are rules by
chromosome and by group, and a check that counts test sequences that stand in train on either strand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longseq.domains.dna.bed import interval_names
from longseq.domains.dna.genome import IntervalSequences, unknown_chromosome
from longseq.domains.dna.sequences import Sequences, SequenceStore, SequenceTable
from longseq.domains.dna.sources import SPLIT_NAMES
from longseq.domains.dna.tables import find_column
from longseq.domains.dna.tokenizer import reverse_complement_ids
from longseq.domains.dna.windows import Region
from longseq.domains.loading import cut, in_fold
from longseq.errors import DataError


@dataclass(frozen=True)
class Split:
    """Row numbers of each part, ascending; val and test may be empty.

    Attributes:
        train: Rows to train on.
        val: Rows to choose by.
        test: Rows to report on.
        rule: How they were chosen, in words, for the report.
    """

    train: NDArray[np.int64]
    val: NDArray[np.int64]
    test: NDArray[np.int64]
    rule: str


def make_split(
    table: SequenceTable,
    *,
    split_column: str | None = None,
    val_chroms: Sequence[str] = (),
    test_chroms: Sequence[str] = (),
    group_column: str | None = None,
    val_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
) -> Split:
    """Splits one table by the first rule that is asked for: column, chromosome, group, random.

    Args:
        table: All data; where a test file is given, the rest, with test_fraction=0.
        split_column: Column that says train, val or test; a column "split" is used by itself.
        val_chroms, test_chroms: Chromosomes held out.
        group_column: Rows of one group (a patient, a gene family) stay in one part.
        val_fraction, test_fraction: Share of the rows, for the group and the random rule, and for the part whose
            chromosomes are not named.
        seed: Of what is drawn.

    Raises:
        DataError: The rule leaves a part empty that it should fill, or names what is not there.
    """
    if split_column is not None or (not val_chroms and not test_chroms and group_column is None and "split" in table.frame):
        return split_by_column(table, split_column or "split")
    if val_chroms or test_chroms:
        return split_by_chromosome(table, val_chroms, test_chroms, val_fraction, test_fraction, seed)
    if group_column is not None:
        return split_by_group(table, group_column, val_fraction, test_fraction, seed)
    return split_random(table, val_fraction, test_fraction, seed)


def split_by_column(table: SequenceTable, column: str = "split") -> Split:
    """Takes the parts from a column of train, val (valid, validation, dev) and test."""
    name = find_column(table.frame, column, _path(table), "split", "split_column")
    texts = table.frame[name].astype(str).str.strip().str.lower()
    parts = texts.map(SPLIT_NAMES)
    unknown = np.flatnonzero(parts.isna())
    if len(unknown):
        raise DataError(
            f"{table.where(int(unknown[0]))}: {table.frame[name].iloc[unknown[0]]!r} in {name!r}, "
            "where train, val (valid, validation, dev) or test was expected"
        )
    rows = {part: np.flatnonzero(parts == part) for part in ("train", "val", "test")}
    return _checked(table, rows["train"], rows["val"], rows["test"], f"by column {name!r}")


def split_by_chromosome(
    table: SequenceTable,
    val_chroms: Iterable[str],
    test_chroms: Iterable[str],
    val_fraction: float = 0.0,
    test_fraction: float = 0.0,
    seed: int = 0,
) -> Split:
    """Holds out whole chromosomes, the rule of the field; where only one part is named, the other is drawn from the rest."""
    frame = interval_names(table.frame)
    if "chrom" not in frame:
        raise DataError(f"{_path(table)}: no chrom column to split by; found {[str(column) for column in frame.columns]}")
    chroms = frame["chrom"].astype(str).to_numpy(dtype=object)
    known = list(dict.fromkeys(chroms))
    held_out = _held_out(val_chroms, test_chroms, known, str(_path(table)))
    for name, share in (("test", test_fraction), ("val", val_fraction)):
        if share > 0 and name not in held_out.values():
            held_out |= dict.fromkeys(_draw_chromosomes(chroms, held_out, share, seed), name)
    part = np.array([held_out.get(name, "train") for name in chroms], dtype=object)
    rows = {name: np.flatnonzero(part == name) for name in ("train", "val", "test")}
    return _checked(table, rows["train"], rows["val"], rows["test"], _chromosome_rule(held_out))


def split_by_group(table: SequenceTable, column: str, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Splits whole groups at random, until each part has its share of the rows."""
    _check_fractions(val_fraction, test_fraction)
    name = find_column(table.frame, column, _path(table), "group", "group_column")
    codes, groups = pd.factorize(table.frame[name].astype(str))
    wanted = {"test": test_fraction, "val": val_fraction}
    if len(groups) < 1 + sum(fraction > 0 for fraction in wanted.values()):
        raise DataError(f"{_path(table)}: {len(groups)} groups in {name!r} are too few to split; every part needs one")
    sizes = np.bincount(codes, minlength=len(groups))
    order = list(np.random.default_rng(seed).permutation(len(groups)))
    part_of_group = np.zeros(len(groups), dtype=np.int64)
    if in_fold():
        for i, chosen in enumerate(cut(np.array(order), val_fraction, test_fraction)):
            part_of_group[chosen] = (1, 2, 0)[i]
        rows = [np.flatnonzero(part_of_group[codes] == i) for i in range(3)]
        return _checked(table, rows[0], rows[1], rows[2], f"by group {name!r}, fold of groups, seed {seed}")
    for part, fraction in ((2, test_fraction), (1, val_fraction)):
        taken = 0
        # The last group is left for train.
        while fraction > 0 and len(order) > 1 and taken < max(1, round(fraction * len(table))):
            group = order.pop()
            part_of_group[group] = part
            taken += sizes[group]
    part = part_of_group[codes]
    rows = [np.flatnonzero(part == i) for i in range(3)]
    return _checked(table, rows[0], rows[1], rows[2], f"by group {name!r}, seed {seed}")


def split_random(table: SequenceTable, val_fraction: float, test_fraction: float, seed: int) -> Split:
    """Splits at random; where the labels are classes, each class by itself, so that the parts have the same mixture."""
    _check_fractions(val_fraction, test_fraction)
    rng = np.random.default_rng(seed)
    codes = np.zeros(len(table), dtype=np.int64)
    stratified = False
    if table.labels is not None and table.labels.ndim == 1:
        found, names = pd.factorize(table.labels)
        # Quantities have nearly as many values as rows; there is nothing to keep in proportion.
        if len(names) <= max(2, len(table) // 4):
            codes, stratified = found, True
    shuffled = rng.permutation(len(table))
    # Every member of a class gets a place in 0..1, evenly spread: thresholds then cut each class alike.
    place = np.empty(len(table))
    for code in range(int(codes.max(initial=0)) + 1):
        members = shuffled[codes[shuffled] == code]
        place[members] = (np.arange(len(members)) + rng.random()) / max(len(members), 1)
    order = np.argsort(place, kind="stable")
    n_test, n_val = (round(fraction * len(table)) for fraction in (test_fraction, val_fraction))
    test, val, train = np.split(order, [n_test, n_test + n_val])
    if in_fold():
        val, test, train = cut(order, val_fraction, test_fraction)
    kind = "stratified at random" if stratified else "at random"
    return _checked(table, np.sort(train), np.sort(val), np.sort(test), f"{kind}, seed {seed}")


def split_regions(
    store: Sequences,
    names: Sequence[str],
    *,
    val_chroms: Iterable[str] = (),
    test_chroms: Iterable[str] = (),
    val_fraction: float = 0.05,
    test_fraction: float = 0.05,
) -> dict[str, list[Region]]:
    """Splits a genome for a language model: by chromosome, or the last stretch of every record.

    Args:
        store: The genome.
        names: Name of each record.
        val_chroms, test_chroms: Records held out; without them, the last `test_fraction` of every record is test and
            the `val_fraction` before it val, in one piece, so that only two windows a record have neighbours in train.
            Where only one of the two is named, the other part is such a stretch of the records left for train.
        val_fraction, test_fraction: Share of every record.

    Returns:
        Regions of "train", "val" and "test".

    Raises:
        DataError: A chromosome is unknown or in both parts, or no record is left for train.
    """
    held_out = _held_out(val_chroms, test_chroms, list(names), "the genome")
    regions: dict[str, list[Region]] = {"train": [], "val": [], "test": []}
    sizes = [int(size) for size in store.lengths]
    # A part whose chromosomes are named takes nothing from others.
    shares = {
        part: 0.0 if part in held_out.values() else share for part, share in (("val", val_fraction), ("test", test_fraction))
    }
    _check_fractions(shares["val"], shares["test"])
    for record, (name, size) in enumerate(zip(names, sizes, strict=True)):
        if name in held_out:
            regions[held_out[name]].append(Region(record, 0, size))
            continue
        test = size - round(size * shares["test"])
        val = test - round(size * shares["val"])
        for part, start, end in (("train", 0, val), ("val", val, test), ("test", test, size)):
            if end > start:
                regions[part].append(Region(record, start, end))
    if not regions["train"]:
        raise DataError("val_chroms and test_chroms leave no chromosome for train")
    return regions


def region_rule(val_chroms: Iterable[str], test_chroms: Iterable[str], files: Iterable[str] = ()) -> str:
    """How `split_regions` chose val and test, in words; the parts in `files` are files of their own."""
    named = {"val": [str(name) for name in val_chroms], "test": [str(name) for name in test_chroms]}
    found = []
    for part, chroms in named.items():
        rule = f"chromosomes {', '.join(chroms)}" if chroms else "the last stretch of every record of train"
        found.append(f"{part}: {'a file of its own' if part in files else rule}")
    return "; ".join(found)


@dataclass(frozen=True)
class LeakReport:
    """Sequences of one part that also stand in train, on either strand.

    Attributes:
        part: "val" or "test".
        rows: Rows of that part, ascending.
        n_rows: How many rows the part has.
        train_rows: Rows of train that hold the same sequences.
        n_overlapping: Intervals of the part that overlap an interval of train (0 for data without coordinates).
    """

    part: str
    rows: NDArray[np.int64]
    n_rows: int
    train_rows: NDArray[np.int64]
    n_overlapping: int = 0

    def message(self) -> str:
        """One sentence for the log and the report."""
        text = f"{len(self.rows)} of {self.n_rows} {self.part} sequences (or their reverse complements) also stand in train"
        if len(self.rows):
            text += f", in {len(self.train_rows)} train rows; drop_leaks=true removes those from train"
        if self.n_overlapping:
            text += f"; {self.n_overlapping} {self.part} intervals overlap an interval of train"
        return text


def find_leaks(train: SequenceStore, other: SequenceStore, part: str = "test") -> LeakReport:
    """Looks for sequences of `other`, and their reverse complements, in train.

    Args:
        train: The training sequences.
        other: The sequences of the part that is checked.
        part: What to call it.

    Returns:
        The rows on both sides.

    Cost: one 64-bit hash a sequence and strand, about 2 microseconds for short ones.
    """
    in_train = _hashes(train, other_strand=False)
    forward, backward = _hashes(other, other_strand=False), _hashes(other, other_strand=True)
    leaked = np.isin(forward, in_train) | np.isin(backward, in_train)
    train_rows = np.flatnonzero(np.isin(in_train, np.concatenate([forward[leaked], backward[leaked]])))
    overlapping = 0
    if isinstance(train, IntervalSequences) and isinstance(other, IntervalSequences):
        overlapping = count_overlaps(train, other)
    return LeakReport(part, np.flatnonzero(leaked), len(other), train_rows, overlapping)


def drop_leaks(train: SequenceTable, reports: Iterable[LeakReport]) -> SequenceTable:
    """Train without the rows that the reports found in another part."""
    keep = np.ones(len(train), dtype=bool)
    for report in reports:
        keep[report.train_rows] = False
    if not keep.any():
        raise DataError("every training sequence also stands in val or test; the files are probably the same")
    return train if keep.all() else train.select(np.flatnonzero(keep))


def count_overlaps(train: IntervalSequences, other: IntervalSequences) -> int:
    """How many intervals of `other` share a base with an interval of train."""
    count = 0
    for chrom in np.unique(other.chroms.astype(str)):
        in_train, in_other = train.chroms == chrom, other.chroms == chrom
        order = np.argsort(train.starts[in_train])
        starts, reach = train.starts[in_train][order], np.maximum.accumulate(train.ends[in_train][order])
        # Of the train intervals that begin before this one ends, does any reach beyond its start?
        before = np.searchsorted(starts, other.ends[in_other])
        has_before = before > 0
        count += int((reach[before[has_before] - 1] > other.starts[in_other][has_before]).sum())
    return count


def _hashes(store: SequenceStore, other_strand: bool) -> NDArray[np.uint64]:
    def digest(i: int) -> bytes:
        ids = store[i]
        return hashlib.blake2b((reverse_complement_ids(ids) if other_strand else ids).tobytes(), digest_size=8).digest()

    return np.frombuffer(b"".join(digest(i) for i in range(len(store))), dtype=np.uint64)


def _draw_chromosomes(chroms: NDArray[Any], held_out: dict[str, str], share: float, seed: int) -> list[str]:
    """Chromosomes at random that hold about a share of the rows, one at least; one is left for train."""
    names, sizes = np.unique([name for name in chroms if name not in held_out], return_counts=True)
    order = np.random.default_rng(seed).permutation(len(names))
    before = np.concatenate([[0], np.cumsum(sizes[order])])[:-1]
    taken = min(int(np.sum(before < share * len(chroms))), max(0, len(order) - 1))
    return [str(names[i]) for i in order[:taken]]


def _held_out(val_chroms: Iterable[str], test_chroms: Iterable[str], known: list[str], place: str) -> dict[str, str]:
    # A chromosome such as 8 arrives as a number from a config file.
    val, test = [str(name) for name in val_chroms], [str(name) for name in test_chroms]
    for option, names in (("val_chroms", val), ("test_chroms", test)):
        for name in names:
            if name not in known:
                raise DataError(f"{option}, {place}: {unknown_chromosome(name, known)}")
    if both := sorted(set(val) & set(test)):
        raise DataError(f"{', '.join(both)}: in val_chroms and in test_chroms; a chromosome belongs to one part")
    return dict.fromkeys(val, "val") | dict.fromkeys(test, "test")


def _chromosome_rule(held_out: dict[str, str]) -> str:
    chroms = {part: [name for name, where in held_out.items() if where == part] for part in ("val", "test")}
    return "by chromosome: " + "; ".join(f"{part} {', '.join(names)}" for part, names in chroms.items() if names)


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    if not (0 <= val_fraction < 1 and 0 <= test_fraction < 1 and val_fraction + test_fraction < 1):
        raise DataError(
            f"val_fraction={val_fraction} and test_fraction={test_fraction} must each lie in 0..1 and leave something for train"
        )


def _checked(
    table: SequenceTable, train: NDArray[np.int64], val: NDArray[np.int64], test: NDArray[np.int64], rule: str
) -> Split:
    if not len(train):
        raise DataError(f"{_path(table)}: the split ({rule}) leaves no row of {len(table)} for train")
    return Split(train, val, test, rule)


def _path(table: SequenceTable) -> str:
    return table.files[0] if table.files else "the data"
