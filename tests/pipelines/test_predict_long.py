"""A sequence of ten million tokens in constant memory."""

import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

TOKENS = 10_000_000
# Of them 0.7 GB are the program itself.
MOST_GB = 3.0
QUIET = ["report=false", "baselines=false"]


@pytest.mark.slow
def test_ten_million_bases_in_one_pass(longseq: Callable[..., int], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    letters = np.frombuffer(b"ACGT", np.uint8)
    for name, length in (("train.fa", 4000), ("long.fa", TOKENS)):
        (tmp_path / name).write_bytes(b">chr1\n" + rng.choice(letters, length).tobytes() + b"\n")
    fit = ["trainer=cpu", "backbone=mamba", "backbone.d_model=16", "backbone.n_layers=1", "trainer.max_epochs=1"]
    assert longseq("fit", *fit, "task=lm", "data.train=train.fa", "data.window=256", *QUIET, "run_dir=run") == 0
    command = ["predict", "run=run", "data.predict=long.fa", "output=out.csv", "resolution=1000000", "device=cpu"]
    subprocess.run([sys.executable, "-m", "longseq.pipelines.cli", *command], check=True, timeout=280)
    table = pd.read_csv(tmp_path / "out.csv")
    bits = np.asarray(table["bits_per_base"])
    assert int(np.sum(table["scored_bases"])) == TOKENS - 1
    assert len(bits) == 10 and bits.min() > 1.9 and bits.max() < 5
    peak_gb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    assert peak_gb < MOST_GB, f"{peak_gb:.2f} GB"
