"""Which implementation runs, and what happens when a kernel is missing, unfit or wrong."""

import contextlib
import importlib
import importlib.util
import math
import sys
import timeit
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from longseq.ops import dispatch
from longseq.ops.dispatch import Operator

GPU = torch.device("cuda", 0)


def reference(x: Tensor) -> str:
    return "reference"


def chunked(x: Tensor) -> str:
    return "chunked"


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Operator]]:
    """Makes an operator with kernel modules of the given contents."""

    def make(shortcut: Callable[..., str | None] | None = None, **modules: dict[str, Any]) -> Operator:
        for kind, contents in modules.items():
            module = ModuleType(f"longseq.ops.toy.{kind}")
            module.__spec__ = ModuleSpec(module.__name__, None)
            vars(module).update(contents)
            setattr(module, f"toy_{kind}", lambda x, kind=kind: kind)
            monkeypatch.setitem(sys.modules, module.__name__, module)
        return Operator("toy", reference=reference, chunked=chunked, kernels=("cpu", "triton"), shortcut=shortcut)

    monkeypatch.setitem(sys.modules, "longseq.ops.toy", ModuleType("longseq.ops.toy"))
    monkeypatch.setattr(sys.modules["longseq.ops.toy"], "__path__", [], raising=False)
    monkeypatch.setattr(dispatch, "_undisturbed", lambda device: contextlib.nullcontext())
    for name, empty in (("_operators", {}), ("_checked", set()), ("_failures", {})):
        monkeypatch.setattr(dispatch, name, empty)
    monkeypatch.setattr(dispatch, "_is_capturing", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    yield make


def decide(operator: Operator, implementation: str, device: torch.device, dtype: torch.dtype = torch.float32) -> str:
    return operator._decide(implementation, device, dtype, call=((torch.zeros(1),), {"option": 2}))


def test_auto_takes_kernels_where_they_run(toy: Callable[..., Operator]) -> None:
    operator = toy(cpu={}, triton={"self_check": lambda: 0.0})
    cpu = torch.device("cpu")
    assert [decide(operator, "auto", cpu, dtype) for dtype in (torch.float32, torch.bfloat16)] == ["cpu", "cpu"]
    assert [decide(operator, "auto", cpu, dtype) for dtype in (torch.float64, torch.float16)] == ["chunked", "chunked"]
    assert [decide(operator, "auto", GPU, dtype) for dtype in (torch.float32, torch.float16)] == ["triton", "triton"]
    assert decide(operator, "auto", GPU, torch.float64) == "chunked"
    assert decide(operator, "auto", torch.device("meta")) == "chunked"
    assert operator("auto", torch.zeros(1)) == "cpu"
    assert operator("reference", torch.zeros(1)) == "reference"


def test_without_kernels_the_chunked_form_runs(toy: Callable[..., Operator]) -> None:
    operator = toy()
    assert operator("auto", torch.zeros(1)) == "chunked"
    for device in (torch.device("cpu"), GPU):
        assert decide(operator, "auto", device) == "chunked"


@pytest.mark.parametrize(
    ("implementation", "x", "message"),
    [
        ("fast", torch.zeros(1), "expected one of auto, reference, chunked, cpu, triton"),
        ("triton", torch.zeros(1), "not available for toy: it needs CUDA tensors, found cpu"),
        ("cpu", torch.zeros(1, dtype=torch.float64), "it needs one of torch.float32, torch.bfloat16, found torch.float64"),
        ("cpu", torch.zeros(1), "there is no module longseq.ops.toy.cpu"),
    ],
)
def test_a_named_one_that_is_not_available_is_an_error(
    toy: Callable[..., Operator], implementation: str, x: Tensor, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        toy()(implementation, x)


def test_a_missing_package_is_named(toy: Callable[..., Operator], monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    with pytest.raises(ValueError, match="the package triton is not installed"):
        decide(toy(triton={}), "triton", GPU)


def test_arguments_that_a_kernel_does_not_support_go_to_the_chunked_form(toy: Callable[..., Operator]) -> None:
    operator = toy(cpu={"supports": lambda x: None if x.shape[0] < 3 else "three rows are too many"})
    assert [operator("auto", torch.zeros(n)) for n in (1, 5, 2)] == ["cpu", "chunked", "cpu"]
    with pytest.raises(ValueError, match="three rows are too many"):
        operator("cpu", torch.zeros(5))


def test_the_shortcut_is_asked_by_auto_alone(toy: Callable[..., Operator]) -> None:
    operator = toy(shortcut=lambda x: "reference" if len(x) == 1 else None, cpu={})
    assert [operator("auto", torch.zeros(n)) for n in (1, 2)] == ["reference", "cpu"]
    assert operator("cpu", torch.zeros(1)) == "cpu"


def failing() -> float:
    raise RuntimeError("no binary for this device")


@pytest.mark.parametrize(
    ("self_check", "message"),
    [
        (lambda: 0.5, "off by 5.0e-01"),
        (lambda: math.nan, "off by nan"),
        (failing, "raised RuntimeError: no binary for this device"),
    ],
)
def test_a_wrong_kernel_is_switched_off_with_one_warning(
    toy: Callable[..., Operator], self_check: Callable[[], float], message: str
) -> None:
    operator = toy(triton={"self_check": self_check})
    with pytest.warns(RuntimeWarning, match=rf"kernel of toy is switched off on cuda:0 with triton [\d.]+.*{message}") as found:
        assert decide(operator, "auto", GPU) == "chunked"
        assert decide(operator, "auto", GPU, torch.bfloat16) == "chunked"
    assert len(found) == 1
    with pytest.raises(ValueError, match=message):
        decide(operator, "triton", GPU)


def test_the_check_runs_once_and_never_while_tracing(toy: Callable[..., Operator]) -> None:
    calls = []
    operator = toy(triton={"self_check": lambda: calls.append(1) or 1e-6})
    assert dispatch._decide_for_dynamo("toy", "auto", "cuda", 0, torch.float32) == "triton"
    assert not calls
    for dtype in (torch.float32, torch.bfloat16, torch.float32):
        assert decide(operator, "auto", GPU, dtype) == "triton"
    assert len(calls) == 1
    decide(operator, "auto", torch.device("cuda", 1))
    assert len(calls) == 2


def test_what_the_check_does_not_run_begins_to_compile_before_it(toy: Callable[..., Operator]) -> None:
    calls = []
    begin = {"begin_to_compile": lambda x, option: calls.append((x.shape, option))}
    operator = toy(triton={"self_check": lambda: calls.append("check") or 1e-6, **begin})
    assert dispatch._decide_for_dynamo("toy", "auto", "cuda", 0, torch.float32) == "triton"
    assert not calls
    decide(operator, "auto", GPU)
    decide(operator, "auto", GPU)
    assert calls == [((1,), 2), "check"]


def test_what_cannot_begin_to_compile_is_left_to_the_check(toy: Callable[..., Operator]) -> None:
    def begin_to_compile(x: Tensor, option: int) -> None:
        raise RuntimeError("no compiler")

    operator = toy(triton={"self_check": lambda: 1e-6, "begin_to_compile": begin_to_compile})
    assert decide(operator, "auto", GPU) == "triton"


def test_the_check_knows_nothing_of_its_caller(toy: Callable[..., Operator]) -> None:
    seen = []

    def self_check() -> float:
        x = torch.randn(3, requires_grad=True)
        x.exp().sin().sum().backward()
        seen.append((x.grad is not None, torch.is_autocast_enabled("cpu"), torch.get_default_dtype()))
        return 0.0

    operator = toy(triton={"self_check": self_check})

    def run(x: Tensor) -> Tensor:
        decide(operator, "auto", GPU)
        return x.exp().sin()

    x = torch.randn(4, requires_grad=True)
    with torch.autocast("cpu"):
        y = checkpoint(run, x, use_reentrant=False)
    assert y is not None
    y.sum().backward()
    assert x.grad is not None
    assert seen == [(True, False, torch.float32)]
    dispatch._checked.clear()
    operator._decided.clear()
    with torch.inference_mode():
        decide(operator, "auto", GPU)
    assert seen[1:] == [(True, False, torch.float32)]


def test_a_broken_module_is_not_the_end_of_auto(toy: Callable[..., Operator], monkeypatch: pytest.MonkeyPatch) -> None:
    operator = toy(cpu={})
    monkeypatch.setattr(importlib, "import_module", lambda name: (_ for _ in ()).throw(OSError("llvm is gone")))
    assert operator("auto", torch.zeros(1)) == "chunked"
    with pytest.raises(ValueError, match="raised OSError: llvm is gone"):
        operator("cpu", torch.zeros(1))


def test_an_exported_graph_takes_no_kernels(toy: Callable[..., Operator], monkeypatch: pytest.MonkeyPatch) -> None:
    operator = toy(cpu={})
    monkeypatch.setattr(dispatch, "is_exporting", lambda: True)
    assert operator("auto", torch.zeros(1)) == "chunked"
    with pytest.raises(ValueError, match="exported graph"):
        operator("cpu", torch.zeros(1))


def test_a_compiled_graph_keeps_the_decision() -> None:
    operator = Operator("toy_compiled", reference=lambda x: x, chunked=lambda x: x + 1)
    compiled = torch.compile(lambda x: operator("auto", x) * 2, backend="eager", fullgraph=True)
    assert torch.equal(compiled(torch.zeros(3)), torch.full((3,), 2.0))
    assert torch.equal(compiled(torch.zeros(4, dtype=torch.float64)), torch.full((4,), 2.0, dtype=torch.float64))


def test_a_decided_call_costs_little(toy: Callable[..., Operator]) -> None:
    operator, x = toy(cpu={}), torch.zeros(1)
    calls = 2000
    spent = min(timeit.repeat(lambda: operator.choose("auto", x), number=calls, repeat=7)) / calls
    # About one microsecond; the bound leaves room for a loaded machine.
    assert spent < 10e-6, f"{spent * 1e6:.2f} us"
