"""The compiled causal convolution against the plain loop in float64."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.ops import compiled
from longseq.ops.causal_conv1d import causal_conv1d
from longseq.ops.causal_conv1d.cpu import SLICE
from tests.longseq.ops.comparison import ROW_MODES, assert_all_close, row_options, run_with_gradients


@pytest.fixture(autouse=True)
def _poison() -> Iterator[None]:
    """Memory that is not written is NaN."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def make_inputs(length: int, taps: int = 4, width: int = 5, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    made = {"weight_DK": torch.randn(width, taps), "bias_D": torch.randn(width)}
    return {"x_BLD": torch.randn(2, length, width, dtype=dtype), **made, "initial_state_BKD": torch.randn(2, taps - 1, width)}


def exact(inputs: dict[str, Any], implementation: str = "chunked", **options: Any) -> dict[str, Tensor]:
    doubles = {name: v.double() for name, v in inputs.items()}
    return run_with_gradients(causal_conv1d, doubles, implementation=implementation, **options)


@pytest.mark.parametrize("mode", ROW_MODES)
@pytest.mark.parametrize(
    ("length", "taps", "activation"),
    [
        (1, 4, "silu"),
        (2, 4, None),
        (3, 1, "silu"),
        (7, 2, "silu"),
        (100, 7, None),
        (SLICE + 1, 4, "silu"),
        (2 * SLICE, 4, None),
    ],
)
def test_outputs_state_and_gradients(length: int, taps: int, activation: str | None, mode: str) -> None:
    inputs = make_inputs(length, taps)
    options = {"activation": activation, **row_options(mode, length, seed=length)}
    found = run_with_gradients(causal_conv1d, inputs, implementation="cpu", **options)
    assert_all_close(found, exact(inputs, "reference" if length <= 100 else "chunked", **options), 1e-5)


@pytest.mark.parametrize("first", [SLICE - 2, SLICE, SLICE + 1])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_initial_state_may_stand_across_slices(first: int, reverse: bool) -> None:
    length = SLICE + 20
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[0, :first] = False
    options = {"mask_BL": mask.flip(1) if reverse else mask, "reverse": reverse, "activation": "silu"}
    inputs = make_inputs(length)
    assert_all_close(run_with_gradients(causal_conv1d, inputs, implementation="cpu", **options), exact(inputs, **options), 1e-5)


@pytest.mark.parametrize("left_out", [("bias_D",), ("initial_state_BKD",), ("bias_D", "initial_state_BKD")])
def test_what_is_left_out(left_out: tuple[str, ...]) -> None:
    inputs = {name: v for name, v in make_inputs(50, width=130).items() if name not in left_out}
    assert_all_close(run_with_gradients(causal_conv1d, inputs, implementation="cpu"), exact(inputs), 1e-5)


def test_16_bits() -> None:
    inputs = make_inputs(64, dtype=torch.bfloat16)
    found = run_with_gradients(causal_conv1d, inputs, implementation="cpu", activation="silu")
    assert found["y"].dtype == torch.bfloat16
    assert found["state"].dtype == torch.float32
    assert_all_close(found, exact(inputs, activation="silu"), 1e-2)


def test_nothing_is_read_at_masked_positions() -> None:
    inputs, mask = make_inputs(90), torch.rand(2, 90) > 0.3
    options = {"mask_BL": mask, "activation": "silu", "implementation": "cpu"}
    clean = run_with_gradients(causal_conv1d, inputs, **options)
    poisoned = {**inputs, "x_BLD": inputs["x_BLD"].masked_fill(~mask[..., None], float("nan"))}
    for name, value in run_with_gradients(causal_conv1d, poisoned, **options).items():
        assert torch.equal(value, clean[name]), name


def test_threads_and_views_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, threads = make_inputs(3 * SLICE, width=70), torch.get_num_threads()
    wide = torch.cat([inputs["x_BLD"], inputs["x_BLD"]], dim=-1)
    monkeypatch.setattr(compiled, "_THREAD_COST", 1)
    expected = run_with_gradients(causal_conv1d, inputs, implementation="cpu")
    y, _ = causal_conv1d(wide[..., 70:], *(v for n, v in inputs.items() if n[:1] in "wb"), implementation="cpu")
    try:
        torch.set_num_threads(3)
        found = run_with_gradients(causal_conv1d, inputs, implementation="cpu")
    finally:
        torch.set_num_threads(threads)
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name
    assert torch.equal(y[:, 3:], expected["y"][:, 3:])


# From inside torch 2.14's own check.
@pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning")
def test_the_operator_is_well_formed() -> None:
    torch.use_deterministic_algorithms(False)
    x, weight, bias, state = (v.requires_grad_() for v in make_inputs(20).values())
    mask, runs = torch.rand(2, 20) > 0.2, torch.arange(20).repeat(2, 1) // 7
    torch.library.opcheck(torch.ops.longseq.causal_conv1d_cpu.default, (x, weight, bias, state, mask, runs, True, False))
    torch.library.opcheck(torch.ops.longseq.causal_conv1d_cpu.default, (x, weight, None, None, None, None, False, True))
