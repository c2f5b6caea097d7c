"""Rows with something along them: genome windows, intervals of either strand, label strings, and what does not fit."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from longseq.domains.dna.datamodule import DNAData
from longseq.domains.dna.targets import TargetRows
from longseq.domains.dna.tasks import BaseLabels, Profile
from longseq.domains.dna.tokenizer import NucleotideTokenizer, reverse_complement_ids
from longseq.domains.tasks import IGNORE, Regression
from longseq.errors import ConfigError, DataError

LENGTH = 4000


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    path = tmp_path / "g.fa"
    names = ("chr1", "chr2", "chr3")
    path.write_text("".join(f">{name}\n{''.join(rng.choice(list('ACGT'), LENGTH))}\n" for name in names))
    return path


@pytest.fixture
def signal(tmp_path: Path) -> Path:
    """Every base's value is its position modulo 100, on all chromosomes."""
    path = tmp_path / "s.bedgraph"
    lines = [f"{chrom}\t{i}\t{i + 1}\t{i % 100}\n" for chrom in ("chr1", "chr2", "chr3") for i in range(LENGTH)]
    path.write_text("".join(lines))
    return path


def data(task: str, train: Any, **options: Any) -> DNAData:
    found = DNAData(task=task, train=str(train) if isinstance(train, Path) else train, batch_size=4, **options)
    found.setup()
    return found


def rows_of(found: DNAData, split: str = "train") -> TargetRows:
    rows = found.splits[split]
    assert isinstance(rows, TargetRows)
    return rows


CHROMS = {"val_chroms": ["chr2"], "test_chroms": ["chr3"]}


def test_windows_of_a_genome_with_tracks(genome: Path, signal: Path) -> None:
    found = data("profile", genome, tracks={"s": str(signal)}, window=600, bin_size=50, **CHROMS)
    rows = rows_of(found)
    # The rest of a chromosome that is no whole window is left out.
    assert len(rows) == LENGTH // 600
    assert set(found.tables["test"].frame["chrom"]) == {"chr3"}
    expected = (np.arange(600, 1200) % 100).reshape(12, 50).mean(1)
    np.testing.assert_allclose(rows[1]["targets"][:, 0], expected, rtol=1e-5)
    assert found.task_options()["labels"] == ["s"]
    assert found.task_options()["mean"][0] == pytest.approx(49.5, abs=2)
    batch = next(iter(found.loader("train")))
    assert batch["labels"].shape == (4, 12, 1)
    assert found.row_names("test", np.array([1]))["start"] == [600]
    task = Profile(**found.task_options())
    scores = found.baselines(task)
    assert set(scores) == {"mean", "mean at each place", "k-mer ridge regression"}
    assert all(np.isfinite(float(row["mse"])) for row in scores.values())
    # Windows begin at multiples of the signal's period, so its mean at each place says all.
    assert float(scores["mean at each place"]["mse"]) < 1e-6 < float(scores["mean"]["mse"])


def test_the_last_stretch_of_every_record_is_tested_without_chromosomes(genome: Path, signal: Path) -> None:
    found = data("profile", genome, tracks=str(signal), window=256, bin_size=64, val_fraction=0.2, test_fraction=0.2)
    frame: Any = found.tables["test"].frame
    assert frame["start"].min() >= 0.8 * LENGTH
    assert int(found.tables["train"].frame["end"].to_numpy().max()) <= 0.6 * LENGTH


def test_the_minus_strand_is_read_backwards(tmp_path: Path, genome: Path, signal: Path) -> None:
    bed = tmp_path / "x.bed"
    lines = [f"chr1\t{i}\t{i + 128}\tx\t0\t{strand}" for i in range(0, 1280, 128) for strand in "+-"]
    bed.write_text("\n".join(lines) + "\n")
    tracks = [str(signal), str(tmp_path / "t.bedgraph")]
    (tmp_path / "t.bedgraph").write_text(f"chr1\t0\t{LENGTH}\t7\n")
    options: dict[str, Any] = {"genome": str(genome), "tracks": tracks, "bin_size": 32, "other_strand": [1, 0]}
    found = data("profile", bed, **options, seed=3)
    for split in ("train", "val", "test"):
        rows, frame = rows_of(found, split), found.tables[split].frame
        for i in range(len(rows)):
            start = int(frame["start"].iloc[i])
            plain = (np.arange(start, start + 128) % 100).reshape(4, 32).mean(1)
            minus = frame["strand"].iloc[i] == "-"
            np.testing.assert_allclose(rows[i]["targets"][:, 1 if minus else 0], plain[::-1] if minus else plain, rtol=1e-5)
            assert (rows[i]["targets"][:, 0 if minus else 1] == 7).all()
    with pytest.raises(ConfigError, match="other_strand"):
        data("profile", bed, **{**options, "other_strand": [0, 0]})
    with pytest.raises(ConfigError, match=r"bin_size=50 does not divide"):
        data("profile", bed, **{**options, "bin_size": 50})


