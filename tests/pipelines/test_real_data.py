"""Whole runs on the real files (marker `data`), small enough for two cores."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.data
def test_transcription_factor_binding_is_learned(longseq: Callable[..., int], real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "dna" / "gue" / "tf_0"
    with gzip.open(folder / "train.csv.gz", "rt") as file:
        (tmp_path / "train.csv").write_text("".join(line for _, line in zip(range(4001), file, strict=False)))
    files = ["data.train=train.csv", f"data.val={folder / 'dev.csv.gz'}", f"data.test={folder / 'test.csv.gz'}"]
    settings = ["backbone.d_model=32", "backbone.n_layers=2", "data.batch_size=32", "data.rc_augment=true", "optimizer.lr=2e-3"]
    assert longseq("fit", *files, *settings, "trainer=cpu", "trainer.max_epochs=2", "run_dir=run") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["data"]["splits"]["train"]["rows"] == 4000
    assert metrics["test"]["mcc"] > 0.45
    assert metrics["baselines"]["k-mer logistic regression"]["mcc"] > 0.3
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.data
def test_a_genome_is_modelled_better_than_its_composition(longseq: Callable[..., int], real_data: Path, tmp_path: Path) -> None:
    genome = real_data / "dna" / "genomes" / "lambda_phage.fa.gz"
    settings = ["backbone=gru", "backbone.d_model=32", "backbone.n_layers=1", "data.window=512", "optimizer.lr=1e-2"]
    args = ["task=lm", f"data.train={genome}", *settings, "trainer=cpu", "trainer.max_epochs=12", "run_dir=run", "report=false"]
    assert longseq("fit", *args) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["test"]["bits_per_base"] < metrics["baselines"]["base composition"]["bits_per_base"] + 0.02
    assert metrics["test"]["bits_per_base"] > 1.8


@pytest.mark.data
def test_mitochondrial_genomes_vote(longseq: Callable[..., int], real_data: Path, tmp_path: Path) -> None:
    """Two of the classes that are furthest apart, a few genomes of each."""
    for name in ("Birds", "Fish"):
        with gzip.open(real_data / "dna" / "mtdna_vertebrates" / f"{name}.fa.gz", "rt") as file:
            records = file.read().split(">")[1:25]
        (tmp_path / f"{name}.fa").write_text("".join(f">{record}" for record in records))
    settings = ["backbone=cnn", "backbone.d_model=32", "backbone.n_layers=2", "data.window=2048", "data.batch_size=8"]
    limits = ["data.test_fraction=0.25", "optimizer.lr=5e-3", "trainer=cpu", "trainer.max_epochs=2", "run_dir=run", "seed=1"]
    assert longseq("fit", "data.train=[Birds.fa,Fish.fa]", *settings, *limits) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["data"]["splits"]["test"]["records"] == 12
    assert metrics["data"]["splits"]["test"]["rows"] >= 12 * 7
    baseline = metrics["baselines"]["k-mer logistic regression"]
    assert baseline["record_accuracy"] > 0.9
    assert metrics["test"]["record_accuracy"] >= max(0.75, metrics["test"]["accuracy"] - 0.05)
    assert "Confusion of records" in (tmp_path / "run" / "report.html").read_text()
