"""Checkpoints as single repositories of the hub hold them: their own config.json, file names, dtypes and what lies beside."""

import argparse
import json
import pathlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from longseq.errors import CheckpointError
from longseq.pretrained import detect_format, load_pretrained
from tests.longseq.pretrained.test_sources import CONFIG, mamba_weights
from tests.longseq.pretrained.test_vision_mamba import file_weights as vision_weights

Writer = Callable[..., Path]
D, LAYERS = 32, 2


def language_model(mixer: dict[str, Tensor], rows: int, dtype: torch.dtype) -> dict[str, Tensor]:
    embedding = torch.randn(rows, D)
    weights = {"backbone.embedding.weight": embedding, "backbone.norm_f.weight": torch.ones(D), "lm_head.weight": embedding}
    for i in range(LAYERS):
        weights[f"backbone.layers.{i}.norm.weight"] = torch.ones(D)
        weights |= {f"backbone.layers.{i}.mixer.{name}": tensor for name, tensor in mixer.items()}
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def mamba_mixer(n_state: int = 16) -> dict[str, Tensor]:
    E, R = 2 * D, 2
    return {
        "in_proj.weight": torch.randn(2 * E, D) * 0.1,
        "conv1d.weight": torch.randn(E, 1, 4) * 0.3,
        "conv1d.bias": torch.zeros(E),
        "x_proj.weight": torch.randn(R + 2 * n_state, E) * 0.1,
        "dt_proj.weight": torch.randn(E, R) * 0.3,
        "dt_proj.bias": torch.randn(E) - 2,
        "A_log": torch.rand(E, n_state),
        "D": torch.ones(E),
        "out_proj.weight": torch.randn(D, E) * 0.1,
    }


def mamba2_mixer() -> dict[str, Tensor]:
    E, N, H = 2 * D, 128, 1
    return {
        "in_proj.weight": torch.randn(2 * E + 2 * N + H, D) * 0.1,
        "conv1d.weight": torch.randn(E + 2 * N, 1, 4) * 0.3,
        "conv1d.bias": torch.zeros(E + 2 * N),
        "dt_bias": torch.zeros(H),
        "A_log": torch.rand(H),
        "D": torch.ones(H),
        "norm.weight": torch.ones(E),
        "out_proj.weight": torch.randn(D, E) * 0.1,
    }


# What state-spaces/mamba-130m says of itself, which is less than later models do.
FIRST: dict[str, Any] = {
    "d_model": D,
    "n_layer": LAYERS,
    "vocab_size": 50,
    "ssm_cfg": {},
    "rms_norm": True,
    "residual_in_fp32": True,
    "fused_add_norm": True,
    "pad_vocab_size_multiple": 8,
}
SECOND = {
    **FIRST,
    "d_intermediate": 0,
    "ssm_cfg": {"layer": "Mamba2"},
    "attn_layer_idx": [],
    "attn_cfg": {},
    "pad_vocab_size_multiple": 16,
    "tie_embeddings": True,
}


def test_sizes_that_the_original_configs_leave_out(write_checkpoint: Writer) -> None:
    for config, mixer, rows, name in ((FIRST, mamba_mixer(), 56, "mamba"), (SECOND, mamba2_mixer(), 64, "mamba2")):
        folder = write_checkpoint(config, language_model(mixer, rows, torch.float16), "pytorch_model.bin")
        model, report = load_pretrained(folder)
        assert report.format == name and not report.unexpected and not report.missing and not report.computed
        assert report.tied == {"head.projection.weight": "embedding.embedding.weight"}
        assert model(torch.randint(50, (1, 7))).shape == (1, 7, rows)
        # 16 bits in the file, masters of 32 bits in the model.
        assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_a_port_that_kept_the_originals_keys(write_checkpoint: Writer) -> None:
    """state-spaces/mamba-130m-hf has both sets of sizes in its config."""
    port = {"model_type": "mamba", "architectures": ["MambaForCausalLM"], "hidden_size": D, "intermediate_size": 2 * D}
    port |= {
        "num_hidden_layers": LAYERS,
        "state_size": 16,
        "conv_kernel": 4,
        "time_step_rank": 2,
        "expand": 2,
        "d_inner": 2 * D,
    }
    port |= {
        "hidden_act": "silu",
        "use_bias": False,
        "use_conv_bias": True,
        "layer_norm_epsilon": 1e-5,
        "torch_dtype": "float32",
    }
    weights = language_model(mamba_mixer(), 56, torch.float32)
    weights["backbone.embeddings.weight"] = weights.pop("backbone.embedding.weight")
    del weights["lm_head.weight"]
    model, report = load_pretrained(write_checkpoint({**FIRST, **port, "vocab_size": 56}, weights))
    assert "head.projection.weight" in report.tied and model.config["backbone"]["dt_rank"] == 2


