"""The selective scan's Triton kernels against float64: in Triton's interpreter, and on a GPU.

The interpreter is chosen when kernels are decorated, so a process of its own runs it: this file, as a script.
"""

import json
import sys
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.longseq.ops import kernel_checks as checks
from tests.longseq.ops.offline_compiler import assert_fits

MODES = ("plain", "mask", "segments", "reverse", "everything")
# length, states, mode, dtype, stretches of time; states of a thread in forward; states of a thread and steps of a tile in
# backward, sums on tensor cores
TINY = [
    (1, 3, "plain", "float32", 1, 16, 4, 8, False),
    (9, 5, "everything", "float32", 1, 4, 4, 4, False),
    (19, 3, "everything", "float32", 1, 16, 4, 8, False),
    (65, 1, "everything", "float32", 2, 16, 4, 8, False),
    (49, 2, "plain", "float32", 3, 16, 4, 8, False),
    (11, 16, "mask", "bfloat16", 1, 16, 4, 8, True),
    (19, 3, "everything", "bfloat16", 1, 16, 16, 4, False),
    (49, 3, "plain", "bfloat16", 2, 16, 16, 8, False),
]
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 1e-2}


def make(batch: int, length: int, width: int, states: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    rates = -torch.arange(1, states + 1.0).repeat(width, 1) * (0.5 + torch.rand(width, states, generator=generator))
    return {
        "x_BLD": normal(batch, length, width).to(dtype),
        "dt_BLD": normal(batch, length, width).to(dtype),
        "A_DN": rates,
        "B_BLN": normal(batch, length, states).to(dtype),
        "C_BLN": normal(batch, length, states).to(dtype),
        "D_D": normal(width),
        "z_BLD": normal(batch, length, width).to(dtype),
        "dt_bias_D": normal(width) - 1,
        "initial_state_BDN": normal(batch, width, states),
    }


def interpret() -> None:
    """Prints every tiny case's errors; raises where the operator tells a compiler something else than it does."""
    from longseq.ops.selective_scan import triton as kernels
    from longseq.ops.selective_scan.chunked import selective_scan_chunked
    from longseq.ops.selective_scan.triton_choices import Choice

    checks.allow_interpreter_scalars()
    found = []
    for length, states, mode, name, stretches, values, backward, steps, dot in TINY:
        forward = Choice(values, 1, 16, 0, walk_programs=6)
        # Where a thread holds all states its tile is what is kept for.
        keep = steps if backward == 16 else 8
        choices = forward, Choice(backward, 1, steps, 0, dot=dot, walk_programs=6, keep=keep)
        kernels._choices = lambda x, n, choices=choices: choices
        Choice.stretches = lambda *_, stretches=stretches: stretches  # type: ignore[method-assign, assignment]
        given, options = make(1, length, 2, states, getattr(torch, name)), checks.row_options(mode, 1, length, "cpu")
        run = kernels.selective_scan_triton
        found.append(checks.errors(run, selective_scan_chunked, given, "cpu", dt_softplus=True, **options))
    rows = checks.row_options("mask", 1, 3, "cpu")["mask_BL"], None
    leaves = [v.requires_grad_() for v in make(1, 3, 2, 4, torch.float32).values()]
    torch.library.opcheck(kernels._scan, (*leaves, *rows, True, True, True))
    print(json.dumps(found))


def compile_for(capability: int, states: int) -> None:
    """Prints what the kernels of a training step, with time cut and not, would ask of a GPU."""
    from longseq.ops.selective_scan import triton as kernels
    from longseq.ops.selective_scan.triton_choices import Choice, choose
    from tests.longseq.ops.offline_compiler import compiled_kernels

    length, width = 64, 256
    given = make(1, length, width, states, torch.bfloat16)
    initial, (x, *others) = given.pop("initial_state_BDN"), given.values()
    with compiled_kernels(capability) as found:
        # Long enough that time is cut into stretches, and so short that it is not.
        for shape, stretches in (((1, 1 << 20, width), 2), ((64, 4096, 2048), 1)):
            kernels._choices = lambda _x, n, shape=shape: choose(capability, *shape, n)
            Choice.stretches = lambda *_, stretches=stretches: stretches  # type: ignore[method-assign, assignment]
            kernels._scan(x, *others, None, None, None, True, False, True)
        kept = x.new_empty(1, length // kernels._choices(x, states)[1].keep, width, states)
        kernels._scan_backward(x, initial, x, *others, None, None, kept, True, False)
    print(json.dumps(found))


def compile_ahead(reverse: bool) -> None:
    """Prints what calls of inference and training compile, with time cut and not, that had not begun to compile before."""
    from longseq.ops.selective_scan import triton as kernels
    from longseq.ops.selective_scan.triton_choices import Choice, choose
    from tests.longseq.ops.offline_compiler import compiled_kernels

    def compile_now(run: Callable[[], object], _x: Tensor) -> Future[None]:
        run()
        done: Future[None] = Future()
        done.set_result(None)
        return done

    kernels.compile_in_background = compile_now
    given = make(1, 600, 256, 16, torch.bfloat16)
    initial, (x, *others) = given.pop("initial_state_BDN"), given.values()
    late = []
    with compiled_kernels(9) as found:
        for shape, stretches in (((1, 1 << 20, 256), 2), ((64, 4096, 2048), 1)):
            kernels._choices = lambda _x, n, shape=shape: choose(9, *shape, n)
            kernels._backward_choice = lambda x, n: kernels._choices(x, n)[1]
            Choice.stretches = lambda *_, stretches=stretches: stretches  # type: ignore[method-assign, assignment]
            for save in (False, True):
                kernels.begin_to_compile(x.requires_grad_(save), *others, dt_softplus=True, reverse=reverse)
                begun = {kernel["hash"] for kernel in found}
                values = (x.detach(), *others)
                forward: tuple[Any, ...] = (*values, None, None, None, True, reverse, save)
                y, _, kept = kernels._run_forward(*forward)
                backward: tuple[Any, ...] = (y, initial, *values, None, None, kept, True, reverse)
                if save:
                    kernels._run_backward(*backward)
                late += [kernel["name"] for kernel in found if kernel["hash"] not in begun]
    print(json.dumps([late, sorted({kernel["name"] for kernel in found})]))


def capture() -> None:
    """Prints how far a CUDA graph's replay is off."""
    print(json.dumps(checks.captured_error(*_training(torch.bfloat16))))


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    for case, found in zip(TINY, checks.run_script(__file__, interpret=True), strict=True):
        checks.assert_small(found, TOLERANCE[case[3]], case)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
@pytest.mark.parametrize(
    ("capability", "states", "forward"),
    [
        (9, 16, {"scan_forward", "scan_steps", "walk_states"}),
        pytest.param(8, 16, {"scan_steps", "walk_states"}, marks=pytest.mark.slow),
        pytest.param(9, 64, {"scan_forward"}, marks=pytest.mark.slow),
    ],
)
def test_kernels_compile_without_a_gpu(capability: int, states: int, forward: set[str]) -> None:
    pytest.importorskip("triton")
    from longseq.ops.selective_scan.triton_choices import choose

    lanes = states <= 16 and choose(capability, 1, 1 << 20, 256, states)[1].values == 16
    found = checks.run_script(__file__, "compile", str(capability), str(states), interpret=False)
    # The one that compiles for long is compared with the other before it is used.
    backward = {"scan_gradients", "scan_backward"} if lanes else {"scan_backward"}
    assert_fits(found, {"combine_stretches", *backward, *forward})


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
@pytest.mark.parametrize("reverse", [False, True])
def test_a_first_call_finds_all_of_its_kernels_begun(reverse: bool) -> None:
    pytest.importorskip("triton")
    late, all_of_them = checks.run_script(__file__, "ahead", str(int(reverse)), interpret=False)
    assert not late
    assert {"scan_forward", "scan_gradients", "scan_steps", "walk_states"} < set(all_of_them)


def test_choices_cut_time_only_where_channels_do_not_fill_the_gpu() -> None:
    from longseq.ops.selective_scan.triton_choices import Choice, choose

    for capability in (0, 7, 8, 9, 10, 12, 99):
        for batch, length, width in ((8, 4096, 2048), (1, 1 << 20, 256), (1, 1, 1)):
            for choice in choose(capability, batch, length, width, 16):
                stretches = choice.stretches(batch, length, width, 16)
                assert 1 <= stretches <= max(1, length // 256)
                assert stretches == 1 or batch * width <= 16384, (capability, batch, length, width)
    assert Choice(4, 4, 8, 512).stretches(1, 1 << 20, 256, 16) == 64


gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("length", checks.LENGTHS)
def test_kernels_on_a_gpu(length: int, dtype: str) -> None:
    from longseq.ops.selective_scan.chunked import selective_scan_chunked
    from longseq.ops.selective_scan.triton import selective_scan_triton

    for mode in MODES:
        given, options = make(2, length, 48, 16, getattr(torch, dtype)), checks.row_options(mode, 2, length, "cuda")
        found = checks.errors(selective_scan_triton, selective_scan_chunked, given, "cuda", dt_softplus=True, **options)
        checks.assert_small(found, TOLERANCE[dtype], mode)


@gpu
@pytest.mark.parametrize("mode", MODES)
def test_gradients_by_lanes_on_a_gpu(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from longseq.ops.selective_scan import triton as kernels
    from longseq.ops.selective_scan import triton_choices
    from longseq.ops.selective_scan.chunked import selective_scan_chunked

    monkeypatch.setattr(triton_choices, "LANES_FROM", 0)
    for length in checks.LENGTHS:
        given, options = make(2, length, 48, 16, torch.bfloat16), checks.row_options(mode, 2, length, "cuda")
        found = checks.errors(kernels.selective_scan_triton, selective_scan_chunked, given, "cuda", dt_softplus=True, **options)
        checks.assert_small(found, TOLERANCE["bfloat16"], length)
    assert kernels._agreed
    assert all(kernels._agreed.values())


@gpu
@pytest.mark.parametrize(("width", "states"), [(1, 1), (3, 3), (130, 17), (20, 64), (9, 256)])
def test_any_number_of_states(width: int, states: int) -> None:
    from longseq.ops.selective_scan.chunked import selective_scan_chunked
    from longseq.ops.selective_scan.triton import selective_scan_triton

    given, options = make(2, 77, width, states, torch.float32), checks.row_options("everything", 2, 77, "cuda")
    found = checks.errors(selective_scan_triton, selective_scan_chunked, given, "cuda", dt_softplus=True, **options)
    checks.assert_small(found, 1e-5)


@gpu
@pytest.mark.parametrize("dt", [1e-4, 20.0])
def test_extreme_step_sizes(dt: float) -> None:
    from longseq.ops.selective_scan.chunked import selective_scan_chunked
    from longseq.ops.selective_scan.triton import selective_scan_triton

    given = make(1, 600, 24, 16, torch.float32)
    given["dt_BLD"], given["dt_bias_D"] = torch.full_like(given["dt_BLD"], dt), torch.zeros(24)
    # The step size itself is rounded to 24 bits: at 1e-4 that alone moves the sums of 600 steps by a few millionths.
    checks.assert_small(checks.errors(selective_scan_triton, selective_scan_chunked, given, "cuda"), 3e-5)


@gpu
def test_views_are_read_in_place() -> None:
    from longseq.ops.selective_scan.triton import selective_scan_triton

    given: dict[str, Any] = {n: v.cuda() for n, v in make(2, 100, 40, 16, torch.bfloat16).items()}
    both = torch.cat([given["x_BLD"], given["z_BLD"]], dim=-1)
    views = {**given, "x_BLD": both[..., :40], "z_BLD": both[..., 40:]}
    expected = selective_scan_triton(**given, dt_softplus=True)
    for a, b in zip(selective_scan_triton(**views, dt_softplus=True), expected, strict=True):
        assert torch.equal(a, b)


@gpu
def test_long_rows_in_stretches() -> None:
    from longseq.ops.selective_scan.chunked import selective_scan_chunked
    from longseq.ops.selective_scan.triton import selective_scan_triton

    given = make(1, 20000, 24, 16, torch.float32)
    found = checks.errors(selective_scan_triton, selective_scan_chunked, given, "cuda", dt_softplus=True)
    checks.assert_small(found, 1e-5)


def _training(dtype: torch.dtype):  # type: ignore[no-untyped-def]
    from longseq.ops.selective_scan.triton import selective_scan_triton

    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, z: Tensor, bias: Tensor) -> Tensor:
        return 2.0 * selective_scan_triton(1.0 * x, dt, A, B, C, D, z, bias, dt_softplus=True)[0]

    given = list(make(2, 500, 64, 16, dtype).values())[:8]
    return run, lambda: [v.cuda() for v in given]


@gpu
def test_surroundings() -> None:
    run, make_leaves = _training(torch.bfloat16)
    checks.assert_surroundings(run, [v.requires_grad_() for v in make_leaves()])


@gpu
def test_cuda_graph() -> None:
    # A capture that fails leaves the process without random numbers.
    assert checks.run_script(__file__, "capture", interpret=False) == 0.0


@gpu
@pytest.mark.slow
def test_more_elements_than_32_bits_count() -> None:
    from longseq.ops.selective_scan.triton import selective_scan_triton

    length, width = (1 << 20) + 40000, 2048
    x, dt = (torch.randn(1, length, width, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    B, C = (torch.randn(1, length, 16, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    A = -torch.rand(width, 16, device="cuda") - 0.5
    end = slice(length - 608, length)
    x.requires_grad_()
    # 600 steps before the end nothing is left of a state; the gradient of x does not depend on the state at all.
    y, state = selective_scan_triton(x, dt, A, B, C, dt_softplus=True)
    (dx,) = torch.autograd.grad(y[:, -64:].float().sum(), x)
    tail = x.detach()[:, end].clone().requires_grad_()
    y_end, state_end = selective_scan_triton(tail, dt[:, end], A, B[:, end], C[:, end], dt_softplus=True)
    (dx_end,) = torch.autograd.grad(y_end[:, -64:].float().sum(), tail)
    assert checks.relative_error(y[:, -64:], y_end[:, -64:]) < 1e-2
    assert checks.relative_error(state, state_end) < 1e-2
    assert checks.relative_error(dx[:, -64:], dx_end[:, -64:]) < 1e-2


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:
        compile_for(int(sys.argv[2]), int(sys.argv[3]))
    elif sys.argv[1:2] == ["ahead"]:
        compile_ahead(sys.argv[2] == "1")
    else:
        capture() if sys.argv[1:] == ["capture"] else interpret()
