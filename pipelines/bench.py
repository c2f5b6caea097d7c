"""Time operators, training steps, backbones and streams on this machine, beside whatever peers are installed.

usage: longseq bench [ops|train|backbones|step|stream] [key=value ...]

  ops         every operator in each of its implementations (reference, chunked, cpu, triton) beside whichever peers can be
              imported (mamba_ssm, flashfftconv, causal_conv1d, transformers, torch's own): forward, forward +
              backward, what launching takes the host, peak memory, and the share of the floor: the bytes that must move, at
              the speed of a large copy in the same run, over the time taken (more than all of it: it stayed in a cache)
                op=PATTERN  size=tiny|small|medium|hopper  lengths=1024,4096 d_model=256  implementation=triton,chunked
                dtype=auto|float32|bfloat16|float16
  train       one training step (forward, backward, AdamW) of known networks in tokens a second, and its peak memory, beside
              the same network without kernels
                name=PATTERN  size=tiny|small|full  implementation=auto,chunked  profile=true (where the time goes)
  backbones   time and memory of a training step of every backbone over growing lengths, with fitted exponents, as a table
              and a picture: processor time of one thread on a CPU, and no more than budget_s seconds for each backbone
                name=PATTERN  lengths=1024,4096,...  d_model=256  budget_s=60
  step        one streaming step of every recurrent backbone, early and late in the sequence (lengths= are positions)
  stream      sound of 16 kHz in chunks (lengths= in milliseconds): latency per chunk and real-time factor; of a trained
              model, at its own rate, with run= or model=

Everywhere: trainer=auto|cpu|gpu, budget_s=SECONDS (of a row, a preset or a backbone), output=bench.csv. Without size=, a GPU
runs the large sizes and a CPU small ones. What is compared is measured in turns; figures are medians. Absolute times hold for
this machine; ratios travel better.
"""

import contextlib
import csv
import importlib
import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longseq.errors import ConfigError
from longseq.pipelines.cli import nearest_of

if TYPE_CHECKING:
    import torch

NAN = float("nan")
# A topic's file, its function of the options and the device, the lengths it takes if none are given, and its budget_s.
TOPICS = {
    "ops": ("bench_ops", "time_operators", "", 1.0),
    "train": ("bench_train", "time_training", "", 20.0),
    "backbones": ("bench_backbones", "time_backbones", "1024,4096,16384,65536,262144,1048576", 60.0),
    "step": ("bench_backbones", "time_steps", "10,10000", 60.0),
    "stream": ("bench_stream", "time_streams", "20", 60.0),
}
# What each of them looks at; and all of them.
TAKES = {
    "ops": ("op", "name", "size", "lengths", "d_model", "implementation", "dtype"),
    "train": ("name", "size", "implementation", "dtype", "profile"),
    "backbones": ("name", "lengths", "d_model", "dtype"),
    "step": ("name", "lengths", "d_model"),
    "stream": ("name", "lengths", "d_model", "run", "model"),
}
ALWAYS = ("trainer", "budget_s", "output")
IMPLEMENTATIONS = ("auto", "reference", "chunked", "cpu", "triton")


def _yes_or_no(value: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if value.lower() not in known:
        raise ValueError
    return known[value.lower()]


def _positive(value: str) -> int:
    if int(value) < 1:
        raise ValueError
    return int(value)


def _seconds(value: str) -> float:
    if not 0.0 < float(value) < math.inf:
        raise ValueError
    return float(value)


KINDS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "d_model": ("a whole number above 0", _positive),
    "budget_s": ("a number of seconds above 0", _seconds),
    "profile": ("true or false", _yes_or_no),
}


@dataclass
class Options:
    """What the command line sets."""

    trainer: str = "auto"
    op: str = ""
    name: str = "*"
    size: str = "auto"
    implementation: str = ""
    dtype: str = "auto"
    lengths: str = ""
    d_model: int = 0
    budget_s: float = 0.0
    profile: bool = False
    # Of `stream`: a trained model to time, by its run or its folder.
    run: str = ""
    model: str = ""
    output: str = "bench.csv"