def test_shards_in_bfloat16_with_norms_inside_the_layers(write_checkpoint: Writer) -> None:
    """tiiuae/falcon-mamba-7b: three files with an index, an untied head, and its own model type."""
    config = {"model_type": "falcon_mamba", "hidden_size": D, "intermediate_size": 2 * D, "num_hidden_layers": LAYERS}
    config |= {"state_size": 16, "conv_kernel": 4, "time_step_rank": 2, "vocab_size": 56, "tie_word_embeddings": False}
    config |= {"use_bias": False, "use_conv_bias": True, "hidden_act": "silu", "layer_norm_epsilon": 1e-5}
    weights = language_model(mamba_mixer(), 56, torch.bfloat16)
    weights["backbone.embeddings.weight"] = weights.pop("backbone.embedding.weight")
    weights["lm_head.weight"] = torch.randn(56, D).bfloat16()
    folder = write_checkpoint(config, {}, "unused.pt")
    (folder / "unused.pt").unlink()
    names, where = sorted(weights), {}
    for k in range(3):
        file = f"model-0000{k + 1}-of-00003.safetensors"
        part = {name: weights[name].clone() for name in names[k::3]}
        save_file(part, folder / file)
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    model, report = load_pretrained(folder)
    assert not report.tied and not report.unexpected and model.config["backbone"]["bcdt_norm"] is True
    assert torch.equal(model.get_parameter("head.projection.weight"), weights["lm_head.weight"].float())


class Trainer:
    """An object of the authors' own code, whose import would run it."""


def test_what_trainers_leave_beside_the_weights(write_checkpoint: Writer) -> None:
    """Namespaces, paths, numbers of numpy and states of optimisers; but nothing that would be run."""
    beside: dict[str, Any] = {
        "epoch": 299,
        "max_accuracy": np.float64(76.1),
        "losses": np.arange(3.0),
        "args": argparse.Namespace(output_dir=pathlib.PurePosixPath("out"), device="cuda"),
        "optimizer": {"state": {0: {"step": 3, "exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        "scaler": {"scale": 65536.0},
    }
    folder = write_checkpoint(CONFIG, mamba_weights(), "pytorch_model.bin", **beside)
    model, report = load_pretrained(folder)
    assert report.format == "mamba" and model(torch.zeros(1, 3, dtype=torch.long)).isfinite().all()
    with pytest.raises(CheckpointError, match=r"refused.*Trainer"):
        load_pretrained(write_checkpoint(CONFIG, mamba_weights(), "pytorch_model.bin", trainer=Trainer()))


@pytest.mark.parametrize(
    ("file", "format"),
    [("vim_t_midclstok_76p1acc.pth", "vim"), ("videomamba_t16_in1k_res224.pth", "videomamba"), ("best.pth", None)],
)
def test_names_of_files_tell_networks_of_the_same_tensors_apart(
    write_checkpoint: Writer, file: str, format: str | None
) -> None:
    folder = write_checkpoint(None, vision_weights(), file)
    if format is None:
        with pytest.raises(CheckpointError, match="videomamba or vim"):
            detect_format(folder / file)
    else:
        assert detect_format(folder / file) == format


def test_longformer_as_its_authors_published_it(write_checkpoint: Writer) -> None:
    """allenai/longformer-base-4096: pytorch_model.bin with the pooler, the positions' numbers, and the head's bias twice."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 60, "hidden_size": D, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 4 * D}
    sizes |= {"attention_window": [8, 8], "max_position_embeddings": 66, "type_vocab_size": 1, "pad_token_id": 1}
    config = transformers.LongformerConfig(**sizes, layer_norm_eps=1e-5)
    weights = {name: tensor.clone() for name, tensor in transformers.LongformerForMaskedLM(config).state_dict().items()}
    weights["longformer.embeddings.position_ids"] = torch.arange(66)[None]
    weights |= {"longformer.pooler.dense.weight": torch.randn(D, D), "longformer.pooler.dense.bias": torch.zeros(D)}
    weights["lm_head.decoder.bias"] = weights["lm_head.bias"].clone()
    saved = {
        **config.to_dict(),
        "attention_mode": "longformer",
        "ignore_attention_mask": False,
        "gradient_checkpointing": False,
    }
    model, report = load_pretrained(write_checkpoint(json.loads(json.dumps(saved)), weights, "pytorch_model.bin"))
    assert not report.unexpected and not report.missing and not report.reinitialized
    assert report.dropped["longformer.pooler.dense.bias"].startswith("the pooler")
    assert model(torch.randint(3, 60, (1, 12))).shape == (1, 12, 60)
