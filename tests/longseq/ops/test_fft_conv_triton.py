"""The long convolution's Triton kernels against the sum over lags: in Triton's interpreter, and on a GPU.

The interpreter is chosen when kernels are decorated, so a process of its own runs it: this file, as a script.
"""

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.longseq.ops import kernel_checks as checks
from tests.longseq.ops import meta_compiler as compiler

NAMES = ("y", "du", "dk", "dbias", "dpre_gate", "dpost_gate", "dhistory")
# length, taps, history, gates and bias, dtype
TINY = [
    (37, 37, 0, False, "float32"),
    (40, 70, 9, True, "float32"),
    (100, 5, 9, True, "float32"),
    (1, 1, 1, True, "float32"),
    (64, 64, 3, True, "float16"),
    (200, 300, 9, True, "bfloat16"),
    (257, 257, 0, False, "bfloat16"),
]
# In three passes over 4,096 positions.
TINY_LONG = [(4096, 4096, 0, True, "bfloat16"), (3000, 70, 0, False, "bfloat16")]
# Lengths, and how many times the positions they may be padded to.
LONG = [(4096, 1.5), (5000, 1.7), (16384, 1.5), (30000, 1.5), (131072, 1.5), (1 << 20, 1.5)]
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


def errors(device: str, width: int, case: tuple[int, int, int, bool, str]) -> dict[str, float]:
    """Relative errors of output and gradients."""
    from longseq.ops.fft_conv.chunked import fft_conv_chunked
    from longseq.ops.fft_conv.reference import fft_conv_reference
    from longseq.ops.fft_conv.triton import fft_conv_triton

    length, taps, past, gated, name = case
    dtype, generator, batch = getattr(torch, name), torch.Generator().manual_seed(length), 2
    row = (batch, length, width)
    shapes = [row, (width, taps), *([(width,), row, row] if gated else []), *([(batch, past, width)] if past else [])]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    dy = torch.randn(row, generator=generator, dtype=torch.float64).to(dtype)
    results = []
    for run in (fft_conv_triton, fft_conv_reference if length < 300 else fft_conv_chunked):
        kind = dtype if run is fft_conv_triton else torch.float64
        moved = [x.to(device, kind) for x in given]
        leaves = [x.requires_grad_() for x in (in_one(moved) if run is fft_conv_triton else moved)]
        y = run(*leaves, *[None] * (6 - len(leaves)))  # type: ignore[arg-type]
        results.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(device, kind))])
    return {n: relative_error(a, b) for n, a, b in zip(NAMES, *results, strict=False)}


def in_one(given: list[Tensor]) -> list[Tensor]:
    """The input and its gates as the parts of one projection, which they are in a Hyena: read where they are."""
    if len(given) < 5:
        return given
    u, pre, post = torch.cat([given[0], given[3], given[4]], dim=2).split(given[0].shape[2], dim=2)
    return [u, *given[1:3], pre, post, *given[5:]]


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-6))


def interpret() -> None:
    """Prints every tiny case's errors."""
    from longseq.ops.fft_conv import triton_choices as choices

    checks.allow_interpreter_scalars()
    choices.SHORT_FAMILIES.add(0)
    choices.LONG_FAMILIES.add(0)
    found = [errors("cpu", 3, case) for case in TINY]
    with three_passes(choices):
        choices.LONG_TILES[16] = choices.LongTile(4, 16, 4, 4)
        found += [errors("cpu", 3, case) for case in TINY_LONG]
    print(json.dumps(found))


@contextmanager
def three_passes(choices: Any, waste: float = 1.5) -> Iterator[None]:
    """Sequences of more than 2,048 positions are transformed in three passes, if about as long as a power of two."""
    tables = choices.LONG, choices.LONG_ROWS, choices.SHORT
    before = [table.copy() for table in tables]
    choices.LONG.update(first=12, last=20, waste=waste)
    choices.LONG_ROWS.update({12: 256, 13: 512})
    choices.SHORT["last"] = 2048
    try:
        yield
    finally:
        for table, values in zip(tables, before, strict=True):
            table.clear()
            table.update(values)


