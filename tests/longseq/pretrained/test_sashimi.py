"""SaShiMi files of the authors, against the published forward pass in float64, whole and position by position."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import gelu, glu, layer_norm

from longseq.errors import CheckpointError
from longseq.pretrained import load_pretrained
from longseq.registry import create_backbone

H, N, VOCAB, PAIRS, POOLS = 6, 3, 11, 2, (2, 3)


def block_weights(at: str, width: int, feedforward: bool) -> dict[str, Tensor]:
    norm = {f"{at}norm.weight": torch.rand(width) + 0.5, f"{at}norm.bias": torch.randn(width) * 0.3}
    if feedforward:
        return {
            **norm,
            f"{at}layer.ff.0.0.weight": torch.randn(2 * width, width) * 0.4,
            f"{at}layer.ff.0.0.bias": torch.randn(2 * width, 1) * 0.3,
            f"{at}layer.ff.2.weight": torch.randn(width, 2 * width) * 0.4,
            f"{at}layer.ff.2.bias": torch.randn(width, 1) * 0.3,
        }
    return {
        **norm,
        f"{at}layer.kernel.inv_dt": torch.rand(width, 1) - 2,
        f"{at}layer.kernel.A_real": torch.rand(2, N) - 0.7,
        f"{at}layer.kernel.A_imag": torch.rand(2, N) * 3,
        f"{at}layer.kernel.B": torch.randn(1, 2, N, 2),
        f"{at}layer.kernel.C": torch.randn(1, width, N, 2) * 0.3,
        f"{at}layer.D": torch.randn(1, width),
        f"{at}layer.output_linear.0.weight": torch.randn(2 * width, width, 1) * 0.4,
        f"{at}layer.output_linear.0.bias": torch.randn(2 * width) * 0.2,
    }


def file_weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    widths = [H * 2**i for i in range(len(POOLS) + 1)]
    weights = {"encoder.weight": torch.randn(VOCAB, H)}
    for i, pool in enumerate(POOLS):
        weights[f"model.d_layers.{i}.linear.weight"] = torch.randn(widths[i + 1], widths[i] * pool) * 0.3
        weights[f"model.d_layers.{i}.linear.bias"] = torch.randn(widths[i + 1], 1) * 0.3
    for j in range(2 * PAIRS):
        weights |= block_weights(f"model.c_layers.{j}.", widths[-1], bool(j % 2))
    for i in reversed(range(len(POOLS))):
        at = f"model.u_layers.{len(POOLS) - 1 - i}."
        weights[f"{at}0.linear.weight"] = torch.randn(widths[i] * POOLS[i], widths[i + 1]) * 0.3
        weights[f"{at}0.linear.bias"] = torch.randn(widths[i] * POOLS[i], 1) * 0.3
        for j in range(2 * PAIRS):
            weights |= block_weights(f"{at}{1 + j}.", widths[i], bool(j % 2))
    weights |= {"model.norm.weight": torch.rand(H) + 0.5, "model.norm.bias": torch.randn(H)}
    return {
        **weights,
        "decoder.output_transform.weight": torch.randn(VOCAB, H),
        "decoder.output_transform.bias": torch.randn(VOCAB),
    }


def state_space(w: dict[str, Tensor], at: str, u_BLH: Tensor) -> Tensor:
    width, length = u_BLH.shape[2], u_BLH.shape[1]
    A = torch.complex(-w[at + "A_real"].exp(), -w[at + "A_imag"]).repeat(width // 2, 1)
    B = torch.view_as_complex(w[at + "B"][0].contiguous()).repeat(width // 2, 1)
    C = torch.view_as_complex(w[at + "C"][0].contiguous())
    step = A * w[at + "inv_dt"].exp()
    k_LH = torch.stack([2 * (C * B * step.expm1() / A * (lag * step).exp()).sum(1).real for lag in range(length)])
    y = torch.zeros_like(u_BLH)
    for lag in range(length):
        y[:, lag:] += k_LH[lag] * u_BLH[:, : length - lag]
    return y


def norm(w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    if at + "s" in w:
        return w[at + "s"] / x.std(-1, correction=0, keepdim=True) * (x - x.mean(-1, keepdim=True) + w[at + "m"])
    return layer_norm(x, x.shape[-1:], w[at + "weight"], w[at + "bias"])


def layer(w: dict[str, Tensor], at: str, x: Tensor) -> Tensor:
    z = norm(w, f"{at}norm.", x)
    if f"{at}layer.ff.2.weight" in w:
        z = gelu(z @ w[f"{at}layer.ff.0.0.weight"].T + w[f"{at}layer.ff.0.0.bias"].flatten())
        return x + z @ w[f"{at}layer.ff.2.weight"].T + w[f"{at}layer.ff.2.bias"].flatten()
    y = gelu(state_space(w, f"{at}layer.kernel.", z) + w[f"{at}layer.D"] * z)
    y = y @ w[f"{at}layer.output_linear.0.weight"].squeeze(-1).T + w[f"{at}layer.output_linear.0.bias"]
    return x + glu(y, -1)


def published(weights: dict[str, Tensor], ids: Tensor) -> Tensor:
    """The authors' forward pass; channels are the slower index where positions are folded into them."""
    w = {name.removeprefix("model."): x.double() for name, x in weights.items()}
    x = w["encoder.weight"][ids]
    outputs = [x]
    for i, pool in enumerate(POOLS):
        folded = x.unflatten(1, (-1, pool)).transpose(2, 3).flatten(2)
        x = folded @ w[f"d_layers.{i}.linear.weight"].T + w[f"d_layers.{i}.linear.bias"].flatten()
        outputs.append(x)
    for j in range(2 * PAIRS):
        x = layer(w, f"c_layers.{j}.", x)
    x = x + outputs.pop()
    for i in range(len(POOLS)):
        pool = POOLS[len(POOLS) - 1 - i]
        x = x @ w[f"u_layers.{i}.0.linear.weight"].T + w[f"u_layers.{i}.0.linear.bias"].flatten()
        x = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
        x = x.unflatten(2, (-1, pool)).transpose(2, 3).flatten(1, 2)
        x = x + outputs.pop()
        outputs.append(x)
        for j in range(2 * PAIRS):
            x = layer(w, f"u_layers.{i}.{1 + j}.", x)
        x = x + outputs.pop()
    x = norm(w, "norm.", x)
    return x @ w["decoder.output_transform.weight"].T + w["decoder.output_transform.bias"]


