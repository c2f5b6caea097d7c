"""Time operators and backbones on this machine, beside whatever peers are installed.

usage: longseq bench [ops|backbones|step|stream] [trainer=auto|cpu|gpu] [name=PATTERN] [lengths=1024,4096] [d_model=256]
                     [budget_s=60] [output=bench.csv]

  ops         every operator forward and forward + backward, and Mamba beside transformers' own, with its memory
  backbones   every backbone's forward pass over growing lengths, with the fitted exponent of its cost: processor time of
              one thread on a CPU, and no more than budget_s seconds for each backbone
  step        one streaming step of every recurrent backbone, early and late in the sequence
  stream      sound of 16 kHz in chunks (lengths= in milliseconds): latency per chunk and real-time factor

Prints a table of medians and writes them as csv. Absolute times hold for this machine; ratios travel better.
"""

import csv
import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from longseq.errors import ConfigError
from longseq.pipelines.cli import nearest

NUMBERS: dict[str, Callable[[str], Any]] = {"d_model": int, "budget_s": float}
# A topic's file, its function of the options and the device, and the lengths it takes if none are given.
TOPICS = {
    "ops": ("bench_ops", "time_operators", "4096"),
    "backbones": ("bench_backbones", "time_backbones", "1024,4096,16384,65536"),
    "step": ("bench_backbones", "time_steps", "10,10000"),
    "stream": ("bench_stream", "time_streams", "20"),
}


@dataclass
class Options:
    """What the command line sets."""

    trainer: str = "auto"
    name: str = "*"
    lengths: str = ""
    d_model: int = 256
    budget_s: float = 60.0
    output: str = "bench.csv"


@dataclass
class Timing:
    """One line of the table; times in milliseconds, memory in MiB (0 where it is not measured)."""

    what: str
    size: str
    implementation: str
    forward_ms: float
    backward_ms: float = float("nan")
    memory_mib: float = 0.0
    note: str = ""


def run(args: list[str]) -> int:
    """Runs one benchmark; `args` are the topic and key=value options."""
    words = [arg for arg in args if "=" not in arg]
    topic = words[0] if words else "ops"
    if topic not in TOPICS or len(words) > 1:
        raise ConfigError(f"bench has no topic {' '.join(words)!r}{nearest(topic, TOPICS)}. Topics: {', '.join(TOPICS)}")
    options = parse(args)
    file, function, lengths = TOPICS[topic]
    options.lengths = options.lengths or lengths
    results = []
    # Imported for this topic alone: a topic may need what another machine lacks.
    measure = getattr(importlib.import_module(f"longseq.pipelines.{file}"), function)
    for timing in measure(options, device_of(options.trainer)):
        results.append(timing)
        print(show(timing), flush=True)
    write(results, Path(options.output))
    return 0


def parse(args: list[str]) -> Options:
    """The key=value arguments.

    Raises:
        ConfigError: for an unknown key, with the nearest known ones, or a number that is none.
    """
    options = Options()
    known = {field.name: field.type for field in fields(Options)}
    for arg in args:
        key, equals, value = arg.partition("=")
        if equals and key not in known:
            raise ConfigError(f"bench has no option {key!r}{nearest(key, known)}. Options: {', '.join(known)}")
        if equals:
            try:
                setattr(options, key, NUMBERS.get(key, str)(value))
            except ValueError as error:
                raise ConfigError(f"{key} must be a number, found {value!r}") from error
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


def median_ms(run_once: Callable[[], Any], device: str, seconds: float = 1.0, clock: str = "wall") -> float:
    """Median of repeated calls after a warm-up, in milliseconds; at least three calls, or `seconds` of them.

    `clock="process"` counts processor time where the device is a CPU.
    """
    import statistics
    import time

    import torch

    now = time.process_time if clock == "process" and device == "cpu" else time.perf_counter

    def once() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        started = now()
        run_once()
        if device == "cuda":
            torch.cuda.synchronize()
        return (now() - started) * 1e3

    once()
    times = [once() for _ in range(3)]
    while sum(times) < 1e3 * seconds and len(times) < 100:
        times.append(once())
    return statistics.median(times)


def exponent(logs: list[tuple[float, float]]) -> float:
    """Slope of log time over log length, by least squares."""
    n = len(logs)
    mean_x, mean_y = sum(x for x, _ in logs) / n, sum(y for _, y in logs) / n
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def show(timing: Timing) -> str:
    """One line for the console."""
    backward = "" if timing.backward_ms != timing.backward_ms else f"  fwd+bwd {timing.backward_ms:9.2f} ms"
    memory = f"  {timing.memory_mib:8.0f} MiB" if timing.memory_mib else ""
    name = f"{timing.what:<17}{timing.size:<26}{timing.implementation:<13}"
    forward = " " * 12 if timing.forward_ms != timing.forward_ms else f"{timing.forward_ms:9.2f} ms"
    return f"{name}{forward}{backward}{memory}  {timing.note}"


def write(results: list[Timing], path: Path) -> None:
    """Writes all lines as csv."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Timing)])
        writer.writeheader()
        writer.writerows(asdict(result) for result in results)
    print(f"written  {path}")