@dataclass
class Timing:
    """One line of the table; times in milliseconds, memory in MiB (0 where it is not measured), NaN for what is unknown.

    Attributes:
        what: operator, preset or backbone.
        size: of it.
        implementation: ours, or a peer's name.
        forward_ms: without gradients.
        backward_ms: forward and backward together.
        memory_mib: at most, with the inputs.
        note: anything else.
        host_forward_ms: how long the call keeps the host, which on a GPU runs ahead of the device.
        host_backward_ms: likewise.
        step_ms: a training step: forward, backward, optimizer.
        tokens_per_s: positions trained on in a second.
        floor_forward: the floor's share of the time, by bytes.
        floor_backward: likewise.
    """

    what: str
    size: str
    implementation: str
    forward_ms: float
    backward_ms: float = NAN
    memory_mib: float = 0.0
    note: str = ""
    host_forward_ms: float = NAN
    host_backward_ms: float = NAN
    step_ms: float = NAN
    tokens_per_s: float = NAN
    floor_forward: float = NAN
    floor_backward: float = NAN


def run(args: list[str]) -> int:
    """Runs one benchmark; `args` are the topic and key=value options."""
    words = [arg for arg in args if "=" not in arg]
    topic = words[0] if words else "ops"
    if topic not in TOPICS or len(words) > 1:
        raise ConfigError(f"bench has no topic {' '.join(words)!r}{nearest_of(topic, TOPICS, 'Topics')}")
    options = parse(args, (*TAKES[topic], *ALWAYS), topic)
    file, function, lengths, budget_s = TOPICS[topic]
    options.lengths, options.budget_s = options.lengths or lengths, options.budget_s or budget_s
    if topic == "ops" and options.d_model and not options.lengths:
        raise ConfigError(f"d_model={options.d_model} goes with lengths=: sizes by name have widths of their own")
    options.d_model = options.d_model or 256
    device = device_of(options.trainer)
    # Mistakes are answered before anything is measured, and before an older table is touched.
    dtype_of(options, device)
    implementations_of(options)
    path = _table_path(options.output, topic)
    results = [] if topic == "ops" else [Timing("device", "", "torch", NAN, note=device_name(device))]
    described = len(results)
    # Imported for this topic alone: a topic may need what another machine lacks.
    module = importlib.import_module(f"longseq.pipelines.{file}")
    for timing in getattr(module, function)(options, device):
        if len(results) == described == 1:
            print(show(results[0]), flush=True)
        results.append(timing)
        print(show(timing), flush=True)
        # After every line: what was measured stays if the rest is stopped.
        write(results, path)
    if len(results) == described:
        raise ConfigError(_nothing(topic, options))
    print(f"written  {path}")
    if topic == "backbones":
        for picture in importlib.import_module("longseq.pipelines.bench_plot").draw(results, path):
            print(f"written  {picture}")
    return 0


def _table_path(output: str, topic: str) -> Path:
    """Where the table is written.

    Raises:
        ConfigError: if it cannot be, or a picture would take its place.
    """
    # Here, because it imports pandas.
    from longseq.pipelines.prediction_files import check_place, writing

    path = Path(output)
    check_place(path)
    if topic == "backbones" and path.suffix.lower() in (".png", ".svg"):
        raise ConfigError(f"output={output!r} names the table; pictures of the same name are written beside it: use .csv")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # It is written in place, line by line.
    if path.exists() and not os.access(path, os.W_OK):
        raise ConfigError(f"output={output!r} cannot be written: permission denied")
    return path


def _nothing(topic: str, options: Options) -> str:
    from longseq.registry import list_backbones

    known, kind = list_backbones(), "backbone can step" if topic in ("step", "stream") else "backbone"
    return f"nothing to measure: no {kind} of the name {options.name!r}{nearest_of(options.name, known, 'Backbones')}"


def parse(args: list[str], known: Sequence[str], topic: str) -> Options:
    """The key=value arguments of a topic, which has the options `known`.

    Raises:
        ConfigError: for an unknown key, with the nearest known ones, or a value of another kind.
    """
    options = Options()
    for arg in args:
        key, equals, value = arg.partition("=")
        if equals and key not in known:
            others = [f"longseq bench {other}" for other, keys in TAKES.items() if key in keys]
            all_known = f", but {' and '.join(others)}. Options: {', '.join(known)}"
            end = all_known if others else nearest_of(key, known, "Options")
            raise ConfigError(f"longseq bench {topic} has no option {key!r}{end}")
        if equals:
            kind, convert = KINDS.get(key, ("a word", str))
            try:
                setattr(options, key, convert(value))
            except ValueError as error:
                raise ConfigError(f"{key} must be {kind}, found {value!r}") from error
    return options


