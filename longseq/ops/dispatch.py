"""Which implementation of an operator runs: the one place where that is decided, for all operators.

Implementations are named "reference" (plain and slow), "chunked" (plain PyTorch), "cpu" (compiled loops, the operator's
`cpu.py`) and "triton" (GPU kernels, its `triton.py`). A kernel module offers

- `<operator>_cpu` or `<operator>_triton`, with the arguments of the chunked function;
- `supports(*arguments) -> str | None`, if it cannot do all of them: the reason why not, or None. It is asked at every
  call, under torch.compile too, so it looks at shapes and dtypes only;
- `self_check() -> float` (Triton only): runs the kernel, forward and backward, and the chunked form on a tiny input on the
  current device and returns the relative error. It is asked once for each operator and device, at the first call;
- `begin_to_compile(*arguments) -> None` (Triton only), if it has kernels that the self-check does not run: begins to compile
  what this call and its backward pass will launch. It is asked before the self-check, which then runs meanwhile.

A kernel that fails its check is switched off for the process with one warning.
"""

import contextlib
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from longseq.ops.tracing import is_exporting

__all__ = ["Operator", "prefer"]

_TRITON_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Compiled loops compute in fp32.
_CPU_DTYPES = (torch.float32, torch.bfloat16)
# A kernel that a compiler or a driver has broken is wrong by far more; products in TF32 and 16 bits by less.
_TOLERANCE = 1e-2
# Arguments and options of an operator.
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Operator:
    """An operator's implementations, and the rules by which one of them is taken.

    "auto" takes Triton kernels for fp32, bf16 and fp16 on a CUDA device and compiled loops for fp32 and bf16 on a CPU, where
    they are installed and support the arguments, else the chunked form. An implementation that is named and not available is
    a ValueError that says why. A graph that is being exported never takes kernels.

    Args:
        name: the folder in `longseq.ops`.
        reference: the plain form.
        chunked: the form in PyTorch operators.
        kernels: which of "cpu" and "triton" this operator may have.
        shortcut: gives for some arguments the plain form that is the fastest there ("reference"), else None; "auto" asks it.
    """

    def __init__(
        self,
        name: str,
        *,
        reference: Callable[..., Any],
        chunked: Callable[..., Any],
        kernels: tuple[str, ...] = ("triton",),
        shortcut: Callable[..., str | None] | None = None,
    ) -> None:
        self.name, self.kernels = name, kernels
        self.names = ("auto", "reference", "chunked", *kernels)
        self._shortcut = shortcut
        # Filled with the kernels' when their modules are imported.
        self._functions: dict[str, Callable[..., Any]] = {"reference": reference, "chunked": chunked}
        self._supports: dict[str, Callable[..., str | None] | None] = {"reference": None, "chunked": None}
        self._decided: dict[tuple[str, torch.device, torch.dtype], str] = {}
        _operators[name] = self

    def __call__(self, implementation: str, *arguments: Any, **options: Any) -> Any:
        """Runs an implementation; the first argument is a tensor whose device and dtype stand for all.

        Raises:
            ValueError: an implementation that is unknown, or named and not available for these arguments.
        """
        return self.choose(implementation, *arguments, **options)(*arguments, **options)

    def choose(self, implementation: str, *arguments: Any, **options: Any) -> Callable[..., Any]:
        """The function to call with these arguments."""
        if not torch.compiler.is_compiling():
            self._require_one_device(*arguments, *options.values())
        if implementation == "auto" and _preferred is not None:
            # Where an operator has no such form, "auto" stays what it is.
            implementation = _preferred if _preferred in self.names else implementation
        if implementation == "auto" and self._shortcut is not None:
            implementation = self._shortcut(*arguments, **options) or implementation
        if implementation in ("reference", "chunked"):
            return self._functions[implementation]
        if is_exporting():
            return self._while_exporting(implementation)
        x: Tensor = arguments[0]
        if torch.compiler.is_dynamo_compiling():
            name = _decide_for_dynamo(self.name, implementation, x.device.type, x.device.index, x.dtype)
        else:
            key = (implementation, x.device, x.dtype)
            name = self._decided.get(key) or self._decide(*key, call=None if _is_fake(x) else (arguments, options))
        supports = self._supports[name]
        if supports is None:
            return self._functions[name]
        problem = supports(*arguments, **options)
        if problem is None:
            return self._functions[name]
        if implementation != "auto":
            raise self._unavailable(implementation, problem)
        return self._functions["chunked"]

    def _while_exporting(self, implementation: str) -> Callable[..., Any]:
        self._require_known(implementation)
        if implementation != "auto":
            raise self._unavailable(implementation, "an exported graph holds plain tensor operators only")
        return self._functions["chunked"]

    def _decide(self, implementation: str, device: torch.device, dtype: torch.dtype, *, call: Call | None) -> str:
        """The name of the implementation to take; remembered, unless a check is due that cannot be made now.

        `call` is what the operator was called with, None where nothing may run.
        """
        self._require_known(implementation)
        wanted = implementation
        if implementation == "auto":
            wanted = {"cuda": "triton", "cpu": "cpu"}.get(device.type, "chunked")
        name, final = "chunked", True
        if wanted in self.kernels:
            problem = self._why_not(wanted, device, dtype, named=implementation != "auto")
            if problem is None and wanted == "triton" and device.type == "cuda":
                final = (self.name, device.index) in _checked or (call is not None and not _is_capturing())
                problem = self._check(device, call) if final else None
            if problem is None:
                name = wanted
            elif implementation != "auto":
                raise self._unavailable(implementation, problem)
        if final:
            self._decided[implementation, device, dtype] = name
        return name

    def _why_not(self, wanted: str, device: torch.device, dtype: torch.dtype, *, named: bool) -> str | None:
        """Why a kernel cannot run on such tensors; imports its module."""
        # Triton's interpreter, for debugging, runs on a CPU; only a call that names the kernel means it.
        interpreted = named and wanted == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        expected = "cuda" if wanted == "triton" else "cpu"
        if device.type != expected and not (interpreted and device.type == "cpu"):
            return f"it needs {expected.upper()} tensors, found {device}"
        dtypes = _TRITON_DTYPES if wanted == "triton" else _CPU_DTYPES
        if dtype not in dtypes:
            return f"it needs one of {', '.join(map(str, dtypes))}, found {dtype}"
        if wanted in self._functions:
            return None
        package = "triton" if wanted == "triton" else "numba"
        if importlib.util.find_spec(package) is None:
            return f"the package {package} is not installed"
        return self._load(wanted)

    def _load(self, wanted: str) -> str | None:
        module_name = f"longseq.ops.{self.name}.{wanted}"
        if importlib.util.find_spec(module_name) is None:
            return f"there is no module {module_name}"
        try:
            module: Any = importlib.import_module(module_name)
        except Exception as error:
            # Whatever a broken installation raises: "auto" goes on without its kernels.
            return f"importing {module_name} raised {type(error).__name__}: {error}"
        self._functions[wanted] = getattr(module, f"{self.name}_{wanted}")
        self._supports[wanted] = getattr(module, "supports", None)
        return None

    def _check(self, device: torch.device, call: Call | None) -> str | None:
        """Compares the kernel with the chunked form once; warns and says why if they disagree."""
        key = (self.name, device.index)
        if key in _checked:
            return _failures.get(key)
        module = importlib.import_module(f"longseq.ops.{self.name}.triton")
        begin_to_compile = getattr(module, "begin_to_compile", None)
        if begin_to_compile is not None and call is not None:
            arguments, options = call
            # It only saves time: what is wrong with the kernels, the check finds and says.
            with contextlib.suppress(Exception):
                begin_to_compile(*arguments, **options)
        problem = _run_check(getattr(module, "self_check", None), device)
        _checked.add(key)
        if problem is not None:
            _failures[key] = problem
            warnings.warn(
                f"longseq: the Triton kernel of {self.name} is switched off on {device} with triton {_triton_version()}: "
                f"{problem}. The chunked form runs instead.",
                RuntimeWarning,
                stacklevel=4,
            )
        return problem

    def _require_one_device(self, x: Tensor, *others: Any) -> None:
        # A custom operator with one tensor on the meta device would answer with whatever is in memory.
        for other in others:
            if isinstance(other, Tensor) and other.device != x.device:
                raise ValueError(f"{self.name}: all tensors must be on {x.device}, found one on {other.device}")

    def _require_known(self, implementation: str) -> None:
        if implementation not in self.names:
            raise ValueError(f"implementation={implementation!r}: expected one of {', '.join(self.names)}")

    def _unavailable(self, implementation: str, problem: str) -> ValueError:
        return ValueError(
            f"implementation={implementation!r} is not available for {self.name}: {problem}; use 'auto' or 'chunked'"
        )


