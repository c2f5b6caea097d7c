"""HiPPO matrices and the spectra made after them."""

import math

import pytest
import torch

from longseq.layers.hippo import DiagonalInit, diagonal_poles, legs_low_rank, legs_matrices, log_uniform


def test_legs_matrix_is_the_published_one() -> None:
    A, B = legs_matrices(4)
    root = [math.sqrt(2 * n + 1) for n in range(4)]
    expected = [[-(n + 1.0) if n == k else (-root[n] * root[k] if n > k else 0.0) for k in range(4)] for n in range(4)]
    torch.testing.assert_close(A, torch.tensor(expected, dtype=torch.float64))
    torch.testing.assert_close(B, torch.tensor(root, dtype=torch.float64))


@pytest.mark.parametrize("n_states", [2, 8, 64])
def test_low_rank_form_is_the_legs_system(n_states: int) -> None:
    # Two systems that differ by a change of coordinates have the same resolvent P^T (g - A)^-1 B at any g.
    A, B = legs_matrices(n_states)
    P = torch.sqrt(torch.arange(n_states, dtype=torch.float64) + 0.5)
    poles = legs_low_rank(n_states)
    diagonal = torch.complex(poles.real_N, poles.imag_N)
    P_pairs, B_pairs = (torch.view_as_complex(t.contiguous()) for t in (poles.P_N2, poles.B_N2))
    diagonal, P_all, B_all = (torch.cat([t, t.conj()]) for t in (diagonal, P_pairs, B_pairs))
    A_all = torch.diag(diagonal) - torch.outer(P_all, P_all.conj())
    eye = torch.eye(n_states, dtype=torch.complex128)
    for g in (0.3 + 0.7j, 2.0 - 5.0j, 40.0 + 1.0j):
        expected = P.to(eye.dtype) @ torch.linalg.solve(g * eye - A.to(eye.dtype), B.to(eye.dtype))
        found = P_all.conj() @ torch.linalg.solve(g * eye - A_all, B_all)
        torch.testing.assert_close(found, expected)
    assert (poles.imag_N > 0).all()


def test_published_closed_forms() -> None:
    real, imag, B = diagonal_poles("lin", 6)
    torch.testing.assert_close(imag, math.pi * torch.arange(3, dtype=torch.float64))
    torch.testing.assert_close(real, torch.full_like(real, -0.5))
    assert torch.equal(B, torch.tensor([[1.0, 0.0]] * 3, dtype=torch.float64))
    _, imag, _ = diagonal_poles("inv", 6)
    torch.testing.assert_close(imag, torch.tensor([6 / math.pi * (6 / k - 1) for k in (1, 3, 5)], dtype=torch.float64))


def test_inverse_spectrum_is_close_to_that_of_legs() -> None:
    _, closed, _ = diagonal_poles("inv", 64)
    _, exact, _ = diagonal_poles("legs", 64)
    closed, exact = closed.sort().values, exact.sort().values
    torch.testing.assert_close(closed[-1], exact[-1], rtol=0.05, atol=0.0)
    torch.testing.assert_close(closed[-8:], exact[-8:], rtol=0.2, atol=0.0)


@pytest.mark.parametrize("init", ["legs", "inv", "lin"])
def test_odd_states_are_refused(init: DiagonalInit) -> None:
    with pytest.raises(ValueError, match="d_state=5"):
        diagonal_poles(init, 5)


def test_unknown_init_and_wrong_ranges_are_named() -> None:
    with pytest.raises(ValueError, match="init='fourier'"):
        diagonal_poles("fourier", 4)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"dt_min=0\.2"):
        log_uniform(3, 0.2, 0.1)


def test_log_uniform_is_even_over_the_decades() -> None:
    torch.manual_seed(0)
    values = log_uniform(4000, 1e-3, 1e-1).exp()
    assert values.min() >= 1e-3 * 0.999 and values.max() <= 1e-1 * 1.001
    assert 0.45 < (values < 1e-2).float().mean() < 0.55
