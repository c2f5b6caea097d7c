"""What all tests share: the real data's folder, and markers that need something."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]

# Workers side by side (pytest -n auto) share the cores; threads of their own would only get in each other's way.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)


def data_folder() -> Path:
    """Where the real files stand: LONGSEQ_DATA, or shared/data beside the repository."""
    return Path(os.environ.get("LONGSEQ_DATA", ROOT.parent / "shared" / "data"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips tests that need a GPU or the real files where there are none."""
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
        if item.get_closest_marker("data") and not data_folder().is_dir():
            item.add_marker(pytest.mark.skip(reason="needs the real files: set LONGSEQ_DATA"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with the real files (tests marked `data`)."""
    return data_folder()


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def few_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exported scans that unroll as little as 512 positions need: the same graphs, a quarter as large."""
    from longseq.ops.diagonal_ssm import traced as diagonal
    from longseq.ops.selective_scan import traceable as selective

    monkeypatch.setattr(selective, "STEPS", 4)
    monkeypatch.setattr(selective, "CHUNKS", 2)
    monkeypatch.setattr(selective, "_ROUNDS", 7)
    monkeypatch.setattr(diagonal, "SYMBOLIC_LEVELS", 7)
