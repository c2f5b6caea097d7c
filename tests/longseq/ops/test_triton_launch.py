"""Launches that Triton prepares once: which go past it, and with what."""

import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")


class Kernel:
    """Stands for a `triton.jit` function and counts what goes through Triton."""

    def __init__(self) -> None:
        self.through: list[tuple[Any, ...]] = []
        self.direct: list[tuple[Any, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launch(*arguments: Any, **options: Any) -> Any:
            self.through.append((grid, *arguments[1:], options))
            run = lambda *given: self.direct.append(given)  # noqa: E731
            return SimpleNamespace(run=run, function="function", packed_metadata="metadata")

        return launch


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    from longseq.ops import triton_launch

    monkeypatch.setattr(triton_launch, "_KNOWN", True)
    monkeypatch.setattr(triton.runtime.driver, "_active", SimpleNamespace(get_current_stream=lambda device: "stream"))
    return Kernel()


def launch(kernel: Kernel) -> Any:
    from longseq.ops.triton_launch import Launch

    return Launch(kernel, (2, 3), (5, 0.5), (True,), warps=8, stages=2, registers=168)


def test_the_first_launch_goes_through_triton_and_the_next_past_it(kernel: Kernel) -> None:
    prepared, x = launch(kernel), torch.zeros(8)
    prepared(x)
    options = {"num_warps": 8, "num_stages": 2, "maxnreg": 168}
    assert kernel.through == [((2, 3), 5, 0.5, True, options)]
    assert not kernel.direct
    prepared(x)
    assert len(kernel.through) == 1
    assert kernel.direct == [(2, 3, 1, "stream", "function", "metadata", None, None, None, x.data_ptr(), 5, 0.5, True)]


def test_other_dtypes_addresses_and_hooks_go_through_triton(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared, x = launch(kernel), torch.zeros(8)
    prepared(x)
    prepared(x.double())
    # Its address is no multiple of 16, which another variant was compiled for.
    prepared(x[1:])
    assert len(kernel.through) == 3
    monkeypatch.setattr(triton.knobs.runtime.launch_enter_hook, "calls", [print])
    prepared(x)
    assert len(kernel.through) == 4
    assert not kernel.direct


def test_a_tensor_on_another_device_goes_through_triton(kernel: Kernel) -> None:
    prepared, x = launch(kernel), torch.zeros(8)
    prepared(x, x)
    # As if the second one had been on a GPU.
    prepared._ready = {(key[0], 0, *key[2:]): value for key, value in prepared._ready.items()}
    prepared(x, x)
    assert len(kernel.through) == 2


def test_an_unknown_version_leaves_every_launch_to_triton(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    from longseq.ops import triton_launch

    monkeypatch.setattr(triton_launch, "_KNOWN", False)
    prepared = launch(kernel)
    prepared(torch.zeros(8))
    prepared(torch.zeros(8))
    assert len(kernel.through) == 2
    with triton_launch.compiled_ahead(lambda: pytest.fail("nothing is compiled ahead")):
        pass


def test_a_launch_is_compiled_where_compiling_ahead_and_run_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime._async_compile import active_mode

    from longseq.ops import triton_launch

    done: list[Any] = []

    class Both(Kernel):
        arg_names = ("x_ptr", "size", "WIDE", "BLOCK")

        def run(self, *arguments: Any, **options: Any) -> Any:
            done.append(("compiled", arguments, options))
            mode = active_mode.get()
            assert mode is not None
            return mode.submit("key", lambda: Compiled(), lambda kernel: done.append("ready"))

    class Compiled:
        @property
        def run(self) -> None:
            done.append("loaded")

    kernel, x = Both(), torch.zeros(8)
    monkeypatch.setattr(triton_launch, "_KNOWN", True)
    options = {"num_warps": 2, "num_stages": 3}
    with triton_launch.compiled_ahead(lambda: triton_launch.launch(kernel, (4,), [x], [2], 2, BLOCK=8, WIDE=True)):
        # Beside what stands in the block: nobody waits yet.
        assert "ready" not in done
    assert done == [("compiled", (x, 2, True, 8), {"grid": (4,), "warmup": True, **options}), "loaded", "ready"]
    assert not kernel.through
    triton_launch.launch(kernel, (4,), [x], [2], 2, BLOCK=8, WIDE=True)
    assert kernel.through == [((4,), 2, True, 8, options)]
    assert len(done) == 3


def test_what_compiles_in_the_background_holds_nobody_up_and_fails_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    from longseq.ops import triton_launch

    monkeypatch.setattr(triton_launch, "_KNOWN", True)
    may_end, seen = threading.Event(), []

    def run() -> None:
        assert may_end.wait(60)
        seen.append((triton_launch._ahead.is_on, threading.current_thread() is threading.main_thread()))
        raise RuntimeError("no compiler")

    compiling = triton_launch.compile_in_background(run, torch.zeros(1))
    assert not compiling.done() and not triton_launch._ahead.is_on
    may_end.set()
    assert compiling.result(60) is None
    assert seen == [(True, False)]


def test_what_two_threads_want_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime._async_compile import active_mode

    from longseq.ops import triton_launch

    monkeypatch.setattr(triton_launch, "_KNOWN", True)
    may_end, compiled, ready = threading.Event(), [], []

    def compile_kernel() -> Any:
        compiled.append(threading.get_ident())
        assert may_end.wait(60)
        return SimpleNamespace(run=None)

    def run() -> None:
        mode = active_mode.get()
        assert mode is not None
        for _ in range(2):
            mode.submit("key", compile_kernel, lambda kernel: ready.append(kernel))

    first = triton_launch.compile_in_background(run, torch.zeros(1))
    with triton_launch.compiled_ahead(run):
        assert not first.done()
        may_end.set()
    first.result(60)
    # Each of them still learns of it.
    assert len(compiled) == 1 and len(ready) == 2 and ready[0] is ready[1]
    assert not triton_launch._under_way


def test_prepared_launches_are_made_once(kernel: Kernel) -> None:
    from longseq.ops.triton_launch import prepare

    assert prepare(kernel, (1,), (2,), (True,)) is prepare(kernel, (1,), (2,), (True,))
    assert prepare(kernel, (1,), (2,), (True,)) is not prepare(kernel, (1,), (2,), (False,))


def test_a_version_is_known() -> None:
    from longseq.ops import triton_launch

    # The direct call is only right for versions that it was checked with: look at CompiledKernel.run when this fails.
    assert triton.__version__.startswith("3.6.") == triton_launch._KNOWN
    assert triton_launch.on_device(torch.zeros(1)) is triton_launch.on_device(torch.zeros(2))
