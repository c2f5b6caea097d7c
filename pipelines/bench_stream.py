"""Latency of streaming: sound that arrives in chunks of some milliseconds, and how long each takes to be answered."""

import fnmatch
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from longseq.checkpoint import load_model
from longseq.errors import ConfigError
from longseq.model import SequenceModel, build_model
from longseq.pipelines.bench import Options, Timing, lengths_of
from longseq.pipelines.run_folder import MODEL
from longseq.registry import backbone_info, create_backbone, list_backbones

SAMPLE_RATE_HZ = 16_000
# Seconds of sound that each backbone hears, and how much of it before the clock runs; and of long chunks, how many.
HEARD_S, WARM_S = 4.0, 0.4
FEWEST = 8
LABELS = 10


def time_streams(options: Options, device: str) -> Iterator[Timing]:
    """One line for each length of a chunk, in milliseconds of sound: of a trained model, or of each backbone that can step."""
    if options.run or options.model:
        yield from time_trained(options, device)
        return
    chunks_ms = lengths_of(options)
    for name in list_backbones():
        if not fnmatch.fnmatch(name, options.name):
            continue
        model = streaming_model(name, options.d_model, heard_s(chunks_ms[-1]))
        if model is None:
            continue
        model = model.to(device).eval()
        for chunk_ms in chunks_ms:
            yield time_stream(name, model, chunk_ms, device)


def time_trained(options: Options, device: str) -> Iterator[Timing]:
    """The lines of one trained model, at its own sampling rate.

    Raises:
        ConfigError: if both folders are named, or the model hears no sound.
        CheckpointError: if the folder holds no usable model.
    """
    if options.run and options.model:
        raise ConfigError("name either a run folder (run=) or a model folder (model=), not both")
    folder = Path(options.run) / MODEL if options.run else Path(options.model)
    model = load_model(folder)
    rate = model.config.get("tokenizer", {}).get("sample_rate_hz")
    if model.config.get("domain") != "audio" or rate is None:
        raise ConfigError(
            f"{folder}: longseq bench stream measures models of sound, this one's domain is {model.config.get('domain')!r}; "
            "longseq bench step measures backbones token by token"
        )
    try:
        model.stream()
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"{folder}: the model cannot stream: {error}") from None
    name = str(model.config["backbone"]["name"])
    for chunk_ms in lengths_of(options):
        yield time_stream(name, model.to(device).eval(), chunk_ms, device, int(rate))


def heard_s(chunk_ms: int) -> float:
    """Seconds of sound that are heard in chunks of so many milliseconds."""
    return max(HEARD_S, FEWEST * chunk_ms / 1000)


def streaming_model(name: str, d_model: int, longest_s: float) -> SequenceModel | None:
    """Two layers behind convolutions on the waveform, a label at every position, for so many seconds of sound.

    None for a backbone that cannot step.
    """
    known = backbone_info(name).options()
    options: dict[str, Any] = {"name": name, "d_model": d_model, "n_layers": 2}
    embedding = {"name": "waveform", "strides": [4, 4]}
    longest = {"causal": True, "max_length": round(longest_s * SAMPLE_RATE_HZ) // 16 + 16}
    options |= {key: value for key, value in longest.items() if key in known}
    backbone = create_backbone(**options)
    if not backbone.can_step:
        return None
    head = {"name": "token", "n_outputs": LABELS, "bias": True}
    return build_model({"backbone": options, "embedding": embedding, "head": head}, backbone)


def time_stream(name: str, model: SequenceModel, chunk_ms: int, device: str, rate_hz: int = SAMPLE_RATE_HZ) -> Timing:
    """Median and 99th percentile of a chunk's time, and the real-time factor: seconds of computing per second of sound."""
    size = max(1, rate_hz * chunk_ms // 1000)
    # Whole chunks only: the last one of another length would be faster.
    sound = example_sound(model, round(heard_s(chunk_ms) * rate_hz) // size * size)
    stream, spent = model.stream(), []
    for chunk in sound.split(size, dim=1):
        started = time.perf_counter()
        # With the way to the device and back, as an application sees it.
        stream.push(chunk.to(device)).cpu()
        spent.append(1e3 * (time.perf_counter() - started))
    times = torch.tensor(spent[max(1, int(WARM_S * rate_hz / size)) :])
    p50, p99 = times.quantile(0.5).item(), times.quantile(0.99).item()
    factor = times.mean().item() / (1e3 * size / rate_hz)
    note = f"p99 {p99:.2f} ms, real-time factor {factor:.3f}, state {stream.state_bytes / 2**20:.2f} MiB"
    width = model.backbone.d_model
    return Timing(name, f"{chunk_ms} ms of {rate_hz / 1000:g} kHz D{width}", "longseq", p50, memory_mib=0.0, note=note)


def example_sound(model: SequenceModel, count: int) -> torch.Tensor:
    """Noise (1, count): samples, or the ids of quantised ones."""
    noise = torch.Generator().manual_seed(0)
    levels = getattr(model.embedding, "vocab_size", None)
    if levels is not None:
        return torch.randint(0, int(levels), (1, count), generator=noise)
    return 0.1 * torch.randn(1, count, generator=noise)
