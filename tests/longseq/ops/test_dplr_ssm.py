"""Diagonal-plus-low-rank operator: chunks against the plain loop, both kernels against the dense definition."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.layers.hippo import legs_low_rank, legs_matrices
from longseq.ops.dplr_ssm import KernelMethod, dplr_ssm, dplr_ssm_kernel, dplr_ssm_step, undo_length_correction
from longseq.ops.dplr_ssm.cauchy import correct_for_length
from tests.longseq.ops.comparison import assert_all_close, run_with_gradients

PARAMETERS = ("dt_D", "A_real_DN", "A_imag_DN", "P_DN2", "B_DN2", "C_DN2")


def make_inputs(length: int, seed: int, dtype: torch.dtype = torch.float64, width: int = 3, pairs: int = 3) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    made = {
        "x_BLD": normal(2, length, width),
        "dt_D": torch.exp(normal(width) - 3),
        "A_real_DN": -torch.rand(width, pairs, generator=generator, dtype=torch.float64) - 0.1,
        "A_imag_DN": normal(width, pairs) * 10,
        "P_DN2": normal(width, pairs, 2),
        "B_DN2": normal(width, pairs, 2),
        "C_DN2": normal(width, pairs, 2),
        "D_D": normal(width),
        "initial_state_BDN2": normal(2, width, pairs, 2),
    }
    return {name: tensor.to(dtype).requires_grad_() for name, tensor in made.items()}


def legs_parameters(dtype: torch.dtype = torch.float64, n_states: int = 64) -> list[Tensor]:
    """HiPPO-LegS for step sizes from 1e-3 to 0.1, with random C."""
    poles = legs_low_rank(n_states)
    dt_D = torch.tensor([1e-3, 1e-2, 1e-1], dtype=torch.float64)
    C_DN2 = torch.randn(3, n_states // 2, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shared = [t.expand(3, *t.shape) for t in (poles.real_N, poles.imag_N, poles.P_N2, poles.B_N2)]
    return [t.to(dtype) for t in (dt_D, *shared, C_DN2)]


@pytest.mark.parametrize("length", [1, 2, 63, 64, 100, 257])
@pytest.mark.parametrize("reverse", [False, True])
def test_chunked_matches_reference_in_float64(length: int, reverse: bool) -> None:
    inputs = make_inputs(length, seed=length)
    expected = run_with_gradients(dplr_ssm, inputs, implementation="reference", reverse=reverse)
    assert_all_close(run_with_gradients(dplr_ssm, inputs, chunk_size=32, reverse=reverse), expected, 1e-10)


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("use_segments", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
def test_masks_and_segments_match_reference(
    use_segments: bool, reverse: bool, traced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = make_inputs(70, seed=1)
    generator = torch.Generator().manual_seed(2)
    mask = torch.rand(2, 70, generator=generator) > 0.2
    mask[0, :20], mask[1, 50:] = False, False
    segments = (torch.rand(2, 70, generator=generator) > 0.9).cumsum(1) if use_segments else None
    options: dict[str, Any] = {"mask_BL": mask, "segment_ids_BL": segments, "reverse": reverse}
    expected = run_with_gradients(dplr_ssm, inputs, implementation="reference", **options)
    if traced:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert_all_close(run_with_gradients(dplr_ssm, inputs, chunk_size=16, **options), expected, 1e-10)


def test_nan_under_the_mask_reaches_nothing() -> None:
    inputs = make_inputs(40, seed=3)
    mask = torch.rand(2, 40, generator=torch.Generator().manual_seed(3)) > 0.3
    clean = run_with_gradients(dplr_ssm, inputs, mask_BL=mask)
    poisoned = {name: tensor.detach().clone() for name, tensor in inputs.items()}
    poisoned["x_BLD"][~mask] = float("nan")
    assert_all_close(run_with_gradients(dplr_ssm, poisoned, mask_BL=mask), clean, 0.0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 5e-5), (torch.bfloat16, 2e-2)])
def test_low_precision_stays_near_float64(dtype: torch.dtype, tolerance: float) -> None:
    inputs = make_inputs(257, seed=4)
    low = {name: tensor.detach().to(dtype if name == "x_BLD" else torch.float32) for name, tensor in inputs.items()}
    exact = run_with_gradients(dplr_ssm, {k: v.double() for k, v in low.items()}, implementation="reference")
    found = run_with_gradients(dplr_ssm, low)
    assert found["y"].dtype == dtype
    assert found["state"].dtype == torch.float32
    assert_all_close(found, exact, tolerance)


def test_state_carries_over_random_splits_with_gradients() -> None:
    inputs = make_inputs(150, seed=5)
    whole = run_with_gradients(dplr_ssm, inputs)
    split: dict[str, Any] = {name: tensor.detach().clone().requires_grad_() for name, tensor in inputs.items()}
    cuts = [0, *sorted(torch.randperm(149, generator=torch.Generator().manual_seed(9))[:5].add(1).tolist()), 150]
    state, ys = split["initial_state_BDN2"], []
    for start, end in pairwise(cuts):
        y, state = dplr_ssm(**{**split, "x_BLD": split["x_BLD"][:, start:end], "initial_state_BDN2": state}, chunk_size=16)
        ys.append(y)
    y = torch.cat(ys, dim=1)
    generator = torch.Generator().manual_seed(7)
    loss = sum((t * torch.randn(t.shape, generator=generator, dtype=t.dtype)).sum() for t in (y, state))
    gradients = torch.autograd.grad(loss, list(split.values()))  # type: ignore[arg-type]
    found = {"y": y, "state": state} | {f"d{k}": v for k, v in zip(split, gradients, strict=True)}
    assert_all_close(found, whole, 1e-10)


def test_steps_equal_the_whole() -> None:
    inputs = make_inputs(20, seed=6)
    y, final = dplr_ssm(**inputs)
    state, x = inputs.pop("initial_state_BDN2"), inputs.pop("x_BLD")
    for t in range(20):
        y_t, state = dplr_ssm_step(x[:, t], **inputs, state_BDN2=state)
        torch.testing.assert_close(y_t, y[:, t])
    torch.testing.assert_close(state, final)


def hippo_kernel(dt: float, C_N2: Tensor, n_states: int, length: int) -> Tensor:
    """The definition, from the original real HiPPO-LegS matrix: bilinear, dense, one tap after another, in float64."""
    A_NN, B_N = legs_matrices(n_states)
    P_N = torch.sqrt(torch.arange(n_states, dtype=torch.float64) + 0.5)
    skew_NN = A_NN + torch.outer(P_N, P_N) + 0.5 * torch.eye(n_states, dtype=torch.float64)
    _, basis_NN = torch.linalg.eigh(-1j * skew_NN)
    # z = V* h over one of each pair, so C z + its conjugate is a real row over h.
    row_N = 2 * (torch.view_as_complex(C_N2) @ basis_NN[:, n_states // 2 :].conj().T).real
    eye_NN = torch.eye(n_states, dtype=torch.float64)
    below_NN = eye_NN - dt / 2 * A_NN
    transition_NN = torch.linalg.solve(below_NN, eye_NN + dt / 2 * A_NN)
    state_N = torch.linalg.solve(below_NN, dt * B_N)
    taps = []
    for _ in range(length):
        taps.append(row_N @ state_N)
        state_N = transition_NN @ state_N
    return torch.stack(taps)


@pytest.mark.parametrize("method", ["cauchy", "powers"])
def test_kernel_is_that_of_hippo_legs(method: KernelMethod) -> None:
    parameters = legs_parameters()
    exact = dplr_ssm_kernel(*parameters, length=1024, method=method)
    low = dplr_ssm_kernel(*legs_parameters(torch.float32), length=1024, method=method)
    for channel in range(3):
        expected = hippo_kernel(parameters[0][channel].item(), parameters[-1][channel], 64, 1024)
        scale = expected.abs().max()
        assert (exact[channel] - expected).abs().max() <= 1e-9 * scale
        assert (low[channel].double() - expected).abs().max() <= 1e-4 * scale


@pytest.mark.parametrize("method", ["cauchy", "powers"])
@pytest.mark.parametrize("length", [1, 2, 3, 10, 777])
def test_taps_do_not_depend_on_the_length(method: KernelMethod, length: int) -> None:
    parameters = [make_inputs(1, seed=8)[name].detach() for name in PARAMETERS]
    expected = dplr_ssm_kernel(*parameters, length=1000)[:, :length]
    torch.testing.assert_close(dplr_ssm_kernel(*parameters, length=length, method=method), expected)


def test_both_kernels_have_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longseq.ops.dplr_ssm.cauchy.BLOCK_ELEMENTS", 100)
    parameters = [make_inputs(1, seed=9)[name] for name in PARAMETERS]
    weights = torch.randn(3, 90, dtype=torch.float64)
    gradients = []
    for method in ("cauchy", "powers"):
        taps = dplr_ssm_kernel(*parameters, length=90, method=method)
        gradients.append(torch.autograd.grad((taps * weights).sum(), parameters))
    for found, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected)


def test_length_correction_is_undone() -> None:
    # Slow poles: the correction of a kernel that has died out is the identity and would test nothing.
    inputs = make_inputs(1, seed=10)
    dt, real, imag, P, _, C = (inputs[name].detach() for name in PARAMETERS)
    system = (dt / 10, real, imag, P / 3)
    corrected = correct_for_length(*system, C, 16)
    assert (corrected - C).abs().max() > 0.05
    torch.testing.assert_close(undo_length_correction(*system, corrected, 16), C)


def test_exports_with_dynamic_length() -> None:
    inputs = {k: v.detach().float() for k, v in make_inputs(1, seed=13).items()}
    parameters = [inputs[name] for name in PARAMETERS]

    class Wrapped(torch.nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return dplr_ssm(x, *parameters)

    length = torch.export.Dim("length", min=1, max=1 << 20)
    program = torch.export.export(Wrapped(), (torch.randn(2, 70, 3),), dynamic_shapes=({1: length},))
    x = torch.randn(2, 1100, 3, generator=torch.Generator().manual_seed(2))
    for found, expected in zip(program.module()(x), Wrapped()(x), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"implementation": "triton"}, ValueError, "implementation='triton'"),
        ({"chunk_size": 0}, ValueError, "chunk_size=0"),
        ({"P_DN2": torch.ones(3, 4, 2)}, ValueError, "P_DN2: expected shape"),
        ({"D_D": torch.ones(2)}, ValueError, "D_D: expected shape"),
        ({"mask_BL": torch.ones(2, 8)}, TypeError, "mask_BL"),
        ({"segment_ids_BL": torch.ones(2, 8)}, TypeError, "segment_ids_BL"),
        ({"initial_state_BDN2": torch.ones(1, 3, 3, 2)}, ValueError, "initial_state_BDN2"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        dplr_ssm(**{**make_inputs(8, seed=15, dtype=torch.float32), **change})
