"""Window attention's Triton kernels against the dense form: in Triton's interpreter on a CPU, and on a GPU if there is one.

The interpreter is chosen when kernels are decorated, so a process of its own runs it: this file, as a script.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.longseq.ops import kernel_checks as checks
from tests.longseq.ops import meta_compiler as compiler

NAMES = ("y", "dq", "dk", "dv", "dq_global", "dk_global", "dv_global")
# length, keys, window, causal, masked, packed, global tokens, dtype
TINY = [
    (1, 1, 3, False, False, False, True, "float32"),
    (40, 40, 7, True, True, True, True, "float32"),
    (40, 40, 7, False, False, False, False, "float16"),
    (33, 50, 100, True, True, False, False, "float32"),
    (50, 50, 12, False, False, True, True, "float32"),
]
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1e-2}


def errors(device: str, width: int, case: tuple[int, int, int, bool, bool, bool, bool, str]) -> dict[str, float]:
    """Relative errors of output and gradients; what stands under the mask is NaN for the kernels."""
    from longseq.ops.window_attention.reference import window_attention_reference
    from longseq.ops.window_attention.triton import window_attention_triton

    length, n_keys, window, causal, masked, packed, use_global, name = case
    dtype, generator, batch = getattr(torch, name), torch.Generator().manual_seed(length), 2
    heads = 1 if device == "cpu" else 3
    rows = (length, n_keys, n_keys, length, length, length)
    given = [torch.randn(batch, n, heads, width, generator=generator, dtype=torch.float64).to(dtype) for n in rows]
    dy = torch.randn(batch, length, heads, width, generator=generator, dtype=torch.float64).to(dtype)
    mask = torch.rand(batch, n_keys, generator=generator) > 0.3 if masked else None
    segments = torch.randint(0, 3, (batch, n_keys), generator=generator).sort(1).values if packed else None
    global_mask = torch.zeros(batch, length, dtype=torch.bool)
    global_mask[0, [0, length // 2, length - 1]] = True
    results = []
    for run in (window_attention_triton, window_attention_reference):
        leaves = [x.to(device, dtype if run is window_attention_triton else torch.float64) for x in given]
        if mask is not None and run is window_attention_triton:
            for x in leaves:
                x[~mask[:, n_keys - x.shape[1] :].to(device)] = float("nan")
        q, k, v, q_global, k_global, v_global = (x.requires_grad_() for x in leaves)
        y = run(
            q,
            k,
            v,
            window=window,
            causal=causal,
            dilation=1,
            global_mask_BL=global_mask.to(device) if use_global else None,
            q_global_BLHP=q_global if use_global else q,
            k_global_BLHP=k_global if use_global else k,
            v_global_BLHP=v_global if use_global else v,
            mask_BL=None if mask is None else mask.to(device),
            segment_ids_BL=None if segments is None else segments.to(device),
            scale=width**-0.5,
        )
        wanted = leaves if use_global else leaves[:3]
        results.append([y.detach(), *torch.autograd.grad(y, wanted, dy.to(device, y.dtype))])
    return {n: relative_error(a, b) for n, a, b in zip(NAMES, *results, strict=False)}


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm().clamp(min=1.0))


def interpret() -> None:
    """Prints every tiny case's errors."""
    from longseq.ops.window_attention import triton_choices as choices

    checks.allow_interpreter_scalars()
    for tiles in (*choices._SAFE.values(), choices._FP32_SAFE):
        for size in tiles:
            tiles[size] = choices.Tile(32, 16, 4, 1)
    print(json.dumps([errors("cpu", 16, case) for case in TINY]))


def _training() -> tuple[Callable[..., Tensor], Callable[[], list[Tensor]]]:
    """A call with global tokens of their own projections, and how its inputs are made."""
    from longseq.ops.window_attention import window_attention

    global_mask = torch.zeros(1, 512, dtype=torch.bool, device="cuda")
    global_mask[:, :2] = True

    def run(q: Tensor, k: Tensor, v: Tensor, q_global: Tensor, k_global: Tensor, v_global: Tensor) -> Tensor:
        own: dict[str, Any] = {"q_global_BLHP": q_global, "k_global_BLHP": k_global, "v_global_BLHP": v_global}
        return window_attention(q, k, v, window=64, global_mask_BL=global_mask, max_global=2, implementation="triton", **own)

    def make() -> list[Tensor]:
        generator = torch.Generator("cuda").manual_seed(0)
        return [torch.randn(1, 512, 2, 64, device="cuda", generator=generator).bfloat16() for _ in range(6)]

    return run, make


def capture() -> None:
    """Prints how far a CUDA graph's replay is off."""
    print(json.dumps(checks.captured_error(*_training())))


def launches(capability: int) -> Callable[[], object]:
    """Forward and backward with global tokens, as large as they are measured, with a GPU family's choices."""
    from longseq.ops.window_attention import triton as kernels
    from longseq.ops.window_attention import triton_choices as choices

    choices.BY_FAMILY[0] = choices.BY_FAMILY.get(capability // 10, choices._SAFE)
    q = [compiler.meta(2, 4096, 12, 64, dtype=torch.bfloat16) for _ in range(6)]
    mask = compiler.meta(2, 4096, dtype=torch.bool)
    return lambda: kernels._run_both(q, mask, q[0])


@compiler.parametrize
def test_kernels_fit_on_gpus(capability: int) -> None:
    compiler.assert_fitting(__file__, capability, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is published for Linux")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    for case, found in zip(TINY, checks.run_script(__file__, interpret=True), strict=True):
        checks.assert_small(found, TOLERANCE[case[-1]], case)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("length", [1, 2, 63, 64, 100, 257, 1300, 4096])
def test_kernels_on_a_gpu(length: int, dtype: str) -> None:
    for masked, use_global in ((False, False), (False, True), (True, True)):
        found = errors("cuda", 64, (length, length, 256 if length > 300 else 40, masked, masked, masked, use_global, dtype))
        checks.assert_small(found, TOLERANCE[dtype], masked, use_global)


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
    from longseq.ops.window_attention import window_attention

    length, heads, width = 700_000, 48, 64
    q, k, v = (torch.randn(1, length, heads, width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    assert q.numel() > 2**31
    y = window_attention(q, k, v, window=64, implementation="triton")
    last = slice(length - 1000, length)
    expected = window_attention(*(x[:, last].float() for x in (q, k, v)), window=64, implementation="reference")
    assert checks.relative_error(y[:, -900:], expected[:, -900:]) < TOLERANCE["bfloat16"]


if __name__ == "__main__":
    if sys.argv[1:2] == ["compile"]:
        compiler.print_report(launches)
    else:
        capture() if sys.argv[1:] == ["capture"] else interpret()
