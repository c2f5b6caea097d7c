"""Rotary positions: products depend on the distance alone, at any position."""

import pytest
import torch

from longseq.layers.rotary import Rotary


def test_matches_a_complex_rotation() -> None:
    x = torch.randn(2, 5, 3, 8, dtype=torch.float64)
    position = torch.tensor([0, 1, 2, 7, -3])
    frequency = 100.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turn = torch.polar(torch.ones(5, 4, dtype=torch.float64), position[:, None] * frequency)
    pairs = torch.complex(x[..., :4], x[..., 4:]) * turn[None, :, None, :]
    expected = torch.cat((pairs.real, pairs.imag), dim=-1)
    torch.testing.assert_close(Rotary(8, base=100.0)(x, position), expected, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("start", [0, 1000, 10_000_000])
def test_products_depend_on_the_distance_alone(start: int) -> None:
    q, k = torch.randn(1, 6, 2, 16), torch.randn(1, 6, 2, 16)
    rotary, place = Rotary(16), torch.arange(6)

    def scores(shift: int) -> torch.Tensor:
        return torch.einsum("blhp,bmhp->bhlm", rotary(q, place + shift), rotary(k, place + shift))

    torch.testing.assert_close(scores(start), scores(0), atol=1e-5, rtol=1e-5)


def test_positions_may_differ_by_row_and_dtype_follows() -> None:
    x = torch.randn(2, 4, 1, 6)
    place = torch.stack((torch.arange(4), torch.arange(4) + 3))
    y = Rotary(6)(x, place)
    for row in range(2):
        torch.testing.assert_close(y[row : row + 1], Rotary(6)(x[row : row + 1], place[row]))
    half = Rotary(6)(x.bfloat16(), place)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y, atol=5e-2, rtol=5e-2)


def test_lengths_are_kept() -> None:
    x = torch.randn(1, 9, 2, 10)
    torch.testing.assert_close(Rotary(10)(x, torch.arange(9)).norm(dim=-1), x.norm(dim=-1))


@pytest.mark.parametrize(
    "width,base,message",
    [(7, 1e4, "must be even, found 7"), (0, 1e4, "must be even"), (8, 0.0, "rotary_base must be positive")],
)
def test_errors(width: int, base: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Rotary(width, base)