def test_equals_the_published_network(write_checkpoint: Callable[..., Path]) -> None:
    weights = file_weights()
    model, report = load_pretrained(write_checkpoint(None, weights, "sashimi.pt"))
    assert report.format == "sashimi"
    assert not report.unexpected and not report.missing and not report.reinitialized
    ids = torch.randint(VOCAB, (2, 24))
    with torch.no_grad():
        expected = published(weights, ids)
        assert expected.abs().max() > 1
        assert (model.double()(ids) - expected).abs().max() <= 1e-8
        state, found = model.init_state(2), []
        for part in (ids[:, :1], ids[:, 1:8], ids[:, 8:9], ids[:, 9:]):
            y, state = model.forward_chunk(part, state)
            found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), expected, atol=1e-6, rtol=1e-6)


def test_norms_with_one_weight_for_all_channels(write_checkpoint: Callable[..., Path]) -> None:
    weights = {}
    for name, x in file_weights().items():
        scalar = name.replace("norm.weight", "norm.s").replace("norm.bias", "norm.m")
        weights[scalar] = x if scalar == name else x[:1]
    model, report = load_pretrained(write_checkpoint(None, weights, "sashimi.pt"))
    assert not report.unexpected and not report.missing
    ids = torch.randint(VOCAB, (2, 12))
    with torch.no_grad():
        assert (model.double()(ids) - published(weights, ids)).abs().max() <= 1e-7


def test_version_3_of_s4d_and_no_bias(write_checkpoint: Callable[..., Path]) -> None:
    weights = file_weights()
    weights["decoder.output_transform.bias"] = torch.zeros(VOCAB)
    file = {}
    for name, x in weights.items():
        name = name.replace("layer.kernel.", "layer.kernel.kernel.").replace("inv_dt", "log_dt").replace("A_real", "inv_A_real")
        file[name] = -x if name.endswith("A_imag") else x[0] if name.endswith("kernel.B") else x
    del file["decoder.output_transform.bias"]
    model, report = load_pretrained(write_checkpoint(None, file, "sashimi.ckpt", epoch=1))
    ids = torch.randint(VOCAB, (2, 12))
    with torch.no_grad():
        assert (model.double()(ids) - published(weights, ids)).abs().max() <= 1e-8
    assert not report.unexpected and not report.reinitialized and "zoh was taken" in str(report)
    chosen, _ = load_pretrained(write_checkpoint(None, file, "sashimi.ckpt", epoch=1), discretization="bilinear")
    assert chosen.config["backbone"]["mixer_options"] == {"n_ssm": 2, "discretization": "bilinear"}


def test_each_channel_may_have_its_own_poles(write_checkpoint: Callable[..., Path]) -> None:
    weights = file_weights()
    own = {}
    for name, x in weights.items():
        part = name.rpartition(".")[2]
        if part in ("A_real", "A_imag", "B"):
            width = weights[name.removesuffix(part) + "C"].shape[1]
            x = x.repeat(*[1] * (part == "B"), width // 2, *[1] * (x.ndim - 1 - (part == "B")))
        own[name] = x
    model, report = load_pretrained(write_checkpoint(None, own, "sashimi.pt"))
    ids = torch.randint(VOCAB, (2, 12))
    with torch.no_grad():
        assert (model.double()(ids) - published(weights, ids)).abs().max() <= 1e-8
    assert model.config["backbone"]["mixer_options"] == {} and not report.unexpected


def test_skips_belong_to_one_form() -> None:
    with pytest.raises(ValueError, match="unet=false"):
        create_backbone("sashimi", d_model=8, n_layers=1, unet=True, skips=True)


def test_what_cannot_be_built_is_said(write_checkpoint: Callable[..., Path]) -> None:
    for change, problem in (
        ({"model.d_layers.1.layer.D": torch.zeros(1, H)}, "unet=true"),
        ({"model.c_layers.0.layer.output_linear.0.weight_g": torch.zeros(2)}, "weight norm"),
        ({"model.c_layers.0.layer.kernel.A_real": torch.zeros(4, N)}, "sets of poles"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            load_pretrained(write_checkpoint(None, {**file_weights(), **change}, "sashimi.pt"))
