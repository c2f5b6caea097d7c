"""Where a call's time goes: in our operators' kernels, one by one, or outside of them, by kind."""

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

# What kernels and operators that are not ours do, by their names; the first that fits.
_KINDS = {
    "matrix products": r"gemm|nvjet|cutlass|xmma|cublas|addmm|::mm|::bmm|linear|mkldnn",
    "Fourier transforms": r"fft|_r2c|_c2r",
    "attention": r"flash|attention|sdp",
    "optimizer": r"adam|multi_tensor|foreach|optimizer",
    "embedding and loss": r"embedding|softmax|nll|cross_entropy|index",
    "copies and casts": r"copy|cat|memcpy|memset|fill|zero|clone|contiguous|::to\b",
    "norms and sums": r"norm|reduce|sum|mean",
    "elementwise": r"elementwise|vectorized|gelu|silu|mul|add|sub|div|exp|sin|pow|neg|where|sigmoid|softplus",
}
_TOP = 8


@dataclass
class Share:
    """A part of the time.

    Attributes:
        what: an operator of ours, a kind of others, or `kernel`.
        ms: in one call.
        part: of the whole.
        name: of the kernel.
    """

    what: str
    ms: float
    part: float
    name: str = ""

    def show(self) -> str:
        """For the table."""
        return f"{self.part:6.1%}  {self.ms:.2f} ms  {self.name}".rstrip()


def shares(call: Callable[[], Any], device: str) -> list[Share]:
    """One call's time: the share inside our operators and outside, each operator and kind, and the slowest kernels."""
    spent = profile(call, device)
    total = sum(spent.values()) or 1.0
    own = own_names()
    parts: dict[str, float] = {}
    inside = 0.0
    for name, ms in spent.items():
        operator = operator_of(name, own)
        inside += ms if operator else 0.0
        kind = f"in {operator}" if operator else kind_of(name)
        parts[kind] = parts.get(kind, 0.0) + ms
    found = [Share("in operators", inside, inside / total), Share("outside", total - inside, 1 - inside / total)]
    ordered = sorted(parts.items(), key=lambda item: -item[1])
    slowest = sorted(spent.items(), key=lambda item: -item[1])[:_TOP]
    found += [Share(kind, ms, ms / total) for kind, ms in ordered]
    return found + [Share("kernel", ms, ms / total, _short(name)) for name, ms in slowest]


def profile(call: Callable[[], Any], device: str) -> dict[str, float]:
    """Milliseconds by name: a GPU's kernels, or on a CPU what operators and functions took themselves."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device == "cuda" else []
    with torch.profiler.profile(activities=kinds, acc_events=True) as profiler:
        call()
        if device == "cuda":
            torch.cuda.synchronize()
    wanted = "DeviceType." + device.upper()
    spent: dict[str, float] = {}
    for event in profiler.key_averages():
        if str(event.device_type) == wanted:
            us = event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
            spent[event.key] = spent.get(event.key, 0.0) + us / 1e3
    return {name: ms for name, ms in spent.items() if ms > 0.0}


def own_names() -> dict[str, str]:
    """Names of our kernels, operators and autograd functions, with the operator that each belongs to."""
    found: dict[str, str] = {}
    for module_name, module in list(sys.modules.items()):
        parts = module_name.split(".")
        if parts[:2] != ["longseq", "ops"] or len(parts) < 3:
            continue
        found[parts[2]] = parts[2]
        for value in vars(module).values():
            is_function = isinstance(value, type) and issubclass(value, torch.autograd.Function)
            is_kernel = type(value).__name__ in ("JITFunction", "Autotuner")
            if is_function or is_kernel:
                # Where it was written: kernels are imported from one module to another.
                home = str(getattr(value, "__module__", module_name)).split(".")
                name = value.__name__ if is_function else getattr(value, "__name__", getattr(value, "_fn_name", ""))
                found[name] = home[2] if home[:2] == ["longseq", "ops"] and len(home) > 2 else parts[2]
    return found


def operator_of(name: str, own: dict[str, str]) -> str:
    """The operator of ours that a kernel's or function's name belongs to, or nothing."""
    # Operators registered with torch, and their gradients' nodes.
    registered = re.match(r"(?:longseq::|.*GeneratedBackwardFor_longseq_)(\w+)", name)
    if registered is not None:
        return next((o for o in sorted(set(own.values()), key=len, reverse=True) if registered[1].startswith(o)), registered[1])
    plain = name.removesuffix("Backward")
    # A specialised kernel's name may go on after the function's.
    longer = (operator for known, operator in own.items() if re.fullmatch(rf"{known}(_\d\w*)+", plain))
    return own.get(plain) or next(longer, "")


def kind_of(name: str) -> str:
    """What a kernel or operator that is not ours does."""
    return next((kind for kind, pattern in _KINDS.items() if re.search(pattern, name, re.IGNORECASE)), "other")


def _short(name: str) -> str:
    """A kernel's name without its template's arguments."""
    plain = re.sub(r"\(.*", "", re.sub(r"<.*", "", name.removeprefix("void "))).strip() or name
    return plain[-60:]
