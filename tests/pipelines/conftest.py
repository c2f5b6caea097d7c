"""Small files and small runs for the verbs' tests."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from longseq.pipelines.cli import main

TINY = [
    "trainer=cpu",
    "backbone.d_model=16",
    "backbone.n_layers=1",
    "trainer.max_epochs=2",
    "data.batch_size=16",
    "trainer.log_every_n_steps=1",
]


FASTEST = [
    "trainer=cpu",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=1",
    "trainer.limit_test_batches=1",
    "baselines=false",
    "report=false",
    "backbone.d_model=16",
    "backbone.n_layers=1",
]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LONGSEQ_CACHE", str(tmp_path / "cache"))
    for name in ("LONGSEQ_RUN_DIR", "LOCAL_RANK", "RANK"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def _signals(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs of this process find the callback of resuming.py, and have Ctrl-C as a terminal gives it.

    A shell's background job ignores it, and so would tests that one started.
    """
    monkeypatch.syspath_prepend(Path(__file__).parent)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def dna_csv(tmp_path: Path) -> Path:
    """120 sequences of 40 to 80 bases; label 1 holds a motif."""
    rng = np.random.default_rng(0)
    lines = ["sequence,label"]
    for i in range(120):
        letters = rng.choice(list("ACGT"), rng.integers(40, 80))
        sequence = "".join(letters)
        if i % 2:
            sequence = sequence[:10] + "GATTACAGATTACA" + sequence[24:]
        lines.append(f"{sequence},{i % 2}")
    path = tmp_path / "all.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def tiny() -> list[str]:
    """Overrides for a run of seconds."""
    return list(TINY)


@pytest.fixture
def longseq() -> Callable[..., int]:
    """Runs a command in this process and returns its exit code."""

    def run(*args: Any) -> int:
        with pytest.raises(SystemExit) as exit_info:
            main([str(arg) for arg in args])
        return int(exit_info.value.code or 0)

    return run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Trains a tiny model once per choice of options and gives its run folder."""
    runs: dict[tuple[str, ...], Path] = {}

    def run(*options: str) -> Path:
        if options not in runs:
            folder = tmp_path_factory.mktemp("run")
            with pytest.raises(SystemExit) as exit_info:
                main(["fit", *FASTEST, *options, f"run_dir={folder}"])
            assert not exit_info.value.code
            runs[options] = folder
        return runs[options]

    return run
