"""CNN: what a position sees, the borders between documents, and the causal state."""

import pytest
import torch

from longseq import create_backbone
from longseq.backbone import state_bytes
from longseq.backbones.cnn import DilatedConv


def seen_by(mixer: torch.nn.Module, length: int, position: int) -> list[int]:
    x = torch.randn(1, length, 4, dtype=torch.float64, requires_grad=True)
    mixer(x)[0, position].sum().backward()
    assert x.grad is not None
    return x.grad[0].abs().sum(dim=-1).nonzero().flatten().tolist()


@pytest.mark.parametrize("separable", [False, True])
def test_each_position_sees_its_taps(separable: bool) -> None:
    centred = DilatedConv(4, d_conv=5, dilations=(3,), separable=separable).double()
    assert seen_by(centred, 41, 20) == [14, 17, 20, 23, 26]
    causal = DilatedConv(4, d_conv=5, dilations=(3,), separable=separable, causal=True).double()
    assert seen_by(causal, 41, 20) == [8, 11, 14, 17, 20]


def test_a_stack_sees_as_far_as_documented() -> None:
    backbone = create_backbone("cnn", d_model=4, n_layers=4, d_conv=3)
    x = torch.randn(1, 101, 4, requires_grad=True)
    # A plain sum of a LayerNorm is constant.
    (backbone(x)[0, 50] * torch.arange(4.0)).sum().backward()
    assert x.grad is not None
    places = x.grad[0].abs().sum(dim=-1).nonzero().flatten()
    # 1 + (3 - 1) * (1 + 2 + 4 + 8) = 31
    assert (int(places.min()), int(places.max())) == (35, 65)


def test_dilations_repeat_over_depth() -> None:
    backbone = create_backbone("cnn", d_model=4, n_layers=5, dilations=[1, 4])
    assert [layer.dilation for layer in backbone.modules() if isinstance(layer, DilatedConv)] == [1, 4, 1, 4, 1]


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("causal", [False, True])
def test_packed_documents_are_as_if_alone(separable: bool, causal: bool) -> None:
    mixer = DilatedConv(4, d_conv=5, dilations=(2,), separable=separable, causal=causal).double()
    x = torch.randn(2, 23, 4, dtype=torch.float64)
    ids = torch.tensor([[0] * 2 + [1] * 9 + [2] + [3] * 11] * 2)
    parts = [mixer(x[:, a:b]) for a, b in ((0, 2), (2, 11), (11, 12), (12, 23))]
    torch.testing.assert_close(mixer(x, None, ids), torch.cat(parts, dim=1), atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("left,right", [(0, 9), (6, 0), (4, 4)])
def test_padding_changes_nothing(causal: bool, left: int, right: int) -> None:
    backbone = create_backbone("cnn", d_model=4, n_layers=3, d_conv=5, causal=causal).eval()
    x = torch.randn(1, 12, 4)
    wide = torch.full((1, 12 + left + right, 4), float("nan"))
    wide[:, left : left + 12] = x
    mask = torch.zeros(1, 12 + left + right, dtype=torch.bool)
    mask[:, left : left + 12] = True
    torch.testing.assert_close(backbone(wide, mask)[:, left : left + 12], backbone(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_random_chunks_match_the_whole(separable: bool, seed: int) -> None:
    torch.manual_seed(seed)
    backbone = create_backbone("cnn", d_model=4, n_layers=3, d_conv=5, causal=True, separable=separable).eval()
    x = torch.randn(2, 40, 4)
    state, outputs, start = backbone.init_state(2), [], 0
    size = state_bytes(state)
    assert size == 2 * 4 * (1 + 2 + 4) * 4 * 4
    while start < 40:
        stop = start + int(torch.randint(1, 9, ()))
        y, state = backbone.forward_chunk(x[:, start:stop], state)
        outputs.append(y)
        start = stop
    assert state_bytes(state) == size
    torch.testing.assert_close(torch.cat(outputs, dim=1), backbone(x), atol=1e-5, rtol=1e-5)


def test_one_tap_needs_no_state() -> None:
    mixer = DilatedConv(4, d_conv=1, causal=True)
    x = torch.randn(2, 3, 4)
    y, state = mixer.forward_chunk(x, mixer.init_state(2))
    assert state.shape == (2, 0, 4)
    torch.testing.assert_close(y, mixer(x))


def test_errors() -> None:
    with pytest.raises(ValueError, match="d_conv=4: expected an odd number"):
        DilatedConv(4, d_conv=4)
    with pytest.raises(ValueError, match=r"dilations=\[\]: expected at least one"):
        DilatedConv(4, dilations=())
    with pytest.raises(ValueError, match=r"dilations=\[0\]"):
        DilatedConv(4, dilations=(0,))
    with pytest.raises(ValueError, match="not causal here"):
        DilatedConv(4).forward_chunk(torch.zeros(1, 2, 4), torch.zeros(1, 8, 4))
