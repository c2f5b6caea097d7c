"""The diagonal recurrence's Triton kernels against the loop over time: in Triton's interpreter, and on a GPU.

The interpreter is chosen when kernels are decorated, so a process of its own runs it: this file, as a script.
"""

import json
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

NAMES = ("y", "state", "dx", "ddt", "dA_real", "dA_imag", "dC", "dB", "dD", "dinitial")
# length, masked, packed, reverse, discretization, dtype
TINY = [
    (64, False, False, False, "zoh", "float32"),
    (1, False, False, False, "zoh", "float32"),
    (100, True, False, True, "bilinear", "float32"),
    (90, True, True, False, "zoh", "float32"),
    (70, False, True, True, "zoh", "float16"),
]
TOLERANCE = {"float32": 2e-5, "float16": 2e-3, "bfloat16": 1e-2}


def errors(device: str, width: int, modes: int, case: tuple[int, bool, bool, bool, str, str]) -> dict[str, float]:
    """Relative errors of outputs, state and gradients; what stands under the mask is NaN for the kernels."""
    from longseq.ops.diagonal_ssm.chunked import diagonal_ssm_chunked
    from longseq.ops.diagonal_ssm.reference import diagonal_ssm_reference
    from longseq.ops.diagonal_ssm.triton import diagonal_ssm_triton

    length, masked, packed, reverse, discretization, name = case
    dtype, generator, batch = getattr(torch, name), torch.Generator().manual_seed(length), 2

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    angle_DN = math.pi * torch.arange(modes, dtype=torch.float64) + 0.1 * random(width, modes)
    given = [random(batch, length, width).to(dtype), 0.05 * (0.3 * random(width)).exp(), -random(width, modes).exp(), angle_DN]
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
    import triton.runtime.interpreter as interpreter

    from longseq.ops.diagonal_ssm import triton_choices as choices
    from longseq.ops.diagonal_ssm import triton_plan as plan

    # Its scalars are arrays of one element, which numpy 2.4 no longer turns into an index by itself.
    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: object, scope: object) -> None:
        patch(tensor, scope)  # type: ignore[arg-type]
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = patch_with_index
    # Small tiles, and several rows of several chunks within a tiny length.
    plan.CHUNK, choices.PROGRAMS = 16, 8
    choices.TRANSPOSE.update(places=32, channels=16)
    choices._SAFE = choices.Choices(*[choices.Tile(16, 4, 1)] * 6)
    print(json.dumps([errors("cpu", 3, 4, case) for case in TINY]))


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    for case, found in zip(TINY, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert max(found.values()) < TOLERANCE[case[-1]], (case, found)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 100, 257, 4096, 5000])
def test_kernels_on_a_gpu(length: int, dtype: str) -> None:
    for masked, packed, reverse in ((False, False, False), (True, False, True), (True, True, False)):
        found = errors("cuda", 24, 32, (length, masked, packed, reverse, "zoh", dtype))
        assert max(found.values()) < TOLERANCE[dtype], (masked, packed, reverse, found)


if __name__ == "__main__":
    interpret()
