"""The synthetic data: what decides the class, and what does not."""

from pathlib import Path

import numpy as np
import pytest

from longseq.domains.dna.baselines import MarkovModel, fit_baselines
from longseq.domains.dna.demo import DIFFICULTIES, MOTIFS, make_demo_genome, make_pairing_task, write_csv, write_fasta
from longseq.domains.dna.sequences import Sequences, SequenceTable
from longseq.domains.dna.sources import read_sequences
from longseq.domains.dna.splits import make_split
from longseq.domains.dna.token_cache import build_token_cache
from longseq.domains.dna.tokenizer import NucleotideTokenizer, reverse_complement_ids


def _strand_scores(bases: np.ndarray, copies: int) -> tuple[np.ndarray, np.ndarray]:
    """How well a cluster of either motif, on plus and on minus, fits at every position, (N, positions) each."""
    encode = NucleotideTokenizer().encode
    scores = []
    for strand in (0, 1):
        best = None
        for motif in MOTIFS:
            cluster = encode(motif * copies)
            cluster = reverse_complement_ids(cluster) if strand else cluster
            hits = (np.lib.stride_tricks.sliding_window_view(bases, len(cluster), axis=1) == cluster).sum(axis=2)
            best = hits if best is None else np.maximum(best, hits)
        scores.append(best)
    return scores[0], scores[1]  # type: ignore[return-value]


def _oracle(bases: np.ndarray, copies: int) -> np.ndarray:
    """1 (divergent) where the best plus-strand cluster of the first pair lies right of the best minus-strand one."""
    plus, minus = _strand_scores(bases, copies)
    return (plus.argmax(axis=1) > minus.argmax(axis=1)).astype(int)


def _bases(table: SequenceTable) -> np.ndarray:
    assert isinstance(table.sequences, Sequences)
    return table.sequences.tokens.reshape(len(table), -1)


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
def test_orientation_decides_and_survives_the_other_strand(difficulty: str) -> None:
    table = make_pairing_task(60, 20, 20, difficulty=difficulty, seed=1)
    pairs, copies, _ = DIFFICULTIES[difficulty]
    answers = np.array([["convergent", "divergent"].index(label) for label in table.labels])  # type: ignore[union-attr]
    first = _bases(table)[:, : 1024 // pairs]
    assert (_oracle(first, copies) == answers).mean() > 0.97
    assert (_oracle(reverse_complement_ids(first), copies) == answers).mean() > 0.97


def test_parts_classes_and_composition_are_balanced() -> None:
    table = make_pairing_task(400, 100, 100, seed=0)
    split = make_split(table)
    assert (len(split.train), len(split.val), len(split.test)) == (400, 100, 100)
    divergent = table.labels == "divergent"
    assert [divergent[rows].mean() for rows in (split.train, split.val, split.test)] == [0.5, 0.5, 0.5]
    gc = np.isin(_bases(table), (8, 9)).mean(axis=1)
    assert abs(gc.mean() - 0.5) < 0.01
    assert abs(gc[divergent].mean() - gc[~divergent].mean()) < 0.005


def test_same_seed_same_data_and_settings_are_checked() -> None:
    one, two = make_pairing_task(8, 2, 2, seed=5), make_pairing_task(8, 2, 2, seed=5)
    assert np.array_equal(_bases(one), _bases(two))
    assert not np.array_equal(_bases(one), _bases(make_pairing_task(8, 2, 2, seed=6)))
    assert make_pairing_task(4, 2, 2, length=256, n_pairs=1).sequences.lengths.tolist() == [256] * 8
    with pytest.raises(ValueError, match=r"too short for 2 pairs.*at least 432"):
        make_pairing_task(length=300)
    with pytest.raises(ValueError, match="easy, medium, hard"):
        make_pairing_task(difficulty="trivial")
    with pytest.raises(ValueError, match="purity"):
        make_pairing_task(purity=0.0)


def test_counts_of_kmers_say_nothing() -> None:
    table = make_pairing_task(600, 200, 400, seed=2)
    split = make_split(table)
    targets = (table.labels == "divergent").astype(int)
    parts = [table.sequences.select(rows) for rows in (split.train, split.val, split.test)]
    fitted = fit_baselines(
        parts[0], targets[split.train], parts[1], targets[split.val], task="classification", n_classes=2, ks=(3, 4)
    )
    accuracy = [(baseline.predict(parts[2]).argmax(axis=1) == targets[split.test]).mean() for baseline in fitted]
    assert accuracy[0] == 0.5
    assert accuracy[1] < 0.62


def test_genome_is_predictable_from_afar_only() -> None:
    genome, names = make_demo_genome(3, 40_000, repeat_share=0.0, seed=0)
    assert names == ("chr1", "chr2", "chr3")
    bits = MarkovModel(5).fit(genome.select([0, 1])).bits_per_base(genome.select([2]))
    assert bits[5] > 1.99
    chromosome = genome[2]
    assert (chromosome[24:] == chromosome[:-24]).mean() == pytest.approx(0.7, abs=0.02)
    again, _ = make_demo_genome(3, 40_000, repeat_share=0.0, seed=0)
    assert np.array_equal(genome.tokens, again.tokens)
    repeats, _ = make_demo_genome(1, 40_000, seed=0)
    assert MarkovModel(9).fit(repeats).bits_per_base(repeats)[9] < 1.9


def test_written_and_read_again(tmp_path: Path) -> None:
    table = make_pairing_task(4, 2, 2, seed=0)
    write_csv(table, tmp_path / "demo.csv")
    read = read_sequences(tmp_path / "demo.csv", id_column="id")
    assert np.array_equal(_bases(read), _bases(table))
    assert read.ids.tolist() == table.ids.tolist()
    assert read.frame["split"].tolist() == table.frame["split"].tolist()
    assert read.labels.tolist() == table.labels.tolist()  # type: ignore[union-attr]
    genome, names = make_demo_genome(2, 1000, seed=0)
    write_fasta(genome, names, tmp_path / "demo.fa")
    cache = build_token_cache(tmp_path / "demo.fa", tmp_path / "cache")
    assert cache.names == names
    assert np.array_equal(cache.tokens, genome.tokens)
