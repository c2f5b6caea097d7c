"""Mamba-2: the published layer, its initial values, and what it promises beyond it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from longseq import create_backbone
from longseq.backbones.mamba2 import GatedRMSNorm, Mamba2Mixer
from longseq.optim import parameter_options

SMALL: dict[str, Any] = {"d_state": 6, "head_dim": 4}


def published_layer(n_groups: int, bias: bool) -> tuple[Any, Mamba2Mixer]:
    """A layer of another library and ours with its weights, which carry the same names."""
    modeling = pytest.importorskip("transformers.models.mamba2.modeling_mamba2")
    config = modeling.Mamba2Config(
        hidden_size=8,
        num_heads=4,
        head_dim=4,
        state_size=6,
        n_groups=n_groups,
        use_bias=bias,
        chunk_size=16,
        num_hidden_layers=1,
        layer_norm_epsilon=1e-5,
        expand=2,
    )
    torch.manual_seed(n_groups)
    theirs = modeling.Mamba2Mixer(config, layer_idx=0).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    ours = Mamba2Mixer(8, n_groups=n_groups, bias=bias, **SMALL).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize(("n_groups", "bias"), [(1, False), (2, True)])
@pytest.mark.parametrize("length", [1, 16, 53])
def test_equals_the_published_layer(n_groups: int, bias: bool, length: int) -> None:
    theirs, ours = published_layer(n_groups, bias)
    x = torch.randn(2, length, 8)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_equals_the_published_layer_under_left_padding() -> None:
    theirs, ours = published_layer(1, False)
    mask = torch.ones(2, 20, dtype=torch.bool)
    mask[1, :7] = False
    x = torch.randn(2, 20, 8)
    with torch.no_grad():
        expected = theirs(x, attention_mask=mask.long())
        torch.testing.assert_close(ours(x, mask)[mask], expected[mask], rtol=1e-4, atol=1e-5)


def test_parameters_have_the_published_names_and_shapes() -> None:
    mixer = Mamba2Mixer(32, d_state=16, head_dim=8, n_groups=2)
    shapes = {name: tuple(tensor.shape) for name, tensor in mixer.state_dict().items()}
    assert shapes == {
        "dt_bias": (8,),
        "A_log": (8,),
        "D": (8,),
        "in_proj.weight": (2 * 64 + 2 * 2 * 16 + 8, 32),
        "conv1d.weight": (64 + 2 * 2 * 16, 1, 4),
        "conv1d.bias": (64 + 2 * 2 * 16,),
        "norm.weight": (64,),
        "out_proj.weight": (32, 64),
    }


def test_initial_rates_and_step_sizes_lie_in_their_ranges() -> None:
    torch.manual_seed(0)
    mixer = Mamba2Mixer(256, head_dim=2, A_init_min=2.0, A_init_max=8.0, dt_min=1e-3, dt_max=1e-2)
    dt_H = torch.nn.functional.softplus(mixer.dt_bias)
    assert dt_H.min() >= 0.999e-3 and dt_H.max() <= 1.001e-2
    # Log-uniform: half of them lie below the geometric mean.
    assert 0.35 < (dt_H < 10**-2.5).float().mean() < 0.65
    assert mixer.A_log.exp().min() >= 1.999 and mixer.A_log.exp().max() <= 8.001


def test_rates_step_sizes_and_skip_are_not_decayed() -> None:
    found = parameter_options(Mamba2Mixer(8, **SMALL), lr=1e-2, weight_decay=0.1)
    decayed = {name for name, option in found.items() if option["weight_decay"] > 0}
    assert decayed == {"in_proj.weight", "conv1d.weight", "out_proj.weight"}


def test_gated_norm_is_the_norm_of_the_gated_groups() -> None:
    norm = GatedRMSNorm(6, n_groups=2, eps=0.0)
    x, z = torch.randn(3, 6), torch.randn(3, 6)
    gated = x * z * torch.sigmoid(z)
    expected = torch.cat([part / part.square().mean(-1, keepdim=True).sqrt() for part in gated.split(3, dim=-1)], -1)
    torch.testing.assert_close(norm(x, z), expected)


def run_chunks(mixer: Mamba2Mixer, x: Tensor, sizes: list[int]) -> Tensor:
    state, outputs = mixer.init_state(x.shape[0]), []
    for part in x.split(sizes, dim=1):
        y, state = mixer.forward_chunk(part, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1)


def test_whole_equals_chunks_equals_steps() -> None:
    torch.manual_seed(1)
    mixer = Mamba2Mixer(8, n_groups=2, chunk_size=16, **SMALL).double()
    x = torch.randn(2, 90, 8, dtype=torch.float64)
    whole = mixer(x)
    torch.testing.assert_close(run_chunks(mixer, x, [1, 2, 40, 47]), whole)
    state = mixer.init_state(2)
    for t in range(90):
        y, state = mixer.step(x[:, t], state)
        torch.testing.assert_close(y, whole[:, t])


def test_a_padded_chunk_leaves_the_state_after_its_last_real_position() -> None:
    mixer = Mamba2Mixer(8, **SMALL)
    x = torch.randn(2, 30, 8)
    mask = torch.arange(30) < torch.tensor([[30], [17]])
    x[1, 17:] = float("nan")
    _, state = mixer.forward_chunk(x, mixer.init_state(2), mask)
    _, expected = mixer.forward_chunk(x[1:, :17], mixer.init_state(1))
    for name in ("conv", "ssm"):
        torch.testing.assert_close(state[name][1:], expected[name])


def test_bf16_keeps_the_state_in_fp32() -> None:
    mixer = Mamba2Mixer(8, **SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, state = mixer.forward_chunk(torch.randn(1, 40, 8), mixer.init_state(1))
        y_step, state = mixer.step(torch.randn(1, 8), state)
    assert y.dtype == y_step.dtype == torch.bfloat16
    assert state["conv"].dtype == state["ssm"].dtype == torch.float32


def test_deep_networks_start_with_smaller_outputs() -> None:
    torch.manual_seed(2)
    shallow = Mamba2Mixer(32, head_dim=8).out_proj.weight.std()
    deep = Mamba2Mixer(32, n_layers=16, head_dim=8).out_proj.weight.std()
    assert 3.0 < shallow / deep < 5.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head_dim": 5}, "head_dim=5 must divide"),
        ({"n_groups": 3}, "n_groups=3 must divide"),
        ({"d_state": 0}, "d_state must be at least 1"),
        ({"dt_min": 0.2}, "dt_min=0.2"),
        ({"A_init_min": 20.0}, "A_init_min"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_backbone("mamba2", d_model=8, n_layers=1, **{**SMALL, **options})
