"""SSD's Triton kernels against the loop over time: in Triton's interpreter, and on a GPU.

The interpreter is chosen when kernels are decorated, so a process of its own runs it: this file, as a script.
"""

import json
import sys

import pytest
import torch
from torch import Tensor

from tests.longseq.ops import kernel_checks as checks
from tests.longseq.ops.offline_compiler import assert_fits

MODES = ("plain", "mask", "segments", "reverse", "everything")
# length, mode, dtype, stretches of time
TINY = [
    (1, "plain", "float32", 1),
    (33, "everything", "float32", 2),
    (20, "segments", "bfloat16", 1),
]
# Products of 16-bit numbers; float32 inputs are split in two of them.
TOLERANCE = {"float32": 3e-5, "float16": 5e-3, "bfloat16": 1e-2}


def make(batch: int, length: int, heads: int, groups: int, width: int, states: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "x_BLHP": normal(batch, length, heads, width).to(dtype),
        "dt_BLH": normal(batch, length, heads).to(dtype),
        "A_H": -torch.rand(heads, generator=generator) * 4 - 0.1,
        "B_BLGN": normal(batch, length, groups, states).to(dtype),
        "C_BLGN": normal(batch, length, groups, states).to(dtype),
        "D_H": normal(heads),
        "dt_bias_H": normal(heads) - 2,
        "initial_state_BHPN": normal(batch, heads, width, states),
    }


def interpret() -> None:
    """Prints every tiny case's errors; raises where the operator tells a compiler something else than it does."""
    from longseq.ops.ssd import triton as kernels
    from longseq.ops.ssd.chunked import ssd_chunked
    from longseq.ops.ssd.triton_choices import Choice

    checks.allow_interpreter_scalars()
    found = []
    kernels._choice = lambda x, wide: Choice(16, heads=1)
    for length, mode, name, stretches in TINY:
        Choice.stretches = lambda *_, stretches=stretches: stretches  # type: ignore[method-assign, assignment]
        given = make(1, length, 2, 1, 3, 5, getattr(torch, name))
        options = checks.row_options(mode, 1, length, "cpu")
        found.append(checks.errors(kernels.ssd_triton, ssd_chunked, given, "cpu", dt_softplus=True, **options))
    rows = checks.row_options("mask", 1, 3, "cpu")["mask_BL"], None
    given = [v.requires_grad_() for v in make(1, 3, 1, 1, 3, 5, torch.float32).values()]
    torch.library.opcheck(kernels._ssd, (*given, *rows, True, True, True))
    print(json.dumps(found))


def compile_for(capability: int) -> None:
    """Prints what the kernels of a training step, with time cut in two, would ask of a GPU."""
    from longseq.ops.ssd import triton as kernels
    from longseq.ops.ssd.triton_choices import Choice, choose
    from tests.longseq.ops.offline_compiler import compiled_kernels

    given = make(1, 256, 4, 1, 64, 128, torch.bfloat16)
    initial, (x, *others) = given.pop("initial_state_BHPN"), given.values()
    with compiled_kernels(capability) as found:
        Choice.stretches = lambda *_: 2  # type: ignore[method-assign, assignment]
        kernels._choice = lambda _x, wide: choose(capability, wide)
        _, _, kept = kernels._ssd(x, *others, None, None, None, True, False, True)
        kernels._ssd_backward(x, initial, x, *others, None, None, kept, True, False)
    print(json.dumps(found))


def capture() -> None:
    """Prints how far a CUDA graph's replay is off."""
    print(json.dumps(checks.captured_error(*_training(torch.bfloat16))))


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    for case, found in zip(TINY, checks.run_script(__file__, interpret=True), strict=True):
        checks.assert_small(found, TOLERANCE[case[2]], case)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
@pytest.mark.parametrize("capability", [9, pytest.param(8, marks=pytest.mark.slow)])
def test_kernels_compile_without_a_gpu(capability: int) -> None:
    pytest.importorskip("triton")
    found = checks.run_script(__file__, "compile", str(capability), interpret=False)
    names = {"sum_decays", "walk_states", "chain_stretches", "ssd_forward"}
    assert_fits(found, names | {"ssd_input_gradients", "ssd_map_gradients"})


gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("length", checks.LENGTHS)
def test_kernels_on_a_gpu(length: int, dtype: str) -> None:
    from longseq.ops.ssd.chunked import ssd_chunked
    from longseq.ops.ssd.triton import ssd_triton

    for mode in MODES:
        given = make(2, length, 4, 2, 64, 128, getattr(torch, dtype))
        options = checks.row_options(mode, 2, length, "cuda")
        found = checks.errors(ssd_triton, ssd_chunked, given, "cuda", dt_softplus=True, **options)
        checks.assert_small(found, TOLERANCE[dtype], mode)


@gpu
@pytest.mark.parametrize(("width", "states"), [(1, 1), (5, 3), (16, 16), (80, 33), (32, 256), (128, 128)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_size_of_head_and_state(width: int, states: int, dtype: str) -> None:
    from longseq.ops.ssd.chunked import ssd_chunked
    from longseq.ops.ssd.triton import ssd_triton

    given = make(2, 150, 3, 1, width, states, getattr(torch, dtype))
    options = checks.row_options("everything", 2, 150, "cuda")
    # Few numbers do not average 16-bit roundings out.
    tolerance = 3e-5 if dtype == "float32" else 2e-2
    found = checks.errors(ssd_triton, ssd_chunked, given, "cuda", dt_softplus=True, **options)
    # A sum over all positions for each of three heads: with 256 states its terms are thirty times what they add up to.
    bias = {"ddt_bias_H": found.pop("ddt_bias_H")}
    checks.assert_small(found, tolerance)
    checks.assert_small(bias, max(tolerance, 1e-4))


@gpu
@pytest.mark.parametrize("dt", [1e-4, 20.0])
def test_extreme_step_sizes(dt: float) -> None:
    from longseq.ops.ssd.chunked import ssd_chunked
    from longseq.ops.ssd.triton import ssd_triton

    given = make(1, 600, 4, 1, 64, 128, torch.float32)
    given["dt_BLH"], given["dt_bias_H"] = torch.full_like(given["dt_BLH"], dt), torch.zeros(4)
    # At dt = 20 nothing is left of a state after one step, and no gradient of its rate either.
    found = checks.errors(ssd_triton, ssd_chunked, given, "cuda")
    checks.assert_small({n: e for n, e in found.items() if dt < 1 or n != "dA_H"}, 5e-5)


@gpu
def test_long_rows_in_stretches() -> None:
    from longseq.ops.ssd.chunked import ssd_chunked
    from longseq.ops.ssd.triton import ssd_triton

    given = make(1, 20000, 2, 1, 64, 128, torch.float32)
    checks.assert_small(checks.errors(ssd_triton, ssd_chunked, given, "cuda", dt_softplus=True), 3e-5)


def _training(dtype: torch.dtype):  # type: ignore[no-untyped-def]
    from longseq.ops.ssd.triton import ssd_triton

    def run(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, bias: Tensor) -> Tensor:
        return 2.0 * ssd_triton(1.0 * x, dt, A, B, C, D, bias, dt_softplus=True)[0]

    given = list(make(2, 500, 4, 1, 64, 128, dtype).values())[:7]
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
    from longseq.ops.ssd.triton import ssd_triton

    length, heads, width = (1 << 20) + 40000, 32, 64
    x = torch.randn(1, length, heads, width, device="cuda", dtype=torch.bfloat16)
    dt, A = torch.rand(1, length, heads, device="cuda") + 0.5, -torch.rand(heads, device="cuda") - 0.5
    B, C = (torch.randn(1, length, 1, 16, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    with torch.no_grad():
        y, state = ssd_triton(x, dt, A, B, C)
        end = slice(length - 640, length)
        y_end, state_end = ssd_triton(x[:, end], dt[:, end], A, B[:, end], C[:, end])
    assert checks.relative_error(y[:, -64:], y_end[:, -64:]) < 1e-2
    assert checks.relative_error(state, state_end) < 1e-2


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:
        compile_for(int(sys.argv[2]))
    else:
        capture() if sys.argv[1:] == ["capture"] else interpret()
