"""What tests of Triton kernels share: an interpreter in its own process, errors against float64, a GPU's surroundings."""

import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ROOT = Path(__file__).parents[3]
LENGTHS = (1, 2, 63, 64, 100, 257, 4096, 5000)
Kernel = Callable[..., tuple[Tensor, Tensor]]


def run_script(path: str, *arguments: str, interpret: bool) -> Any:
    """What a test file, run as a script in a process of its own, prints as JSON in its last line."""
    environment = os.environ | {"PYTHONWARNINGS": "ignore", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"TRITON_INTERPRET": "1" if interpret else "0"}
    command = [sys.executable, path, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def allow_interpreter_scalars() -> None:
    """The interpreter's scalars are arrays of one element, which numpy 2.4 no longer turns into an index by itself."""
    import triton.runtime.interpreter as interpreter

    patch = interpreter._patch_lang_tensor

    def patch_with_index(tensor: object, scope: object) -> None:
        patch(tensor, scope)  # type: ignore[arg-type]
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))  # type: ignore[attr-defined]

    interpreter._patch_lang_tensor = patch_with_index


def row_options(mode: str, batch: int, length: int, device: str, seed: int = 0) -> dict[str, Any]:
    """Options of an operator: "plain", "mask", "segments", "reverse" or "everything"."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(batch, length, generator=generator) > 0.3
    mask[:, length // 2] = True
    segments = (torch.rand(batch, length, generator=generator) > 0.9).long().cumsum(1)
    options: dict[str, Any] = {"mask_BL": mask.to(device)} if mode in ("mask", "everything") else {}
    options |= {"segment_ids_BL": segments.to(device)} if mode in ("segments", "everything") else {}
    return options | ({"reverse": True} if mode in ("reverse", "everything") else {})


def errors(kernel: Kernel, exact: Kernel, given: dict[str, Tensor], device: str, **options: Any) -> dict[str, float]:
    """Relative errors of output, state and gradients against float64; under the mask the kernel finds NaN, as in its memory."""
    results = []
    for run in (kernel, exact):
        kind = torch.float64 if run is exact else None
        leaves = {name: v.to(device, kind or v.dtype, copy=True) for name, v in given.items()}
        mask = options.get("mask_BL")
        if kind is None:
            poison_memory(device)
            for name, v in leaves.items():
                if mask is not None and "_BL" in name:
                    v[~mask] = float("nan")
        leaves = {name: v.requires_grad_() for name, v in leaves.items()}
        y, state = run(**leaves, **options)
        generator = torch.Generator().manual_seed(1)
        first = next(iter(given.values()))
        dy = torch.randn(y.shape, generator=generator).to(first.dtype).to(device, y.dtype)
        dstate = torch.randn(state.shape, generator=generator).to(device, state.dtype)
        gradients = torch.autograd.grad([y, state], list(leaves.values()), [dy, dstate])
        results.append([y.detach(), state.detach(), *gradients])
    names = ["y", "state", *(f"d{name}" for name in given)]
    return {n: relative_error(a, b) for n, a, b in zip(names, *results, strict=True)}


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    if not expected.any():
        return float(found.abs().sum())
    return float((found - expected).norm() / expected.norm())


def poison_memory(device: str) -> None:
    """Leaves NaN where the kernels' outputs will stand."""
    if device == "cuda":
        torch.cuda.empty_cache()
        blocks = [torch.full((size,), float("nan"), device=device) for size in (1 << 12, 1 << 16, 1 << 20, 1 << 24)]
        del blocks


# Of the test that runs: by the error that is allowed, the largest one and what it is of.
largest: dict[float, tuple[float, str]] = {}


def assert_small(found: dict[str, float], tolerance: float, *case: object) -> None:
    for name, error in found.items():
        if not error <= largest.get(tolerance, (-1.0, ""))[0]:
            largest[tolerance] = error, name
    # NaN is not below the tolerance either.
    assert all(error < tolerance for error in found.values()), (*case, found)


def outputs_and_gradients(run: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    y = run(*leaves)
    return [y, *torch.autograd.grad(y.float().square().sum(), leaves)]


def assert_surroundings(run: Callable[..., Tensor], leaves: list[Tensor]) -> None:
    """The same bits twice, in a compiled graph without breaks, under autocast and with gradient checkpointing."""
    expected = outputs_and_gradients(run, leaves)
    compiled = torch.compile(run, fullgraph=True)

    def under_autocast(*inputs: Tensor) -> Tensor:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            return run(*inputs)

    def checkpointed(*inputs: Tensor) -> Tensor:
        y = checkpoint(run, *inputs, use_reentrant=False)
        assert isinstance(y, Tensor)
        return y

    for name, variant in {"again": run, "autocast": under_autocast, "checkpoint": checkpointed, "compile": compiled}.items():
        for found, want in zip(outputs_and_gradients(variant, leaves), expected, strict=True):
            assert torch.equal(found, want) or (name == "compile" and relative_error(found, want) < 1e-2), name


def captured_error(run: Callable[..., Tensor], make: Callable[[], list[Tensor]]) -> float:
    """The largest difference between a CUDA graph's replay and what ran outside of it.

    Capture wants everything on one stream that is not the default one: leaves made there, and no graph of theirs left over.
    """
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        leaves = [v.detach().clone().requires_grad_() for v in make()]
        for _ in range(3):
            expected = [v.detach().clone() for v in outputs_and_gradients(run, leaves)]
    stream.synchronize()
    gc.collect()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        found = outputs_and_gradients(run, leaves)
    for v in found:
        v.detach().zero_()
    graph.replay()
    torch.cuda.synchronize()
    return max(relative_error(a, b) for a, b in zip(found, expected, strict=True))
