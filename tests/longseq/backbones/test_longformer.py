"""Longformer: the published model's numbers, and the causal form's fixed-size state."""

from typing import Any

import pytest
import torch
from torch import nn

from longseq import create_backbone
from longseq.backbone import Stack, state_bytes
from longseq.backbones.longformer import Longformer, global_tokens, leading_positions

PARITY = 1e-4


def published_attention(hidden: int, heads: int, window: int) -> nn.Module:
    from transformers import LongformerConfig
    from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

    config = LongformerConfig(hidden_size=hidden, num_attention_heads=heads, attention_window=[2 * window], num_hidden_layers=1)
    config.attention_probs_dropout_prob = 0.0
    return LongformerSelfAttention(config, layer_id=0).eval()


def copy_attention(mixer: Longformer, attention: nn.Module) -> None:
    for name in ("query", "key", "value", "query_global", "key_global", "value_global"):
        getattr(mixer, name).load_state_dict(getattr(attention, name).state_dict())


def renamed(key: str) -> str:
    """A published encoder's key as ours."""
    places = {
        "attention.self": "mixer",
        "attention.output.dense": "mixer.out_proj",
        "attention.output.LayerNorm": "norm1",
        "intermediate.dense": "mlp.fc1",
        "output.dense": "mlp.fc2",
        "output.LayerNorm": "norm2",
    }
    _, layer, rest = key.split(".", 2)
    theirs = next(place for place in places if rest.startswith(place))
    return f"blocks.{layer}.{rest.replace(theirs, places[theirs], 1)}"


@pytest.mark.parametrize("length", [32, 48])
@pytest.mark.parametrize("with_global", [False, True])
def test_layer_matches_transformers(length: int, with_global: bool) -> None:
    torch.manual_seed(length)
    hidden, heads, window = 24, 3, 8
    attention = published_attention(hidden, heads, window)
    mixer = Longformer(hidden, n_heads=heads, window=window, rotary=False)
    copy_attention(mixer, attention)
    nn.init.eye_(mixer.out_proj.weight)
    nn.init.zeros_(mixer.out_proj.bias)
    x = torch.randn(2, length, hidden)
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, length - 11 :] = False
    global_mask = torch.zeros_like(mask)
    if with_global:
        global_mask[0, [0, 13]] = True
        global_mask[1, 2] = True
    # Its convention: negative = padding, 0 = local, positive = global.
    signs = torch.where(mask, 0.0, -10000.0) + torch.where(global_mask, 10000.0, 0.0)
    expected = attention(
        x,
        attention_mask=signs,
        is_index_masked=signs < 0,
        is_index_global_attn=signs > 0,
        is_global_attn=bool((signs > 0).any()),
    )[0]
    found = mixer(x, mask, global_mask_BL=global_mask)
    torch.testing.assert_close(found[mask], expected[mask], atol=PARITY, rtol=0.0)


@pytest.mark.parametrize("with_global", [False, True])
def test_model_matches_transformers(with_global: bool) -> None:
    from transformers import LongformerConfig, LongformerModel

    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=64,
        attention_window=[8, 16, 8],
        max_position_embeddings=130,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.3,
        type_vocab_size=1,
        pad_token_id=1,
    )
    published = LongformerModel(config, add_pooling_layer=False).eval()
    mixers = [Longformer(32, n_heads=4, window=[4, 8, 4], rotary=False, layer_index=i) for i in range(3)]
    ours = Stack(mixers, 32, norm="layer", norm_eps=config.layer_norm_eps, prenorm=False, mlp_ratio=2.0).eval()
    ours.load_state_dict({renamed(key): value for key, value in published.encoder.state_dict().items()})
    ids = torch.randint(2, 50, (2, 41))
    mask = torch.ones(2, 41, dtype=torch.bool)
    mask[0, 30:] = False
    ids[~mask] = 1
    global_mask = torch.zeros_like(mask)
    if with_global:
        global_mask[:, :2] = True
        global_mask[1, 20] = True
    with torch.no_grad():
        expected = published(ids, attention_mask=mask.long(), global_attention_mask=global_mask.long()).last_hidden_state
        with global_tokens(ours, global_mask):
            found = ours(published.embeddings(input_ids=ids), mask)
    torch.testing.assert_close(found[mask], expected[mask], atol=PARITY, rtol=0.0)


@pytest.mark.parametrize("window,dilation", [(1, 1), (5, 1), (4, 3), (300, 1), (0, 1)])
@pytest.mark.parametrize("seed", [0, 1])
def test_causal_form_in_random_chunks(window: int, dilation: int, seed: int) -> None:
    torch.manual_seed(seed)
    mixer = Longformer(8, n_heads=2, window=window, dilation=dilation, causal=True).double()
    x = torch.randn(2, 61, 8, dtype=torch.float64)
    mask = torch.ones(2, 61, dtype=torch.bool)
    mask[0, :9] = False
    mask[1, 50:] = False
    whole = mixer(x, mask)
    state, outputs, start = mixer.init_state(2), [], 0
    while start < 61:
        stop = start + int(torch.randint(1, 20, ()))
        y, state = mixer.forward_chunk(x[:, start:stop], state, mask[:, start:stop])
        outputs.append(y)
        start = stop
    torch.testing.assert_close(torch.cat(outputs, dim=1)[mask], whole[mask], atol=1e-10, rtol=0.0)


