"""Launches of Triton kernels at little cost on the host, and their compilation side by side.

Triton works out at every launch which compiled variant its arguments need: 20 to 40 us for kernels with many arguments, more
than many of them run. A `Launch` belongs to the shapes of a call and remembers the answer; what is left is about 5 us.
"""

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import reduce
from operator import or_
from typing import Any

import torch
import triton
from torch import Tensor

# To a type checker drivers have no streams, and the module no knobs.
_triton: Any = triton
# Whether compiled kernels of this version are known to be called as below; with others Triton does every launch.
_KNOWN: bool = triton.__version__.startswith("3.6.")


class Launch:
    """A kernel with all its arguments but the tensors: these come first in its signature, then numbers, then constants.

    Args:
        kernel: a `triton.jit` function.
        grid: numbers of programs.
        numbers: its integers and floats, in order.
        constants: its `tl.constexpr` arguments, in order.
        warps: warps of a program.
        stages: loads in flight of a pipelined loop.
        registers: at most so many of a thread, so that another program fits beside; as many as it likes if None.
    """

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        numbers: Sequence[float],
        constants: Sequence[Any],
        warps: int = 4,
        stages: int = 3,
        registers: int | None = None,
    ) -> None:
        self.kernel, self.grid = kernel, grid
        self._rest = (*numbers, *constants)
        self._options = {"num_warps": warps, "num_stages": stages}
        if registers is not None:
            self._options["maxnreg"] = registers
        # By the tensors' devices and dtypes: the compiled kernel's own launcher with what it wants before the arguments.
        self._ready: dict[tuple[Any, ...], tuple[Callable[..., None], tuple[Any, ...], tuple[Any, ...]]] = {}

    def __call__(self, *tensors: Tensor) -> None:
        ready = self._ready.get(_kinds(tensors))
        pointers = [x.data_ptr() for x in tensors]
        # Variants differ by whether an address is a multiple of 16; a hook (a profiler's) wants to be called by Triton.
        if ready is None or reduce(or_, pointers) & 15 or _ahead.is_on or _has_hook():
            self._through_triton(tensors, pointers)
            return
        run, before, after = ready
        stream = _triton.runtime.driver.active.get_current_stream(tensors[0].get_device())
        run(*before, stream, *after, *pointers, *self._rest)

    def _through_triton(self, tensors: tuple[Tensor, ...], pointers: list[int]) -> None:
        if _ahead.is_on:
            self.kernel.run(*tensors, *self._rest, grid=self.grid, warmup=True, **self._options)
            return
        compiled = self.kernel[self.grid](*tensors, *self._rest, **self._options)
        # The interpreter compiles nothing.
        if compiled is None or reduce(or_, pointers) & 15 or not _KNOWN:
            return
        # No metadata and no hooks.
        after = (compiled.function, compiled.packed_metadata, None, None, None)
        self._ready[_kinds(tensors)] = compiled.run, (*self.grid, 1, 1)[:3], after


def _kinds(tensors: tuple[Tensor, ...]) -> tuple[Any, ...]:
    # One tensor elsewhere would be a wild pointer: such a call goes through Triton, which says so.
    return (*[x.get_device() for x in tensors], *[x.dtype for x in tensors])


def _has_hook() -> bool:
    runtime = _triton.knobs.runtime
    return bool(runtime.launch_enter_hook.calls or runtime.launch_exit_hook.calls)


@functools.lru_cache(4096)
def prepare(
    kernel: Any,
    grid: tuple[int, ...],
    numbers: tuple[float, ...],
    constants: tuple[Any, ...],
    warps: int = 4,
    stages: int = 3,
    registers: int | None = None,
) -> Launch:
    """The `Launch` with these arguments, made once."""
    return Launch(kernel, grid, numbers, constants, warps, stages, registers)


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    tensors: Sequence[Tensor],
    numbers: Sequence[float] = (),
    warps: int = 4,
    registers: int | None = None,
    **constants: Any,
) -> None:
    """Launches a kernel; its constants, which stand last in its signature, are given by name and in any order."""
    names = kernel.arg_names[len(tensors) + len(numbers) :]
    if len(names) != len(constants):
        raise TypeError(f"the kernel's constants are {', '.join(names)}; found {', '.join(constants)}")
    ordered = tuple([constants[name] for name in names])
    prepare(kernel, grid, tuple(numbers), ordered, warps, registers=registers)(*tensors)


class _Ahead(threading.local):
    is_on: bool = False


_ahead = _Ahead()


class _CompileAndLoad(ThreadPoolExecutor):
    """A kernel is loaded where it was compiled: its launcher is a program in C, which is compiled as well."""

    def __init__(self) -> None:
        super().__init__(min(16, 2 * (os.cpu_count() or 1)), thread_name_prefix="longseq-triton")
        self._device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def submit(self, compile_kernel: Callable[[], Any], /, *_: Any, **__: Any) -> Future[Any]:  # type: ignore[override]
        return super().submit(self._compile_and_load, compile_kernel)

    def _compile_and_load(self, compile_kernel: Callable[[], Any]) -> Any:
        kernel = compile_kernel()
        # What cannot be loaded says so again where it is launched.
        with contextlib.suppress(Exception), _NOTHING if self._device is None else torch.cuda.device(self._device):
            _ = kernel.run
        return kernel


# Versions that are not known may be without it, and are not asked to compile ahead.
_Mode: Any = getattr(triton, "AsyncCompileMode", object)


class _CompileOnce(_Mode):
    """What several threads want at the same time is compiled by the first of them."""

    def submit(self, key: str, compile_fn: Callable[[], Any], finalize_fn: Callable[[Any], None]) -> Any:
        if key in self.future_kernels:
            return self.future_kernels[key]
        with _lock:
            future: Any = _under_way.get(key)
            if future is None:
                future = _under_way[key] = self.executor.submit(compile_fn)
                future._key = key
        future.add_done_callback(lambda _: _under_way.pop(key, None))
        self.raw_futures.append(future)
        self.future_kernels[key] = _triton.FutureKernel(finalize_fn, future)
        return self.future_kernels[key]


_lock = threading.Lock()
_under_way: dict[str, Future[Any]] = {}


@contextlib.contextmanager
def compiled_ahead(run: Callable[[], object]) -> Iterator[None]:
    """Compiles the kernels that a function launches, side by side and beside the block's own work, until the block ends.

    The function runs without its kernels, on whatever is in memory; the block launches none. Nothing is compiled where kernels
    are interpreted, or by a version of Triton that is not known to be able to.
    """
    if not _KNOWN or _triton.knobs.runtime.interpret:
        yield
        return
    # What does not compile says so again where it is launched.
    with _CompileAndLoad() as pool, _CompileOnce(pool, ignore_errors=True):
        _ahead.is_on = True
        try:
            run()
        finally:
            _ahead.is_on = False
        yield


def compile_in_background(run: Callable[[], object], x: Tensor) -> Future[None]:
    """Compiles beside whatever comes next what a function launches on a tensor's device; done when that is.

    What could not be compiled says so where it is launched.
    """

    def compile_all() -> None:
        with on_device(x), contextlib.suppress(Exception), compiled_ahead(run):
            pass

    pool = ThreadPoolExecutor(1, thread_name_prefix="longseq-compile")
    try:
        return pool.submit(compile_all)
    finally:
        pool.shutdown(wait=False)


def on_device(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Triton launches on the current device: this makes it the tensor's."""
    if not x.is_cuda or torch.cuda.current_device() == x.get_device():
        return _NOTHING
    return torch.cuda.device(x.device)


_NOTHING = contextlib.nullcontext()
