"""S4: its kernel is that of HiPPO-LegS, both algorithms agree, and checkpoints with corrected C can be read."""

from typing import Any

import pytest
import torch

from longseq import create_backbone
from longseq.backbones.s4 import Algorithm, S4Mixer
from longseq.layers.hippo import legs_matrices
from longseq.ops.dplr_ssm.cauchy import correct_for_length
from longseq.optim import parameter_options


@pytest.mark.parametrize("algorithm", ["chunked", "powers", "cauchy"])
def test_kernel_is_that_of_the_hippo_matrix(algorithm: Algorithm) -> None:
    torch.manual_seed(0)
    n_states, length = 64, 1024
    mixer = S4Mixer(3, d_state=n_states, algorithm=algorithm)
    with torch.no_grad():
        mixer.log_dt.copy_(torch.tensor([1e-3, 1e-2, 1e-1]).log())
        # With C = P* the output is P^T h in the coordinates of the original matrix, whatever basis diagonalised it.
        mixer.C.copy_(mixer.P.detach() * torch.tensor([1.0, -1.0]))
    kernel = mixer.kernel(length)[0].double()
    A, B = legs_matrices(n_states)
    P = torch.sqrt(torch.arange(n_states, dtype=torch.float64) + 0.5)
    eye = torch.eye(n_states, dtype=torch.float64)
    for channel, dt in enumerate((1e-3, 1e-2, 1e-1)):
        below = eye - dt / 2 * A
        transition, state = torch.linalg.solve(below, eye + dt / 2 * A), torch.linalg.solve(below, dt * B)
        taps = []
        for _ in range(length):
            taps.append(P @ state)
            state = transition @ state
        expected = torch.stack(taps)
        assert (kernel[channel] - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("algorithm", ["powers", "cauchy"])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("length", [1, 2, 63, 200])
def test_all_algorithms_agree(causal: bool, length: int, algorithm: Algorithm) -> None:
    torch.manual_seed(1)
    chunked = S4Mixer(4, d_state=8, causal=causal, algorithm="chunked")
    convolved = S4Mixer(4, d_state=8, causal=causal, algorithm=algorithm)
    convolved.load_state_dict(chunked.state_dict())
    x = torch.randn(2, length, 4)
    mask = torch.rand(2, length) > 0.3
    for arguments in ((x,), (x, mask)):
        found, expected = convolved(*arguments), chunked(*arguments)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        gradients = [
            torch.autograd.grad(y.square().sum(), list(m.parameters())) for y, m in ((found, convolved), (expected, chunked))
        ]
        for a, b in zip(*gradients, strict=True):
            assert (a - b).abs().max() <= 1e-3 * b.abs().max() + 1e-6


@pytest.mark.gpu
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-4), (torch.bfloat16, 2e-2)])
def test_what_a_gpu_runs_is_the_recurrence(causal: bool, dtype: torch.dtype, allowed: float) -> None:
    torch.manual_seed(3)
    mixer = S4Mixer(64, causal=causal).cuda()
    exact = S4Mixer(64, causal=causal, algorithm="chunked").double()
    exact.load_state_dict(mixer.state_dict())
    for length in (1, 64, 1000, 5000):
        x, mask = torch.randn(2, length, 64, device="cuda", dtype=dtype), torch.rand(2, length, device="cuda") > 0.3
        dy = torch.randn(2, length, 64, device="cuda")
        y = mixer.run_rows(x.masked_fill(~mask[..., None], 0.0), mask, None).float()
        z = exact.run_rows(x.masked_fill(~mask[..., None], 0.0).cpu().double(), mask.cpu(), None)
        assert (y.cpu() - z).norm() <= allowed * z.norm()
        parameters = [n for n, p in mixer.named_parameters() if not n.startswith("output")]
        found, expected = (
            torch.autograd.grad((out * dy.to(out)).sum(), [m.get_parameter(n) for n in parameters])
            for out, m in ((y, mixer), (z, exact))
        )
        for name, a, b in zip(parameters, found, expected, strict=True):
            assert (a.cpu() - b).norm() <= 10 * allowed * b.norm() + 1e-6, (name, length)


