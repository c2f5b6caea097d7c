"""The Triton kernels of the sum and its norm against float64: in Triton's interpreter, and on a GPU.

The interpreter is chosen when kernels are decorated, so a process of its own runs it: this file, as a script.
"""

import json
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.longseq.ops import kernel_checks as checks

# rows, width, residual's dtype, gate, bias, kind, groups, dtype
TINY = [
    (9, 20, "float32", False, True, "layer", 1, "float32"),
    (5, 16, None, False, False, "rms", 1, "float32"),
    (13, 24, None, True, False, "rms", 2, "float32"),
    (3, 17, "float32", True, True, "layer", 1, "bfloat16"),
    (6, 18, "bfloat16", False, False, "rms", 1, "bfloat16"),
    (1, 1, "float32", False, True, "rms", 1, "float32"),
]
WIDTHS = (1, 100, 256, 8192)
TOLERANCE = {"float32": 1e-5, "float16": 5e-3, "bfloat16": 1e-2}


def make(rows: int, width: int, residual: str | None, gate: bool, bias: bool, dtype: str) -> dict[str, Tensor]:
    """Rows of x and gate lie apart in memory, as slices of a wider projection do."""
    generator = torch.Generator().manual_seed(width)
    wide = torch.randn(rows, 2 * width + 3, generator=generator).to(getattr(torch, dtype))
    given = {"x": wide[:, :width], "weight_D": torch.randn(width, generator=generator)}
    given |= {"gate": wide[:, width : 2 * width]} if gate else {}
    given |= {"bias_D": torch.randn(width, generator=generator)} if bias else {}
    if residual is not None:
        given["residual"] = torch.randn(rows, width, generator=generator).to(getattr(torch, residual))
    return given


def compare(case: tuple[Any, ...], device: str) -> dict[str, float]:
    """Errors of y, the sum and every gradient."""
    from longseq.ops.add_norm.reference import add_norm_reference
    from longseq.ops.add_norm.triton import add_norm_triton

    rows, width, residual, gate, bias, kind, groups, dtype = case
    given = make(rows, width, residual, gate, bias, dtype)
    return checks.errors(add_norm_triton, add_norm_reference, given, device, kind=kind, n_groups=groups)


def interpret() -> None:
    """Prints every tiny case's errors; raises where the operator tells a compiler something else than it does."""
    from longseq.ops.add_norm import triton as kernels

    checks.allow_interpreter_scalars()
    found = [compare(case, "cpu") for case in TINY]
    leaves = {name: v.requires_grad_() for name, v in make(5, 12, "float32", True, True, "float32").items()}
    x, weight, gate, bias, residual = leaves.values()
    for sum_dtype, stream in ((torch.float32, residual), (torch.float32, None)):
        arguments = (x, stream, gate, weight, bias, True, 1e-5, 2, sum_dtype, torch.float32)
        torch.library.opcheck(kernels._add_norm, arguments)
    print(json.dumps([*found, {"self-check": kernels.self_check()}]))


def capture() -> None:
    """Prints how far a CUDA graph's replay is off."""
    print(json.dumps(checks.captured_error(*_training())))


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    *found, check = checks.run_script(__file__, interpret=True)
    for case, errors in zip(TINY, found, strict=True):
        checks.assert_small(errors, TOLERANCE[case[-1]], case)
    checks.assert_small(check, 1e-5)


gpu = pytest.mark.gpu


@gpu
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("width", WIDTHS)
def test_kernels_on_a_gpu(width: int, dtype: str) -> None:
    for rows in (1, 2, 63, 257, 5000):
        for residual, gate, bias, kind in (
            ("float32", False, True, "layer"),
            (dtype, False, False, "rms"),
            (None, True, False, "rms"),
            (None, False, True, "layer"),
        ):
            found = compare((rows, width, residual, gate, bias, kind, 1, dtype), "cuda")
            # Of one channel nothing is left once its mean is gone.
            if width == 1 and kind == "layer":
                found = {name: error for name, error in found.items() if name in ("state", "dbias_D")}
            # Of one channel through a root of its mean square hardly anything is left either.
            slack = 10 if width == 1 and gate else 1
            # The gradient through the norm cancels in part; a stream of 16 bits rounds what is left.
            checks.assert_small(found, slack * TOLERANCE[dtype], rows, residual, gate, kind)


@gpu
def test_groups_on_a_gpu() -> None:
    for groups in (2, 8):
        found = compare((300, 512, None, True, False, "rms", groups, "float32"), "cuda")
        checks.assert_small(found, TOLERANCE["float32"], groups)


def _training():  # type: ignore[no-untyped-def]
    from longseq.ops.add_norm.triton import add_norm_triton

    def run(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
        y, total = add_norm_triton(1.0 * x, weight, bias, residual=1.0 * residual, kind="layer", out_dtype=x.dtype)
        return y.float() + total

    given = list(make(500, 256, "float32", False, True, "bfloat16").values())
    x, weight, bias, residual = given
    return run, lambda: [v.cuda() for v in (x, weight, bias, residual)]


@gpu
def test_surroundings() -> None:
    run, make_leaves = _training()
    checks.assert_surroundings(run, [v.requires_grad_() for v in make_leaves()])


@gpu
def test_cuda_graph() -> None:
    # A capture that fails leaves the process without random numbers.
    assert checks.run_script(__file__, "capture", interpret=False) == 0.0


@gpu
@pytest.mark.slow
def test_more_elements_than_32_bits_count() -> None:
    from longseq.ops.add_norm.triton import add_norm_triton

    rows, width = (1 << 20) + 40000, 2048
    x = torch.randn(rows, width, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(width, device="cuda")
    y, _ = add_norm_triton(x, weight)
    (dx,) = torch.autograd.grad(y[-64:].float().pow(3).sum(), x)
    tail = x.detach()[-64:].clone().requires_grad_()
    y_end, _ = add_norm_triton(tail, weight)
    (dx_end,) = torch.autograd.grad(y_end.float().pow(3).sum(), tail)
    assert torch.equal(y[-64:], y_end)
    assert torch.equal(dx[-64:], dx_end)


if __name__ == "__main__":
    capture() if sys.argv[1:] == ["capture"] else interpret()
