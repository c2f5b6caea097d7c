"""Times, memory and the device's own speed: what every benchmark measures with.

On a GPU calls are timed between events, with the second-level cache emptied before each. The host gets a head start of some
milliseconds, as it has in training, where it runs ahead of the device: so the time is the device's, unless the host takes still
longer. What a call takes the host is timed apart. Calls that are compared are made in turns, so that whatever else the machine
does meets all of them alike; figures are medians.
"""

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from longseq.pipelines.bench_memory import resident, trim

Call = Callable[[], Any]
NAN = float("nan")
# More than the second-level cache of any GPU, in bytes.
_CACHE = 256 * 2**20
# So many times it is filled before a timed call: 3 ms on an H100, longer on a slower GPU.
_FILLS = 32
_MOST_ROUNDS = 50
_MIB = 2.0**20


class Spent(NamedTuple):
    """Milliseconds of a call: on the device, and how long it kept the host, which runs ahead of a GPU."""

    ms: float
    host_ms: float


def once(call: Call, device: str) -> Spent:
    """One call: between events on a GPU, by the clock on a CPU."""
    if device == "cuda":
        _flush()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
    started = time.perf_counter()
    call()
    host_ms = (time.perf_counter() - started) * 1e3
    if device != "cuda":
        return Spent(host_ms, host_ms)
    end.record()
    torch.cuda.synchronize()
    return Spent(start.elapsed_time(end), host_ms)


def once_ms(call: Call, device: str) -> float:
    """One call's time on the device."""
    return once(call, device).ms


def in_turns(calls: Sequence[Call], device: str, seconds: float, expected_ms: float) -> list[Spent]:
    """Medians in milliseconds of calls made in turns, after a warm-up that was made elsewhere.

    Args:
        calls: what is compared.
        device: cpu or cuda.
        seconds: for all of them together; each is made at least once, and 3 times if that takes no more than thrice this.
        expected_ms: what one turn took in the warm-up.
    """
    if not calls:
        return []
    fitting = int(1e3 * seconds / max(expected_ms, 1e-3))
    rounds = min(_MOST_ROUNDS, max(fitting, 3 if fitting else 1))
    times: list[list[Spent]] = [[] for _ in calls]
    for _ in range(rounds):
        for call, column in zip(calls, times, strict=True):
            with contextlib.suppress(torch.OutOfMemoryError):
                # Alone it had the memory; beside the others' inputs it may not.
                column.append(once(call, device))
    # The middle one of each by itself.
    return [Spent(*map(statistics.median, zip(*column, strict=True))) if column else Spent(NAN, NAN) for column in times]


def copy_bandwidth(device: str) -> float:
    """Bytes a second, read and written together, of a copy much larger than the caches."""
    count = 2**28 if device == "cuda" else 2**25
    source = torch.zeros(count, device=device)
    target = torch.empty_like(source)

    def copy() -> None:
        target.copy_(source)

    copy()
    spent = statistics.median(once_ms(copy, device) for _ in range(9))
    return 2 * source.numel() * source.element_size() / (spent * 1e-3)


def peak_mib(call: Call, device: str) -> float:
    """What a call takes at most beyond what stood in memory before it; of a CPU's, where it is known, the process's pages."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / _MIB
    trim()
    before = resident()
    call()
    return max(0.0, resident(peak=True) - before) / _MIB


@contextlib.contextmanager
def freed(device: str) -> Iterator[None]:
    """Gives back what was used within, also after it ran out of memory."""
    try:
        yield
    finally:
        gc.collect()
        if device == "cuda":
            torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or, for what asks for more than there is, on a CPU."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)


def reason(error: BaseException) -> str:
    """A line for the table instead of a time."""
    if is_out_of_memory(error):
        return "out of memory"
    first = str(error).strip().split("\n")[0]
    return f"failed: {type(error).__name__}: {first[:120]}"


_flushed: dict[int, Tensor] = {}


def _flush() -> None:
    """Fills the second-level cache with something else, for some milliseconds."""
    device = torch.cuda.current_device()
    if device not in _flushed:
        _flushed[device] = torch.empty(_CACHE, dtype=torch.int8, device="cuda")
    for _ in range(_FILLS):
        _flushed[device].zero_()
