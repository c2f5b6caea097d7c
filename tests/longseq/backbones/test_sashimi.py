"""SaShiMi's own promises: pools that never look ahead, rows at different places of their pools, any causal mixer."""

from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.backbone import Backbone, state_tensors
from longseq.registry import create_backbone

FORMS: list[dict[str, Any]] = [
    {"pool": (4, 4)},
    {"pool": (3,), "unet": True},
    {"pool": (2, 5), "unet": True, "mixer": "mamba"},
    {"pool": (1, 4), "expand": 1, "mixer": "gru"},
    {"pool": ()},
]
ALL = pytest.mark.parametrize("options", FORMS, ids=str)


def build(**options: Any) -> Backbone:
    torch.manual_seed(0)
    mixer = options.get("mixer", "s4d")
    sizes = {} if mixer == "gru" else {"d_state": 8}
    return create_backbone("sashimi", d_model=8, n_layers=1, **sizes, **options).eval()


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    assert (found - expected).abs().max() <= tolerance


@ALL
@pytest.mark.parametrize("sizes", [[47], [1, 2, 3, 5, 36], [16, 16, 15], [1] * 47])
@torch.no_grad()
def test_chunks_of_any_size_give_the_whole(options: dict[str, Any], sizes: list[int]) -> None:
    model, x = build(**options), torch.randn(2, 47, 8)
    state, outputs = model.init_state(2), []
    for chunk in x.split(sizes, 1):
        y, state = model.forward_chunk(chunk, state)
        outputs.append(y)
    close(torch.cat(outputs, 1), model(x))


@ALL
@torch.no_grad()
def test_rows_may_stand_at_different_places_of_their_pools(options: dict[str, Any]) -> None:
    model, x = build(**options), torch.randn(3, 40, 8)
    whole, state, places = model(x), model.init_state(3), [0, 0, 0]
    found: list[list[Tensor]] = [[], [], []]
    for counts in ([7, 3, 1], [0, 5, 2], [10, 10, 9], [4, 9, 13]):
        chunk, mask = torch.full((3, max(counts), 8), float("nan")), torch.zeros(3, max(counts), dtype=torch.bool)
        for i, n in enumerate(counts):
            # Padding in front and behind in turn.
            span = slice(0, n) if i % 2 == 0 else slice(max(counts) - n, max(counts))
            chunk[i, span], mask[i, span] = x[i, places[i] : places[i] + n], True
            places[i] += n
        y, state = model.forward_chunk(chunk, state, mask)
        assert (y[~mask] == 0).all()
        for i in range(3):
            found[i].append(y[i][mask[i]])
    for i in range(3):
        close(torch.cat(found[i]), whole[i, : places[i]])


@ALL
@torch.no_grad()
def test_a_pool_tells_nothing_before_it_is_full(options: dict[str, Any]) -> None:
    model, x = build(**options), torch.randn(1, 33, 8)
    before = model(x)
    for t in range(33):
        changed = x.clone()
        changed[:, t] += 1.0
        assert torch.equal(model(changed)[:, :t], before[:, :t])


@torch.no_grad()
def test_coarse_layers_carry_the_past_forward() -> None:
    model, x = build(pool=(4, 4)), torch.randn(1, 64, 8)
    # Without their layers the full resolution cannot know the sum of what was long ago.
    for name, weight in model.named_parameters():
        if name.startswith("outer.after") and "mixer.output" in name:
            torch.nn.init.zeros_(weight)
    changed = x.clone()
    changed[:, :16] = 0.0
    assert (model(changed)[:, 48:] - model(x)[:, 48:]).abs().max() > 1e-6


def test_the_state_has_one_row_per_sequence_and_a_fixed_size() -> None:
    model = build(pool=(4, 4))
    state = model.init_state(5)
    assert all(tensor.shape[0] == 5 for tensor in state_tensors(state))
    sizes = sum(t.numel() for t in state_tensors(state))
    _, state = model.forward_chunk(torch.randn(5, 37, 8), state)
    assert sum(t.numel() for t in state_tensors(state)) == sizes


def test_widths_grow_with_the_pools() -> None:
    model = build(pool=(4, 4), expand=3)
    widths = [p.shape[0] for name, p in model.named_parameters() if name.endswith("norm1.weight")]
    assert sorted(set(widths)) == [8, 24, 72]


def test_mistakes_are_answered() -> None:
    with pytest.raises(ValueError, match="pool"):
        build(pool=(0,))
    with pytest.raises(ValueError, match="causal mixer"):
        build(mixer_options={"causal": False})
    with pytest.raises(ValueError, match="whole network"):
        create_backbone("sashimi", d_model=8, n_layers=1, mixer="sashimi")
    with pytest.raises(ValueError, match="whole network"):
        create_backbone("sashimi", d_model=8, n_layers=1, bidirectional=True)


@torch.no_grad()
def test_mixers_with_a_longest_sequence_pass_it_on() -> None:
    model = create_backbone("sashimi", d_model=8, n_layers=1, mixer="hyena", mixer_options={"max_length": 40})
    # Rows are filled up to whole pools of 16.
    assert model.max_length == 32
    assert model(torch.randn(1, 31, 8)).shape == (1, 31, 8)
    with pytest.raises(ValueError, match="max_length"):
        model(torch.randn(1, 33, 8))
    with pytest.raises(ValueError, match="at least 16"):
        create_backbone("sashimi", d_model=8, n_layers=1, mixer="hyena", mixer_options={"max_length": 15})
