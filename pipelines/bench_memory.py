"""Memory of a process, and of one training step of Mamba, ours or transformers', each in a process of its own."""

import contextlib
import ctypes
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from longseq.errors import LongseqError

PEERS = ("longseq", "transformers")
_MIB = 2.0**20


def build_mamba(name: str, d_model: int, device: str) -> Callable[[Any], Any] | None:
    """Four layers as a function of (B, L, D); None where transformers is not installed."""
    if name == "longseq":
        from longseq.registry import create_backbone

        return create_backbone("mamba", d_model=d_model, n_layers=4).to(device).eval()
    try:
        from transformers import MambaConfig, MambaModel
    except ImportError:
        return None
    config = MambaConfig(hidden_size=d_model, num_hidden_layers=4, vocab_size=16, use_mambapy=False)
    peer: Any = MambaModel(config).eval()
    peer.to(device)
    return lambda x: peer(inputs_embeds=x, use_cache=False)[0]


def peak_mib(name: str, length: int, d_model: int, device: str) -> float:
    """What a forward and a backward pass take beyond the model and its input, measured in a fresh process.

    Raises:
        LongseqError: the process failed; its last line is in the message.
    """
    command = [sys.executable, "-m", "longseq.pipelines.bench_memory", name, str(length), str(d_model), device]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        why = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise LongseqError(f"measuring the memory of {name} at length {length} failed: {why}")
    return float(done.stdout.split()[-1])


def measure(name: str, length: int, d_model: int, device: str) -> float:
    """The same in this process."""
    import torch

    run = build_mamba(name, d_model, device)
    if run is None:
        return float("nan")

    def step(n: int) -> None:
        x = torch.randn(1, n, d_model, device=device, requires_grad=True)
        run(x).square().sum().backward()

    # Kernels are compiled, gradients are made.
    step(8)
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step(length)
        return (torch.cuda.max_memory_allocated() - before) / _MIB
    trim()
    before = resident()
    step(length)
    return (resident(peak=True) - before) / _MIB


def resident(peak: bool = False) -> float:
    """Bytes of this process in memory: now (from where a later peak counts), or at most."""
    status = Path("/proc/self/status")
    if not status.exists():
        # Elsewhere only the largest ever is known, in bytes on macOS.
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    if not peak:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    key = "VmHWM:" if peak else "VmRSS:"
    return 1024.0 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(key))


def trim() -> None:
    """Gives freed pages back to the system, where the C library can, so that memory in use again counts again."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def available() -> float:
    """Bytes that could still be used on this machine; infinite where that is not known."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    return float("inf")


if __name__ == "__main__":
    print(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
