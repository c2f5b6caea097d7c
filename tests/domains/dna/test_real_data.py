"""The readers, splits and baselines on real files; every figure below was counted independently or published."""

from pathlib import Path

import numpy as np
import pytest
import torch

from longseq.domains.dna.baselines import KmerLinear, MarkovModel, fit_baselines
from longseq.domains.dna.datamodule import DNAData
from longseq.domains.dna.genome import Genome
from longseq.domains.dna.labels import class_names, encode_classes
from longseq.domains.dna.record_windows import RecordWindows
from longseq.domains.dna.rows import SequenceRows
from longseq.domains.dna.sources import read_sequences
from longseq.domains.dna.splits import drop_leaks, find_leaks, make_split, split_regions
from longseq.domains.dna.tasks import WindowVote
from longseq.domains.dna.token_cache import build_token_cache
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.domains.dna.windows import GenomeWindows

pytestmark = pytest.mark.data


@pytest.mark.parametrize(("name", "leaks"), [("prom_300_tata", 6), ("prom_core_notata", 30), ("prom_core_tata", 16)])
def test_known_leaks_are_found(real_data: Path, name: str, leaks: int) -> None:
    train, test = (read_sequences(real_data / "dna" / "gue" / name / f"{part}.csv.gz") for part in ("train", "test"))
    report = find_leaks(train.sequences, test.sequences)
    assert len(report.rows) == leaks
    assert str(leaks) in report.message()
    cleaned = drop_leaks(train, [report])
    assert len(cleaned) == len(train) - len(report.train_rows)
    assert not len(find_leaks(cleaned.sequences, test.sequences).rows)


def test_transcription_factor_set(real_data: Path) -> None:
    parts = [
        read_sequences(real_data / "dna/gue/tf_0" / f"{part}.csv.gz", labels="required") for part in ("train", "dev", "test")
    ]
    assert [len(part) for part in parts] == [32378, 1000, 1000]
    assert np.median(parts[0].sequences.lengths) == 101
    names = class_names(parts[0])
    targets = [encode_classes(part, names) for part in parts]
    stores = [part.sequences for part in parts]
    _, linear = fit_baselines(stores[0], targets[0], stores[1], targets[1], task="classification", n_classes=2, ks=(4, 6))
    accuracy = (linear.predict(stores[2]).argmax(axis=1) == targets[2]).mean()
    assert 0.78 < accuracy < 0.84


def test_one_file_per_class(real_data: Path) -> None:
    table = read_sequences(real_data / "dna" / "mtdna_vertebrates", labels="required")
    assert len(table) == 1399
    assert class_names(table) == ("Amphibians", "Birds", "Fish", "Mammals", "Reptiles")
    assert 14_900 < table.sequences.lengths.min() < table.sequences.lengths.max() < 20_600
    pattern = read_sequences(str(real_data / "dna/mtdna_vertebrates/*.fa.gz"), label_pattern=r"\|(\w+)\|")
    assert np.array_equal(pattern.labels, table.labels)  # type: ignore[arg-type]
    split = make_split(table, seed=0)
    _, counts = np.unique(table.labels[split.test], return_counts=True)  # type: ignore[index]
    assert len(counts) == 5
    assert counts.max() - counts.min() <= 1


def test_genomes_as_windows(real_data: Path, tmp_path: Path) -> None:
    files = sorted((real_data / "dna" / "genomes").glob("*.fa.gz"))
    cache = build_token_cache(files, tmp_path)
    assert len(files) == 14
    assert 23_000_000 < len(cache.tokens) < 25_000_000
    ecoli = next(i for i, name in enumerate(cache.names) if name == "NC_000913.3")
    assert cache.lengths[ecoli] == 4_641_652
    regions = split_regions(cache, cache.names)
    windows = {part: GenomeWindows(cache, 1024, regions=regions[part], max_n_fraction=0.5) for part in regions}
    assert len(windows["train"]) > 15 * len(windows["test"])
    bits = MarkovModel(5).fit(windows["train"]).bits_per_base(windows["test"])
    assert 1.85 < bits[5] < bits[0] < 2.0


def test_random_access_into_a_compressed_genome(real_data: Path, tmp_path: Path) -> None:
    path = real_data / "dna" / "genomes" / "lambda_phage.fa.gz"
    genome = Genome(path, tmp_path)
    (name,) = genome.names
    assert genome.lengths[name] == 48_502
    assert NucleotideTokenizer().decode(genome.fetch(name, 0, 12)) == "GGGCGGCGACCT"
    bed = tmp_path / "x.bed"
    bed.write_text(f"{name}\t0\t12\tx\t0\t-\n", encoding="utf-8")
    table = read_sequences(bed, genome=genome)
    assert NucleotideTokenizer().decode(table.sequences[0]) == "AGGTCGCCGCCC"


def test_mitochondrial_genomes_are_told_apart_by_votes_over_windows(real_data: Path) -> None:
    """K-mers of windows, a fifth of the genomes: records must do better than their windows, and no record is in two parts."""
    source = str(real_data / "dna" / "mtdna_vertebrates" / "*.fa.gz")
    data = DNAData(task="classification", train=source, window=2048, val_fraction=0.1, test_fraction=0.2, seed=1)
    data.setup()
    assert {name: len(table) for name, table in data.tables.items()} == {"train": 979, "val": 140, "test": 280}
    ids = [set(table.ids) for table in data.tables.values()]
    assert not (ids[0] & ids[1] | ids[0] & ids[2] | ids[1] & ids[2])
    for name, rows in data.splits.items():
        assert 7 * len(data.tables[name]) <= len(rows) <= 10 * len(data.tables[name])
        assert set(rows.lengths) <= set(range(1024, 2049))
    train, test = data.splits["train"], data.splits["test"]
    assert isinstance(train, SequenceRows) and isinstance(test, SequenceRows) and isinstance(test.store, RecordWindows)
    linear = KmerLinear(train.store, train.labels, test.store, test.labels, "classification", 5, ks=(3,))
    task = WindowVote(**{key: value for key, value in data.task_options().items() if key != "_target_"})
    metrics = task.metrics()
    batch = {"labels": torch.from_numpy(test.labels), "record": torch.from_numpy(test.store.records)}
    task.update(metrics, task.outputs_from(torch.from_numpy(linear.predict(test.store)).float()), batch)
    scores = {name: float(value) for name, value in metrics.compute().items()}
    assert 0.6 < scores["accuracy"] < 0.9
    assert scores["record_accuracy"] > scores["accuracy"] + 0.05