def test_bins_beyond_the_chromosome_have_no_value(tmp_path: Path, genome: Path, signal: Path) -> None:
    bed = tmp_path / "x.bed"
    bed.write_text("".join(f"chr1\t{i}\t{i + 10}\n" for i in [0, *range(1000, 1800, 100), LENGTH - 10]))
    found = data("profile", bed, genome=str(genome), tracks=str(signal), bin_size=32, length=128, seed=1)
    missing = [np.isnan(rows_of(found, s)[i]["targets"]).sum() for s in found.splits for i in range(len(rows_of(found, s)))]
    # Centred on base 5: 59 bases lie before the chromosome, one whole bin among them; at the end likewise.
    assert sorted(missing)[-2:] == [1, 1]
    assert sum(missing) == 2


@pytest.mark.filterwarnings("ignore:.*will save all targets and predictions")
def test_regression_takes_the_mean_of_tracks(tmp_path: Path, genome: Path, signal: Path) -> None:
    bed = tmp_path / "x.bed"
    bed.write_text("".join(f"chr1\t{i}\t{i + 60}\n" for i in range(0, 3000, 30)))
    found = data("regression", bed, genome=str(genome), tracks=str(signal))
    train = found.splits["train"]
    starts = found.tables["train"].frame["start"].to_numpy()
    expected = [(np.arange(s, s + 60) % 100).mean() for s in starts]
    np.testing.assert_allclose(train.labels[:, 0], expected, rtol=1e-5)  # type: ignore[attr-defined]
    assert "pearson" in found.baselines(Regression(**found.task_options()))["mean"]
    with pytest.raises(ConfigError, match="not for task=classification"):
        data("classification", bed, genome=str(genome), tracks=str(signal))


