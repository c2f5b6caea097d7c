"""Compiles the kernels that an operator launches for a GPU that need not be there; nothing runs."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

# By (major) compute capability: what is compiled for, and the shared memory that a program may have on the family's smallest.
TARGETS = {8: (80, 99 * 1024), 9: (90, 227 * 1024)}


class _Driver:
    """As much of Triton's driver as choosing a target asks for."""

    def __init__(self, capability: int) -> None:
        self._target = TARGETS[capability]
        self.utils = self

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self._target[0], 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int = 0) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_properties(self, _device: int) -> dict[str, int]:
        return {"max_shared_mem": self._target[1], "multiprocessor_count": 132}


@contextlib.contextmanager
def compiled_kernels(capability: int) -> Iterator[list[dict[str, Any]]]:
    """What was compiled instead of being launched: name, hash of the variant, shared memory in bytes, and its limit.

    Meant for a process of its own.
    """
    cache = tempfile.TemporaryDirectory()
    os.environ["TRITON_CACHE_DIR"] = cache.name
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(_Driver(capability))  # type: ignore[arg-type]
    launch, found = JITFunction.run, []

    def compile_only(self: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        kernel: Any = launch(self, *arguments, grid=grid, warmup=True, **options)
        # Compiled ahead of its use, beside others.
        kernel = kernel.result() if hasattr(kernel, "result") else kernel
        about = {"name": self.__name__, "hash": kernel.hash}
        found.append(about | {"shared": kernel.metadata.shared, "limit": TARGETS[capability][1]})

    JITFunction.run = compile_only  # type: ignore[method-assign]
    try:
        yield found
    finally:
        JITFunction.run = launch  # type: ignore[method-assign]
        cache.cleanup()


def assert_fits(kernels: list[dict[str, Any]], expected: set[str]) -> None:
    """Every expected kernel compiled, within the shared memory of its target."""
    assert {kernel["name"] for kernel in kernels} == expected, kernels
    for kernel in kernels:
        assert kernel["shared"] <= kernel["limit"], kernel