@pytest.mark.parametrize("algorithm", ["chunked", "powers", "cauchy"])
def test_whole_equals_chunks_equals_steps_in_fp32(algorithm: Algorithm) -> None:
    torch.manual_seed(2)
    mixer = S4Mixer(8, d_state=64, algorithm=algorithm)
    x = torch.randn(2, 700, 8)
    with torch.no_grad():
        whole = mixer(x)
        state, outputs = mixer.init_state(2), []
        for part in x.split([1, 130, 69, 500], dim=1):
            y, state = mixer.forward_chunk(part, state)
            outputs.append(y)
        assert (torch.cat(outputs, 1) - whole).abs().max() <= 1e-4
        state = mixer.init_state(2)
        for t in range(700):
            y, state = mixer.step(x[:, t], state)
            assert (y - whole[:, t]).abs().max() <= 1e-4


def test_memory_reaches_far_back() -> None:
    # With dt = 1 / L the whole history of L positions is in the state: an early input still moves the last output.
    torch.manual_seed(3)
    mixer = S4Mixer(2, d_state=32, dt_min=1e-3, dt_max=1e-3)
    taps = mixer.kernel(1000)[0].abs()
    assert (taps[:, 900:].mean(1) > 0.05 * taps[:, :100].mean(1)).all()


@pytest.mark.parametrize("length", [1, 16, 1000])
def test_length_correction_of_checkpoints_is_undone(length: int) -> None:
    torch.manual_seed(4)
    mixer = S4Mixer(3, d_state=8, dt_min=1e-2, causal=False)
    kernel = mixer.kernel(50)
    with torch.no_grad():
        for C_DN2 in mixer.C:
            C_DN2.copy_(correct_for_length(*mixer._system()[:4], C_DN2, length))
    mixer.undo_length_correction(length)
    found = mixer.kernel(50)
    assert (found - kernel).abs().max() <= 1e-4 * kernel.abs().max()
    mixer.undo_length_correction(0)
    assert torch.equal(mixer.kernel(50), found)
    with pytest.raises(ValueError, match="l_kernel=-1"):
        mixer.undo_length_correction(-1)


def test_optimizer_marks_follow_the_recipe() -> None:
    found = parameter_options(S4Mixer(4, d_state=8), lr=1e-2, weight_decay=0.05)
    for name in ("log_dt", "log_A_real", "A_imag", "B", "P"):
        assert found[name] == {"lr": 1e-3, "weight_decay": 0.0}
    assert found["C"] == {"lr": 1e-2, "weight_decay": 0.05}


def test_rate_rescales_time() -> None:
    torch.manual_seed(5)
    mixer = S4Mixer(2, d_state=8, dt_min=1e-3, dt_max=1e-3)
    fine = mixer.kernel(400)[0]
    mixer.rate = 2.0
    coarse = mixer.kernel(200)[0]
    # The bilinear rule is second order: neighbouring taps sum to the coarse one up to O(dt^2).
    assert (coarse - fine.unflatten(1, (200, 2)).sum(2))[:, 1:].abs().max() <= 0.02 * coarse.abs().max()


@pytest.mark.parametrize("length", [1, 300])
def test_materialized_buffers_give_the_same(length: int) -> None:
    torch.manual_seed(6)
    mixer = S4Mixer(4, d_state=8, causal=False).eval()
    x = torch.randn(2, length, 4)
    expected = mixer(x)
    mixer.materialize()
    with torch.no_grad():
        mixer.P.fill_(float("nan"))
    torch.testing.assert_close(mixer(x), expected, rtol=1e-4, atol=1e-5)


def test_exported_graph_has_no_complex_tensor() -> None:
    mixer = S4Mixer(4, d_state=8).eval()
    program = torch.export.export(mixer, (torch.randn(1, 40, 4),))
    values = [node.meta.get("val") for node in program.graph.nodes]
    assert not any(isinstance(value, torch.Tensor) and value.is_complex() for value in values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_state": 7}, "d_state=7"),
        ({"n_ssm": 3}, "n_ssm=3"),
        ({"algorithm": "fft"}, "algorithm='fft'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone("s4", d_model=4, n_layers=1, **options)