def device_of(trainer: str) -> str:
    """The device that `trainer` means here."""
    import torch

    if trainer not in ("auto", "cpu", "gpu"):
        raise ConfigError(f"trainer must be auto, cpu or gpu, found {trainer!r}")
    if trainer == "gpu" and not torch.cuda.is_available():
        raise ConfigError("trainer=gpu, but torch sees no GPU (longseq doctor says why)")
    return "cuda" if trainer != "cpu" and torch.cuda.is_available() else "cpu"


def device_name(device: str) -> str:
    """The GPU's name, or the processor's and the number of threads, and the versions of torch and Triton."""
    import torch

    from longseq.pipelines.results import cpu_name

    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    with contextlib.suppress(PackageNotFoundError):
        return f"{name}, torch {torch.__version__}, triton {version('triton')}"
    return f"{name}, torch {torch.__version__}"


def implementations_of(options: Options) -> list[str]:
    """Those asked for; none for the topic's own choice.

    Raises:
        ConfigError: for one that is not known.
    """
    asked = options.implementation.split(",") if options.implementation else []
    for name in asked:
        if name not in IMPLEMENTATIONS:
            raise ConfigError(f"there is no implementation {name!r}{nearest_of(name, IMPLEMENTATIONS, 'Implementations')}")
    return asked


def dtype_of(options: Options, device: str) -> "torch.dtype":
    """The dtype of activations: bf16 on a GPU and float32 on a CPU, unless another was asked for."""
    import torch

    known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    known["auto"] = torch.bfloat16 if device == "cuda" else torch.float32
    if options.dtype not in known:
        raise ConfigError(f"dtype must be one of {', '.join(known)}, found {options.dtype!r}")
    return known[options.dtype]


def lengths_of(options: Options) -> list[int]:
    """The sequence lengths asked for, each once, the shortest first.

    Raises:
        ConfigError: for what is no list of numbers above 0.
    """
    if not options.lengths:
        return []
    try:
        return sorted({_positive(length) for length in options.lengths.split(",")})
    except ValueError as error:
        raise ConfigError(f"lengths must be numbers above 0 with commas between them, found {options.lengths!r}") from error


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
    """One line for the console; what is unknown is left out."""
    parts = [f"{timing.what:<20}{timing.size:<28.27}{timing.implementation:<19}"]
    parts.append(_figure("", timing.forward_ms, timing.floor_forward))
    parts.append(_figure("fwd+bwd", timing.backward_ms, timing.floor_backward))
    if not math.isnan(timing.host_forward_ms):
        parts.append(f"  host {timing.host_forward_ms:.2f} / {timing.host_backward_ms:.2f} ms")
    if not math.isnan(timing.step_ms):
        parts.append(f"  step {timing.step_ms:.1f} ms  {timing.tokens_per_s:,.0f} tokens/s")
    parts.append(f"  {timing.memory_mib:,.0f} MiB" if timing.memory_mib else "")
    parts.append(f"  {timing.note}" if timing.note else "")
    return "".join(parts)


def _figure(name: str, ms: float, share: float) -> str:
    if math.isnan(ms):
        return ""
    of_floor = "" if math.isnan(share) else f" ({share:5.1%})"
    return f"  {name}{' ' if name else ''}{ms:9.3f} ms{of_floor}"


def write(results: list[Timing], path: Path) -> None:
    """Writes all lines as csv; what is unknown stays empty."""
    from longseq.checkpoint import write_atomically

    table = io.StringIO()
    writer = csv.DictWriter(table, [field.name for field in fields(Timing)], lineterminator="\n")
    writer.writeheader()
    for result in results:
        values = asdict(result).items()
        writer.writerow({k: "" if isinstance(v, float) and math.isnan(v) else v for k, v in values})
    write_atomically(path, table.getvalue())