def _training() -> tuple[Callable[..., Tensor], Callable[[], list[Tensor]]]:
    """A call with both gates and the skip term, and how its inputs are made."""
    from longseq.ops.fft_conv import fft_conv

    def run(u: Tensor, k: Tensor, bias: Tensor, pre: Tensor, post: Tensor) -> Tensor:
        return fft_conv(u, k, bias, pre_gate_BLD=pre, post_gate_BLD=post, implementation="triton")

    def make() -> list[Tensor]:
        generator = torch.Generator("cuda").manual_seed(0)
        shapes = ((2, 500, 24), (24, 500), (24,), (2, 500, 24), (2, 500, 24))
        given = [torch.randn(shape, device="cuda", generator=generator) for shape in shapes]
        return [x.bfloat16() if x.dim() == 3 else x for x in given]

    return run, make


def capture() -> None:
    """Prints how far a CUDA graph's replay is off."""
    print(json.dumps(checks.captured_error(*_training())))


def launches(capability: int) -> Callable[[], object]:
    """Forward and backward with gates, as large as they are measured, in all ways, with a GPU family's choices."""
    from longseq.ops.fft_conv import triton as kernels
    from longseq.ops.fft_conv import triton_choices as choices

    choices.BY_FAMILY[0] = choices.BY_FAMILY.get(capability // 10, choices._SAFE)
    choices.SHORT_FAMILIES = {0} if capability // 10 in choices.SHORT_FAMILIES else set()
    choices.LONG_FAMILIES = {0} if capability // 10 in choices.LONG_FAMILIES else set()

    def run() -> None:
        for length, last in ((4096, 0), (32768, 0), (1 << 20, 20)):
            choices.LONG["last"] = last
            u = compiler.meta(8, length, 256, dtype=torch.bfloat16)
            kernels._run_both([u, compiler.meta(256, length), compiler.meta(256), u, u], u)

    return run


@compiler.parametrize
def test_kernels_fit_on_gpus(capability: int) -> None:
    compiler.assert_fitting(__file__, capability, 18 if capability >= 90 else 6)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    for case, found in zip(TINY + TINY_LONG, checks.run_script(__file__, interpret=True), strict=True):
        # The interpreter cuts bits off where a GPU rounds to bfloat16.
        checks.assert_small(found, TOLERANCE[case[-1]] * (2 if case[-1] == "bfloat16" else 1), case)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 100, 257, 4096, 5000])
def test_kernels_on_a_gpu(length: int, dtype: str) -> None:
    for taps, past, gated in ((length, 0, False), (length + 7, 9, True), (5, 3, True)):
        found = errors("cuda", 24, (length, taps, past, gated, dtype))
        checks.assert_small(found, TOLERANCE[dtype], taps, past, gated)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("length", "waste"), LONG)
def test_three_passes_on_a_gpu(length: int, waste: float) -> None:
    from longseq.ops.fft_conv import triton_choices as choices

    with three_passes(choices, waste):
        for taps, gated in ((length, True), (length // 3, False)):
            checks.assert_small(errors("cuda", 18, (length, taps, 0, gated, "bfloat16")), TOLERANCE["bfloat16"], taps, gated)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_surroundings() -> None:
    run, make = _training()
    checks.assert_surroundings(run, [x.requires_grad_() for x in make()])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_cuda_graph() -> None:
    assert checks.run_script(__file__, "capture", interpret=False) == 0.0


@pytest.mark.slow
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_more_numbers_than_31_bits() -> None:
    from longseq.ops.fft_conv import fft_conv

    length, width = 1 << 20, 2_080
    u, k = torch.randn(1, length, width, device="cuda", dtype=torch.bfloat16), torch.randn(width, 100, device="cuda")
    assert u.numel() > 2**31
    y = fft_conv(u, k, implementation="triton")
    few, last = slice(width - 8, width), slice(length - 3_000, length)
    expected = fft_conv(u[:, last, few].double(), k[few].double(), implementation="chunked")
    assert checks.relative_error(y[:, -1_000:, few], expected[:, -1_000:]) < TOLERANCE["bfloat16"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:
        compiler.print_report(launches)
    else:
        capture() if sys.argv[1:] == ["capture"] else interpret()
