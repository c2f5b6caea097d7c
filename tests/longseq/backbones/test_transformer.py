"""Transformer: full attention by definition, padding without a mask, and the growing state."""

import pytest
import torch

from longseq import create_backbone
from longseq.backbone import state_bytes
from longseq.backbones.transformer import FullAttention


def by_definition(mixer: FullAttention, x: torch.Tensor, seen_LM: torch.Tensor) -> torch.Tensor:
    q, k, v = mixer.qkv(x).unflatten(-1, (3, mixer.n_heads, -1)).unbind(-3)
    place = torch.arange(x.shape[1])
    assert mixer.rotary is not None
    q, k = mixer.rotary(q, place), mixer.rotary(k, place)
    score = torch.einsum("blhp,bmhp->bhlm", q, k) / q.shape[-1] ** 0.5
    weight = score.masked_fill(~seen_LM, float("-inf")).softmax(dim=-1)
    return mixer.out_proj(torch.einsum("bhlm,bmhp->blhp", weight, v).flatten(-2))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 33])
def test_matches_the_definition(causal: bool, length: int) -> None:
    mixer = FullAttention(12, n_heads=3, causal=causal).double()
    x = torch.randn(2, length, 12, dtype=torch.float64)
    seen = torch.ones(length, length, dtype=torch.bool)
    expected = by_definition(mixer, x, seen.tril() if causal else seen)
    torch.testing.assert_close(mixer(x), expected, atol=1e-12, rtol=0.0)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("left,right", [(0, 5), (7, 0), (3, 4)])
def test_padding_changes_nothing(causal: bool, left: int, right: int) -> None:
    backbone = create_backbone("transformer", d_model=8, n_layers=2, n_heads=2, causal=causal).eval()
    x = torch.randn(1, 15, 8)
    wide = torch.full((2, 15 + left + right, 8), float("nan"))
    wide[:, left : left + 15] = x
    mask = torch.zeros(2, 15 + left + right, dtype=torch.bool)
    mask[:, left : left + 15] = True
    mask[1] = False
    y = backbone(wide, mask)
    torch.testing.assert_close(y[:1, left : left + 15], backbone(x), atol=1e-5, rtol=1e-5)
    assert (y[~mask] == 0).all()


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_of_padding_has_finite_gradients(causal: bool) -> None:
    backbone = create_backbone("transformer", d_model=8, n_layers=1, n_heads=2, causal=causal)
    x, mask = torch.randn(2, 6, 8, requires_grad=True), torch.tensor([[True] * 6, [False] * 6])
    backbone(x, mask).square().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()
    assert (x.grad[1] == 0).all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in backbone.parameters())


@pytest.mark.parametrize("causal", [False, True])
def test_packed_documents_are_as_if_alone(causal: bool) -> None:
    backbone = create_backbone("transformer", d_model=8, n_layers=2, n_heads=2, causal=causal).eval()
    x = torch.randn(2, 20, 8)
    segments = torch.tensor([[0] * 6 + [5] * 14] * 2)
    packed = backbone(x, None, segments)
    torch.testing.assert_close(packed, torch.cat((backbone(x[:, :6]), backbone(x[:, 6:])), dim=1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_random_chunks_match_the_whole(seed: int) -> None:
    torch.manual_seed(seed)
    backbone = create_backbone("transformer", d_model=8, n_layers=2, n_heads=2).eval()
    x, mask = torch.randn(2, 40, 8), torch.ones(2, 40, dtype=torch.bool)
    mask[0, :5], mask[1, 33:] = False, False
    whole = backbone(x, mask)
    state, outputs, start = backbone.init_state(2), [], 0
    while start < 40:
        stop = start + int(torch.randint(1, 12, ()))
        y, state = backbone.forward_chunk(x[:, start:stop], state, mask[:, start:stop])
        outputs.append(y)
        start = stop
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_state_grows_as_declared() -> None:
    backbone = create_backbone("transformer", d_model=8, n_layers=2, n_heads=2)
    assert backbone.state_grows and backbone.can_step
    _, state = backbone.forward_chunk(torch.randn(1, 10, 8), backbone.init_state(1))
    assert state_bytes(state) == 2 * 10 * (2 * 8 + 1) * 4
    encoder = create_backbone("transformer", d_model=8, n_layers=2, n_heads=2, causal=False)
    assert not encoder.state_grows and not encoder.can_step
    with pytest.raises(ValueError, match="not causal"):
        encoder.init_state(1)


def test_without_rotary_an_encoder_ignores_order() -> None:
    order = torch.randperm(9)
    x = torch.randn(1, 9, 8, dtype=torch.float64)
    for rotary, same in ((False, True), (True, False)):
        mixer = FullAttention(8, n_heads=2, causal=False, rotary=rotary).double()
        assert torch.allclose(mixer(x[:, order]), mixer(x)[:, order]) is same


def test_errors() -> None:
    with pytest.raises(ValueError, match="d_model=10 must be a multiple of n_heads=4"):
        FullAttention(10)
    with pytest.raises(ValueError, match="the width of a head must be even, found 3"):
        FullAttention(12)
