"""Real positions to the front and back."""

import torch

from longseq.layers.compaction import Compaction


def test_front_then_place_is_the_identity_on_real_positions() -> None:
    mask = torch.rand(5, 17) < 0.6
    mask[0], mask[1] = False, True
    x = torch.randn(5, 17, 3)
    compaction = Compaction(mask)
    front = compaction.to_front(x)
    for row in range(5):
        torch.testing.assert_close(front[row, : int(mask[row].sum())], x[row, mask[row]])
    torch.testing.assert_close(compaction.to_place(front), x * mask[:, :, None])
    assert compaction.count_B.tolist() == mask.sum(1).tolist()


def test_last_is_the_last_real_position() -> None:
    mask = torch.tensor([[False, True, True, False], [True, False, False, False]])
    x = torch.arange(8.0).view(2, 4, 1)
    compaction = Compaction(mask)
    assert compaction.last(compaction.to_front(x)).flatten().tolist() == [2.0, 4.0]
