"""The bilinear form of a diagonal-plus-low-rank state-space model, in real arithmetic, and its powers.

In complex coordinates, with one of each conjugate pair kept, `A z = lambda z - 2 P Re(P* z)`: as a real system of M = 2N
numbers (real and imaginary parts side by side) that is rotations and decays of pairs minus `2 p p^T`. Its symmetric part
is negative, so the bilinear transform is a contraction and powers of it lose no digits.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from longseq.ops.diagonal_ssm.discretize import conjugate, multiply


class Resolvent(NamedTuple):
    """`(I - dt/2 A)^-1` in the O(N) form of Woodbury: `v -> e v - scale <p, e v> e p`.

    Attributes:
        dt_D: step sizes.
        e_DN2: the diagonal part, `1 / (1 - dt/2 lambda)`.
        p_DN2: the low-rank factor.
        ep_DN2: their product.
        scale_D: `dt / (1 + dt p^T e p)`.
    """

    dt_D: Tensor
    e_DN2: Tensor
    p_DN2: Tensor
    ep_DN2: Tensor
    scale_D: Tensor

    def apply(self, v_DN2: Tensor) -> Tensor:
        """To vectors (..., D, N, 2)."""
        ev_DN2 = multiply(self.e_DN2, v_DN2)
        along_D = (self.p_DN2 * ev_DN2).sum((-1, -2))
        return ev_DN2 - (self.scale_D * along_D)[..., None, None] * self.ep_DN2

    def step(self, h_DN2: Tensor, forcing_DN2: Tensor | float) -> Tensor:
        """`(I - dt/2 A)^-1 ((I + dt/2 A) h + forcing)`: one step of the recurrence for states (..., D, N, 2)."""
        # I + dt/2 A = 2 I - (I - dt/2 A).
        return self.apply(2 * h_DN2 + forcing_DN2) - h_DN2

    def dense(self) -> Tensor:
        """The discrete transition as matrices (D, M, M)."""
        n_numbers = 2 * self.e_DN2.shape[1]
        eye_MN2 = torch.eye(n_numbers, dtype=self.e_DN2.dtype, device=self.e_DN2.device).unflatten(1, (-1, 2))
        return self.step(eye_MN2.unsqueeze(1), 0.0).flatten(2).permute(1, 2, 0)


def resolvent(dt_D: Tensor, A_real_DN: Tensor, A_imag_DN: Tensor, P_DN2: Tensor) -> Resolvent:
    """The resolvent of `A = diag(A_real + i A_imag) - P P*` at 2 / dt, times 2 / dt."""
    half_D1 = dt_D.unsqueeze(-1) / 2
    below_DN2 = torch.stack([1 - half_D1 * A_real_DN, -half_D1 * A_imag_DN], dim=-1)
    e_DN2 = conjugate(below_DN2) / below_DN2.square().sum(-1, keepdim=True)
    ep_DN2 = multiply(e_DN2, P_DN2)
    return Resolvent(dt_D, e_DN2, P_DN2, ep_DN2, dt_D / (1 + dt_D * (P_DN2 * ep_DN2).sum((-1, -2))))


def output_row(C_DN2: Tensor) -> Tensor:
    """(..., D, M): `2 Re(C z)` as a product with the state's numbers."""
    return 2 * conjugate(C_DN2).flatten(-2)


def _first(v: Tensor, dim: int, count: int) -> Tensor:
    """The first of a dimension; all of them without a copy backward."""
    return v if v.shape[dim] == count else v.narrow(dim, 0, count)


class Powers:
    """Powers of (D, M, M) matrices, with the squares made once.

    Args:
        first_DMM: the matrices.

    Cost: one product of M x M matrices per doubling.
    """

    def __init__(self, first_DMM: Tensor) -> None:
        self.squares = [first_DMM]

    def square(self, doublings: int) -> Tensor:
        """The power 2^doublings."""
        while len(self.squares) <= doublings:
            self.squares.append(self.squares[-1] @ self.squares[-1])
        return self.squares[doublings]

    def power(self, exponent: int) -> Tensor:
        """Any power from 1 up."""
        result = None
        for doubling in range(exponent.bit_length()):
            if exponent >> doubling & 1:
                factor_DMM = self.square(doubling)
                result = factor_DMM if result is None else result @ factor_DMM
        if result is None:
            raise ValueError(f"exponent={exponent}: expected 1 or more")
        return result

    def rows(self, rows_DRM: Tensor, count: int) -> Tensor:
        """`rows A^t` for t = 0 ... count - 1, (D, count R, M), t first."""
        rows_DtM, doubling = rows_DRM, 0
        wanted = count * rows_DRM.shape[1]
        while rows_DtM.shape[1] < wanted:
            rows_DtM = torch.cat([rows_DtM, rows_DtM @ self.square(doubling)], dim=1)
            doubling += 1
        return _first(rows_DtM, 1, wanted)

    def columns(self, column_DM: Tensor, count: int) -> Tensor:
        """`A^t column` for t = 0 ... count - 1, (D, M, count)."""
        columns_DMt, doubling = column_DM.unsqueeze(2), 0
        while columns_DMt.shape[2] < count:
            columns_DMt = torch.cat([columns_DMt, self.square(doubling) @ columns_DMt], dim=2)
            doubling += 1
        return _first(columns_DMt, 2, count)

    def advance(self, state_BDM: Tensor, steps_B: Tensor, limit: int) -> Tensor:
        """`A^steps state` for a number of steps per row, each below `limit`."""
        for doubling in range((limit - 1).bit_length()):
            moved_BDM = torch.einsum("dmn,bdn->bdm", self.square(doubling), state_BDM)
            state_BDM = torch.where(((steps_B >> doubling) & 1 == 1)[:, None, None], moved_BDM, state_BDM)
        return state_BDM
