"""Many sequences held compactly: token ids in one array, and a table of what is known about each.

A Python object per sequence costs more than a short read itself; here a million reads are one uint8 array and one
array of offsets. Intervals of a genome offer the same interface and are fetched when asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from longseq.domains.dna.tokenizer import N_ID, UNK_ID, encode_bytes, invalid_characters
from longseq.errors import DataError

_BLOCK = 1 << 24


@runtime_checkable
class SequenceStore(Protocol):
    """What a data set needs of its sequences: how many, how long, and the ids of one."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> NDArray[np.uint8]: ...

    @property
    def lengths(self) -> NDArray[np.int64]: ...

    def select(self, indices: ArrayLike, /) -> SequenceStore: ...


class Sequences:
    """Token ids of many sequences, end to end in one array.

    Args:
        tokens: Token ids, uint8, (total bases,); may be a memory map.
        offsets: Where each sequence starts, and the end of the last, int64, (N + 1,).
    """

    def __init__(self, tokens: NDArray[np.uint8], offsets: NDArray[np.int64]) -> None:
        self.tokens = tokens
        self.offsets = offsets

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} sequences")
        index %= len(self)
        return self.tokens[self.offsets[index] : self.offsets[index + 1]]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Bases of each sequence, (N,)."""
        return np.diff(self.offsets)

    def select(self, indices: ArrayLike) -> Sequences:
        """The sequences with these indices (or this boolean mask), copied."""
        chosen = np.arange(len(self))[np.asarray(indices)]
        lengths = self.lengths[chosen]
        offsets = _offsets(lengths)
        tokens = np.empty(offsets[-1], dtype=np.uint8)
        for i, row in enumerate(chosen):
            tokens[offsets[i] : offsets[i + 1]] = self.tokens[self.offsets[row] : self.offsets[row + 1]]
        return Sequences(tokens, offsets)

    @classmethod
    def from_letters(
        cls,
        letters: bytearray,
        lengths: ArrayLike,
        describe: Callable[[int], str],
        *,
        invalid: str = "error",
    ) -> Sequences:
        """Encodes concatenated letters in place.

        Args:
            letters: The letters of all sequences, without line breaks; overwritten by their ids.
            lengths: Bases of each sequence, (N,).
            describe: Names sequence i in an error ("x.fa, record 'chr1'").
            invalid: "error" refuses characters that are no nucleotide codes, "N" reads them as N.

        Raises:
            DataError: A sequence is empty, or holds other characters and `invalid` is "error".
        """
        if invalid not in ("error", "N"):
            raise ValueError(f"invalid must be 'error' or 'N', found {invalid!r}")
        offsets = _offsets(np.asarray(lengths, dtype=np.int64))
        empty = np.flatnonzero(np.diff(offsets) == 0)
        if len(empty):
            raise DataError(f"{describe(int(empty[0]))}: the sequence is empty; {len(empty)} empty in all. Remove such records")
        tokens = np.frombuffer(letters, dtype=np.uint8)
        for start in range(0, len(tokens), _BLOCK):
            block = encode_bytes(letters[start : start + _BLOCK])
            unknown = np.flatnonzero(block == UNK_ID)
            if len(unknown) and invalid == "error":
                index = int(np.searchsorted(offsets, start + unknown[0], side="right")) - 1
                # What stands in earlier blocks is encoded already and was found to be valid.
                text = bytes(letters[max(start, offsets[index]) : offsets[index + 1]])
                raise DataError(
                    f"{describe(index)} is not DNA: it holds {invalid_characters(text)}. "
                    "Expected A, C, G, T, U, N or IUPAC codes; set invalid=N to read other characters as N"
                )
            if len(unknown):
                block = np.where(block == UNK_ID, np.uint8(N_ID), block)
            tokens[start : start + len(block)] = block
        return cls(tokens, offsets)

    @classmethod
    def from_strings(
        cls, strings: Sequence[str], describe: Callable[[int], str] | None = None, *, invalid: str = "error"
    ) -> Sequences:
        """Encodes a list of texts; `describe` names sequence i in an error."""
        letters = bytearray("".join(strings).encode("ascii", "replace"))
        lengths = np.fromiter(map(len, strings), dtype=np.int64, count=len(strings))
        return cls.from_letters(letters, lengths, describe or (lambda i: f"sequence {i + 1}"), invalid=invalid)

    @classmethod
    def from_ids(cls, arrays: Sequence[NDArray[np.uint8]]) -> Sequences:
        """Joins id arrays."""
        offsets = _offsets(np.array([len(array) for array in arrays], dtype=np.int64))
        tokens = np.concatenate([*arrays, np.empty(0, np.uint8)]).astype(np.uint8, copy=False)
        return cls(tokens, offsets)


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def iterate_blocks(store: SequenceStore, max_bases: int = _BLOCK) -> Iterator[tuple[int, Sequences]]:
    """Walks through a store in blocks of whole sequences, so that counting over it needs little memory.

    Args:
        store: The sequences.
        max_bases: Bases of one block at most (a longer single sequence is a block of its own).

    Yields:
        The index of the block's first sequence, and the block.
    """
    offsets = _offsets(store.lengths)
    first = 0
    while first < len(store):
        last = int(np.searchsorted(offsets, offsets[first] + max_bases, side="right")) - 1
        last = min(max(last, first + 1), len(store))
        if isinstance(store, Sequences):
            start, end = store.offsets[first], store.offsets[last]
            yield first, Sequences(store.tokens[start:end], store.offsets[first : last + 1] - start)
        else:
            yield first, Sequences.from_ids([store[i] for i in range(first, last)])
        first = last


@dataclass
class SequenceTable:
    """Sequences and what stands beside them.

    Attributes:
        sequences: The token ids.
        ids: A name for each sequence, str, (N,).
        labels: Labels as text, object, (N,) or (N, K) for several columns; None if there are none.
        label_names: Names of the K label columns, or the one column's; empty without labels.
        frame: Everything else by column ("split", "chrom", "start", "end", "strand", other columns), N rows.
        files: The files that were read.
        file_index: Which of `files` each sequence comes from, (N,).
        lines: The line (text tables, BED), row (parquet) or record number of each sequence, from 1, (N,).
        place_word: What `lines` counts: "line", "row" or "record".
    """

    sequences: SequenceStore
    ids: NDArray[Any]
    labels: NDArray[Any] | None
    label_names: tuple[str, ...]
    frame: pd.DataFrame
    files: tuple[str, ...] = ()
    file_index: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    lines: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    place_word: str = "record"

    def __len__(self) -> int:
        return len(self.sequences)

    def where(self, index: int) -> str:
        """Names a sequence for an error: file, line or record, and its id."""
        place = f"{self.place_word} {self.lines[index]}" if len(self.lines) else f"sequence {index + 1}"
        file = f"{self.files[self.file_index[index]]}, " if self.files and len(self.file_index) else ""
        name = f" ({self.ids[index]!r})" if self.place_word == "record" and self.ids[index] else ""
        return f"{file}{place}{name}"

    def select(self, indices: ArrayLike) -> SequenceTable:
        """The rows with these indices, or of this boolean mask, as a new table."""
        chosen = np.arange(len(self))[np.asarray(indices)]
        return SequenceTable(
            sequences=self.sequences.select(chosen),
            ids=self.ids[chosen],
            labels=None if self.labels is None else self.labels[chosen],
            label_names=self.label_names,
            frame=self.frame.iloc[chosen].reset_index(drop=True),
            files=self.files,
            file_index=self.file_index[chosen] if len(self.file_index) else self.file_index,
            lines=self.lines[chosen] if len(self.lines) else self.lines,
            place_word=self.place_word,
        )


def concatenate_tables(tables: Sequence[SequenceTable]) -> SequenceTable:
    """Puts tables of in-memory sequences one below the other.

    Raises:
        DataError: Some have labels and some not, or their label columns differ.
    """
    if len(tables) == 1:
        return tables[0]
    first = tables[0]
    for table in tables[1:]:
        if (table.labels is None) != (first.labels is None) or table.label_names != first.label_names:
            raise DataError(
                f"{', '.join(table.files)}: label columns {list(table.label_names)} differ from "
                f"{list(first.label_names)} of {', '.join(first.files)}"
            )
    stores = [table.sequences for table in tables]
    file_start = np.cumsum([0, *(len(table.files) for table in tables)])
    return SequenceTable(
        sequences=join_stores(stores),
        ids=np.concatenate([table.ids for table in tables]),
        labels=None if first.labels is None else np.concatenate([table.labels for table in tables]),  # type: ignore[misc]
        label_names=first.label_names,
        frame=pd.concat([table.frame for table in tables], ignore_index=True),
        files=tuple(file for table in tables for file in table.files),
        file_index=np.concatenate(
            [table.file_index + np.int32(start) for table, start in zip(tables, file_start, strict=False)]
        ).astype(np.int32),
        lines=np.concatenate([table.lines for table in tables]),
        place_word=first.place_word,
    )


def join_stores(stores: Sequence[SequenceStore]) -> SequenceStore:
    """One store of several of the same kind."""
    first = stores[0]
    if isinstance(first, Sequences):
        in_memory = [store for store in stores if isinstance(store, Sequences)]
        lengths = np.concatenate([store.lengths for store in in_memory])
        return Sequences(np.concatenate([store.tokens for store in in_memory]), _offsets(lengths))
    join = getattr(type(first), "join", None)
    if join is None:
        raise TypeError(f"stores of type {type(first).__name__} cannot be joined")
    return join(stores)
