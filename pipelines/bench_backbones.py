"""Every backbone's training step over growing lengths, with the fitted exponents of time and memory; and its streaming step."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from longseq.pipelines import bench
from longseq.pipelines.bench import Options, Timing

NAN = float("nan")
# Memory that a length may be expected to take, as a share of what there is.
_ROOM = 0.8


def time_backbones(options: Options, device: str) -> Iterator[Timing]:
    """Forward pass and training step of every backbone over the lengths; the last line of each has the fitted exponents.

    On a CPU it is processor time on one thread, which other work on the machine disturbs least. A backbone stops before a
    length that would take more than what is left of its `budget_s` seconds, or more memory than there is.
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
    from longseq.pipelines import bench_clock
    from longseq.registry import backbone_info

    cost, lengths = backbone_info(name).cost, bench.lengths_of(options)
    measured: list[Timing] = []
    with bench_clock.freed(device):
        forward, step = _calls(name, max(lengths), options, device)
        started = time.perf_counter()
        for length, following in zip(lengths, [*lengths[1:], None], strict=True):
            row = Timing(name, f"B1 L{length} D{options.d_model} 2 layers", "longseq", NAN)
            try:
                row.forward_ms = bench.median_ms(partial(forward, length), device, seconds=0.2, clock="process")
                row.step_ms = bench.median_ms(partial(step, length), device, seconds=0.2, clock="process")
                row.memory_mib = bench_clock.peak_mib(partial(step, length), device)
            except Exception as error:
                if not bench_clock.is_out_of_memory(error):
                    raise
                row.note = f"{bench_clock.reason(error)}; {fitted(measured, cost)}"
                yield row
                return
            row.tokens_per_s = 1e3 * length / row.step_ms
            measured.append(row)
            left_s = options.budget_s - (time.perf_counter() - started)
            cut = "" if following is None else cut_note(measured, following, left_s, options.budget_s, cost, device)
            row.note = "; ".join(part for part in (fitted(measured, cost) if cut or following is None else "", cut) if part)
            yield row
            if cut:
                return


def _calls(name: str, longest: int, options: Options, device: str) -> tuple[Callable[[int], Any], Callable[[int], Any]]:
    """Forward without gradients, and a training step with AdamW, as functions of the length."""
    import torch

    from longseq.registry import backbone_info, create_backbone

    extra: dict[str, Any] = {"max_length": longest} if "max_length" in backbone_info(name).options() else {}
    model = create_backbone(name, d_model=options.d_model, n_layers=2, **extra).to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=device == "cuda")
    dtype = bench.dtype_of(options, device)
    mixed = partial(torch.autocast, device, dtype=dtype, enabled=dtype != torch.float32)

    def forward(length: int) -> None:
        with torch.no_grad(), mixed():
            model(torch.randn(1, length, options.d_model, device=device))

    def step(length: int) -> None:
        optimizer.zero_grad(set_to_none=True)
        with mixed():
            loss = model(torch.randn(1, length, options.d_model, device=device)).float().square().mean()
        loss.backward()
        optimizer.step()

    return forward, step


def length_of(row: Timing) -> int:
    """L of its size."""
    return next(int(part[1:]) for part in row.size.split() if part.startswith("L"))


def fitted(rows: Sequence[Timing], cost: str) -> str:
    """The exponents of a step's time and memory over the three longest, and what the backbone claims; nothing for one row."""
    if len(rows) < 2:
        return ""
    # Short rows take as long as launching and bookkeeping do.
    rows = rows[-3:]
    logs = [math.log(length_of(row)) for row in rows]
    text = f"exponent {bench.exponent([(x, math.log(row.step_ms)) for x, row in zip(logs, rows, strict=True)]):.2f}"
    # Where a call fits in memory that was in use already, nothing is known.
    known = [(x, math.log(row.memory_mib)) for x, row in zip(logs, rows, strict=True) if row.memory_mib > 1.0]
    if len(known) > 1:
        text += f", of memory {bench.exponent(known):.2f}"
    return f"{text}, claims {cost}"


def cut_note(rows: Sequence[Timing], following: int, left_s: float, budget_s: float, cost: str, device: str) -> str:
    """Why the next length is left out, or nothing."""
    last, ratio = rows[-1], following / length_of(rows[-1])
    slope = 2.0 if "L^2" in cost else 1.0
    if len(rows) > 1:
        apart = math.log(length_of(last) / length_of(rows[-2]))
        slope = max(1.0, math.log(last.step_ms / rows[-2].step_ms) / apart)
    # A warm-up and three calls of each, and one for the memory, each expected to take what the growth so far says.
    expected_s = (4 * last.forward_ms + 5 * last.step_ms) * ratio**slope / 1e3
    if expected_s > left_s:
        left = max(left_s, 0)
        return f"stopped before L{following}: about {expected_s:.0f} s more, of budget_s={budget_s:g} {left:.0f} s are left"
    room, expected_mib = _room_mib(device), last.memory_mib * ratio
    if expected_mib > _ROOM * room:
        return f"stopped before L{following}: about {expected_mib:,.0f} MiB, of which {room:,.0f} are free"
    return ""


def _room_mib(device: str) -> float:
    from longseq.pipelines.bench_memory import available

    # A GPU says itself when it has no more, and nothing else suffers.
    return float("inf") if device == "cuda" else available() / 2**20


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
