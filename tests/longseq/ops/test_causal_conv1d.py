"""The short causal convolution against the plain loop and `nn.Conv1d`."""

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from longseq.ops.causal_conv1d import causal_conv1d

MODES = ("plain", "mask", "segments", "reverse", "everything", "nothing real")


def make_inputs(length: int, taps: int = 4, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    shapes = {"x_BLD": (3, length, 5), "weight_DK": (5, taps), "bias_D": (5,), "initial_state_BKD": (3, taps - 1, 5)}
    return {name: torch.randn(shape, dtype=dtype) for name, shape in shapes.items()}


def make_mode(mode: str, length: int) -> dict[str, Any]:
    mask = torch.rand(3, length) > 0.4
    segments = (torch.rand(3, length) > 0.6).long().cumsum(1) % 3
    return {
        "plain": {},
        "mask": {"mask_BL": mask},
        "segments": {"segment_ids_BL": segments},
        "reverse": {"reverse": True},
        "everything": {"mask_BL": mask, "segment_ids_BL": segments, "reverse": True},
        "nothing real": {"mask_BL": torch.zeros_like(mask)},
    }[mode]


def run(values: dict[str, Any], **options: Any) -> list[Tensor]:
    leaves = {name: value.detach().clone().requires_grad_() for name, value in values.items()}
    y, state = causal_conv1d(**leaves, activation="silu", **options)
    generator = torch.Generator().manual_seed(7)
    weights = [torch.randn(v.shape, generator=generator, dtype=torch.float64).to(v.dtype) for v in (y, state)]
    # The last term keeps a graph where no position is real and nothing depends on anything.
    loss = (y * weights[0]).sum() + (state * weights[1]).sum() + sum(0.0 * v.sum() for v in leaves.values())
    return [y, state, *torch.autograd.grad(loss, list(leaves.values()))]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("length", "taps"), [(1, 4), (2, 4), (3, 1), (7, 2), (63, 4), (100, 7)])
def test_chunked_equals_reference_in_float64(length: int, taps: int, mode: str) -> None:
    values, options = make_inputs(length, taps), make_mode(mode, length)
    reference = run(values, implementation="reference", **options)
    for ours, expected in zip(run(values, implementation="chunked", **options), reference, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-12)


def test_equals_the_convolution_of_torch() -> None:
    values = make_inputs(33)
    y, state = causal_conv1d(values["x_BLD"], values["weight_DK"], values["bias_D"])
    padded = F.pad(values["x_BLD"].transpose(1, 2), (3, 0))
    expected = F.conv1d(padded, values["weight_DK"][:, None], values["bias_D"], groups=5).transpose(1, 2)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(state, values["x_BLD"][:, -3:])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_low_precision(dtype: torch.dtype, tolerance: float) -> None:
    values = {n: v.to(dtype) for n, v in make_inputs(64).items()}
    ours = run(values)
    expected = run({n: v.double() for n, v in values.items()}, implementation="reference")
    assert ours[0].dtype == dtype
    assert ours[1].dtype == torch.float32
    for got, want in zip(ours, expected, strict=True):
        assert (got.double() - want).abs().max() <= tolerance * want.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side: str) -> None:
    values = make_inputs(20)
    y, state = causal_conv1d(**values)
    padding = torch.full((3, 6, 5), float("nan"), dtype=torch.float64)
    x = torch.cat([padding, values["x_BLD"]] if side == "left" else [values["x_BLD"], padding], dim=1)
    mask = torch.zeros(3, 26, dtype=torch.bool)
    real = slice(6, 26) if side == "left" else slice(0, 20)
    mask[:, real] = True
    padded_y, padded_state = causal_conv1d(**{**values, "x_BLD": x}, mask_BL=mask)
    torch.testing.assert_close(padded_y[:, real], y)
    torch.testing.assert_close(padded_state, state)
    assert torch.equal(padded_y[~mask], torch.zeros_like(padded_y[~mask]))


@pytest.mark.parametrize("reverse", [False, True])
def test_state_carries_over_random_splits(reverse: bool) -> None:
    values = make_inputs(41)
    whole_y, whole_state = causal_conv1d(**values, reverse=reverse)
    cuts = [0, *sorted(torch.randperm(40)[:6].add(1).tolist()), 41]
    spans = list(itertools.pairwise(cuts))
    state, parts = values["initial_state_BKD"], []
    for start, stop in reversed(spans) if reverse else spans:
        piece = {**values, "x_BLD": values["x_BLD"][:, start:stop], "initial_state_BKD": state}
        y, state = causal_conv1d(**piece, reverse=reverse)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts[::-1] if reverse else parts, dim=1), whole_y)
    torch.testing.assert_close(state, whole_state)


def test_ragged_chunks_continue_each_row() -> None:
    x, weight = torch.randn(2, 9, 5, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0, 2:] = False
    _, state = causal_conv1d(x[:, :5], weight, mask_BL=mask)
    y, _ = causal_conv1d(x[:, 5:], weight, initial_state_BKD=state)
    kept = torch.cat([x[:1, :2], x[:1, 5:]], dim=1)
    torch.testing.assert_close(y[0], causal_conv1d(kept, weight)[0][0, 2:])
    torch.testing.assert_close(y[1], causal_conv1d(x, weight)[0][1, 5:])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"weight_DK": torch.zeros(4, 4)}, ValueError, "weight must have shape"),
        ({"initial_state_BKD": torch.zeros(3, 4, 5)}, ValueError, "initial_state must have shape"),
        ({"mask_BL": torch.ones(3, 9)}, TypeError, "mask must be bool"),
        ({"segment_ids_BL": torch.ones(3, 9)}, TypeError, "segment_ids must be integers"),
        ({"activation": "relu"}, ValueError, "'relu'"),
        ({"implementation": "fast"}, ValueError, "'fast'"),
        ({"implementation": "triton"}, ValueError, "not available"),
    ],
)
def test_errors_name_the_argument(change: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        causal_conv1d(**{**make_inputs(9), **change})
