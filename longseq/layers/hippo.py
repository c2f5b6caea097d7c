"""Initial poles of state-space models: HiPPO-LegS and the diagonal spectra made after it."""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

DiagonalInit = Literal["legs", "inv", "lin"]


class LowRankPoles(NamedTuple):
    """A real system of N states as `A = diag(poles) - P P*` in complex coordinates, one of each conjugate pair.

    Attributes:
        real_N: real parts of the N / 2 poles.
        imag_N: imaginary parts, positive and growing.
        P_N2: the rank-one correction as (real, imaginary).
        B_N2: the input weights as (real, imaginary).
    """

    real_N: Tensor
    imag_N: Tensor
    P_N2: Tensor
    B_N2: Tensor


def legs_matrices(n_states: int) -> tuple[Tensor, Tensor]:
    """A (N, N) and B (N,) of HiPPO-LegS in float64: the state holds the input's history in scaled Legendre polynomials.

    `A_nk = -sqrt((2n+1)(2k+1))` below the diagonal, `-(n+1)` on it; `B_n = sqrt(2n+1)`.

    Paper: https://arxiv.org/abs/2111.00396, equation 2.
    """
    root_N = torch.sqrt(2 * torch.arange(n_states, dtype=torch.float64) + 1)
    A_NN = -torch.tril(torch.outer(root_N, root_N), diagonal=-1)
    return A_NN - torch.diag(torch.arange(1, n_states + 1, dtype=torch.float64)), root_N


def legs_low_rank(n_states: int) -> LowRankPoles:
    """HiPPO-LegS as a normal matrix plus a rank-one correction, diagonalised by a unitary basis, in float64.

    `A + P P^T` with `P_n = sqrt(n + 1/2)` is -1/2 plus a skew-symmetric matrix. Diagonalising A itself would need
    coordinates of size 2^N.

    Paper: https://arxiv.org/abs/2111.00396, theorem 1 and appendix C.1.
    """
    A_NN, B_N = legs_matrices(n_states)
    P_N = torch.sqrt(torch.arange(n_states, dtype=torch.float64) + 0.5)
    skew_NN = A_NN + torch.outer(P_N, P_N) + 0.5 * torch.eye(n_states, dtype=torch.float64)
    # -i times a skew-symmetric matrix is Hermitian: a unitary basis and real eigenvalues, in conjugate pairs.
    imag_N, basis_NN = torch.linalg.eigh(-1j * skew_NN)
    imag_N, to_pairs_NN = imag_N[n_states // 2 :], basis_NN[:, n_states // 2 :].conj().T
    P_n2, B_n2 = (torch.view_as_real(to_pairs_NN @ vector_N.to(to_pairs_NN.dtype)) for vector_N in (P_N, B_N))
    return LowRankPoles(torch.full_like(imag_N, -0.5), imag_N, P_n2, B_n2)


def diagonal_poles(init: DiagonalInit, n_states: int) -> tuple[Tensor, Tensor, Tensor]:
    """Real parts (N/2,), imaginary parts (N/2,) and input weights (N/2, 2) of a diagonal system of N states.

    `legs` leaves the rank-one correction of HiPPO-LegS out; `inv` is a closed form close to its spectrum,
    `-1/2 + i N/pi (N/(2n+1) - 1)`; `lin` is a Fourier basis, `-1/2 + i pi n`.

    Paper: On the Parameterization and Initialization of Diagonal State Space Models, https://arxiv.org/abs/2206.11893,
    equations 7, 8 and 9.
    """
    if n_states < 2 or n_states % 2:
        raise ValueError(f"d_state={n_states}: expected an even number of states, 2 or more (they come in conjugate pairs)")
    if init == "legs":
        poles = legs_low_rank(n_states)
        return poles.real_N, poles.imag_N, poles.B_N2
    place_N = torch.arange(n_states // 2, dtype=torch.float64)
    if init == "inv":
        imag_N = n_states / math.pi * (n_states / (2 * place_N + 1) - 1)
    elif init == "lin":
        imag_N = math.pi * place_N
    else:
        raise ValueError(f"init={init!r}: expected legs, inv or lin")
    ones_N2 = torch.stack([torch.ones_like(place_N), torch.zeros_like(place_N)], dim=-1)
    return torch.full_like(imag_N, -0.5), imag_N, ones_N2


def log_uniform(size: int, low: float, high: float) -> Tensor:
    """Logarithms of `size` numbers that are log-uniform from `low` to `high`: initial step sizes."""
    if not 0.0 < low <= high:
        raise ValueError(f"expected 0 < dt_min <= dt_max, found dt_min={low} and dt_max={high}")
    return torch.empty(size).uniform_(math.log(low), math.log(high))
