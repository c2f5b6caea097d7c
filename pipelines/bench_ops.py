"""Every operator in each of its implementations beside whichever peers can be imported: time, memory, share of the floor."""

import fnmatch
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from longseq.errors import ConfigError
from longseq.pipelines import bench, bench_clock
from longseq.pipelines.bench import Options, Timing
from longseq.pipelines.bench_cases import Case, Make, Outputs, Peer, make_case
from longseq.pipelines.bench_memory import PEERS, build_mamba, peak_mib
from longseq.pipelines.bench_peers import peers_of
from longseq.pipelines.bench_sizes import OPERATORS, Size, show, sizes_of

NAN = float("nan")


@dataclass
class Entrant:
    """One row to be: a way of computing an operator, and what was found of it."""

    name: str
    make: Callable[[], Peer]
    note: str = ""
    compiles: bool = True
    function: Callable[..., Outputs] | None = None
    leaves: list[Tensor] = field(default_factory=list)
    slopes: tuple[Tensor, ...] = ()
    warm_ms: list[float] = field(default_factory=list)
    found: dict[str, float] = field(default_factory=dict)

    def forward(self, *leaves: Tensor) -> Any:
        """Without gradients."""
        assert self.function is not None
        with torch.no_grad():
            return self.function(*(leaves or self.leaves))

    def both(self, *leaves: Tensor) -> Any:
        """Forward and backward, through every input."""
        assert self.function is not None
        inputs = list(leaves or self.leaves)
        return torch.autograd.grad(_outputs(self.function(*inputs)), inputs, self.slopes, allow_unused=True)


def time_operators(options: Options, device: str) -> Iterator[Timing]:
    """Every operator at its sizes; first the speed of a copy, which the floors are measured by."""
    pattern = options.op or options.name
    if not fnmatch.filter(OPERATORS, pattern):
        raise ConfigError(f"no operator is called {pattern!r}. Operators: {', '.join(OPERATORS)}")
    if options.lengths and options.size != "auto":
        raise ConfigError(f"size={options.size} and lengths={options.lengths}: name one of them")
    sizes = sizes_of(options.size, device, bench.lengths_of(options), options.d_model)
    bandwidth = bench_clock.copy_bandwidth(device)
    yield Timing("copy", f"{bandwidth / 1e9:,.0f} GB/s", "torch", NAN, note=bench.device_name(device))
    for operator in fnmatch.filter(OPERATORS, pattern):
        for size in sizes[operator]:
            if operator == "mamba":
                yield from time_mamba(size, options, device)
            else:
                yield from time_size(operator, size, options, device, bandwidth)


def time_size(operator: str, size: Size, options: Options, device: str, bandwidth: float) -> Iterator[Timing]:
    """One operator at one size: every way of computing it, measured in turns."""
    with bench_clock.freed(device):
        rows = _time_case(make_case(operator, size, device, bench.dtype_of(options, device)), options, device, bandwidth)
    yield from rows


def _time_case(case: Case, options: Options, device: str, bandwidth: float) -> list[Timing]:
    entrants = [warm(entrant, device, options.budget_s) for entrant in entrants_of(case, options, device)]
    ready = [entrant for entrant in entrants if entrant.warm_ms]
    quick = [entrant for entrant in ready if "forward" not in entrant.found]
    for i, key in enumerate(("forward", "backward")):
        # So many seconds for each row, half of them for each way.
        seconds, expected_ms = 0.5 * options.budget_s * len(quick), sum(entrant.warm_ms[i] for entrant in quick)
        calls = [entrant.forward if key == "forward" else entrant.both for entrant in quick]
        for entrant, median in zip(quick, bench_clock.in_turns(calls, device, seconds, expected_ms), strict=True):
            entrant.found[key] = median.ms
            if device == "cuda":
                entrant.found[f"host_{key}"] = median.host_ms
    floors = [1e3 * count / bandwidth for count in case.floor_bytes(ready[0].slopes)] if ready else []
    return [row(entrant, case, floors) for entrant in entrants]


