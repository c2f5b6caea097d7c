"""Scan orders: permutations, their inverses, and the paths they promise."""

import math

import pytest
import torch
from torch import Tensor

from longseq.backbone import Mixer
from longseq.layers.scan_orders import CROSS, SCAN_ORDERS, Reordered, alternate_orders, inverse_order, scan_order

GRIDS = [(1, 1), (1, 7), (5, 1), (4, 4), (3, 5), (14, 14), (2, 3, 4), (4, 4, 4), (1, 5, 3)]
NAMES = [name + suffix for name in SCAN_ORDERS for suffix in ("", "-reversed")]


class Running(Mixer):
    """A causal mixer: the sum of everything before and at a position."""

    causal = True

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        kept = x_BLD if mask_BL is None else x_BLD * mask_BL[..., None]
        if segment_ids_BL is not None:
            kept = kept * segment_ids_BL[..., None]
        return kept.cumsum(dim=1)

    def init_state(self, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, 1)

    def forward_chunk(self, x_BLD: Tensor, state: Tensor, mask_BL: Tensor | None = None) -> tuple[Tensor, Tensor]:
        y_BLD = self(x_BLD, mask_BL) + state[:, None]
        return y_BLD, y_BLD[:, -1]


def largest_step(order: Tensor, grid: tuple[int, ...]) -> int:
    cells = torch.stack(torch.unravel_index(order, grid), dim=-1)
    return int((cells[1:] - cells[:-1]).abs().sum(dim=-1).max())


@pytest.mark.parametrize(
    "name,grid", [(name, grid) for name in NAMES for grid in GRIDS if len(grid) == 3 or not name.startswith("time")]
)
def test_is_a_permutation_with_an_inverse(name: str, grid: tuple[int, ...]) -> None:
    order = scan_order(name, grid)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(math.prod(grid)))
    assert torch.equal(order[inverse_order(order)], torch.arange(math.prod(grid)))
    assert torch.equal(inverse_order(order)[order], torch.arange(math.prod(grid)))


@pytest.mark.parametrize("grid", [(2, 2), (8, 8), (32, 32), (2, 2, 2), (8, 8, 8)])
def test_hilbert_neighbours_touch_on_powers_of_two(grid: tuple[int, ...]) -> None:
    assert largest_step(scan_order("hilbert", grid), grid) == 1


@pytest.mark.parametrize("grid", [(3, 5), (4, 7), (8, 8), (2, 3, 4), (3, 3, 3), (4, 2, 5)])
def test_snake_neighbours_touch_on_every_grid(grid: tuple[int, ...]) -> None:
    assert largest_step(scan_order("snake", grid), grid) == 1


def test_hilbert_keeps_blocks_together() -> None:
    """The first quarter of the curve through a 16 x 16 grid stays in one 8 x 8 quadrant; raster's does not."""
    cells = torch.stack(torch.unravel_index(scan_order("hilbert", (16, 16))[:64], (16, 16)))
    assert (cells // 8 == cells[:, :1] // 8).all()


def test_orders_by_hand() -> None:
    assert scan_order("raster", (2, 3)).tolist() == [0, 1, 2, 3, 4, 5]
    assert scan_order("column", (2, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    assert scan_order("column-reversed", (2, 3)).tolist() == [5, 2, 4, 1, 3, 0]
    assert scan_order("snake", (2, 3)).tolist() == [0, 1, 2, 5, 4, 3]
    assert scan_order("hilbert", (2, 2)).tolist() in ([0, 2, 3, 1], [0, 1, 3, 2])
    assert scan_order("time", (2, 1, 3)).tolist() == [0, 3, 1, 4, 2, 5]
    assert scan_order("column", (2, 2, 2)).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


def test_the_result_may_be_changed() -> None:
    scan_order("raster", (2, 2)).fill_(7)
    assert scan_order("raster", (2, 2)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["raster", "column", "snake", "hilbert", "hilbert-reversed"])
def test_reordered_reads_in_order_and_puts_back(name: str) -> None:
    x = torch.randn(2, 12, 1, dtype=torch.float64)
    order = scan_order(name, (3, 4))
    y = Reordered(Running(), name, (3, 4))(x)
    for place, cell in enumerate(order.tolist()):
        torch.testing.assert_close(y[:, cell], x[:, order[: place + 1]].sum(dim=1))


def test_reordered_moves_masks_and_segments_along() -> None:
    x, mask = torch.randn(2, 12, 1, dtype=torch.float64), torch.rand(2, 12) < 0.5
    ids = torch.randint(0, 3, (2, 12))
    expected = Reordered(Running(), "column", (3, 4))(x * mask[..., None] * ids[..., None])
    torch.testing.assert_close(Reordered(Running(), "column", (3, 4))(x, mask, ids), expected)


def test_prefix_stays_in_front() -> None:
    x = torch.randn(1, 7, 1, dtype=torch.float64)
    y = Reordered(Running(), "column-reversed", (2, 3), n_prefix=1)(x)
    torch.testing.assert_close(y[:, 0], x[:, 0])
    torch.testing.assert_close(y[:, 1], x.sum(dim=1))


def test_only_raster_stays_causal_and_steps() -> None:
    raster = Reordered(Running(), "raster", (2, 3))
    assert raster.causal and raster.can_step
    x = torch.randn(2, 6, 1)
    state, outputs = raster.init_state(2), []
    for t in range(6):
        y, state = raster.step(x[:, t], state)
        outputs.append(y)
    torch.testing.assert_close(torch.stack(outputs, dim=1), raster(x))
    column = Reordered(Running(), "column", (2, 3))
    assert not column.causal and not column.can_step
    with pytest.raises(ValueError, match="not causal here"):
        column.init_state(2)


def test_alternate_orders_repeats_over_depth() -> None:
    layers = alternate_orders([Running() for _ in range(6)], ["cross", "hilbert"], (4, 4))
    assert [layer.order for layer in layers] == [*CROSS, "hilbert", "raster"]
    with pytest.raises(ValueError, match="scan_orders is empty"):
        alternate_orders([Running()], [], (4, 4))


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"scan order 'spiral' for the grid \(4, 4\): expected one of raster, column, snake"):
        scan_order("spiral", (4, 4))
    with pytest.raises(ValueError, match="scan order 'time'"):
        scan_order("time", (4, 4))
    with pytest.raises(ValueError, match=r"found \(4,\)"):
        scan_order("raster", (4,))
    with pytest.raises(ValueError, match=r"found \(4, 0\)"):
        scan_order("raster", (4, 0))
    with pytest.raises(ValueError, match=r"a grid of 2 x 3 has 6 positions .* found a sequence of 7"):
        Reordered(Running(), "raster", (2, 3))(torch.zeros(1, 7, 1))