def test_state_does_not_grow_and_is_differentiable() -> None:
    backbone = create_backbone("longformer", d_model=8, n_layers=2, n_heads=2, window=6, dilation=2, causal=True)
    state = backbone.init_state(1)
    size = state_bytes(state)
    assert size == 2 * 12 * (2 * 8 + 1) * 4
    x = torch.randn(1, 40, 8, requires_grad=True)
    _, state = backbone.forward_chunk(x[:, :30], state)
    assert state_bytes(state) == size
    y, _ = backbone.forward_chunk(x[:, 30:], state)
    # A plain sum of a LayerNorm is constant.
    (y * torch.arange(8.0)).sum().backward()
    # Two layers reach back 12 positions each, and no further than that from position 30.
    assert x.grad is not None
    assert x.grad[0, 12:30].abs().sum() > 0
    assert (x.grad[0, :6] == 0).all()


def test_steps_of_a_long_stream_stay_accurate() -> None:
    """The state counts no positions, so a late window gives what the same window gives at the start."""
    mixer = Longformer(8, n_heads=2, window=4, causal=True)
    state = mixer.init_state(1)
    x = torch.randn(1, 300, 8)
    for t in range(300):
        y, state = mixer.step(x[:, t], state)
    torch.testing.assert_close(y, mixer(x[:, -5:])[:, -1], atol=1e-6, rtol=1e-6)


def test_leading_positions() -> None:
    x = torch.zeros(2, 7, 1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0]]).bool()
    assert leading_positions(x, 2, mask, None).int().tolist() == [[0, 0, 1, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
    segments = torch.tensor([[0, 0, 0, 0, 1, 1, 1], [3, 4, 4, 4, 4, 4, 4]])
    assert leading_positions(x, 1, mask, segments).int().tolist() == [[0, 0, 1, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]]
    assert leading_positions(x, 1, None, segments).int().tolist() == [[1, 0, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]]


def test_global_token_carries_information_across() -> None:
    """Position 39 is nine windows away from position 0: only the global token connects them."""
    torch.manual_seed(0)
    for n_global, connected in ((0, False), (1, True)):
        mixer = Longformer(8, n_heads=2, window=4, n_global=n_global)
        x = torch.randn(1, 40, 8, requires_grad=True)
        mixer(x)[0, 39].sum().backward()
        assert x.grad is not None
        assert bool((x.grad[0, 0] != 0).any()) is connected


def test_packed_documents_are_as_if_alone() -> None:
    backbone = create_backbone("longformer", d_model=8, n_layers=2, n_heads=2, window=3, n_global=2).eval()
    x = torch.randn(1, 30, 8)
    packed = backbone(x, None, torch.tensor([[0] * 11 + [1] * 19]))
    torch.testing.assert_close(packed, torch.cat((backbone(x[:, :11]), backbone(x[:, 11:])), dim=1), atol=1e-5, rtol=1e-5)


def test_global_tokens_are_restored_after_the_block() -> None:
    mixer = Longformer(8, n_heads=2, window=2)
    with pytest.raises(RuntimeError, match="stop"), global_tokens(mixer, torch.ones(1, 4, dtype=torch.bool)):
        assert mixer.global_mask_BL is not None
        raise RuntimeError("stop")
    assert mixer.global_mask_BL is None


def test_global_projections_start_as_copies_and_learn() -> None:
    mixer = Longformer(8, n_heads=2, window=2)
    assert torch.equal(mixer.query.weight, mixer.query_global.weight)
    assert mixer.query.weight is not mixer.query_global.weight
    mixer(torch.randn(2, 9, 8)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in mixer.parameters())


@pytest.mark.parametrize("options", [{"window": 5}, {"window": 5, "causal": True, "dilation": 2}])
def test_export_serves_any_batch_and_length(options: dict[str, Any]) -> None:
    backbone = create_backbone("longformer", d_model=8, n_layers=2, n_heads=2, **options).eval()
    dims = {0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=4096)}
    example = (torch.randn(2, 21, 8), torch.ones(2, 21, dtype=torch.bool))
    program = torch.export.export(backbone, example, dynamic_shapes=(dims, dims)).module()
    for batch, length in ((1, 3), (3, 50)):
        x, mask = torch.randn(batch, length, 8), torch.ones(batch, length, dtype=torch.bool)
        mask[0, :2] = False
        torch.testing.assert_close(program(x, mask), backbone(x, mask), atol=1e-5, rtol=1e-5)


def test_errors() -> None:
    with pytest.raises(ValueError, match="d_model=10 must be a multiple of n_heads=4"):
        Longformer(10)
    with pytest.raises(ValueError, match="n_global=1, causal=True"):
        Longformer(8, n_global=1, causal=True)
    with pytest.raises(ValueError, match="window=-1: expected numbers of 0 or more"):
        Longformer(8, window=-1)
    with pytest.raises(ValueError, match="dilation=0"):
        Longformer(8, dilation=0)
    with pytest.raises(ValueError, match="not causal here"):
        Longformer(8).init_state(1)
    with pytest.raises(ValueError, match="need the global projections"):
        Longformer(8, n_global=0)(torch.zeros(1, 3, 8), global_mask_BL=torch.ones(1, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="Linear holds no longformer layer"):
        global_tokens(nn.Linear(1, 1), torch.ones(1, 1).bool()).__enter__()
