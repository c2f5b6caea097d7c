"""Every operator forward and forward + backward, and Mamba beside transformers' own: speed and memory."""

import fnmatch
from collections.abc import Callable, Iterator
from typing import Any

from longseq.pipelines import bench
from longseq.pipelines.bench import Options, Timing
from longseq.pipelines.bench_memory import PEERS, build_mamba, peak_mib


def time_operators(options: Options, device: str) -> Iterator[Timing]:
    """Every operator at the lengths asked for, then Mamba beside transformers' implementation."""
    import torch

    cases = operator_cases(options.d_model, device)
    for length in bench.lengths_of(options):
        for name, make in cases.items():
            if fnmatch.fnmatch(name, options.name):
                torch.manual_seed(0)
                function, inputs = make(length)
                yield time_function(name, f"B1 L{length} D{options.d_model}", "longseq", function, inputs, device)
        if fnmatch.fnmatch("mamba", options.name):
            yield from time_mamba(options, length, device)


def time_function(
    what: str, size: str, implementation: str, function: Callable[..., Any], inputs: list[Any], device: str
) -> Timing:
    """Forward, and forward + backward through every input."""
    import torch

    def backward() -> None:
        for tensor in inputs:
            tensor.grad = None
        outputs = function(*inputs)
        first = outputs[0] if isinstance(outputs, tuple) else outputs
        first.float().square().sum().backward()

    def forward() -> None:
        with torch.no_grad():
            function(*inputs)

    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    forward_ms, backward_ms = bench.median_ms(forward, device), bench.median_ms(backward, device)
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0
    return Timing(what, size, implementation, forward_ms, backward_ms, memory)


def operator_cases(d: int, device: str) -> dict[str, Callable[[int], tuple[Callable[..., Any], list[Any]]]]:
    """For each operator a function of the length that gives the call and its inputs."""
    import torch
    from torch.nn import functional as F

    from longseq.ops.causal_conv1d import causal_conv1d
    from longseq.ops.diagonal_ssm import diagonal_ssm
    from longseq.ops.fft_conv import fft_conv
    from longseq.ops.selective_scan import selective_scan
    from longseq.ops.ssd import ssd
    from longseq.ops.window_attention import window_attention

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, device=device, requires_grad=True)

    def decay(*shape: int) -> torch.Tensor:
        return (-torch.rand(*shape, device=device) - 0.5).requires_grad_()

    def rate(*shape: int) -> torch.Tensor:
        return F.softplus(torch.randn(*shape, device=device) - 3).requires_grad_()

    heads, width = max(1, d // 64), min(64, d)
    return {
        "selective_scan": lambda length: (
            selective_scan,
            [random(1, length, d), rate(1, length, d), decay(d, 16), random(1, length, 16), random(1, length, 16), random(d)],
        ),
        "ssd": lambda length: (
            ssd,
            [
                random(1, length, heads, width),
                rate(1, length, heads),
                decay(heads),
                random(1, length, 1, 64),
                random(1, length, 1, 64),
            ],
        ),
        "diagonal_ssm": lambda length: (
            diagonal_ssm,
            [random(1, length, d), rate(d), decay(d, 32), random(d, 32), random(d, 32, 2)],
        ),
        "fft_conv": lambda length: (fft_conv, [random(1, length, d), random(d, length), random(d)]),
        "causal_conv1d": lambda length: (causal_conv1d, [random(1, length, d), random(d, 4), random(d)]),
        "window_attention": lambda length: (
            lambda q, k, v: window_attention(q, k, v, window=256),
            [random(1, length, heads, width) for _ in range(3)],
        ),
    }


def time_mamba(options: Options, length: int, device: str) -> Iterator[Timing]:
    """Four layers of Mamba, ours and transformers' without its CUDA kernels, forward in one run; then the peak memory."""
    import torch

    size = f"B1 L{length} D{options.d_model} 4 layers"
    x = torch.randn(1, length, options.d_model, device=device)
    first: dict[str, float] = {}
    for name in PEERS:
        run = build_mamba(name, options.d_model, device)
        if run is None:
            return
        with torch.no_grad():
            spent = bench.median_ms(lambda run=run: run(x), device, 3.0)
        note = f"{spent / first['ms']:.1f} times longseq's" if first else ""
        first = first or {"ms": spent}
        yield Timing("mamba", size, name, spent, note=note)
    # Longer, the peer's backward pass takes minutes.
    length = min(length, 512)
    size = f"B1 L{length} D{options.d_model} 4 layers"
    used = {name: peak_mib(name, length, options.d_model, device) for name in PEERS}
    for name, memory in used.items():
        note = "" if name == "longseq" else f"{memory / used['longseq']:.1f} times longseq's"
        yield Timing("mamba fwd+bwd", size, name, float("nan"), memory_mib=memory, note=note)
