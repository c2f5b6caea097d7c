"""What all tests share: the real data's folder, and markers that need something."""

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.longseq.ops import kernel_checks

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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, Any, Any]:
    """Keeps the errors of a kernel's comparisons for the summary."""
    kernel_checks.largest.clear()
    try:
        return (yield)
    finally:
        if item.get_closest_marker("gpu"):
            item.user_properties += [("error", (limit, *found)) for limit, found in kernel_checks.largest.items()]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Prints, for each file of GPU tests, the largest relative error beside what is allowed."""
    rows: dict[tuple[str, float], list[tuple[float, str, str]]] = {}
    for report in (report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])):
        file, _, test = report.nodeid.partition("::")
        for name, value in report.user_properties:
            if name == "error":
                limit, error, of = value
                rows.setdefault((file, limit), []).append((error, of, test))
    if rows:
        terminalreporter.section("largest relative errors on the GPU")
    for (file, limit), found in sorted(rows.items()):
        error, of, test = max(found)
        terminalreporter.line(f"{file}  {error:.1e} of {limit:.0e} allowed, in {of} of {test}; {len(found)} tests")


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
