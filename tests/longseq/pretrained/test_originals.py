"""Original Mamba and Mamba-2 files: pytorch_model.bin in 16 bits and the authors' config."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from longseq.errors import CheckpointError
from longseq.pretrained import load_pretrained

D, E, N, LAYERS = 16, 32, 8, 2
CONFIG: dict[str, Any] = {
    "d_model": D,
    "d_intermediate": 0,
    "n_layer": LAYERS,
    "vocab_size": 13,
    "ssm_cfg": {"d_state": N},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
    "tie_embeddings": True,
}
HEADS, GROUPS = 8, 2
CONFIG2 = {**CONFIG, "ssm_cfg": {"layer": "Mamba2", "d_state": N, "headdim": E // HEADS, "ngroups": GROUPS}}


def weights_of(mixer: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    embedding = torch.randn(16, D)
    weights = {"backbone.embedding.weight": embedding}
    for i in range(LAYERS):
        weights[f"backbone.layers.{i}.norm.weight"] = torch.rand(D) + 0.5
        weights |= {f"backbone.layers.{i}.mixer.{name}": x for name, x in mixer().items()}
    weights |= {"backbone.norm_f.weight": torch.rand(D) + 0.5, "lm_head.weight": embedding}
    return {name: x.half() for name, x in weights.items()}


def mamba() -> dict[str, Tensor]:
    return {
        "in_proj.weight": torch.randn(2 * E, D) * 0.3,
        "conv1d.weight": torch.randn(E, 1, 4) * 0.4,
        "conv1d.bias": torch.randn(E) * 0.1,
        "x_proj.weight": torch.randn(1 + 2 * N, E) * 0.3,
        "dt_proj.weight": torch.randn(E, 1) * 0.5,
        "dt_proj.bias": torch.randn(E) - 2,
        "A_log": torch.rand(E, N),
        "D": torch.randn(E),
        "out_proj.weight": torch.randn(D, E) * 0.4,
    }


def mamba2() -> dict[str, Tensor]:
    mixed = E + 2 * GROUPS * N
    return {
        "in_proj.weight": torch.randn(E + mixed + HEADS, D) * 0.3,
        "conv1d.weight": torch.randn(mixed, 1, 4) * 0.4,
        "conv1d.bias": torch.randn(mixed) * 0.1,
        "dt_bias": torch.randn(HEADS) - 2,
        "A_log": torch.rand(HEADS),
        "D": torch.randn(HEADS),
        "norm.weight": torch.rand(E) + 0.5,
        "out_proj.weight": torch.randn(D, E) * 0.4,
    }


PORTS = {
    "mamba": {"hidden_size": D, "state_size": N, "num_hidden_layers": LAYERS, "vocab_size": 16},
    "mamba2": {
        "hidden_size": D,
        "state_size": N,
        "num_hidden_layers": LAYERS,
        "vocab_size": 16,
        "num_heads": HEADS,
        "head_dim": E // HEADS,
        "n_groups": GROUPS,
        "tie_word_embeddings": True,
    },
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "config", "mixer"), [("mamba", CONFIG, mamba), ("mamba2", CONFIG2, mamba2)])
def test_original_file(
    write_checkpoint: Callable[..., Path], name: str, config: dict[str, Any], mixer: Callable[[], dict[str, Tensor]]
) -> None:
    transformers = pytest.importorskip("transformers")
    weights = weights_of(mixer)
    model, report = load_pretrained(write_checkpoint(config, weights, "pytorch_model.bin"))
    kind = {"mamba": "Mamba", "mamba2": "Mamba2"}[name]
    theirs = getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, f"{kind}Config")(**PORTS[name], use_cache=False))
    renamed = {key.replace("backbone.embedding.", "backbone.embeddings."): x.float() for key, x in weights.items()}
    theirs.eval().load_state_dict(renamed)
    ids = torch.randint(13, (2, 29))
    with torch.no_grad():
        expected = theirs(ids).logits
        assert expected.abs().max() > 1
        assert (model(ids) - expected).abs().max() <= 1e-4
    assert report.format == name
    assert report.tied == {"head.projection.weight": "embedding.embedding.weight"}
    assert next(model.parameters()).dtype == torch.float32
    assert not report.unexpected and not report.reinitialized


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"d_intermediate": 64}, "d_intermediate=64"),
        ({"attn_layer_idx": [1]}, r"attention in the layers \[1\]"),
        ({"ssm_cfg": {"layer": "Mamba2"}}, "differ in kind"),
        ({"vocab_size": None}, "lacks 'vocab_size'"),
        ({"vocab_size": 40}, "16 rows"),
        ({"d_model": 24}, "config.json says 24"),
        ({"ssm_cfg": {"d_state": 24}}, "another shape"),
    ],
)
def test_other_networks_are_refused(write_checkpoint: Callable[..., Path], change: dict[str, Any], problem: str) -> None:
    with pytest.raises(CheckpointError, match=problem):
        load_pretrained(write_checkpoint({**CONFIG, **change}, weights_of(mamba), "pytorch_model.bin"))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
    ],
)
def test_variants_of_mamba2_are_refused(write_checkpoint: Callable[..., Path], change: dict[str, Any], problem: str) -> None:
    config = {**PORTS["mamba2"], "conv_kernel": 4, **change}
    with pytest.raises(CheckpointError, match=problem):
        load_pretrained(write_checkpoint(config, weights_of(mamba2)))
