"""The long convolution's Triton kernels against the sum over lags: in Triton's interpreter, and on a GPU.

The interpreter is chosen when kernels are decorated, so a process of its own runs it: this file, as a script.
"""

import json
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

NAMES = ("y", "du", "dk", "dbias", "dpre_gate", "dpost_gate", "dhistory")
# length, taps, history, gates and bias, dtype
TINY = [
    (37, 37, 0, False, "float32"),
    (40, 70, 9, True, "float32"),
    (100, 5, 9, True, "float32"),
    (1, 1, 1, True, "float32"),
    (64, 64, 3, True, "float16"),
]
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


def errors(device: str, width: int, case: tuple[int, int, int, bool, str]) -> dict[str, float]:
    """Relative errors of output and gradients."""
    from longseq.ops.fft_conv.chunked import fft_conv_chunked
    from longseq.ops.fft_conv.reference import fft_conv_reference
    from longseq.ops.fft_conv.triton import fft_conv_triton

    length, taps, past, gated, name = case
    dtype, generator, batch = getattr(torch, name), torch.Generator().manual_seed(length), 2
    row = (batch, length, width)
    shapes = [row, (width, taps), (width,), row, row, (batch, past, width)] if gated else [row, (width, taps)]
    given = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]
    dy = torch.randn(row, generator=generator, dtype=torch.float64).to(dtype)
    results = []
    for run in (fft_conv_triton, fft_conv_reference if length < 300 else fft_conv_chunked):
        kind = dtype if run is fft_conv_triton else torch.float64
        leaves = [x.to(device, kind).requires_grad_() for x in given]
        y = run(*leaves, *[None] * (6 - len(leaves)))  # type: ignore[arg-type]
        results.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(device, kind))])
    return {n: relative_error(a, b) for n, a, b in zip(NAMES, *results, strict=False)}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-6))


def interpret() -> None:
    """Prints every tiny case's errors."""
    import triton.runtime.interpreter as interpreter

    # Its scalars are arrays of one element, which numpy 2.4 no longer turns into an index by itself.
    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: object, scope: object) -> None:
        patch(tensor, scope)  # type: ignore[arg-type]
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = patch_with_index
    print(json.dumps([errors("cpu", 3, case) for case in TINY]))


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
    for taps, past, gated in ((length, 0, False), (length + 7, 9, True), (5, 3, True)):
        found = errors("cuda", 24, (length, taps, past, gated, dtype))
        assert max(found.values()) < TOLERANCE[dtype], (taps, past, gated, found)


if __name__ == "__main__":
    interpret()
