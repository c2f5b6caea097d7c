"""Seeded synthetic DNA whose tasks need context, for a first run without any files and for tests.

Classification: clusters of binding sites stand in pairs, and only how the two of a pair are turned decides the class.
Language modelling: chromosomes in which a base often repeats the one a fixed, longer distance before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from longseq.domains.dna.sequences import Sequences, SequenceTable
from longseq.domains.dna.tokenizer import A_ID, NucleotideTokenizer, encode_bytes

# Half G and C each, as the background is; neither is its own reverse complement.
MOTIFS = ("GGAAGGAAGGAA", "TGTGTTGGTGTG")
CLASSES = ("convergent", "divergent")
# (pairs in a sequence, copies of the motif in a cluster, share of bases that follow the motif)
DIFFICULTIES = {"easy": (2, 6, 0.9), "medium": (1, 6, 0.9), "hard": (1, 3, 0.85)}


def make_pairing_task(
    n_train: int = 2000,
    n_val: int = 400,
    n_test: int = 400,
    *,
    length: int = 1024,
    difficulty: str = "easy",
    n_pairs: int | None = None,
    n_copies: int | None = None,
    purity: float | None = None,
    seed: int = 0,
) -> SequenceTable:
    """Sequences in which two motifs' orientation towards each other, not their presence, decides the class.

    Every pair is one cluster of motif A and one of motif B, in either order, on opposite strands: in class
    "convergent" the left cluster lies on the plus strand and the right one on the minus strand (they point at each
    other, -> <-), in class "divergent" the other way round (<- ->). Each motif stands on each strand equally often in
    both classes, so counts of k-mers, whatever is made of them, say nothing; and the reverse complement of a sequence
    has the same class.

    Args:
        n_train, n_val, n_test: Sequences of each part; half of each part belongs to each class.
        length: Bases of a sequence.
        difficulty: "easy", "medium" or "hard"; the settings below when they are not given.
        n_pairs: Pairs of clusters in a sequence, all turned alike.
        n_copies: Copies of the motif of 12 bases in a cluster.
        purity: Share of a motif's bases that are as written; the rest is random.
        seed: Of everything random; the same seed gives the same sequences.

    Returns:
        A table with labels and a "split" column.

    Raises:
        ValueError: The clusters do not fit into `length`, or a setting is out of range.
    """
    if difficulty not in DIFFICULTIES:
        raise ValueError(f"difficulty must be one of {', '.join(DIFFICULTIES)}, found {difficulty!r}")
    settings = [
        given if given is not None else default
        for given, default in zip((n_pairs, n_copies, purity), DIFFICULTIES[difficulty], strict=True)
    ]
    pairs, copies, share = int(settings[0]), int(settings[1]), float(settings[2])
    width = copies * len(MOTIFS[0])
    if min(pairs, copies) < 1 or not 0 < share <= 1:
        raise ValueError(f"n_pairs and n_copies must be at least 1 and purity in (0, 1]; found {pairs}, {copies}, {share}")
    if length < pairs * 3 * width:
        raise ValueError(
            f"length={length} is too short for {pairs} pairs of clusters of {width} bases; at least {pairs * 3 * width}"
        )
    rng = np.random.default_rng(seed)
    sizes = (n_train, n_val, n_test)
    labels = np.concatenate([rng.permutation(np.arange(size) % 2) for size in sizes])
    bases = rng.integers(0, 4, (len(labels), length), dtype=np.uint8)
    block = length // pairs
    for pair in range(pairs):
        _place_pair(rng, bases, labels, pair * block, block, copies, share)
    split = np.repeat(np.array(["train", "val", "test"], dtype=object), sizes)
    return _demo_table(bases, np.array(CLASSES, dtype=object)[labels], split)


def _place_pair(
    rng: np.random.Generator,
    bases: NDArray[np.uint8],
    labels: NDArray[np.int64],
    start: int,
    block: int,
    copies: int,
    purity: float,
) -> None:
    """Writes one pair of clusters into each row of `bases`, between start and start + block."""
    n = len(labels)
    width = copies * len(MOTIFS[0])
    spacing = rng.integers(width, block - width + 1, n)
    left = start + (rng.random(n) * (block - width - spacing + 1)).astype(np.int64)
    a_is_left = rng.random(n) < 0.5
    left_minus = labels == 1
    for position, is_a, minus in ((left, a_is_left, left_minus), (left + spacing, ~a_is_left, ~left_minus)):
        cluster = np.where(is_a[:, None], *(_cluster(rng, motif, n, copies, purity) for motif in MOTIFS))
        # Bases are 0 to 3 here, so that 3 - base is the complement.
        cluster = np.where(minus[:, None], 3 - cluster[:, ::-1], cluster)
        bases[np.arange(n)[:, None], position[:, None] + np.arange(width)] = cluster


def _cluster(rng: np.random.Generator, motif: str, n: int, copies: int, purity: float) -> NDArray[np.uint8]:
    written = np.tile(encode_bytes((motif * copies).encode()) - np.uint8(A_ID), (n, 1))
    other = rng.integers(0, 4, written.shape, dtype=np.uint8)
    return np.where(rng.random(written.shape) < purity, written, other)


def _demo_table(bases: NDArray[np.uint8], labels: NDArray[Any], split: NDArray[Any]) -> SequenceTable:
    n, length = bases.shape
    sequences = Sequences((bases + np.uint8(A_ID)).reshape(-1), np.arange(n + 1, dtype=np.int64) * length)
    return SequenceTable(
        sequences=sequences,
        ids=np.array([f"demo{i}" for i in range(n)], dtype=object),
        labels=labels,
        label_names=("label",),
        frame=pd.DataFrame({"split": split}),
        files=("demo data",),
        file_index=np.zeros(n, dtype=np.int32),
        lines=np.arange(1, n + 1),
    )


def make_demo_genome(
    n_chromosomes: int = 6,
    chromosome_length: int = 60_000,
    *,
    lag: int = 24,
    copy_probability: float = 0.6,
    repeat_share: float = 0.2,
    seed: int = 0,
) -> tuple[Sequences, tuple[str, ...]]:
    """Chromosomes that context makes easier to predict, but not the last few bases.

    A base repeats the one `lag` positions before it with `copy_probability`, else it is random, so that an order-k
    Markov model with k below `lag` sees random bases. Over them lie copies of a 300-base repeat, on either strand,
    one base in twenty changed.

    Args:
        n_chromosomes: Records, named chr1, chr2, ...
        chromosome_length: Bases of each.
        lag: Distance of the repetition.
        copy_probability: How often a base is repeated.
        repeat_share: Share of the bases covered by repeats.
        seed: The same seed gives the same genome.

    Returns:
        The sequences and their names.
    """
    rng = np.random.default_rng(seed)
    repeat = rng.integers(0, 4, 300, dtype=np.uint8)
    chromosomes = []
    for _ in range(n_chromosomes):
        bases = _lagged(rng, chromosome_length, lag, copy_probability)
        n_repeats = int(repeat_share * chromosome_length / len(repeat))
        for start in rng.integers(0, max(1, chromosome_length - len(repeat)), n_repeats):
            copy = np.where(rng.random(len(repeat)) < 0.05, rng.integers(0, 4, len(repeat), dtype=np.uint8), repeat)
            copy = copy if rng.random() < 0.5 else 3 - copy[::-1]
            bases[start : start + len(repeat)] = copy[: chromosome_length - start]
        chromosomes.append(bases + np.uint8(A_ID))
    return Sequences.from_ids(chromosomes), tuple(f"chr{i + 1}" for i in range(n_chromosomes))


def _lagged(rng: np.random.Generator, length: int, lag: int, copy_probability: float) -> NDArray[np.uint8]:
    n_rows = -(-length // lag)
    fresh = rng.integers(0, 4, (n_rows, lag), dtype=np.uint8)
    is_fresh = rng.random((n_rows, lag)) >= copy_probability
    is_fresh[0] = True
    # Every base is the latest fresh one above it in its column.
    source = np.maximum.accumulate(np.where(is_fresh, np.arange(n_rows)[:, None], 0), axis=0)
    return np.take_along_axis(fresh, source, axis=0).reshape(-1)[:length].copy()


def write_csv(table: SequenceTable, path: str | Path) -> None:
    """Writes a table as csv with the columns id, sequence, label (where there are labels) and what the table holds beside."""
    decode = NucleotideTokenizer().decode
    columns: dict[str, Any] = {"id": table.ids, "sequence": [decode(table.sequences[i]) for i in range(len(table))]}
    if table.labels is not None:
        labels = table.labels.reshape(len(table), -1)
        columns |= {name: labels[:, column] for column, name in enumerate(table.label_names)}
    columns |= {str(name): values for name, values in table.frame.items() if name not in columns}
    pd.DataFrame(columns).to_csv(path, index=False)


def write_fasta(sequences: Sequences, names: Sequence[str], path: str | Path, line_length: int = 60) -> None:
    """Writes sequences as FASTA."""
    tokenizer = NucleotideTokenizer()
    with Path(path).open("w", encoding="ascii") as handle:
        for name, ids in zip(names, (sequences[i] for i in range(len(sequences))), strict=True):
            letters = tokenizer.decode(ids)
            lines = [letters[start : start + line_length] for start in range(0, len(letters), line_length)]
            handle.write(f">{name}\n" + "\n".join(lines) + "\n")
