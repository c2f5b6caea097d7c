"""Compiles what `Launch`es of an operator ask for, on tensors without memory, for GPUs that are not there.

Nothing but Triton's own compiler and assembler is needed. A test file runs itself as a script for it, since the kernels of a
process are compiled for one GPU.
"""

import json
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tests.longseq.ops import kernel_checks as checks

# Bytes that a program may have, by compute capability; for 8.0 what the smallest GPUs of the family (8.6, 8.9) have.
SHARED_MEMORY = {80: 99 * 1024, 90: 227 * 1024}


class _Driver:
    """As much of a driver as compiling needs."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int | None = None) -> int:
        return 0


@contextmanager
def collected(capability: int) -> Iterator[list[Any]]:
    """Launches of this thread compile their kernels for a capability instead of running them; the list of them at the end."""
    import triton

    from longseq.ops import triton_launch

    triton.runtime.driver.set_active(_Driver(capability))  # type: ignore[arg-type]
    triton_launch._ahead.is_on = True
    kernels: list[Any] = []
    try:
        with ThreadPoolExecutor(4) as pool, triton.AsyncCompileMode(pool) as mode:
            yield kernels
        kernels += [compiled.result() for compiled in mode.future_kernels.values()]
    finally:
        triton_launch._ahead.is_on = False


def print_report(choose: Callable[[int], Callable[[], object]]) -> None:
    """For a test file as a script, with a capability as its second argument: what its calls launch, as names and bytes."""
    capability = int(sys.argv[2])
    with collected(capability) as kernels:
        choose(capability)()
    print(json.dumps(sorted({(kernel.name, kernel.metadata.shared) for kernel in kernels})))


def assert_fitting(path: str, capability: int, n_kernels: int) -> None:
    """Compiles what a test file launches, in a process of its own; so many kernels, all within shared memory."""
    pytest.importorskip("triton")
    found = checks.run_script(path, "compile", str(capability), interpret=False)
    assert len({name for name, _ in found}) == n_kernels, found
    assert all(shared <= SHARED_MEMORY[capability] for _, shared in found), found


def parametrize(test: Callable[..., None]) -> Callable[..., None]:
    """By capability: the family with choices of its own; slowly, what anything else gets."""
    test = pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")(test)
    return pytest.mark.parametrize("capability", [90, pytest.param(80, marks=pytest.mark.slow)])(test)


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
