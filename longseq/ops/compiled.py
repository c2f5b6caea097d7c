"""Loops compiled by numba for CPU operators: the decorator, a few vectorisable functions, and threads to run them in.

Machine code is kept on disk for the next process. Loops run in threads of our own, as many as torch has: numba's own
threading layers end the process after a fork or when two threads use them at once.
"""

import contextlib
import hashlib
import importlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from torch import Tensor

__all__ = ["allocate", "compiled", "exp2", "flat", "inlined", "run_tasks", "sigmoid", "softplus"]

_LOG2_E = np.float32(1.4426950408889634)
# Adding it to a number below 2^22 leaves the nearest integer in the low bits.
_ROUND = np.float32(1.5 * 2**23)
_SMALLEST, _LARGEST = np.float32(-125.0), np.float32(128.0)
# 2^f - 1 over f on [-1/2, 1/2], and artanh(s) / s in s^2 on [0, 1/9]: minimax in the relative error.
_E1, _E2, _E3, _E4, _E5 = (np.float32(c) for c in (0.69314700, 0.24022242, 0.055507336, 0.0096715130, 0.0013264727))
_L1, _L2, _L3, _L4 = (np.float32(c) for c in (0.33333158, 0.20012455, 0.13980301, 0.14089167))


# Sums may be reordered, so that loops with sums vectorise, but NaN and infinities count.
_OPTIONS: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": {"reassoc", "contract", "nsz", "arcp"}}


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles a kernel at its first call, or takes its machine code from the disk."""
    with _cache_folder():
        try:
            return numba.njit(cache=True, **_OPTIONS)(function)
        except RuntimeError:
            # No folder can be written: compiled again in every process.
            return inlined(function)


def inlined(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles what kernels of the same file call."""
    return numba.njit(**_OPTIONS)(function)


@contextlib.contextmanager
def _cache_folder() -> Iterator[None]:
    """A folder of the user for machine code, unless NUMBA_CACHE_DIR names one.

    numba looks at the kernel's own file for changes, not at this one, so the folder's name stands for what is in here.
    """
    settings: Any = importlib.import_module("numba.core.config")
    if settings.CACHE_DIR:
        yield
        return
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    settings.CACHE_DIR = str(root / "longseq" / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12])
    try:
        yield
    finally:
        settings.CACHE_DIR = ""


# Inlined into the compiled loops. Their sums must not be reordered: that would undo the rounding trick of exp2.
_inline = numba.njit(nogil=True, error_model="numpy", fastmath={"contract", "nsz"})


@_inline
def exp2(x: np.float32) -> np.float32:
    """2^x in float32 to a relative error of 2e-7, exact at 0; at least 2^-125, infinite from 128 on, NaN at NaN."""
    x = _SMALLEST if x < _SMALLEST else x
    x = _LARGEST if x > _LARGEST else x
    rounded = np.float32(x + _ROUND)
    f = x - (rounded - _ROUND)
    p = np.float32((((((_E5 * f + _E4) * f + _E3) * f + _E2) * f + _E1) * f) + np.float32(1.0))
    # The integer part goes to the exponent.
    return np.int32(p.view(np.int32) + np.int32(rounded.view(np.int32) << np.int32(23))).view(np.float32)


@_inline
def sigmoid(x: np.float32) -> np.float32:
    """1 / (1 + e^-x)."""
    return np.float32(1.0) / (np.float32(1.0) + exp2(-x * _LOG2_E))


@_inline
def softplus(x: np.float32) -> np.float32:
    """log(1 + e^x), without losing digits where it is small."""
    u = exp2(-abs(x) * _LOG2_E)
    s = u / (u + np.float32(2.0))
    t = s * s
    series = (((_L4 * t + _L3) * t + _L2) * t + _L1) * t + np.float32(1.0)
    return (x if x > np.float32(0.0) else np.float32(0.0)) + np.float32(2.0) * s * series


def allocate(*shape: int) -> Tensor:
    """An uninitialised float32 tensor for results.

    Large ones come from numpy, which asks Linux for huge pages: touching new memory for the first time is then about four
    times as fast.
    """
    n = math.prod(shape)
    if n < _HUGE:
        return torch.empty(shape, dtype=torch.float32)
    spare = np.empty(n + 16, np.float32)
    # Rows that start with a cache line.
    start = -spare.ctypes.data % 64 // 4
    return torch.from_numpy(spare[start : start + n]).reshape(shape)


# From 32 MiB on the C library returns freed memory to the system, so that it is new each time.
_HUGE = 1 << 23


def flat(v: Tensor) -> tuple[np.ndarray, tuple[int, int]]:
    """A (B, L, X) tensor as float32 numbers in a row, without a copy if its last axis is contiguous, and its two strides.

    Element (b, t, i) stands at `b * strides[0] + t * strides[1] + i`.
    """
    v = v.detach().to(torch.float32)
    if v.stride(2) != 1 and v.shape[2] > 1:
        v = v.contiguous()
    last = sum((size - 1) * step for size, step in zip(v.shape[:2], v.stride()[:2], strict=True)) + v.shape[2]
    empty = 0 in v.shape
    return v.as_strided((0 if empty else last,), (1,)).numpy(), (v.stride(0), v.stride(1))


def run_tasks(kernel: Callable[..., Any], n_tasks: int, cost: int, *arguments: Any) -> None:
    """Calls `kernel(start, stop, *arguments)` for ranges that cover all tasks, in as many threads as torch has.

    A task writes where no other one does, so results depend neither on the threads nor on the order.

    Args:
        kernel: from `compiled`.
        n_tasks: number of tasks.
        cost: of all tasks, in elements; little work stays in the calling thread.
        arguments: of the kernel.
    """
    threads = min(torch.get_num_threads(), n_tasks, max(1, cost // _THREAD_COST))
    if threads == 1:
        kernel(0, n_tasks, *arguments)
        return
    # A few ranges for each thread: one that is held up leaves its share to the others.
    n_ranges = min(n_tasks, 4 * threads)
    bounds, tickets = [n_tasks * i // n_ranges for i in range(n_ranges + 1)], count()

    def work() -> None:
        while (i := next(tickets)) < n_ranges:
            kernel(bounds[i], bounds[i + 1], *arguments)

    helpers = [_threads(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        # The helpers hold the arrays' memory only as long as this call does.
        for helper in helpers:
            helper.result()


# Elements for which waking a thread pays.
_THREAD_COST = 1 << 17
_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def _threads(n: int) -> ThreadPoolExecutor:
    with _pools_lock:
        if n not in _pools:
            _pools[n] = ThreadPoolExecutor(n, thread_name_prefix="longseq")
        return _pools[n]


def _after_fork() -> None:
    """A forked child has the pools without their threads."""
    global _pools_lock
    _pools.clear()
    _pools_lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)
