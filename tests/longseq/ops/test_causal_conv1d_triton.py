"""The causal convolution's Triton kernels against float64: in Triton's interpreter, and on a GPU.

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
# length, taps, mode, activation, dtype
TINY = [
    (21, 4, "everything", "silu", "float32"),
    (19, 3, "plain", None, "float32"),
    (2, 4, "reverse", "silu", "float32"),
    (5, 1, "mask", "silu", "float32"),
    (20, 4, "segments", "silu", "bfloat16"),
]
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 1e-2}


def make(batch: int, length: int, width: int, taps: int, dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = {"weight_DK": (width, taps), "bias_D": (width,), "initial_state_BKD": (batch, taps - 1, width)}
    made = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {"x_BLD": torch.randn(batch, length, width, generator=generator).to(dtype), **made}


def interpret() -> None:
    """Prints every tiny case's errors; raises where the operator tells a compiler something else than it does."""
    from longseq.ops.causal_conv1d import triton as kernels
    from longseq.ops.causal_conv1d.chunked import causal_conv1d_chunked

    checks.allow_interpreter_scalars()
    found = []
    for length, taps, mode, activation, name in TINY:
        given, options = make(2, length, 9, taps, getattr(torch, name)), checks.row_options(mode, 2, length, "cpu")
        run = kernels.causal_conv1d_triton
        found.append(checks.errors(run, causal_conv1d_chunked, given, "cpu", activation=activation, **options))
    rows = checks.row_options("mask", 1, 3, "cpu")["mask_BL"], None, torch.zeros(1, dtype=torch.long)
    leaves = [v.requires_grad_() for v in make(1, 3, 3, 4, torch.float32).values()]
    torch.library.opcheck(kernels._conv, (*leaves, *rows, True, False))
    print(json.dumps(found))


def compile_for(capability: int) -> None:
    """Prints what the kernels of a training step would ask of a GPU."""
    from longseq.ops.causal_conv1d import triton as kernels
    from tests.longseq.ops.offline_compiler import compiled_kernels

    x, weight, bias = list(make(1, 256, 2048, 4, torch.bfloat16).values())[:3]
    rows = None, None, None, None, True, False
    with compiled_kernels(capability) as found:
        kernels._choice = lambda _x: kernels._BY_FAMILY.get(capability, kernels._SAFE)
        kernels._convolve(x, weight, bias, *rows)
        kernels._convolve_backward(x, x, weight, bias, *rows)
    print(json.dumps(found))


def capture() -> None:
    """Prints how far a CUDA graph's replay is off."""
    print(json.dumps(checks.captured_error(*_training(torch.bfloat16))))


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    for case, found in zip(TINY, checks.run_script(__file__, interpret=True), strict=True):
        checks.assert_small(found, TOLERANCE[case[4]], case)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
@pytest.mark.parametrize("capability", [9, pytest.param(8, marks=pytest.mark.slow)])
def test_kernels_compile_without_a_gpu(capability: int) -> None:
    pytest.importorskip("triton")
    found = checks.run_script(__file__, "compile", str(capability), interpret=False)
    assert_fits(found, {"conv_forward", "conv_backward"})


gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("length", checks.LENGTHS)
def test_kernels_on_a_gpu(length: int, dtype: str) -> None:
    from longseq.ops.causal_conv1d.chunked import causal_conv1d_chunked
    from longseq.ops.causal_conv1d.triton import causal_conv1d_triton

    for mode in MODES:
        for taps, activation in ((4, "silu"), (3, None)):
            given, options = make(2, length, 300, taps, getattr(torch, dtype)), checks.row_options(mode, 2, length, "cuda")
            run = causal_conv1d_triton
            found = checks.errors(run, causal_conv1d_chunked, given, "cuda", activation=activation, **options)
            checks.assert_small(found, TOLERANCE[dtype], mode, taps)


def _training(dtype: torch.dtype):  # type: ignore[no-untyped-def]
    from longseq.ops.causal_conv1d.triton import causal_conv1d_triton

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return 2.0 * causal_conv1d_triton(1.0 * x, weight, bias, activation="silu")[0]

    given = list(make(2, 500, 64, 4, dtype).values())[:3]
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
    from longseq.ops.causal_conv1d.triton import causal_conv1d_triton

    length, width = (1 << 20) + 40000, 2048
    x = torch.randn(1, length, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(width, 4, device="cuda")
    y, _ = causal_conv1d_triton(x, weight, activation="silu")
    (dx,) = torch.autograd.grad(y[:, -64:].float().sum(), x)
    tail = x.detach()[:, -128:].clone().requires_grad_()
    y_end, _ = causal_conv1d_triton(tail, weight, activation="silu")
    (dx_end,) = torch.autograd.grad(y_end[:, -64:].float().sum(), tail)
    assert torch.equal(y[:, -64:], y_end[:, -64:])
    assert torch.equal(dx[:, -64:], dx_end[:, -64:])


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:
        compile_for(int(sys.argv[2]))
    else:
        capture() if sys.argv[1:] == ["capture"] else interpret()
