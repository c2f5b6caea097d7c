"""Options that a task would pass over, values out of range, and language models with files of their own for val and test."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longseq.domains.dna.datamodule import DNAData
from longseq.domains.dna.rows import WindowRows
from longseq.domains.dna.tokenizer import NucleotideTokenizer
from longseq.errors import ConfigError
from longseq.registry import create_backbone


def letters(n: int, seed: int) -> str:
    return "".join(np.random.default_rng(seed).choice(list("ACGT"), n))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = [f"{letters(40 + i % 7, i)},{'ab'[i % 2]}" for i in range(40)]
    (tmp_path / "rows.csv").write_text("sequence,label\n" + "\n".join(rows) + "\n")
    return tmp_path / "rows.csv"


@pytest.fixture
def genome(tmp_path: Path) -> Path:
    (tmp_path / "genome.fa").write_text(f">chr1\n{letters(3000, 1)}\n>chr2\n{letters(1000, 2)}\n")
    return tmp_path / "genome.fa"


def read(task: str, train: Path, **options: Any) -> DNAData:
    data = DNAData(task=task, train=str(train), cache_dir=str(train.parent / "cache"), **options)
    data.setup()
    return data


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotation": "genes.gtf"}, "data.annotation is for task=base_labels"),
        ({"features": "exon"}, "give data.annotation as well"),
        ({"other_strand": [1, 0]}, "give data.tracks as well"),
        ({"length": 30}, "data.length=30 resizes intervals of a genome.*data.max_length"),
        ({"stride": 10}, "give data.window as well"),
        ({"window": 0}, "data.window must be 1 or more, found 0"),
        ({"max_length": 0}, "data.max_length must be 1 or more, found 0"),
        ({"bin_size": 0}, "data.bin_size must be 1 or more"),
        ({"mask_fraction": 2.0}, "data.mask_fraction must lie between 0 and 1"),
        ({"invalid": "drop"}, "data.invalid must be error or N"),
    ],
)
def test_options_that_would_do_nothing_or_harm(table: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read("classification", table, **options)


@pytest.mark.parametrize(("task", "needed"), [("profile", "data.tracks"), ("base_labels", "data.annotation")])
def test_a_genome_without_targets_says_what_is_missing(genome: Path, task: str, needed: str) -> None:
    with pytest.raises(ConfigError, match=f"task={task}.* needs {needed}"):
        read(task, genome)


@pytest.mark.parametrize("task", ["lm", "mlm"])
def test_language_models_are_tested_on_the_file_that_is_given(genome: Path, tmp_path: Path, task: str) -> None:
    (tmp_path / "other.fa").write_text(f">x\n{'A' * 130}\n>y\n{'C' * 64}\n")
    data = read(task, genome, test=str(tmp_path / "other.fa"), window=64, val_fraction=0.25)
    test, train = data.splits["test"], data.splits["train"]
    assert isinstance(test, WindowRows) and isinstance(train, WindowRows)
    decode = NucleotideTokenizer().decode
    seen = "".join(decode(test.store[i]) for i in range(len(test)))
    assert set(seen) == {"A", "C"} and seen.count("C") == 64
    assert data.counts["split"] == "val: the last stretch of every record of train; test: a file of its own"
    # What is not taken for test is trained on.
    bases = int(train.store.lengths.sum()) - (len(train) if task == "lm" else 0)
    assert bases >= 0.74 * 4000
    with pytest.raises(ConfigError, match="found a mapping"):
        DNAData(task=task, train=str(genome), test={"a": str(genome)}, cache_dir=str(tmp_path / "cache")).setup()


def test_pretraining_on_a_tasks_own_rows_keeps_its_length_and_takes_targets_along(genome: Path, table: Path) -> None:
    data = read("classification", table)
    assert data.self_supervised(True).max_length == data.max_length == 46
    tracks = genome.parent / "signal.bedgraph"
    tracks.write_text("chr1\t0\t3000\t1\nchr2\t0\t1000\t2\n")
    profile = read("profile", genome, tracks=str(tracks), window=128, bin_size=32, val_fraction=0.2, test_fraction=0.2)
    inputs = profile.self_supervised(False)
    batch = next(iter(inputs.loader("train", shuffle=True)))
    assert batch["inputs"].shape[1] == 128 and (batch["labels"] >= 0).any()
    backbone = create_backbone("s4d", d_model=8, n_layers=1, bidirectional=True)
    assert inputs.model_options(backbone)["input_length"] == 128
