"""Every backbone's forward pass over growing lengths, with the fitted exponent of its cost; and its streaming step."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from longseq.pipelines import bench
from longseq.pipelines.bench import Options, Timing


def time_backbones(options: Options, device: str) -> Iterator[Timing]:
    """Forward time of every backbone over the lengths; the last line of each has the fitted exponent.

    On a CPU it is processor time on one thread, which other work on the machine disturbs least. A backbone stops before a
    length that would take more than what is left of its `budget_s` seconds.
    """
    import torch

    from longseq.registry import list_backbones

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for name in list_backbones(options.name):
            yield from time_backbone(name, options, device)
    finally:
        torch.set_num_threads(threads)


def time_backbone(name: str, options: Options, device: str) -> Iterator[Timing]:
    """One backbone over all lengths that fit its budget."""
    import torch

    from longseq.registry import backbone_info, create_backbone

    info, lengths = backbone_info(name), bench.lengths_of(options)
    extra: dict[str, Any] = {"max_length": max(lengths)} if "max_length" in info.options() else {}
    model = create_backbone(name, d_model=options.d_model, n_layers=2, **extra).to(device).eval()
    logs: list[tuple[float, float]] = []
    started = time.perf_counter()
    for length, following in zip(lengths, [*lengths[1:], None], strict=True):
        x = torch.randn(1, length, options.d_model, device=device)
        with torch.no_grad():
            spent = bench.median_ms(partial(model, x), device, clock="process")
        logs.append((math.log(length), math.log(spent)))
        left_s = options.budget_s - (time.perf_counter() - started)
        cut = "" if following is None else cut_note(logs, following, left_s, options.budget_s, info.cost)
        note = cut
        if (cut or following is None) and len(logs) > 1:
            note = f"exponent {bench.exponent(logs):.2f}, claims {info.cost}" + (f"; {cut}" if cut else "")
        yield Timing(name, f"B1 L{length} D{options.d_model} 2 layers", "longseq", spent, note=note)
        if cut:
            return


def cut_note(logs: list[tuple[float, float]], following: int, left_s: float, budget_s: float, cost: str) -> str:
    """Why the next length is left out, or nothing."""
    slope = bench.exponent(logs[-2:]) if len(logs) > 1 else 2.0 if "L^2" in cost else 1.0
    last_length, last_ms = logs[-1]
    # A warm-up and three calls, each expected to take what the growth so far says.
    expected_s = 4 * math.exp(last_ms + max(slope, 1.0) * (math.log(following) - last_length)) / 1e3
    if expected_s <= left_s:
        return ""
    return (
        f"stopped before L{following}: about {expected_s:.0f} s more, of budget_s={budget_s:g} {max(left_s, 0):.0f} s are left"
    )


def time_steps(options: Options, device: str) -> Iterator[Timing]:
    """Time of one step of every causal backbone, at each of the positions asked for."""
    import torch

    from longseq.registry import backbone_info, create_backbone, list_backbones

    positions = bench.lengths_of(options)
    for name in list_backbones(options.name):
        known = backbone_info(name).options()
        extra: dict[str, Any] = {"causal": True} if "causal" in known else {}
        if "max_length" in known:
            extra["max_length"] = max(positions) + 1000
        model = create_backbone(name, d_model=options.d_model, n_layers=2, **extra).to(device).eval()
        if not model.can_step:
            continue
        calls = []
        with torch.no_grad():
            for position in positions:
                _, state = model.forward_chunk(torch.randn(1, position, options.d_model, device=device), model.init_state(1))
                calls.append(partial(model.step, torch.randn(1, options.d_model, device=device), state))
            spent = median_in_turns(calls, device)
        for position, ms in zip(positions, spent, strict=True):
            note = "" if position == positions[0] else f"{ms / spent[0]:.2f} times the first"
            yield Timing(name, f"position {position}", "longseq", ms, note=note)


def median_in_turns(calls: Sequence[Callable[[], Any]], device: str, rounds: int = 15) -> list[float]:
    """Medians in milliseconds of calls that are compared, made in turns: what else the machine does then meets all alike."""
    import statistics

    times = [[bench.median_ms(call, device, seconds=0.05) for call in calls] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]