def test_annotated_windows_and_their_baselines(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters = rng.choice(list("ACGT"), 9000)
    sites = np.arange(100, 8900, 90)
    for site in sites:
        letters[site : site + 6] = list("GTAAGT")
    (tmp_path / "g.fa").write_text(">c\n" + "".join(letters[:8990]) + "N" * 10 + "\n")
    (tmp_path / "a.bed").write_text("".join(f"c\t{s}\t{s + 1}\tdonor\n" for s in sites))
    options = {"annotation": str(tmp_path / "a.bed"), "window": 500, "rc_augment": True}
    found = data("base_labels", tmp_path / "g.fa", **options)
    rows = rows_of(found)
    assert found.labels == ("none", "donor")
    decode = NucleotideTokenizer().decode
    for epoch in range(4):
        rows.epoch = epoch
        row = rows[2]
        at = np.flatnonzero(row["targets"] == 1)
        text = decode(row["ids"])
        ends = np.array_equal(row["ids"], rows.store[2])
        # Read from the other strand a site is the last base of the motif's complement.
        assert len(at) and all(text[i : i + 6] == "GTAAGT" if ends else text[i - 5 : i + 1] == "ACTTAC" for i in at)
    last = rows_of(found, "test")[len(rows_of(found, "test")) - 1]
    assert ((last["targets"] == IGNORE) == (last["ids"] == NucleotideTokenizer.n_id)).all()
    task = BaseLabels(**found.task_options())
    scores = found.baselines(task)
    assert float(scores["base weights ±10"]["auprc"]) > 0.9
    assert float(scores["label shares"]["auprc"]) < 0.1


def test_long_intervals_are_cut_into_windows_that_keep_their_labels(tmp_path: Path, genome: Path) -> None:
    (tmp_path / "a.bed").write_text("".join(f"chr1\t{i}\t{i + 3}\tx\t0\t.\n" for i in range(0, LENGTH, 50)))
    genes = [f"chr1\t{i}\t{i + 250}\tg\t0\t{'+-'[i % 2]}" for i in range(7, 3700, 101)]
    (tmp_path / "genes.bed").write_text("\n".join(genes) + "\n")
    found = data("base_labels", tmp_path / "genes.bed", genome=str(genome), annotation=str(tmp_path / "a.bed"), window=100)
    rows, frame = rows_of(found), found.tables["train"].frame
    assert set(rows.lengths) == {50, 100} and len(rows) == 3 * len(frame)
    for i in range(len(rows)):
        record, offset = rows.store.records[i], rows.store.starts[i]  # type: ignore[attr-defined]
        start, end = int(frame["start"].iloc[record]), int(frame["end"].iloc[record])
        place = np.arange(start, end)[:: -1 if frame["strand"].iloc[record] == "-" else 1][
            offset : offset + len(rows[i]["ids"])
        ]
        assert np.array_equal(rows[i]["targets"] == 1, place % 50 < 3)


def test_a_letter_for_each_base(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = ["sequence,states"]
    for n in rng.integers(40, 90, 60).tolist():
        text = "".join(rng.choice(list("ACGT"), n))
        lines.append(f"{text},{''.join('S' if b in 'GC' else 'w' for b in text)}")
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    for options in ({}, {"window": 32}, {"max_length": 50}):
        found = data("base_labels", tmp_path / "x.csv", label_column="states", **options)
        batch = next(iter(found.loader("train")))
        strong = (batch["inputs"] == 8) | (batch["inputs"] == 9)
        assert torch.equal(batch["labels"] == list(found.labels).index("S"), strong)
        assert torch.equal(batch["labels"] == IGNORE, ~batch["mask"])
        assert batch["inputs"].shape[1] <= options.get("window", options.get("max_length", 90))
    assert found.task_options()["background"] in ("S", "w")
    (tmp_path / "x.csv").write_text("\n".join(lines[:30]) + "\nACGT,wS\n")
    with pytest.raises(DataError, match="line 31: 'states' holds 2 letters for 4 bases"):
        data("base_labels", tmp_path / "x.csv", label_column="states")
    words = [f"{line.split(',')[0]},{' '.join(line.split(',')[1])}" for line in lines[1:]]
    (tmp_path / "x.csv").write_text("\n".join([lines[0], *words]) + "\n")
    assert data("base_labels", tmp_path / "x.csv", label_column="states").labels == ("S", "w")


def test_what_does_not_fit_is_named(tmp_path: Path, genome: Path, signal: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs data\.tracks"):
        data("profile", genome, annotation=str(tmp_path / "a.bed"), window=256, **CHROMS)
    (tmp_path / "s2.bedgraph").write_text("1\t0\t10\t1\n")
    with pytest.raises(DataError, match="calls it '1'"):
        data("profile", genome, tracks=str(tmp_path / "s2.bedgraph"), window=256, **CHROMS)
    with pytest.raises(DataError, match="no window of 5000 bases"):
        data("profile", genome, tracks=str(signal), window=5000, **CHROMS)
    with pytest.raises(ConfigError, match="are parts of it"):
        data("profile", genome, tracks=str(signal), test=str(genome))
    (tmp_path / "x.csv").write_text("sequence,label\n" + "ACGT,a\n" * 20)
    with pytest.raises(DataError, match="without coordinates"):
        data("profile", tmp_path / "x.csv", tracks=str(signal))
    (tmp_path / "part.bedgraph").write_text("chr1\t0\t10\t1\n")
    found = data("profile", genome, tracks=str(tmp_path / "part.bedgraph"), window=256, **CHROMS)
    assert "chr2, chr3" in str(found.counts["track part"])


def test_tracks_and_annotations_of_another_assembly_are_refused(tmp_path: Path, genome: Path) -> None:
    (tmp_path / "far.bedgraph").write_text("chr1\t0\t10\t1\nchr1\t900000\t900010\t1\n")
    with pytest.raises(DataError, match=r"far\.bedgraph: chr1 has 900,010 bases there, but [\d,]+ in .*same assembly"):
        data("profile", genome, tracks=str(tmp_path / "far.bedgraph"), window=256, **CHROMS)
    (tmp_path / "far.gtf").write_text('chr1\tx\texon\t900001\t900100\t.\t+\t.\ttranscript_id "t";\n')
    with pytest.raises(DataError, match=r"a feature on chr1 begins at base 900,001, behind the chromosome's end"):
        data("base_labels", genome, annotation=str(tmp_path / "far.gtf"), window=256, **CHROMS)


@pytest.mark.parametrize("task", ["profile", "base_labels", "regression", "multilabel"])
def test_the_demo_of_every_task_is_declared_synthetic(task: str) -> None:
    found = DNAData(task=task, demo_rows=20, batch_size=4)
    found.setup()
    assert "synthetic" in found.counts
    assert min(len(rows) for rows in found.splits.values()) > 3
    batch = next(iter(found.loader("val")))
    assert len(batch["labels"]) == 4


def test_other_strand_of_ids_is_what_the_targets_turn_with() -> None:
    found = DNAData(task="base_labels", demo_rows=20, rc_augment=True)
    found.setup()
    rows = rows_of(found)
    plain = rows.store[0]
    seen = set()
    for epoch in range(8):
        rows.epoch = epoch
        row = rows[0]
        turned = not np.array_equal(row["ids"], plain)
        seen.add(turned)
        assert np.array_equal(row["ids"], reverse_complement_ids(plain) if turned else plain)
        assert np.array_equal(row["targets"], rows.targets[0][::-1] if turned else rows.targets[0])
    assert seen == {False, True}
