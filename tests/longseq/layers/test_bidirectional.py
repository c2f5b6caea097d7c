"""Two directions from causal mixers: what each merge computes, padding, packed rows, and what it refuses."""

import pytest
import torch
from torch import Tensor, nn

from longseq.backbone import Mixer
from longseq.backbones.mamba import MambaMixer
from longseq.layers.bidirectional import Bidirectional, Merge
from longseq.registry import create_backbone

MERGES: tuple[Merge, ...] = ("add", "concat", "hydra")


def make(merge: Merge, share: bool = False) -> Bidirectional:
    mixer = MambaMixer(6, d_state=4)
    return Bidirectional(mixer, mixer if share else MambaMixer(6, d_state=4), 6, merge=merge).double()


def shift(x: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("merge", MERGES)
def test_merges_by_their_formulas(merge: Merge, share: bool) -> None:
    layer, x = make(merge, share), torch.randn(2, 13, 6, dtype=torch.float64)
    back_mixer = layer.forward_mixer if share else layer.reverse_mixer
    assert back_mixer is not None
    ahead, back = layer.forward_mixer(x), back_mixer(x.flip(1))
    if merge == "add":
        expected = ahead + back.flip(1)
    elif merge == "concat":
        assert layer.proj is not None
        expected = layer.proj(torch.cat([ahead, back.flip(1)], dim=-1))
    else:
        with torch.no_grad():
            assert layer.D is not None
            layer.D.normal_()
        expected = shift(ahead) + shift(back).flip(1) + layer.D * x
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize("merge", MERGES)
def test_every_position_sees_both_sides(merge: Merge) -> None:
    layer, x = make(merge), torch.randn(1, 9, 6, dtype=torch.float64, requires_grad=True)
    for t in (0, 4, 8):
        (gradient,) = torch.autograd.grad(layer(x)[0, t].sum(), x)
        assert (gradient[0].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("merge", MERGES)
def test_padding_on_either_side_changes_nothing(merge: Merge) -> None:
    layer, x = make(merge), torch.randn(2, 10, 6, dtype=torch.float64)
    expected = layer(x)
    pad = torch.full((2, 4, 6), float("nan"), dtype=torch.float64)
    for parts, real in (([pad, x], slice(4, 14)), ([x, pad], slice(0, 10)), ([pad, x, pad], slice(4, 14))):
        padded = torch.cat(parts, dim=1)
        mask = torch.zeros(padded.shape[:2], dtype=torch.bool)
        mask[:, real] = True
        torch.testing.assert_close(layer(padded, mask)[:, real], expected)


@pytest.mark.parametrize("merge", MERGES)
def test_packed_rows_equal_separate_sequences(merge: Merge) -> None:
    layer, x = make(merge), torch.randn(1, 14, 6, dtype=torch.float64)
    ids = torch.tensor([[1] * 5 + [2] + [3] * 8])
    separate = torch.cat([layer(x[:, :5]), layer(x[:, 5:6]), layer(x[:, 6:])], dim=1)
    torch.testing.assert_close(layer(x, None, ids), separate)


def test_shared_weights_are_stored_once() -> None:
    assert len(make("add", share=True).state_dict()) == len(MambaMixer(6).state_dict())
    assert len(make("add").state_dict()) == 2 * len(MambaMixer(6).state_dict())


def test_through_the_registry() -> None:
    model = create_backbone("mamba", d_model=8, n_layers=2, bidirectional=True, merge="hydra", share=True)
    assert not model.causal
    assert model(torch.randn(2, 5, 8)).shape == (2, 5, 8)


class Symmetric(Mixer):
    causal = False

    def forward(self, x_BLD: Tensor, mask_BL: Tensor | None = None, segment_ids_BL: Tensor | None = None) -> Tensor:
        return x_BLD


def test_errors() -> None:
    with pytest.raises(ValueError, match="merge must be one of add, concat, hydra, found 'sum'"):
        Bidirectional(MambaMixer(6), MambaMixer(6), 6, merge="sum")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Symmetric is not causal"):
        Bidirectional(Symmetric(), MambaMixer(6), 6)
    layer = make("add")
    for call in (lambda: layer.init_state(1), lambda: layer.step(torch.zeros(1, 6), None)):
        with pytest.raises(ValueError, match="Bidirectional is not causal"):
            call()


def test_gradients_reach_every_parameter() -> None:
    for merge in MERGES:
        layer = make(merge)
        assert isinstance(layer, nn.Module)
        layer(torch.randn(2, 7, 6, dtype=torch.float64)).square().sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.parameters())
