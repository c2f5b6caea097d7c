"""Reversal and shift of the real positions of each segment."""

import torch

from longseq.layers.row_order import RowOrder


def expected_index(mask: list[bool], ids: list[int]) -> tuple[list[int], list[int | None]]:
    """Where each position's value comes from after reversing, and after shifting, by the definition."""
    reverse: list[int] = list(range(len(mask)))
    shift: list[int | None] = [None] * len(mask)
    run: list[int] = []
    for i in [*range(len(mask)), None]:
        if i is not None and not mask[i]:
            continue
        if run and (i is None or ids[i] != ids[run[-1]]):
            for a, b in zip(run, reversed(run), strict=True):
                reverse[a] = b
            for a, b in zip(run[1:], run[:-1], strict=True):
                shift[a] = b
            run = []
        if i is not None:
            run.append(i)
    return reverse, shift


def test_against_the_definition() -> None:
    for trial in range(40):
        length = int(torch.randint(1, 12, ()))
        mask = torch.rand(3, length) > 0.3 if trial % 2 else None
        ids = (torch.rand(3, length) > 0.6).long().cumsum(1) % 3 if trial % 4 > 1 else None
        x = torch.randn(3, length, 2)
        order = RowOrder(mask, ids)
        reversed_x, shifted_x = order.reverse(x), order.shift(x)
        torch.testing.assert_close(order.reverse(reversed_x), x)
        for b in range(3):
            row_mask = [True] * length if mask is None else mask[b].tolist()
            reverse, shift = expected_index(row_mask, [0] * length if ids is None else ids[b].tolist())
            assert torch.equal(reversed_x[b], x[b, reverse])
            for i, source in enumerate(shift):
                assert torch.equal(shifted_x[b, i], torch.zeros(2) if source is None else x[b, source])
