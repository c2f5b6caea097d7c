"""The sum and its norm: the plain form against the equations, what the stack makes of it, and answers to mistakes."""

from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.layers.norms import build_norm
from longseq.ops.add_norm import add_norm

CASES: list[dict[str, Any]] = [
    {"kind": "rms"},
    {"kind": "layer", "residual": True},
    {"kind": "layer", "residual": True, "bias": True, "n_groups": 3},
    {"kind": "rms", "gate": True, "n_groups": 2},
    {"kind": "rms", "gate": True, "residual": True, "bias": True},
]


def make(case: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by name, and the other options."""
    options = dict(case)
    generator = torch.Generator().manual_seed(0)
    shapes = {"x": shape, "weight_D": shape[-1:]}
    shapes |= {"bias_D": shape[-1:]} if options.pop("bias", False) else {}
    shapes |= {name: shape for name in ("residual", "gate") if options.pop(name, False)}
    return {name: torch.randn(size, generator=generator, dtype=dtype) for name, size in shapes.items()}, options


@pytest.mark.parametrize("shape", [(2, 7, 12), (5, 12), (1, 1, 12)])
@pytest.mark.parametrize("case", CASES)
def test_plain_form_is_the_equations(case: dict[str, Any], shape: tuple[int, ...]) -> None:
    given, options = make(case, shape, torch.float64)
    found = []
    for implementation in ("chunked", "reference"):
        leaves = {name: v.clone().requires_grad_() for name, v in given.items()}
        y, total = add_norm(**leaves, **options, implementation=implementation)  # type: ignore[arg-type]
        loss = (y * torch.arange(y.numel()).view(y.shape)).sum() + total.square().sum()
        found.append([y, total, *torch.autograd.grad(loss, list(leaves.values()))])
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-9)


@pytest.mark.parametrize("implementation", ["chunked", "reference"])
def test_sums_keep_the_dtype_that_is_asked_for(implementation: Any) -> None:
    x, residual = torch.randn(3, 8).bfloat16(), 100.0 * torch.randn(3, 8)
    y, total = add_norm(x, torch.ones(8), residual=residual, out_dtype=torch.bfloat16, implementation=implementation)
    assert (y.dtype, total.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(total, residual + x.float())
    _, wide = add_norm(x, torch.ones(8), residual=x, sum_dtype=torch.float32, implementation=implementation)
    torch.testing.assert_close(wide, 2 * x.float(), rtol=0, atol=0)
    y, same = add_norm(x, torch.ones(8), implementation=implementation)
    assert y.dtype == same.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["layer", "rms"])
def test_norm_modules_agree_with_torch(name: str) -> None:
    norm = build_norm(name, 8).double()
    norm.weight.data.normal_()
    x, update = torch.randn(2, 3, 8, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    expected = {"layer": torch.nn.LayerNorm(8, 1e-5), "rms": torch.nn.RMSNorm(8, 1e-5)}[name].double()
    expected.load_state_dict(norm.state_dict())
    torch.testing.assert_close(norm(x), expected(x))
    y, total = norm.add(update, x)
    torch.testing.assert_close(total, x + update)
    torch.testing.assert_close(y, expected(x + update))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "batch"}, "kind must be"),
        ({"n_groups": 5}, "must divide the width 12"),
        ({"residual": torch.zeros(3, 12)}, "residual must have shape"),
        ({"weight_D": torch.zeros(11)}, "weight_D must have shape"),
        ({"implementation": "cuda"}, "expected one of auto, reference, chunked, triton"),
    ],
)
def test_mistakes_are_answered(change: dict[str, Any], says: str) -> None:
    given: dict[str, Any] = {"x": torch.zeros(2, 12), "weight_D": torch.ones(12)} | change
    with pytest.raises(ValueError, match=says):
        add_norm(**given)


def test_integers_are_refused() -> None:
    with pytest.raises(TypeError, match="x must be floating point"):
        add_norm(torch.zeros(2, 4, dtype=torch.long), torch.ones(4))
