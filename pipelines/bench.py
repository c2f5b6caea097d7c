"""Time operators and backbones on this machine, beside whatever peers are installed.

usage: longseq bench [ops|backbones|step] [trainer=auto|cpu|gpu] [name=PATTERN] [lengths=1024,4096] [d_model=256]
                     [output=bench.csv]

  ops         every operator forward and forward + backward, and Mamba beside transformers' own
  backbones   every backbone's forward pass over growing lengths, with the fitted exponent of its cost
  step        one streaming step of every recurrent backbone, early and late in the sequence

Prints a table of medians and writes them as csv. Absolute times hold for this machine; ratios travel better.
"""

import csv
import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from longseq.errors import ConfigError
from longseq.pipelines.cli import nearest

LENGTHS = {"ops": "4096", "backbones": "1024,4096,16384,65536", "step": "10,10000"}


@dataclass
class Options:
    """What the command line sets."""

    trainer: str = "auto"
    name: str = "*"
    lengths: str = ""
    d_model: int = 256
    output: str = "bench.csv"


@dataclass
class Timing:
    """One line of the table; times in milliseconds, memory in MiB (the GPU's peak, or 0 on a CPU)."""

    what: str
    size: str
    implementation: str
    forward_ms: float
    backward_ms: float = float("nan")
    memory_mib: float = 0.0
    note: str = ""


def run(args: list[str]) -> int:
    """Runs one benchmark; `args` are the topic and key=value options."""
    topics: dict[str, Callable[[Options, str], Iterator[Timing]]] = {
        "ops": bench_ops,
        "backbones": bench_backbones,
        "step": bench_step,
    }
    words = [arg for arg in args if "=" not in arg]
    topic = words[0] if words else "ops"
    if topic not in topics or len(words) > 1:
        raise ConfigError(f"bench has no topic {' '.join(words)!r}{nearest(topic, topics)}. Topics: {', '.join(topics)}")
    options = parse(args)
    options.lengths = options.lengths or LENGTHS[topic]
    results = []
    for timing in topics[topic](options, device_of(options.trainer)):
        results.append(timing)
        print(show(timing), flush=True)
    write(results, Path(options.output))
    return 0


def parse(args: list[str]) -> Options:
    """The key=value arguments.

    Raises:
        ConfigError: for an unknown key, with the nearest known ones.
    """
    options = Options()
    known = {field.name: field.type for field in fields(Options)}
    for arg in args:
        key, equals, value = arg.partition("=")
        if equals and key not in known:
            raise ConfigError(f"bench has no option {key!r}{nearest(key, known)}. Options: {', '.join(known)}")
        if equals:
            setattr(options, key, int(value) if key == "d_model" else value)
    return options


def device_of(trainer: str) -> str:
    """The device that `trainer` means here."""
    import torch

    if trainer not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"trainer must be auto, cpu or gpu, found {trainer!r}")
    if trainer == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer=gpu, but torch sees no GPU (longseq doctor says why)")
    return "cuda" if trainer != "cpu" and torch.cuda.is_available() else "cpu"


def lengths_of(options: Options) -> list[int]:
    """The sequence lengths asked for."""
    return [int(length) for length in options.lengths.split(",")]


def median_ms(run_once: Callable[[], Any], device: str, seconds: float = 1.0) -> float:
    """Median of repeated calls after a warm-up, in milliseconds; at least three calls, or `seconds` of them."""
    import statistics
    import time

    import torch

    def once() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        run_once()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) * 1e3

    once()
    times = [once() for _ in range(3)]
    while sum(times) < 1e3 * seconds and len(times) < 100:
        times.append(once())
    return statistics.median(times)


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
    forward_ms, backward_ms = median_ms(forward, device), median_ms(backward, device)
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else 0.0
    return Timing(what, size, implementation, forward_ms, backward_ms, memory)


def bench_ops(options: Options, device: str) -> Iterator[Timing]:
    """Every operator at the lengths asked for, then Mamba beside transformers' implementation."""
    import torch

    cases = operator_cases(options.d_model, device)
    for length in lengths_of(options):
        for name, make in cases.items():
            if fnmatch.fnmatch(name, options.name):
                torch.manual_seed(0)
                function, inputs = make(length)
                yield time_function(name, f"B1 L{length} D{options.d_model}", "longseq", function, inputs, device)
        if fnmatch.fnmatch("mamba", options.name):
            yield from bench_mamba(options, length, device)


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


