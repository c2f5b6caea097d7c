"""The Mamba layer against the one in `transformers`, and what is its own: initialisation, streaming, bf16, export."""

import math
from typing import Any

import pytest
import torch
from torch import nn

from longseq.backbones.mamba import MambaMixer
from longseq.layers.marks import MARK
from longseq.layers.selective_ssm import SelectiveSSM
from longseq.registry import create_backbone


def randomise(module: nn.Module) -> None:
    """Weights as after training: nothing at its initial value."""
    for name, parameter in module.named_parameters():
        noise = 0.05 * torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(noise if not name.endswith("dt_proj.bias") else noise.abs())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [1, 3, 64, 257])
def test_equals_transformers(length: int) -> None:
    transformers = pytest.importorskip("transformers")
    from transformers.models.mamba.modeling_mamba import MambaMixer as TheirMixer

    config = transformers.MambaConfig(hidden_size=48, state_size=16, num_hidden_layers=2, use_cache=False)
    theirs = TheirMixer(config, layer_idx=0).eval()
    ours = MambaMixer(48)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, length, 48)
    assert (ours(x) - theirs(x)).abs().max() <= 1e-4


@pytest.mark.filterwarnings("ignore")
def test_network_equals_transformers_with_left_padding() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.MambaConfig(vocab_size=8, hidden_size=32, num_hidden_layers=3, use_cache=False)
    theirs = transformers.MambaModel(config).eval()
    ours = create_backbone("mamba", d_model=32, n_layers=3).eval()
    randomise(theirs)
    renamed = {"norm.weight": "norm1.weight", **{f"mixer.{n}": f"mixer.{n}" for n, _ in MambaMixer(32).named_parameters()}}
    state = {f"blocks.{i}.{new}": theirs.layers[i].state_dict()[old] for i in range(3) for old, new in renamed.items()}
    ours.load_state_dict({**state, "final_norm.weight": theirs.norm_f.weight})
    x, mask = torch.randn(2, 40, 32), torch.ones(2, 40, dtype=torch.bool)
    mask[0, :9] = False
    expected = theirs(inputs_embeds=x, attention_mask=mask.long()).last_hidden_state
    assert (ours(x, mask) - expected)[mask].abs().max() <= 1e-4


def test_initialisation_is_the_published_one() -> None:
    layer = MambaMixer(64, n_layers=16, dt_min=1e-3, dt_max=1e-1)
    dt = torch.nn.functional.softplus(layer.dt_proj.bias)
    assert 1e-3 * 0.999 <= dt.min() < 2e-2 < dt.max() <= 1e-1 * 1.001
    assert layer.dt_rank == 4
    torch.testing.assert_close(layer.A_log.exp()[0], torch.arange(1, 17.0))
    bound = layer.d_inner**-0.5 / math.sqrt(16)
    assert 0.9 * bound < layer.out_proj.weight.abs().max() <= bound
    for parameter in (layer.A_log, layer.D, layer.dt_proj.bias):
        assert parameter.dtype == torch.float32
        assert getattr(parameter, MARK) == {"weight_decay": 0.0}


def test_streaming_equals_the_whole_sequence_with_fixed_memory() -> None:
    layer = MambaMixer(12, d_state=5).double()
    randomise(layer)
    x = torch.randn(2, 30, 12, dtype=torch.float64)
    whole, state, outputs = layer(x), layer.init_state(2), []
    size = sum(v.numel() for v in state.values())
    y, state = layer.forward_chunk(x[:, :17], state)
    outputs.append(y)
    for t in range(17, 30):
        y, state = layer.step(x[:, t], state)
        outputs.append(y.unsqueeze(1))
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole)
    assert sum(v.numel() for v in state.values()) == size


def test_gradients_flow_through_the_state() -> None:
    layer = MambaMixer(8).double()
    x = torch.randn(1, 20, 8, dtype=torch.float64, requires_grad=True)
    y1, state = layer.forward_chunk(x[:, :9], layer.init_state(1))
    y2, _ = layer.forward_chunk(x[:, 9:], state)
    expected = torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])
    ours = torch.autograd.grad(torch.cat([y1, y2], dim=1).square().sum(), [x, *layer.parameters()])
    for got, want in zip(ours, expected, strict=True):
        torch.testing.assert_close(got, want)


def test_bfloat16_keeps_state_and_step_sizes_in_float32() -> None:
    layer = MambaMixer(16)
    x = torch.randn(2, 50, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = layer.forward_chunk(x, layer.init_state(2))
        dt, bias, B, _ = layer._select(torch.randn(2, 5, 32))
    assert y.dtype == B.dtype == dt.dtype == torch.bfloat16
    # Added in the scan: the sum with it is not rounded to 16 bits.
    assert bias.dtype == torch.float32
    assert {v.dtype for v in state.values()} == {torch.float32}
    assert (y.float() - layer(x)).abs().max() < 2e-2
    half = MambaMixer(16).bfloat16()
    y, state = half.step(x[:, 0].bfloat16(), half.init_state(2))
    assert y.dtype == torch.bfloat16
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert state["ssm"].dtype == torch.float32


def test_projections_are_called_as_linear_layers() -> None:
    layer, seen = MambaMixer(8), set()
    for name in ("in_proj", "x_proj", "dt_proj", "out_proj"):
        getattr(layer, name).register_forward_hook(lambda *_, name=name: seen.add(name))
    layer(torch.randn(1, 4, 8))
    assert seen == {"in_proj", "x_proj", "dt_proj", "out_proj"}


def test_network_exports_with_any_batch_and_length() -> None:
    model = create_backbone("mamba", d_model=16, n_layers=1).eval()
    both = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    arguments = (torch.randn(2, 20, 16), torch.ones(2, 20, dtype=torch.bool))
    program = torch.export.export(model, arguments, dynamic_shapes=(both, both))
    for batch, length in ((2, 20), (1, 50)):
        x, mask = torch.randn(batch, length, 16), torch.rand(batch, length) > 0.2
        torch.testing.assert_close(program.module()(x, mask), model(x, mask), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "match"),
    [({"d_state": 0}, "d_state"), ({"dt_rank": "big"}, "dt_rank"), ({"dt_min": 0.2}, "dt_min"), ({"d_conv": 0}, "d_conv")],
)
def test_errors_name_the_option(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        MambaMixer(8, **options)


def test_the_inside_is_a_module_of_its_own() -> None:
    ssm = SelectiveSSM(6, dt_rank=2).double()
    x, z = torch.randn(2, 11, 6, dtype=torch.float64), torch.randn(2, 11, 6, dtype=torch.float64)
    ahead, _ = ssm.scan(x, z)
    back, _ = ssm.scan(x.flip(1), z.flip(1), reverse=True)
    torch.testing.assert_close(back.flip(1), ahead)
