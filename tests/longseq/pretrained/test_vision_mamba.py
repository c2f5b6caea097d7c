"""Vim and VideoMamba files, against the published equations in float64."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import conv3d, silu, softplus

from longseq.errors import CheckpointError
from longseq.pretrained import load_pretrained
from longseq.pretrained._vision_mamba import MEAN, STD

D, E, N, K, R, LAYERS, PATCH, SIDE, CLASSES = 8, 16, 4, 4, 1, 2, 4, 3, 5
TOLERANCE = 1e-4


def file_weights(frames: int = 0) -> dict[str, Tensor]:
    volume = (1,) if frames else ()
    weights = {
        "patch_embed.proj.weight": torch.randn(D, 3, *volume, PATCH, PATCH) * 0.2,
        "patch_embed.proj.bias": torch.randn(D),
        "cls_token": torch.randn(1, 1, D),
        "pos_embed": torch.randn(1, SIDE * SIDE + 1, D),
        "norm_f.weight": torch.rand(D) + 0.5,
        "head.weight": torch.randn(CLASSES, D),
        "head.bias": torch.randn(CLASSES),
    }
    if frames:
        weights["temporal_pos_embedding"] = torch.randn(1, frames, D)
    for i in range(LAYERS):
        at = f"layers.{i}.mixer."
        weights |= {
            f"layers.{i}.norm.weight": torch.rand(D) + 0.5,
            at + "in_proj.weight": torch.randn(2 * E, D) * 0.3,
            at + "out_proj.weight": torch.randn(D, E) * 0.4,
        }
        for b in ("", "_b"):
            weights |= {
                f"{at}A{b}_log": torch.rand(E, N),
                f"{at}D{b}": torch.randn(E),
                f"{at}conv1d{b}.weight": torch.randn(E, 1, K) * 0.4,
                f"{at}conv1d{b}.bias": torch.randn(E) * 0.1,
                f"{at}x_proj{b}.weight": torch.randn(R + 2 * N, E) * 0.3,
                f"{at}dt_proj{b}.weight": torch.randn(E, R) * 0.5,
                f"{at}dt_proj{b}.bias": torch.randn(E) - 2,
            }
    return weights


def scan(w: dict[str, Tensor], at: str, b: str, x: Tensor, z: Tensor) -> Tensor:
    padded = torch.cat([x.new_zeros(x.shape[0], K - 1, E), x], 1)
    taps = w[f"{at}conv1d{b}.weight"].squeeze(1)
    x = silu(sum(padded[:, k : k + x.shape[1]] * taps[:, k] for k in range(K)) + w[f"{at}conv1d{b}.bias"])
    dt, B, C = (x @ w[f"{at}x_proj{b}.weight"].T).split([R, N, N], -1)
    dt = softplus(dt @ w[f"{at}dt_proj{b}.weight"].T + w[f"{at}dt_proj{b}.bias"])
    A, state, outputs = -w[f"{at}A{b}_log"].exp(), x.new_zeros(x.shape[0], E, N), []
    for t in range(x.shape[1]):
        state = torch.exp(dt[:, t, :, None] * A) * state + dt[:, t, :, None] * B[:, t, None] * x[:, t, :, None]
        outputs.append((state * C[:, t, None]).sum(-1) + w[f"{at}D{b}"] * x[:, t])
    return torch.stack(outputs, 1) * silu(z)


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight


def network(w: dict[str, Tensor], x: Tensor, share: float, place: int) -> Tensor:
    for i in range(LAYERS):
        at = f"layers.{i}.mixer."
        inner, gate = (rms(x, w[f"layers.{i}.norm.weight"]) @ w[at + "in_proj.weight"].T).chunk(2, -1)
        both = scan(w, at, "", inner, gate) + scan(w, at, "_b", inner.flip(1), gate.flip(1)).flip(1)
        x = x + share * both @ w[at + "out_proj.weight"].T
    return rms(x, w["norm_f.weight"])[:, place] @ w["head.weight"].T + w["head.bias"]


def patches(w: dict[str, Tensor], video: Tensor) -> Tensor:
    """(B, T, patches, D) of a video (B, T, C, H, W)."""
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
    kernel = w["patch_embed.proj.weight"]
    kernel = kernel if kernel.ndim == 5 else kernel.unsqueeze(2)
    cells = conv3d(
        ((video.double() - mean) / std).transpose(1, 2), kernel, w["patch_embed.proj.bias"], stride=(1, PATCH, PATCH)
    )
    return cells.permute(0, 2, 3, 4, 1).flatten(2, 3)


def test_vim(write_checkpoint: Callable[..., Path]) -> None:
    weights = file_weights()
    folder = write_checkpoint(None, {}, "vim.pth")
    torch.save({"model": weights, "epoch": 300}, folder / "vim.pth")
    model, report = load_pretrained(folder, format="vim")
    image = torch.rand(2, 3, SIDE * PATCH, SIDE * PATCH)
    w = {name: x.double() for name, x in weights.items()}
    x = patches(w, image.unsqueeze(1))[:, 0]
    middle = x.shape[1] // 2
    x = torch.cat([x[:, :middle], w["cls_token"].expand(2, 1, D), x[:, middle:]], 1) + w["pos_embed"]
    with torch.no_grad():
        expected = network(w, x, 0.5, middle)
        assert expected.abs().max() > 1
        assert (model(image) - expected).abs().max() <= TOLERANCE
        assert str(report).startswith("checkpoint-0 (vim): ")
    assert not report.unexpected and not report.missing and not report.reinitialized


@pytest.mark.parametrize("frames", [0, 3])
def test_videomamba(write_checkpoint: Callable[..., Path], frames: int) -> None:
    weights = file_weights(frames)
    model, report = load_pretrained(write_checkpoint(None, weights, "videomamba.pth"), format="videomamba")
    video = torch.rand(2, max(1, frames), 3, SIDE * PATCH, SIDE * PATCH)
    w = {name: x.double() for name, x in weights.items()}
    x = patches(w, video) + w["pos_embed"][:, 1:]
    if frames:
        x = x + w["temporal_pos_embedding"].unsqueeze(2)
    x = torch.cat([(w["cls_token"] + w["pos_embed"][:, :1]).expand(2, 1, D), x.flatten(1, 2)], 1)
    with torch.no_grad():
        expected = network(w, x, 1.0, 0)
        assert expected.abs().max() > 1
        assert (model(video if frames else video[:, 0]) - expected).abs().max() <= TOLERANCE
    assert not report.unexpected and not report.missing and not report.reinitialized


def test_a_clip_of_one_step_has_its_time_among_its_positions(write_checkpoint: Callable[..., Path]) -> None:
    weights = file_weights(1)
    model, report = load_pretrained(write_checkpoint(None, weights, "videomamba.pth"))
    image = torch.rand(2, 3, SIDE * PATCH, SIDE * PATCH)
    w = {name: x.double() for name, x in weights.items()}
    x = patches(w, image.unsqueeze(1))[:, 0] + w["pos_embed"][:, 1:] + w["temporal_pos_embedding"]
    x = torch.cat([(w["cls_token"] + w["pos_embed"][:, :1]).expand(2, 1, D), x], 1)
    with torch.no_grad():
        assert (model(image.unsqueeze(1)) - network(w, x, 1.0, 0)).abs().max() <= TOLERANCE
    assert "single step" in report.dropped["temporal_pos_embedding"]


def test_masked_pretraining_has_no_classifier(write_checkpoint: Callable[..., Path]) -> None:
    weights = file_weights(2)
    file = {name.replace("norm_f", "norm"): x for name, x in weights.items() if not name.startswith("head.")}
    file |= {"clip_decoder.0.head.weight": torch.randn(7, D), "clip_decoder.0.norm.weight": torch.randn(7)}
    folder = write_checkpoint(None, {f"vision_encoder.{name}": x for name, x in file.items()}, "videomamba.pth")
    model, report = load_pretrained(folder, head={"name": "class_token", "place": "front", "n_outputs": 2})
    assert set(report.reinitialized) == {"head.projection.weight", "head.projection.bias"}
    assert set(report.unexpected) == {f"vision_encoder.clip_decoder.0.{part}.weight" for part in ("head", "norm")}
    assert torch.equal(model.state_dict()["backbone.final_norm.weight"], weights["norm_f.weight"])
    # Nothing of the decoder is taken for a classifier.
    assert load_pretrained(folder)[0].config["head"]["n_outputs"] == 1


@pytest.mark.parametrize("prefix", ["module.", "model.", "model._orig_mod.", "net.module."])
def test_inside_another_module(write_checkpoint: Callable[..., Path], prefix: str) -> None:
    weights = file_weights()
    image = torch.rand(1, 3, SIDE * PATCH, SIDE * PATCH)
    expected = load_pretrained(write_checkpoint(None, weights, "vim.pth"), format="vim")[0](image)
    file = {**{prefix + name: x for name, x in weights.items()}, "criterion.weight": torch.ones(CLASSES)}
    model, report = load_pretrained(write_checkpoint(None, file, "vim.ckpt", epoch=1, optimizer_states=[]), format="vim")
    assert torch.equal(model(image), expected)
    assert list(report.unexpected) == ["criterion.weight"] and not report.reinitialized


def test_sixteen_bit_sums_are_made_in_thirty_two(write_checkpoint: Callable[..., Path]) -> None:
    halves = {name: x.bfloat16() for name, x in file_weights().items()}
    image = torch.rand(1, 3, SIDE * PATCH, SIDE * PATCH)
    model, _ = load_pretrained(write_checkpoint(None, halves, "vim.pth"), format="vim")
    wide = {name: x.float() for name, x in halves.items()}
    same, _ = load_pretrained(write_checkpoint(None, wide, "vim.pth"), format="vim")
    assert torch.equal(model(image), same(image))


def test_two_formats_with_the_same_names_must_be_told_apart(write_checkpoint: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match=r"videomamba or vim.*format="):
        load_pretrained(write_checkpoint(None, file_weights(), "x.pth"))
    _, report = load_pretrained(write_checkpoint(None, file_weights(2), "x.pth"))
    assert report.format == "videomamba"


def test_what_cannot_be_built_is_said(write_checkpoint: Callable[..., Path]) -> None:
    weights = file_weights()
    for name, tensor, problem in (
        ("pos_embed", torch.randn(1, 12, D), "square number"),
        ("layers.1.mixer.in_proj.weight", torch.randn(2 * E, D + 1), "another shape"),
        # These would be broadcast, or cut.
        ("cls_token", torch.randn(1, 1, 1), r"cls_token \(1, 1, 1\): expected \(1, 1, 8\)"),
        ("pos_embed", torch.randn(2, SIDE * SIDE + 1, D), r"pos_embed \(2, 10, 8\): expected \(1, 10, 8\)"),
        # What changes the outputs is no tensor to leave out.
        ("norm_f.bias", torch.zeros(D), "layer norms"),
        ("layers.0.norm.bias", torch.zeros(D), "layer norms"),
        ("layers.0.mixer.gamma", torch.ones(D), "a scale of each layer's output"),
        ("rope.freqs_cos", torch.ones(9, D), "rotary positions"),
        ("cls_token_tail", torch.ones(1, 1, D), "two class tokens"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            load_pretrained(write_checkpoint(None, {**weights, name: tensor}, "x.pth"), format="vim")
    for side in (27, 55):
        table = torch.randn(1, side * side + 1, D)
        overlapping = {**weights, "pos_embed": table, "patch_embed.proj.weight": torch.randn(D, 3, 16, 16)}
        with pytest.raises(CheckpointError, match="overlapping"):
            load_pretrained(write_checkpoint(None, overlapping, "x.pth"), format="vim")
    times = {**file_weights(1), "temporal_pos_embedding": torch.randn(1, 1, 1)}
    with pytest.raises(CheckpointError, match="temporal_pos_embedding"):
        load_pretrained(write_checkpoint(None, times, "x.pth"))
    del weights["cls_token"]
    with pytest.raises(CheckpointError, match="cls_token"):
        load_pretrained(write_checkpoint(None, weights, "x.pth"), format="vim")