def bench_mamba(options: Options, length: int, device: str) -> Iterator[Timing]:
    """Four layers of Mamba, ours and transformers' without its CUDA kernels, forward in one run."""
    import torch

    from longseq.registry import create_backbone

    size = f"B1 L{length} D{options.d_model} 4 layers"
    x = torch.randn(1, length, options.d_model, device=device)
    ours = create_backbone("mamba", d_model=options.d_model, n_layers=4).to(device).eval()
    with torch.no_grad():
        mine = median_ms(lambda: ours(x), device, 3.0)
        yield Timing("mamba", size, "longseq", mine)
        try:
            from transformers import MambaConfig, MambaModel
        except ImportError:
            return
        config = MambaConfig(hidden_size=options.d_model, num_hidden_layers=4, vocab_size=16, use_mambapy=False)
        peer: Any = MambaModel(config).eval()
        peer.to(device)
        theirs = median_ms(lambda: peer(inputs_embeds=x, use_cache=False), device, 3.0)
    yield Timing("mamba", size, "transformers", theirs, note=f"{theirs / mine:.1f} times longseq's")


def bench_backbones(options: Options, device: str) -> Iterator[Timing]:
    """Forward time of every backbone over the lengths; the last line of each has the fitted exponent."""
    import math

    import torch

    from longseq.registry import backbone_info, create_backbone, list_backbones

    lengths = lengths_of(options)
    for name in list_backbones(options.name):
        known = backbone_info(name).options()
        extra: dict[str, Any] = {"max_length": max(lengths)} if "max_length" in known else {}
        model = create_backbone(name, d_model=options.d_model, n_layers=2, **extra).to(device).eval()
        logs = []
        for i, length in enumerate(lengths):
            x = torch.randn(1, length, options.d_model, device=device)
            with torch.no_grad():
                spent = median_ms(partial(model, x), device)
            logs.append((math.log(length), math.log(spent)))
            note = f"exponent {exponent(logs):.2f}, claims {backbone_info(name).cost}" if i == len(lengths) - 1 > 0 else ""
            yield Timing(name, f"B1 L{length} D{options.d_model} 2 layers", "longseq", spent, note=note)


def exponent(logs: list[tuple[float, float]]) -> float:
    """Slope of log time over log length, by least squares."""
    n = len(logs)
    mean_x, mean_y = sum(x for x, _ in logs) / n, sum(y for _, y in logs) / n
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def bench_step(options: Options, device: str) -> Iterator[Timing]:
    """Time of one step of every causal backbone, at each of the positions asked for."""
    import torch

    from longseq.registry import backbone_info, create_backbone, list_backbones

    for name in list_backbones(options.name):
        known = backbone_info(name).options()
        extra: dict[str, Any] = {"causal": True} if "causal" in known else {}
        if "max_length" in known:
            extra["max_length"] = max(lengths_of(options)) + 1000
        model = create_backbone(name, d_model=options.d_model, n_layers=2, **extra).to(device).eval()
        if not model.can_step:
            continue
        first = None
        for position in lengths_of(options):
            with torch.no_grad():
                _, state = model.forward_chunk(torch.randn(1, position, options.d_model, device=device), model.init_state(1))
                x = torch.randn(1, options.d_model, device=device)
                spent = median_ms(partial(model.step, x, state), device)
            note = "" if first is None else f"{spent / first:.2f} times the first"
            first = first or spent
            yield Timing(name, f"position {position}", "longseq", spent, note=note)


def show(timing: Timing) -> str:
    """One line for the console."""
    backward = "" if timing.backward_ms != timing.backward_ms else f"  fwd+bwd {timing.backward_ms:9.2f} ms"
    memory = f"  {timing.memory_mib:8.0f} MiB" if timing.memory_mib else ""
    name = f"{timing.what:<17}{timing.size:<26}{timing.implementation:<13}"
    return f"{name}{timing.forward_ms:9.2f} ms{backward}{memory}  {timing.note}"


def write(results: list[Timing], path: Path) -> None:
    """Writes all lines as csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Timing)])
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
    print(f"written  {path}")
