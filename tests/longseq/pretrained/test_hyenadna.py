"""HyenaDNA files in both published forms, against the published equations written out in float64."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.errors import CheckpointError
from longseq.pretrained import load_pretrained

D, LAYERS, LENGTH, WIDTH = 16, 3, 40, 12
TOLERANCE = 1e-4
ORIGINAL: dict[str, Any] = {
    "d_model": D,
    "n_layer": LAYERS,
    "d_inner": 4 * D,
    "vocab_size": 12,
    "resid_dropout": 0.0,
    "embed_dropout": 0.1,
    "residual_in_fp32": True,
    "pad_vocab_size_multiple": 8,
    "checkpoint_mixer": False,
    "checkpoint_mlp": False,
    "layer": {
        "_name_": "hyena",
        "emb_dim": 5,
        "filter_order": WIDTH,
        "l_max": LENGTH,
        "modulate": True,
        "w": 10,
        "lr": 6e-4,
        "wd": 0.0,
        "lr_pos_emb": 0.0,
    },
}
PORT = {
    "model_type": "hyenadna",
    "d_model": D,
    "n_layer": LAYERS,
    "d_inner": 4 * D,
    "vocab_size": 12,
    "pad_vocab_size_multiple": 8,
    "max_seq_len": LENGTH,
    "emb_dim": 5,
    "filter_order": WIDTH,
    "hyena_order": 2,
    "num_inner_mlps": 2,
    "short_filter_order": 3,
    "activation_freq": 10,
    "train_freq": True,
    "use_bias": True,
    "layer_norm_epsilon": 1e-5,
    "pad_token_id": 4,
}


def layer_weights(prefix: str) -> dict[str, Tensor]:
    def affine(name: str, *shape: int, scale: float = 0.2) -> dict[str, Tensor]:
        return {f"{prefix}{name}.weight": torch.randn(shape) * scale, f"{prefix}{name}.bias": torch.randn(shape[0]) * 0.1}

    implicit = "mixer.filter_fn.implicit_filter."
    freq = 10 + torch.rand(1, WIDTH)
    return {
        **affine("norm1", D, scale=1.0),
        **affine("norm2", D, scale=1.0),
        **affine("mixer.in_proj", 3 * D, D),
        **affine("mixer.out_proj", D, D),
        **affine("mixer.short_filter", 3 * D, 1, 3, scale=0.5),
        f"{prefix}mixer.filter_fn.bias": torch.randn(D),
        f"{prefix}mixer.filter_fn.pos_emb.z": positions().float(),
        f"{prefix}mixer.filter_fn.pos_emb.t": torch.linspace(0, 1, LENGTH)[None, :, None],
        **affine(implicit + "0", WIDTH, 5),
        **affine(implicit + "2", WIDTH, WIDTH),
        **affine(implicit + "4", WIDTH, WIDTH),
        **{f"{prefix}{implicit}{i}.freq": freq for i in (1, 3, 5)},
        f"{prefix}{implicit}6.weight": torch.randn(D, WIDTH) * 0.1,
        f"{prefix}mixer.filter_fn.modulation.deltas": -torch.rand(1, 1, D) * 8 - 1,
        **affine("mlp.fc1", 4 * D, D),
        **affine("mlp.fc2", D, 4 * D),
    }


def positions() -> Tensor:
    lag = torch.arange(LENGTH, dtype=torch.float64)[:, None]
    angle = 2 * math.pi * lag / LENGTH * torch.linspace(1e-4, 1, 2, dtype=torch.float64)
    return torch.cat([torch.linspace(0, 1, LENGTH, dtype=torch.float64)[:, None], angle.cos(), -angle.sin()], 1)[None]


def original_weights() -> dict[str, Tensor]:
    embedding = torch.randn(16, D)
    weights = {"model.backbone.embeddings.word_embeddings.weight": embedding, "model.lm_head.weight": embedding}
    for i in range(LAYERS):
        weights |= layer_weights(f"model.backbone.layers.{i}.")
    return {**weights, "model.backbone.ln_f.weight": torch.rand(D) + 0.5, "model.backbone.ln_f.bias": torch.randn(D)}


def as_port(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    port = {name.replace("model.", "hyena.", 1): tensor for name, tensor in weights.items()}
    port["lm_head.weight"] = port.pop("hyena.lm_head.weight")
    return {name: tensor for name, tensor in port.items() if ".3.freq" not in name and ".5.freq" not in name}


def published(weights: dict[str, Tensor], ids: Tensor, shift: float = 0.0) -> Tensor:
    """The published equations, without a Fourier transform: the convolution is a sum over lags."""
    w = {name.removeprefix("model."): tensor.double() for name, tensor in weights.items()}
    x = w["backbone.embeddings.word_embeddings.weight"][ids]
    for i in range(LAYERS):
        at = f"backbone.layers.{i}."
        x = x + hyena(w, at + "mixer.", norm(x, w, at + "norm1"), shift)
        h = norm(x, w, at + "norm2")
        h = torch.nn.functional.gelu(affine(h, w, at + "mlp.fc1"), approximate="tanh")
        x = x + affine(h, w, at + "mlp.fc2")
    return norm(x, w, "backbone.ln_f") @ w["lm_head.weight"].T


def affine(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def norm(x: Tensor, w: dict[str, Tensor], name: str) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * w[name + ".weight"] + w[name + ".bias"]


def hyena(w: dict[str, Tensor], at: str, u: Tensor, shift: float) -> Tensor:
    length = u.shape[1]
    wide = affine(u, w, at + "in_proj")
    padded = torch.cat([wide.new_zeros(u.shape[0], 2, 3 * D), wide], 1)
    taps = w[at + "short_filter.weight"].squeeze(1)
    short = sum(padded[:, k : k + length] * taps[:, k] for k in range(3)) + w[at + "short_filter.bias"]
    x0, x1, v = short.split(D, -1)
    h = positions()[0]
    for place in (0, 2, 4):
        h = torch.sin(w[f"{at}filter_fn.implicit_filter.1.freq"] * affine(h, w, f"{at}filter_fn.implicit_filter.{place}"))
    t = torch.linspace(0, 1, LENGTH, dtype=torch.float64)[:, None]
    window = torch.exp(-t * w[at + "filter_fn.modulation.deltas"].abs().flatten()) + shift
    k = (h @ w[at + "filter_fn.implicit_filter.6.weight"].T) * window
    gated = v * x1
    y = w[at + "filter_fn.bias"] * gated
    for lag in range(length):
        y[:, lag:] += k[lag] * gated[:, : length - lag]
    return affine(x0 * y, w, at + "out_proj")


def check(folder: Path, weights: dict[str, Tensor], **options: Any) -> Any:
    model, report = load_pretrained(folder, **options)
    ids = torch.randint(4, 12, (2, LENGTH - 3))
    with torch.no_grad():
        expected = published(weights, ids, options.get("shift", 0.0))
        assert expected.abs().max() > 1
        assert (model(ids) - expected).abs().max() <= TOLERANCE
        assert (model.double()(ids) - expected).abs().max() <= 1e-10
    assert not report.unexpected and not report.missing and not report.reinitialized
    return report


@pytest.mark.parametrize("shift", [0.0, 0.05])
def test_original_file(write_checkpoint: Callable[..., Path], shift: float) -> None:
    weights = original_weights()
    report = check(write_checkpoint(ORIGINAL, weights, "weights.ckpt", epoch=3, global_step=10), weights, shift=shift)
    assert report.format == "hyenadna"
    assert report.tied == {"head.projection.weight": "embedding.embedding.weight"}
    assert len(report.dropped) == LAYERS * 4
    assert report.renamed["backbone.blocks.1.mixer.filter.output.weight"].endswith("implicit_filter.6.weight")


def test_names_of_a_run_with_gradient_checkpointing(write_checkpoint: Callable[..., Path]) -> None:
    weights = original_weights()
    deeper = {name.replace(".mixer.", ".mixer.layer.").replace(".mlp.", ".mlp.layer."): x for name, x in weights.items()}
    check(write_checkpoint(ORIGINAL, deeper, "weights.ckpt", epoch=3), weights)


def test_port_with_a_head_of_its_own(write_checkpoint: Callable[..., Path]) -> None:
    weights = original_weights()
    weights["model.lm_head.weight"] = torch.randn(16, D)
    folder = write_checkpoint(PORT, as_port(weights))
    assert not check(folder, weights).tied
    # A head that shares the embedding's matrix takes that one, and not the other way round.
    model, report = load_pretrained(folder, head={"name": "token", "n_outputs": 16, "tie": True})
    embedding = weights["model.backbone.embeddings.word_embeddings.weight"]
    assert torch.equal(model.get_parameter("embedding.embedding.weight"), embedding)
    assert model.get_parameter("head.projection.weight") is model.get_parameter("embedding.embedding.weight")
    assert "which this head shares" in report.dropped["lm_head.weight"]


def test_files_without_positions_and_decays_are_complete(write_checkpoint: Callable[..., Path]) -> None:
    weights = original_weights()
    formula = torch.linspace(math.log(1e-2) / 1.5, math.log(1e-2) / 0.3, D).reshape(1, 1, D)
    weights = {name: formula if name.endswith("deltas") else x for name, x in weights.items()}
    bare = {name: x for name, x in as_port(weights).items() if "pos_emb" not in name and "deltas" not in name}
    report = check(write_checkpoint(PORT, bare), weights)
    assert len(report.computed) == LAYERS


def test_switches_of_the_config_become_values(write_checkpoint: Callable[..., Path]) -> None:
    # Filters that never decay add up, so they are made smaller.
    weights = {name: 0.2 * x if "implicit_filter.6" in name else x for name, x in original_weights().items()}
    plain = {name: torch.zeros_like(x) if name.endswith("filter_fn.bias") else x for name, x in weights.items()}
    check(write_checkpoint({**PORT, "use_bias": False}, as_port(weights)), plain)
    plain = {name: torch.zeros_like(x) if name.endswith("deltas") else x for name, x in weights.items()}
    check(write_checkpoint({**ORIGINAL, "layer": {**ORIGINAL["layer"], "modulate": False}}, weights, "weights.ckpt"), plain)


def test_the_length_of_the_filters_is_that_of_the_checkpoint(write_checkpoint: Callable[..., Path]) -> None:
    weights = original_weights()
    folder = write_checkpoint(PORT, as_port(weights))
    check(folder, weights, max_length=10)
    with pytest.raises(CheckpointError, match="more than the 40 positions"):
        load_pretrained(folder, max_length=41)


def test_trained_positions_are_noted(write_checkpoint: Callable[..., Path]) -> None:
    weights = as_port(original_weights())
    weights["hyena.backbone.layers.0.mixer.filter_fn.pos_emb.z"] += 0.1
    _, report = load_pretrained(write_checkpoint(PORT, weights))
    assert any("layers.0" in note and "was trained" in note for note in report.notes)
    assert "shift" in str(report)
    assert json.loads(json.dumps(report.to_dict()))["format"] == "hyenadna"


def test_what_does_not_fit_is_said(write_checkpoint: Callable[..., Path]) -> None:
    weights = as_port(original_weights())
    with pytest.raises(CheckpointError, match="40 positions"):
        load_pretrained(write_checkpoint({**PORT, "max_seq_len": 80}, weights))
    with pytest.raises(CheckpointError, match="lacks 'd_inner'"):
        load_pretrained(write_checkpoint({k: v for k, v in PORT.items() if k != "d_inner"}, weights))
    with pytest.raises(CheckpointError, match=r"embedding is 16 wide, config\.json says 32"):
        load_pretrained(write_checkpoint({**PORT, "d_model": 32}, weights))
    with pytest.raises(CheckpointError, match=r"of another shape.*instead of"):
        load_pretrained(write_checkpoint({**PORT, "filter_order": 32}, weights))
    with pytest.raises(CheckpointError, match=r"without a place.*layers\.2"):
        load_pretrained(write_checkpoint({**PORT, "n_layer": 2}, weights))
    with pytest.raises(CheckpointError, match=r"missing: backbone\.blocks\.3"):
        load_pretrained(write_checkpoint({**PORT, "n_layer": 4}, weights))
    with pytest.raises(CheckpointError, match="16 rows"):
        load_pretrained(write_checkpoint({**PORT, "vocab_size": 4096}, weights))
    weights["hyena.backbone.layers.0.mixer.filter_fn.implicit_filter.3.freq"] = torch.ones(1, WIDTH)
    with pytest.raises(CheckpointError, match="are one parameter"):
        load_pretrained(write_checkpoint(PORT, weights))


def test_allowed_missing_layers_keep_their_initial_values(write_checkpoint: Callable[..., Path]) -> None:
    folder = write_checkpoint({**PORT, "n_layer": 4}, as_port(original_weights()))
    model, report = load_pretrained(folder, allow_missing=["backbone.blocks.3.*"])
    assert len(model.backbone.blocks) == 4  # type: ignore[arg-type]
    assert report.missing and all(name.startswith("backbone.blocks.3.") for name in report.missing)


def test_another_tokenizer_is_refused(write_checkpoint: Callable[..., Path]) -> None:
    folder = write_checkpoint(PORT, as_port(original_weights()))
    ids = {"[CLS]": 0, "[SEP]": 1, "[BOS]": 2, "[MASK]": 3, "[PAD]": 4, "[RESERVED]": 5, "[UNK]": 6}
    for vocabulary, problem in (
        ({**ids, "A": 7, "C": 8, "G": 9, "T": 10, "N": 11}, None),
        ({**ids, "A": 7, "C": 9, "G": 8, "T": 10, "N": 11}, "C is 9 instead of 8"),
        ({**ids, "A": 7, "C": 8, "G": 9, "T": 10}, "no N"),
    ):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
        if problem is None:
            load_pretrained(folder)
        else:
            with pytest.raises(CheckpointError, match=problem):
                load_pretrained(folder)
