"""Window attention by length: time, peak memory, and the exponent of the time, beside full attention and transformers.

Run as a script: python tests/benchmarks/bench_window_attention.py [--device cuda] [--lengths 1024 32768] [--window 256]
"""

import argparse
import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from longseq.ops.window_attention import window_attention


def milliseconds(run: Callable[[], object], device: str, repeats: int = 5) -> float:
    """Median on a GPU; the least processor time on one CPU thread, so that other work on the machine counts least."""
    run()
    times = []
    for _ in range(repeats):
        if device == "cuda":
            start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            run()
            stop.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(stop))
        else:
            before = time.process_time()
            run()
            times.append(1e3 * (time.process_time() - before))
    return sorted(times)[len(times) // 2] if device == "cuda" else min(times)


def exponent(lengths: list[int], times: list[float]) -> float:
    """Slope of log time over log length, least squares."""
    x, y = [math.log(n) for n in lengths], [math.log(t) for t in times]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def full_attention(q_BLHP: Tensor, k_BLHP: Tensor, v_BLHP: Tensor) -> Tensor:
    """Every position against every other, in torch's fused attention."""
    sdpa = torch.nn.functional.scaled_dot_product_attention
    return sdpa(q_BLHP.transpose(1, 2), k_BLHP.transpose(1, 2), v_BLHP.transpose(1, 2))


def published(heads: int, width: int, window: int, device: str, dtype: torch.dtype) -> Callable[..., Tensor]:
    """transformers' Longformer layer; its time includes the three projections."""
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(
        hidden_size=heads * width, num_attention_heads=heads, attention_window=[2 * window], num_hidden_layers=1
    )
    layer = LongformerSelfAttention(config, layer_id=0).eval().to(device, dtype)

    def run(q_BLHP: Tensor, k_BLHP: Tensor, v_BLHP: Tensor) -> Tensor:
        x_BLD = q_BLHP.flatten(2)
        signs_BL = torch.zeros(x_BLD.shape[:2], device=device, dtype=dtype)
        nothing_BL = torch.zeros_like(signs_BL, dtype=torch.bool)
        return layer(x_BLD, signs_BL, is_index_masked=nothing_BL, is_index_global_attn=nothing_BL, is_global_attn=False)[0]

    return run


def measure(name: str, function: Callable[..., Tensor], lengths: list[int], options: argparse.Namespace) -> None:
    """Prints one table."""
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    forward_times, both_times = [], []
    print(f"{name}\n{'L':>8} {'forward ms':>11} {'with backward':>14} {'peak MiB':>9}")
    for length in lengths:
        shape = (options.batch, length, options.heads, 64)
        q, k, v = (torch.randn(shape, device=options.device, dtype=dtype, requires_grad=True) for _ in range(3))
        grad = torch.randn(function(q, k, v).shape, device=options.device, dtype=dtype)
        with torch.no_grad():
            forward_times.append(milliseconds(lambda f=function, x=(q, k, v): f(*x), options.device))
        peak = 0.0
        if options.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        both_times.append(milliseconds(lambda f=function, x=(q, k, v), g=grad: f(*x).backward(g), options.device))
        if options.device == "cuda":
            peak = torch.cuda.max_memory_allocated() / 2**20
        print(f"{length:8d} {forward_times[-1]:11.3f} {both_times[-1]:14.3f} {peak:9.0f}", flush=True)
    if len(lengths) > 1:
        print(f"exponent {exponent(lengths, forward_times):11.3f} {exponent(lengths, both_times):14.3f}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--lengths", type=int, nargs=2, default=(1024, 32768), help="smallest and largest, doubled between")
    parser.add_argument("--window", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--peers", action="store_true", help="also full attention and transformers' Longformer, up to L 8192")
    options = parser.parse_args()
    if options.device == "cpu":
        torch.set_num_threads(1)
    lengths = [options.lengths[0] * 2**i for i in range(1 + int(math.log2(options.lengths[1] / options.lengths[0])))]
    for implementation in ("chunked", "triton"):
        if implementation == "triton" and options.device == "cpu":
            continue
        for causal in (False, True):

            def run(q: Tensor, k: Tensor, v: Tensor, implementation: str = implementation, causal: bool = causal) -> Tensor:
                return window_attention(q, k, v, window=options.window, causal=causal, implementation=implementation)

            try:
                measure(f"{implementation}, causal={causal}", run, lengths, options)
            except ValueError as problem:
                print(f"{problem}\n")
    if options.peers:
        dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
        short = [length for length in lengths if length <= 8192 or options.device == "cuda"]
        measure("full attention", full_attention, short, options)
        measure("transformers", published(options.heads, 64, options.window, options.device, dtype), short, options)


if __name__ == "__main__":
    main()
