"""What compiled loops share: functions of one number, the cache on disk, and threads."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch

from longseq.ops import compiled
from longseq.ops.compiled import allocate, exp2, flat, run_tasks, sigmoid, softplus

SPECIAL = np.array([0.0, 200.0, -200.0, np.nan, 3e38, -3e38], np.float32)


@compiled.inlined
def _apply(values, exponentials, sigmoids, softpluses):  # type: ignore[no-untyped-def]
    for i in range(values.size):
        exponentials[i], sigmoids[i], softpluses[i] = exp2(values[i]), sigmoid(values[i]), softplus(values[i])


@compiled.inlined
def _mark(start, stop, out, value):  # type: ignore[no-untyped-def]
    for i in range(start, stop):
        out[i] += value


def apply(values: np.ndarray) -> list[np.ndarray]:
    results = [np.empty_like(values) for _ in range(3)]
    _apply(values, *results)
    return results


def test_relative_errors() -> None:
    values = np.linspace(-80, 80, 1_000_001).astype(np.float32)
    exponentials, sigmoids, softpluses = apply(values)
    exact = values.astype(np.float64)
    assert np.abs(exponentials / np.exp2(exact) - 1).max() <= 2e-7
    # Rounding of the argument's product with log2(e), 115 at the ends, is left.
    assert np.abs(sigmoids * (1 + np.exp(-exact)) - 1).max() <= 6e-6
    assert np.abs(softpluses / np.logaddexp(0, exact) - 1).max() <= 6e-6
    near = np.abs(exact) < 5
    assert np.abs(softpluses / np.logaddexp(0, exact) - 1)[near].max() <= 8e-7


def test_ends_and_nan() -> None:
    exponentials, sigmoids, softpluses = apply(SPECIAL)
    np.testing.assert_array_equal(exponentials, np.array([1.0, np.inf, 2.0**-125, np.nan, np.inf, 2.0**-125], np.float32))
    np.testing.assert_allclose(sigmoids, [0.5, 1.0, 0.0, np.nan, 1.0, 0.0], atol=1e-37)
    np.testing.assert_allclose(softpluses, [np.log(2), 200.0, 0.0, np.nan, 3e38, 0.0], rtol=1e-6, atol=1e-37)


def test_flat_reads_views_without_a_copy() -> None:
    whole = torch.arange(60.0).reshape(2, 5, 6)
    part = whole[1:, ::2, 2:5]
    row, at = flat(part)
    assert np.shares_memory(row, whole.numpy())
    assert all(row[b * at[0] + t * at[1] + i] == part[b, t, i] for b in range(1) for t in range(3) for i in range(3))
    assert flat(whole[:, :0])[0].size == 0
    row, at = flat(whole.transpose(1, 2))
    assert row[at[1] * 2 + 1] == whole[0, 1, 2]


def test_large_results_start_with_a_cache_line() -> None:
    large, small = allocate(3, 1 << 20, 3), allocate(2, 0, 5)
    assert large.shape == (3, 1 << 20, 3)
    assert large.is_contiguous()
    assert large.data_ptr() % 64 == 0
    large[-1, -1, -1] = 7.0
    assert small.shape == (2, 0, 5)
    assert small.dtype == large.dtype == torch.float32


@pytest.mark.parametrize("n_tasks", [1, 2, 13])
def test_every_task_runs_once(n_tasks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_THREAD_COST", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    out = np.zeros(n_tasks)
    run_tasks(_mark, n_tasks, 1000, out, 1.0)
    assert (out == 1).all()


def test_an_error_in_a_thread_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_THREAD_COST", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)

    def fail(start: int, stop: int) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_tasks(fail, 8, 1000)


def _in_child(queue: Any) -> None:
    out = np.zeros(8)
    run_tasks(_mark, 8, 1000, out, 1.0)
    queue.put(float(out.sum()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "_THREAD_COST", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    run_tasks(_mark, 8, 1000, np.zeros(8), 1.0)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(queue,))
    child.start()
    assert queue.get(timeout=60) == 8
    child.join()


def test_machine_code_is_kept_for_the_next_process(tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(
        "from longseq.ops.compiled import compiled\n\n\n@compiled\ndef double(x):\n    return 2 * x\n\n\n"
        "assert double(3) == 6\nprint(sum(double.stats.cache_hits.values()))\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    environment.pop("NUMBA_CACHE_DIR", None)
    hits = [
        subprocess.run(
            [sys.executable, tmp_path / "kernel.py"], env=environment, capture_output=True, text=True, check=True
        ).stdout.strip()
        for _ in range(2)
    ]
    assert hits == ["0", "1"]
    assert list((tmp_path / "cache" / "longseq").rglob("*.nbi"))


def test_without_a_folder_to_write_it_is_compiled_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    njit = numba.njit

    def refuse(cache: bool = False, **options: Any) -> Any:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return njit(**options)

    monkeypatch.setattr(numba, "njit", refuse)
    assert compiled.compiled(lambda x: x + 1)(2) == 3
