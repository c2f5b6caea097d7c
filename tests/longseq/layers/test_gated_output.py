"""The output block of the S4 layers."""

import pytest
import torch
import torch.nn.functional as F

from longseq.layers.gated_output import GatedOutput


def test_is_a_gated_linear_unit() -> None:
    block = GatedOutput(3)
    y = torch.randn(2, 5, 3)
    value, gate = block.linear(F.gelu(y)).split(3, dim=-1)
    torch.testing.assert_close(block(y), value * torch.sigmoid(gate))


def test_tied_dropout_drops_whole_channels_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    block = GatedOutput(400, dropout=0.25, tie_dropout=True).train()
    dropped = block._drop(torch.ones(3, 7, 400))
    assert torch.equal(dropped, dropped[:, :1].expand(-1, 7, -1))
    assert 0.15 < (dropped == 0).float().mean() < 0.35
    torch.testing.assert_close(dropped[dropped > 0], torch.full_like(dropped[dropped > 0], 1 / 0.75))


def test_untied_dropout_differs_between_positions_and_both_are_off_in_eval() -> None:
    torch.manual_seed(0)
    block = GatedOutput(50, dropout=0.5).train()
    dropped = block._drop(torch.ones(1, 7, 50))
    assert not torch.equal(dropped[:, 0], dropped[:, 1])
    assert torch.equal(block.eval()._drop(dropped), dropped)


def test_wrong_probability_is_named() -> None:
    with pytest.raises(ValueError, match="inner_dropout"):
        GatedOutput(3, dropout=1.0)