@contextlib.contextmanager
def prefer(implementation: str) -> Iterator[None]:
    """Within, "auto" means this implementation in all operators that have it: a whole model in its plain form."""
    global _preferred
    before, _preferred = _preferred, implementation
    try:
        yield
    finally:
        _preferred = before


_preferred: str | None = None
_operators: dict[str, Operator] = {}
_checked: set[tuple[str, int | None]] = set()
_failures: dict[tuple[str, int | None], str] = {}


@torch.compiler.assume_constant_result
def _decide_for_dynamo(name: str, implementation: str, device_type: str, device_index: int | None, dtype: torch.dtype) -> str:
    """Dynamo calls this while it traces and keeps the answer. No kernel may run then, so it is not checked."""
    device = torch.device(device_type, device_index) if device_index is not None else torch.device(device_type)
    known = _operators[name]._decided.get((implementation, device, dtype))
    return known or _operators[name]._decide(implementation, device, dtype, call=None)


@contextlib.contextmanager
def _undisturbed(device: torch.device) -> Iterator[None]:
    """On a device, with the random state left as it was."""
    with torch.cuda.device(device), torch.random.fork_rng(devices=[device]):
        yield


def _run_check(self_check: Callable[[], float] | None, device: torch.device) -> str | None:
    """Why the check failed, or None.

    It runs in a thread of its own, where nothing of the caller's holds: no autocast, inference mode or default device, and no
    hook for saved tensors; gradient checkpointing would count those of the check forward and miss them when it runs again.
    """
    if self_check is None:
        return None

    def run() -> float:
        with _undisturbed(device):
            return float(self_check())

    try:
        with ThreadPoolExecutor(1, thread_name_prefix="longseq-check") as pool:
            error = pool.submit(run).result()
    except Exception as raised:
        # A compiler or driver that does not fit raises anything.
        return f"its self-check raised {type(raised).__name__}: {str(raised)[:500]}"
    # NaN is not at most the tolerance either.
    if error <= _TOLERANCE:
        return None
    return f"it is off by {error:.1e} from the chunked form (relative; {_TOLERANCE:.0e} allowed)"


def _is_fake(x: Tensor) -> bool:
    """Whether the tensor has no data, as while torch traces shapes."""
    from torch._subclasses.fake_tensor import FakeTensor

    return isinstance(x, FakeTensor)


def _is_capturing() -> bool:
    """Whether a CUDA graph is being recorded: a comparison would end up in it."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _triton_version() -> str:
    return getattr(importlib.import_module("triton"), "__version__", "of unknown version")
