"""The diagonal recurrence's Triton kernels against the loop over time: in Triton's interpreter, and on a GPU.

The interpreter is chosen when kernels are decorated, so a process of its own runs it: this file, as a script.
"""

import json
import math
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.longseq.ops import kernel_checks as checks
from tests.longseq.ops import meta_compiler as compiler

NAMES = ("y", "state", "dx", "ddt", "dA_real", "dA_imag", "dC", "dB", "dD", "dinitial")
# length, masked, packed, reverse, discretization, dtype
TINY = [
    (1, False, False, False, "zoh", "float32"),
    (100, True, False, True, "bilinear", "float32"),
    (90, True, True, False, "zoh", "float32"),
    (70, False, True, True, "zoh", "float16"),
]
# Steps of (the middle of) this size, for two whole chunks and a half.
EXTREME, PLAIN = (1e-4, 20.0), (40, False, False, False, "zoh", "float32")
TOLERANCE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1e-2}


def errors(
    device: str, width: int, modes: int, case: tuple[int, bool, bool, bool, str, str], dt: float = 0.05
) -> dict[str, float]:
    """Relative errors of outputs, state and gradients; what stands under the mask is NaN for the kernels."""
    from longseq.ops.diagonal_ssm.chunked import diagonal_ssm_chunked
    from longseq.ops.diagonal_ssm.reference import diagonal_ssm_reference
    from longseq.ops.diagonal_ssm.triton import diagonal_ssm_triton

    length, masked, packed, reverse, discretization, name = case
    dtype, generator, batch = getattr(torch, name), torch.Generator().manual_seed(length), 2

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    angle_DN = math.pi * torch.arange(modes, dtype=torch.float64) + 0.1 * random(width, modes)
    given = [random(batch, length, width).to(dtype), dt * (0.3 * random(width)).exp(), -random(width, modes).exp(), angle_DN]
    given += [random(width, modes, 2), random(width, modes, 2), random(width), random(batch, width, modes, 2)]
    dy, dstate = random(batch, length, width).to(dtype), random(batch, width, modes, 2)
    mask = torch.rand(batch, length, generator=generator) > 0.3 if masked else None
    segments = torch.randint(0, 3, (batch, length), generator=generator).sort(1).values if packed else None
    results = []
    for run in (diagonal_ssm_triton, diagonal_ssm_reference if length < 300 else diagonal_ssm_chunked):
        exact = run is not diagonal_ssm_triton
        leaves = [x.float().to(device, torch.float64 if exact else torch.float32) for x in given]
        leaves[0] = leaves[0].to(torch.float64 if exact else dtype)
        if mask is not None and not exact:
            leaves[0][~mask.to(device)] = float("nan")
        leaves = [x.requires_grad_() for x in leaves]
        y, state = run(
            *leaves[:7],
            discretization=discretization,
            initial_state_BDN2=leaves[7],
            mask_BL=None if mask is None else mask.to(device),
            segment_ids_BL=None if segments is None else segments.to(device),
            reverse=reverse,
        )
        cotangents = [dy.to(device, y.dtype), dstate.to(device, state.dtype)]
        results.append([y.detach(), state.detach(), *torch.autograd.grad([y, state], leaves, cotangents)])
    return {n: relative_error(a, b) for n, a, b in zip(NAMES, *results, strict=True)}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-6))


def interpret() -> None:
    """Prints every tiny case's errors."""
    from longseq.ops.diagonal_ssm import triton_choices as choices
    from longseq.ops.diagonal_ssm import triton_plan as plan

    checks.allow_interpreter_scalars()
    # Small tiles, and several rows of several chunks within a tiny length.
    plan.CHUNK, choices.PROGRAMS, choices.UNROLL = 16, 8, 2
    choices.TRANSPOSE.update(places=32, channels=16)
    choices._SAFE = choices.Choices(*[choices.Tile(16, 4, 1)] * 5)
    found = [errors("cpu", 2, 4, case) for case in TINY]
    print(json.dumps(found + [errors("cpu", 2, 4, PLAIN, dt) for dt in EXTREME]))


