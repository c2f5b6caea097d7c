"""Mamba: the original files (pytorch_model.bin), the ports for transformers (-hf), and FalconMamba."""

import re
from collections.abc import Collection
from typing import Any

from longseq.errors import CheckpointError
from longseq.pretrained._formats import PretrainedInfo
from longseq.pretrained._renames import (
    Config,
    Options,
    Renaming,
    Weights,
    find,
    is_tied,
    need,
    rename_keys,
    require,
    vocabulary,
)

CHECKPOINTS = (
    *(
        PretrainedInfo(f"state-spaces/mamba-{size}{port}", "mamba", "text", size.upper(), licence="Apache-2.0")
        for size in ("130m", "370m", "790m", "1.4b", "2.8b")
        for port in ("", "-hf")
    ),
    PretrainedInfo("state-spaces/mamba-2.8b-slimpj", "mamba", "text", "2.8B", licence="Apache-2.0"),
    PretrainedInfo("tiiuae/falcon-mamba-7b", "mamba", "text", "7B", licence="Falcon Mamba"),
)
OPTIONS: Options = {}
TOKENS: dict[str, int] = {}
_HEAD = r"lm_head\.weight"


def matches(config: Config, keys: Collection[str]) -> bool:
    """Its layers project the step sizes through a low rank, in one direction."""
    del config
    one = any(re.search(r"layers\.\d+\.mixer\.x_proj\.weight$", key) for key in keys)
    return one and not any("A_b_log" in key for key in keys)


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """Sizes from the original config or from that of transformers."""
    del options
    embedding_VD = find(weights, r"embeddings?\.weight", "token embedding")
    size, d_model = need(config, "vocab_size"), need(config, "hidden_size", "d_model")
    rows = vocabulary(embedding_VD, size, d_model, config.get("pad_vocab_size_multiple", 1))
    tied = config.get("tie_embeddings", config.get("tie_word_embeddings", True))
    return {
        "embedding": {"name": "token", "vocab_size": rows},
        "backbone": {
            "name": "mamba",
            "d_model": d_model,
            "n_layers": need(config, "num_hidden_layers", "n_layer"),
            **(_port_options(config) if "hidden_size" in config else original_options(config, "Mamba1")),
        },
        "head": {"name": "token", "n_outputs": rows, "tie": is_tied(embedding_VD, weights, _HEAD, tied)},
    }


def original_options(config: Config, layer: str) -> dict[str, Any]:
    """The backbone's options from a config of the authors' package, which Mamba and Mamba-2 share.

    Raises:
        CheckpointError: for a hybrid with attention or MLPs.
    """
    require(config, "d_intermediate", (0, None), "networks with MLPs between the layers are not built")
    if config.get("attn_layer_idx"):
        raise CheckpointError(
            f"config.json has attention in the layers {config['attn_layer_idx']}: hybrids with attention are not loaded"
        )
    published = dict(config.get("ssm_cfg") or {})
    require({"layer": published.pop("layer", "Mamba1")}, "layer", (layer,), "the config and the weights differ in kind")
    names = {"headdim": "head_dim", "ngroups": "n_groups"}
    known = ("d_state", "d_conv", "expand", "dt_rank", "bias", "conv_bias", "head_dim", "n_groups")
    found = {names.get(key, key): value for key, value in published.items()}
    return {key: found[key] for key in known if key in found} | {"norm": "rms" if config.get("rms_norm", True) else "layer"}


def _port_options(config: Config) -> dict[str, Any]:
    require(config, "hidden_act", ("silu", "swish"), "another activation is another network")
    d_model = need(config, "hidden_size")
    inner = config.get("intermediate_size", config.get("expand", 2) * d_model)
    if inner % d_model:
        raise CheckpointError(f"config.json has intermediate_size={inner}, which is no multiple of hidden_size={d_model}")
    norms = {"bcdt_norm": True, "bcdt_norm_eps": config.get("mixer_rms_eps", 1e-6)}
    return {
        "d_state": need(config, "state_size"),
        "d_conv": need(config, "conv_kernel"),
        "expand": inner // d_model,
        "dt_rank": config.get("time_step_rank", "auto"),
        "bias": config.get("use_bias", False),
        "conv_bias": config.get("use_conv_bias", True),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        **(norms if config.get("model_type") == "falcon_mamba" else {}),
    }


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """Layers keep their names, apart from the norm before each."""
    del config, options
    return rename_keys(weights, layer_rules())


def layer_rules() -> list[tuple[str, str]]:
    """Names that Mamba and Mamba-2 share; the base models of transformers have no prefix."""
    prefix = r"(?:backbone\.)?"
    return [
        (prefix + r"embeddings?\.weight", "embedding.embedding.weight"),
        (prefix + r"layers\.(\d+)\.norm\.(weight|bias)", r"backbone.blocks.\1.norm1.\2"),
        (prefix + r"layers\.(\d+)\.mixer\.(.+)", r"backbone.blocks.\1.mixer.\2"),
        (prefix + r"norm_f\.(weight|bias)", r"backbone.final_norm.\1"),
        (_HEAD, "head.projection.weight"),
    ]