def entrants_of(case: Case, options: Options, device: str) -> list[Entrant]:
    """Our implementations, or those asked for, and the peers."""
    asked = bench.implementations_of(options) or case.implementations(device)
    ours = [
        Entrant(f"longseq {name}", partial(Peer, name, case.call(name), case.leaves), compiles=name != "reference")
        for name in asked
    ]
    return [*ours, *(Entrant(name, make) for name, make in peers_of(case, device))]


def warm(entrant: Entrant, device: str, budget_s: float) -> Entrant:
    """Makes it ready, calls it until nothing is compiled any more, and measures its memory; or says why not.

    What takes longer than its budget is not called again: these are its times.
    """
    try:
        made = entrant.make()
        entrant.function, entrant.leaves, entrant.note = made.call, made.leaves, made.note
        entrant.slopes = tuple(y.clone() for y in _outputs(entrant.forward()))
        spent = [bench_clock.once_ms(entrant.forward, device)]
        # What takes so long forward is not called twice backward.
        if entrant.compiles and spent[0] <= 1e3 * budget_s:
            entrant.both()
        peak = bench_clock.peak_mib(lambda: spent.append(bench_clock.once_ms(entrant.both, device)), device)
        entrant.found["memory"] = peak + sum(leaf.numel() * leaf.element_size() for leaf in entrant.leaves) / 2**20
        entrant.warm_ms = spent
    except Exception as error:
        # Whatever a peer or a machine without memory raises is that row's result; the others go on.
        entrant.note, entrant.function, entrant.leaves, entrant.slopes = bench_clock.reason(error), None, [], ()
        with bench_clock.freed(device):
            del error
    if sum(entrant.warm_ms) > 1e3 * budget_s:
        entrant.found |= dict(zip(("forward", "backward"), entrant.warm_ms, strict=True))
    return entrant


def row(entrant: Entrant, case: Case, floors: list[float]) -> Timing:
    """What was found of it, as a line of the table."""
    found, best = entrant.found, [NAN, NAN]
    for i, key in enumerate(("forward", "backward")):
        if found.get(key):
            best[i] = floors[i] / found[key]
    return Timing(
        case.operator,
        show(case.size),
        entrant.name,
        found.get("forward", NAN),
        found.get("backward", NAN),
        found.get("memory", 0.0) if entrant.slopes else 0.0,
        entrant.note,
        host_forward_ms=found.get("host_forward", NAN),
        host_backward_ms=found.get("host_backward", NAN),
        floor_forward=best[0],
        floor_backward=best[1],
    )


def _outputs(outputs: Outputs) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def time_mamba(size: Size, options: Options, device: str) -> Iterator[Timing]:
    """Four layers of Mamba, ours and transformers' without its CUDA kernels, forward in one run; then the peak memory."""
    d_model, length = size["D"], size["L"]
    x = Make(device, torch.float32).normal(1, length, d_model).detach()
    calls: dict[str, Callable[[], Any]] = {}
    for name in PEERS:
        run = build_mamba(name, d_model, device)
        if run is not None:
            calls[name] = partial(run, x)
    with torch.no_grad():
        expected = sum([bench_clock.once_ms(call, device) for call in calls.values() for _ in range(2)][1::2])
        spent = bench_clock.in_turns(list(calls.values()), device, options.budget_s, expected)
    first = spent[0].ms
    for name, (ms, _) in zip(calls, spent, strict=True):
        note = "" if name == "longseq" else f"{ms / first:.1f} times longseq's"
        yield Timing("mamba", f"{show(size)} 4 layers", name, ms, note=note)
    # Longer, the peer's backward pass takes minutes.
    length = min(length, 512)
    used = {name: peak_mib(name, length, d_model, device) for name in calls}
    for name, memory in used.items():
        note = "" if name == "longseq" else f"{memory / used['longseq']:.1f} times longseq's"
        yield Timing("mamba fwd+bwd", f"B1 L{length} D{d_model} 4 layers", name, NAN, memory_mib=memory, note=note)