def _training() -> tuple[Callable[..., Tensor], Callable[[], list[Tensor]]]:
    """A call whose length is no multiple of a chunk, and how its inputs are made."""
    from longseq.ops.diagonal_ssm import diagonal_ssm

    def run(x: Tensor, dt: Tensor, real: Tensor, imag: Tensor, C: Tensor, D: Tensor) -> Tensor:
        return diagonal_ssm(x, dt, real, imag, C, D_D=D, implementation="triton")[0]

    def make() -> list[Tensor]:
        generator = torch.Generator("cuda").manual_seed(0)
        shapes = ((2, 500, 24), (24,), (24, 32), (24, 32), (24, 32, 2), (24,))
        x, dt, real, imag, C, D = (torch.randn(shape, device="cuda", generator=generator) for shape in shapes)
        return [x.bfloat16(), 0.05 * dt.exp(), -real.exp(), 9 * imag, C, D]

    return run, make


def capture() -> None:
    """Prints how far a CUDA graph's replay is off."""
    print(json.dumps(checks.captured_error(*_training())))


def launches(capability: int) -> Callable[[], object]:
    """Forward and backward, as large as they are measured, with a GPU family's choices."""
    from longseq.ops.diagonal_ssm import triton as kernels
    from longseq.ops.diagonal_ssm import triton_choices as choices

    choices.BY_FAMILY[0] = choices.BY_FAMILY.get(capability // 10, choices._SAFE)
    x = compiler.meta(8, 4096, 1024, dtype=torch.bfloat16)
    shapes = ((1024,), (1024, 32), (1024, 32), (1024, 32, 2), (1024,))
    return lambda: kernels._run_both([x, *(compiler.meta(*shape) for shape in shapes)], x)


@compiler.parametrize
def test_kernels_fit_on_gpus(capability: int) -> None:
    compiler.assert_fitting(__file__, capability, 9)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    for case, found in zip([*TINY, *[PLAIN] * len(EXTREME)], checks.run_script(__file__, interpret=True), strict=True):
        checks.assert_small(found, TOLERANCE[case[-1]], case)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 100, 257, 4096, 5000])
def test_kernels_on_a_gpu(length: int, dtype: str) -> None:
    for masked, packed, reverse in ((False, False, False), (True, False, True), (True, True, False)):
        found = errors("cuda", 24, 32, (length, masked, packed, reverse, "zoh", dtype))
        checks.assert_small(found, TOLERANCE[dtype], masked, packed, reverse)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dt", [1e-4, 20.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_extreme_steps(dtype: str, dt: float) -> None:
    for discretization in ("zoh", "bilinear"):
        found = errors("cuda", 24, 32, (600, False, False, False, discretization, dtype), dt)
        # The reference runs in fp64 on the same fp32 parameters, so a step of 20 (a pole's angle of 2,000) loses nothing.
        checks.assert_small(found, TOLERANCE[dtype], discretization)


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
    from longseq.ops.diagonal_ssm import diagonal_ssm

    length, width = 1 << 20, 2_080
    x = torch.randn(1, length, width, device="cuda", dtype=torch.bfloat16)
    assert x.numel() > 2**31
    parameters = [torch.rand(width, device="cuda") + 0.1, -torch.ones(width, 8, device="cuda")]
    parameters += [torch.randn(width, 8, device="cuda"), torch.randn(width, 8, 2, device="cuda")]
    y, _ = diagonal_ssm(x, *parameters, implementation="triton")
    # A pole of 1 forgets 2,000 steps of 0.1 and more.
    few, last = slice(width - 8, width), slice(length - 3_000, length)
    expected, _ = diagonal_ssm(x[:, last, few].double(), *(p[few].double() for p in parameters), implementation="chunked")
    assert checks.relative_error(y[:, -1_000:, few], expected[:, -1_000:]) < TOLERANCE["bfloat16"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:
        compiler.print_report(launches)
    else:
        capture() if sys.argv[1:] == ["capture"] else interpret()
