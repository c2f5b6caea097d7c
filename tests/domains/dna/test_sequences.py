"""Compact sequences and the table around them."""

import numpy as np
import pandas as pd
import pytest

from longseq.domains.dna.sequences import Sequences, SequenceTable, concatenate_tables, iterate_blocks
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.errors import DataError


def _texts(store: Sequences) -> list[str]:
    return [NucleotideTokenizer().decode(store[i]) for i in range(len(store))]


def _table(texts: list[str], labels: list[str] | None = None) -> SequenceTable:
    n = len(texts)
    return SequenceTable(
        Sequences.from_strings(texts),
        np.array([f"r{i}" for i in range(n)], dtype=object),
        None if labels is None else np.array(labels, dtype=object),
        () if labels is None else ("label",),
        pd.DataFrame({"n": range(n)}),
        ("a.fa",),
        np.zeros(n, np.int32),
        np.arange(1, n + 1),
    )


def test_indexing_lengths_and_selection() -> None:
    store = Sequences.from_strings(["ACGT", "NN", "acg"])
    assert (len(store), store.lengths.tolist()) == (3, [4, 2, 3])
    assert _texts(store) == ["ACGT", "NN", "ACG"]
    assert store[-1].tolist() == store[2].tolist()
    assert _texts(store.select([2, 0])) == ["ACG", "ACGT"]
    assert _texts(store.select(np.array([False, True, True]))) == ["NN", "ACG"]
    with pytest.raises(IndexError):
        store[3]


def test_empty_and_foreign_sequences_are_named() -> None:
    with pytest.raises(DataError, match="sequence 2: the sequence is empty"):
        Sequences.from_strings(["A", "", "C"])
    with pytest.raises(DataError, match=r"sequence 3 is not DNA.*'E', 'F'.*first at base 2.*protein"):
        Sequences.from_strings(["A", "C", "GEF"])
    assert _texts(Sequences.from_strings(["A", "CX"], invalid="N")) == ["A", "CN"]
    with pytest.raises(ValueError, match="invalid must be"):
        Sequences.from_strings(["A"], invalid="ignore")


@pytest.mark.parametrize("max_bases", [1, 3, 5, 100])
def test_blocks_cover_every_sequence_once(max_bases: int) -> None:
    store = Sequences.from_strings(["ACGT", "NN", "acg", "T"])
    seen = []
    for first, block in iterate_blocks(store, max_bases):
        assert first == len(seen)
        assert len(block) == 1 or block.lengths.sum() <= max_bases
        seen += _texts(block)
    assert seen == _texts(store)


def test_tables_are_selected_and_joined() -> None:
    first, second = _table(["A", "CC"], ["x", "y"]), _table(["GGG"], ["x"])
    joined = concatenate_tables([first, second])
    assert joined.labels is not None and joined.labels.tolist() == ["x", "y", "x"]
    assert joined.where(2) == "a.fa, record 1 ('r0')"
    chosen = joined.select([2, 1])
    assert chosen.frame["n"].tolist() == [0, 1]
    assert chosen.ids.tolist() == ["r0", "r1"]
    assert chosen.sequences.lengths.tolist() == [3, 2]
    with pytest.raises(DataError, match="label columns"):
        concatenate_tables([first, _table(["A"])])
