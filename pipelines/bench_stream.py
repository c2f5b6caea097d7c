"""Latency of streaming: sound that arrives in chunks of some milliseconds, and how long each takes to be answered."""

import fnmatch
import time
from collections.abc import Iterator
from typing import Any

import torch

from longseq.model import SequenceModel, build_model
from longseq.pipelines.bench import Options, Timing, lengths_of
from longseq.registry import backbone_info, create_backbone, list_backbones

SAMPLE_RATE_HZ = 16_000
# Seconds of sound that each backbone hears, and how much of it before the clock runs.
HEARD_S, WARM_S = 4.0, 0.4
LABELS = 10


def time_streams(options: Options, device: str) -> Iterator[Timing]:
    """One line for each backbone that can step and each length of a chunk, in milliseconds of sound."""
    for name in list_backbones():
        if not fnmatch.fnmatch(name, options.name):
            continue
        model = streaming_model(name, options.d_model)
        if model is None:
            continue
        model = model.to(device).eval()
        for chunk_ms in lengths_of(options):
            yield time_stream(name, model, chunk_ms, device)


def streaming_model(name: str, d_model: int) -> SequenceModel | None:
    """Two layers behind convolutions on the waveform, a label at every position; None for a backbone that cannot step."""
    known = backbone_info(name).options()
    options: dict[str, Any] = {"name": name, "d_model": d_model, "n_layers": 2}
    embedding = {"name": "waveform", "strides": [4, 4]}
    longest = {"causal": True, "max_length": round(HEARD_S * SAMPLE_RATE_HZ) // 16 + 16}
    options |= {key: value for key, value in longest.items() if key in known}
    backbone = create_backbone(**options)
    if not backbone.can_step:
        return None
    head = {"name": "token", "n_outputs": LABELS, "bias": True}
    return build_model({"backbone": options, "embedding": embedding, "head": head}, backbone)


def time_stream(name: str, model: SequenceModel, chunk_ms: int, device: str) -> Timing:
    """Median and 99th percentile of a chunk's time, and the real-time factor: seconds of computing per second of sound."""
    size = max(1, SAMPLE_RATE_HZ * chunk_ms // 1000)
    sound = 0.1 * torch.randn(1, round(HEARD_S * SAMPLE_RATE_HZ), generator=torch.Generator().manual_seed(0))
    stream, spent = model.stream(), []
    for chunk in sound.split(size, dim=1):
        started = time.perf_counter()
        # With the way to the device and back, as an application sees it.
        stream.push(chunk.to(device)).cpu()
        spent.append(1e3 * (time.perf_counter() - started))
    times = torch.tensor(spent[int(WARM_S * SAMPLE_RATE_HZ / size) :])
    p50, p99 = times.quantile(0.5).item(), times.quantile(0.99).item()
    factor = times.mean().item() / chunk_ms
    note = f"p99 {p99:.2f} ms, real-time factor {factor:.3f}, state {stream.state_bytes / 2**20:.2f} MiB"
    width = model.backbone.d_model
    return Timing(name, f"{chunk_ms} ms of 16 kHz D{width}", "longseq", p50, memory_mib=0.0, note=note)
