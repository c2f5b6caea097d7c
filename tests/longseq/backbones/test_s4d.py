"""S4D: its kernels are those of the state-space definition, and what its options do."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq import create_backbone
from longseq.backbones.s4d import S4DMixer
from longseq.layers.hippo import DiagonalInit
from longseq.ops.diagonal_ssm import Discretization
from longseq.optim import parameter_options


def defined_kernel(mixer: S4DMixer, channel: int, length: int, direction: int = 0) -> Tensor:
    """One tap after another from the real, dense, continuous system: matrix exponential or bilinear solves, float64."""
    model = [t.detach().double() for t in mixer.continuous()]
    dt, real, imag, B = (t[channel] for t in model)
    C = mixer.C[direction, channel].detach().double()
    A_top = torch.cat([torch.diag(real), -torch.diag(imag)], dim=1)
    A = torch.cat([A_top, torch.cat([torch.diag(imag), torch.diag(real)], dim=1)])
    column, row = B.T.flatten(), 2 * torch.cat([C[:, 0], -C[:, 1]])
    size = len(row)
    if mixer.discretization == "zoh":
        grown = torch.zeros(size + 1, size + 1, dtype=torch.float64)
        grown[:size, :size], grown[:size, size] = A, column
        grown = torch.linalg.matrix_exp(grown * dt)
        transition, state = grown[:size, :size], grown[:size, size]
    else:
        eye = torch.eye(size, dtype=torch.float64)
        transition = torch.linalg.solve(eye - dt / 2 * A, eye + dt / 2 * A)
        state = torch.linalg.solve(eye - dt / 2 * A, dt * column)
    taps = []
    for _ in range(length):
        taps.append(row @ state)
        state = transition @ state
    return torch.stack(taps)


@pytest.mark.parametrize("init", ["legs", "inv", "lin"])
@pytest.mark.parametrize("discretization", ["zoh", "bilinear"])
def test_kernel_is_the_definition(init: DiagonalInit, discretization: Discretization) -> None:
    torch.manual_seed(0)
    mixer = S4DMixer(3, d_state=64, init=init, discretization=discretization)
    with torch.no_grad():
        mixer.log_dt.copy_(torch.tensor([1e-3, 1e-2, 1e-1]).log())
    low = mixer.kernel(1024)[0]
    exact = mixer.double().kernel(1024)[0]
    for channel in range(3):
        expected = defined_kernel(mixer, channel, 1024)
        scale = expected.abs().max()
        assert (exact[channel] - expected).abs().max() <= 1e-9 * scale
        assert (low[channel].double() - expected).abs().max() <= 1e-4 * scale


def impulse_response(mixer: S4DMixer, length: int, place: int) -> Tensor:
    x = torch.zeros(1, length, mixer.d_model, dtype=torch.float64)
    x[0, place] = 1.0
    return mixer.run_rows(x, None, None)[0]


def test_layer_is_its_kernel_and_the_skip() -> None:
    torch.manual_seed(1)
    mixer = S4DMixer(4, d_state=8).double()
    response = impulse_response(mixer, 100, 0)
    response[0] -= mixer.D
    torch.testing.assert_close(response.T, mixer.kernel(100)[0])


def test_two_sided_kernel() -> None:
    torch.manual_seed(2)
    mixer = S4DMixer(4, d_state=8, causal=False).double()
    response, taps = impulse_response(mixer, 101, 50), mixer.kernel(51)
    torch.testing.assert_close(response[51:].T, taps[0, :, 1:])
    torch.testing.assert_close(response[:50].T, taps[1, :, 1:].flip(1))
    torch.testing.assert_close(response[50], mixer.D + taps[0, :, 0] + taps[1, :, 0])
    with pytest.raises(ValueError, match="causal=False"):
        mixer.init_state(1)


def test_rate_samples_the_same_continuous_kernel() -> None:
    torch.manual_seed(3)
    mixer = S4DMixer(4, d_state=8).double()
    fine = mixer.kernel(400)[0]
    mixer.rate = 2.0
    coarse = mixer.kernel(200)[0]
    # Holding the input over two samples sums two neighbouring taps; exact for zero-order hold.
    torch.testing.assert_close(coarse, fine.unflatten(1, (200, 2)).sum(2))


def test_tied_sets_are_shared_in_turn() -> None:
    torch.manual_seed(4)
    mixer = S4DMixer(6, d_state=8, n_ssm=2)
    assert mixer.A_imag.shape == (2, 4) and mixer.B.shape == (2, 4, 2) and mixer.C.shape == (1, 6, 4, 2)
    with torch.no_grad():
        mixer.A_imag[1] += 1.0
    tied = mixer.continuous().A_imag_DN
    assert torch.equal(tied[0::2], mixer.A_imag[:1].expand(3, -1))
    assert torch.equal(tied[1::2], mixer.A_imag[1:].expand(3, -1))


def test_optimizer_marks_follow_the_recipe() -> None:
    found = parameter_options(S4DMixer(4, d_state=8), lr=1e-2, weight_decay=0.05)
    for name in ("log_dt", "log_A_real", "A_imag", "B"):
        assert found[name] == {"lr": 1e-3, "weight_decay": 0.0}
    for name in ("C", "output.linear.weight"):
        assert found[name] == {"lr": 1e-2, "weight_decay": 0.05}


def test_initial_step_sizes_lie_in_their_range() -> None:
    dt = S4DMixer(512, d_state=2, dt_min=1e-4, dt_max=1e-2).continuous().dt_D
    assert dt.min() >= 0.999e-4 and dt.max() <= 1.001e-2
    assert dt.log().std().item() == pytest.approx(math.log(100) / math.sqrt(12), rel=0.15)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 100, 700])
def test_materialized_buffers_give_the_same(causal: bool, length: int) -> None:
    torch.manual_seed(5)
    mixer = S4DMixer(4, d_state=8, causal=causal).eval()
    x = torch.randn(2, length, 4)
    mask = torch.rand(2, length) > 0.2
    expected = mixer(x), mixer(x, mask)
    keys = set(mixer.state_dict())
    mixer.materialize()
    assert set(mixer.state_dict()) == keys
    with torch.no_grad():
        mixer.log_dt.fill_(float("nan"))
    for found, want in zip((mixer(x), mixer(x, mask)), expected, strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def test_a_step_costs_the_same_at_every_position_and_keeps_fp32() -> None:
    mixer = S4DMixer(4, d_state=8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer.forward_chunk(torch.randn(2, 300, 4), mixer.init_state(2))
        y_step, later = mixer.step(torch.randn(2, 4), state)
    assert y.dtype == y_step.dtype == torch.bfloat16
    assert state.dtype == later.dtype == torch.float32
    assert state.shape == later.shape == (2, 4, 4, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 7}, "d_state=7"),
        ({"n_ssm": 3}, "n_ssm=3"),
        ({"init": "random"}, "init='random'"),
        ({"rate": 0.0}, "rate"),
        ({"dt_min": 1.0}, "dt_min=1.0"),
        ({"chunk_size": 0}, "chunk_size"),
        ({"inner_dropout": 1.5}, "inner_dropout"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone("s4d", d_model=4, n_layers=1, **options)
