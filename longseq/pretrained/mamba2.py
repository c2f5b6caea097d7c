"""Mamba-2: the original files (pytorch_model.bin) and those for transformers."""

import math
import re
from collections.abc import Collection
from typing import Any

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
from longseq.pretrained.mamba import layer_rules, original_options

CHECKPOINTS = (
    *(
        PretrainedInfo(f"state-spaces/mamba2-{size}", "mamba2", "text", size.upper(), licence="Apache-2.0")
        for size in ("130m", "370m", "780m", "1.3b", "2.7b")
    ),
    PretrainedInfo("mistralai/Mamba-Codestral-7B-v0.1", "mamba2", "text", "7B", licence="Apache-2.0"),
)
OPTIONS: Options = {}
TOKENS: dict[str, int] = {}


def matches(config: Config, keys: Collection[str]) -> bool:
    """Its layers have a step size per head."""
    del config
    return any(re.search(r"layers\.\d+\.mixer\.dt_bias$", key) for key in keys)


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """Sizes from the original config or from that of transformers."""
    del options
    embedding_VD = find(weights, r"embeddings?\.weight", "token embedding")
    size, d_model = need(config, "vocab_size"), need(config, "hidden_size", "d_model")
    rows = vocabulary(embedding_VD, size, d_model, config.get("pad_vocab_size_multiple", 1))
    tied = config.get("tie_embeddings", config.get("tie_word_embeddings", "hidden_size" not in config))
    return {
        "embedding": {"name": "token", "vocab_size": rows},
        "backbone": {
            "name": "mamba2",
            "d_model": d_model,
            "n_layers": need(config, "num_hidden_layers", "n_layer"),
            **(_port_options(config) if "hidden_size" in config else _original(config)),
        },
        "head": {"name": "token", "n_outputs": rows, "tie": is_tied(embedding_VD, weights, r"lm_head\.weight", tied)},
    }


def _original(config: Config) -> dict[str, Any]:
    published = config.get("ssm_cfg") or {}
    why = "that variant of the layer is not built"
    require(published, "D_has_hdim", (False,), why)
    require(published, "norm_before_gate", (False,), why)
    require(published, "rmsnorm", (True,), why)
    require(published, "d_ssm", (None,), why)
    low, high = (_number(limit) for limit in published.get("dt_limit", (0.0, math.inf)))
    return original_options(config, "Mamba2") | _limits(low, high)


def _port_options(config: Config) -> dict[str, Any]:
    require(config, "hidden_act", ("silu", "swish"), "another activation is another network")
    low, high = (_number(limit) for limit in config.get("time_step_limit", (0.0, math.inf)))
    return {
        "d_state": need(config, "state_size"),
        "d_conv": need(config, "conv_kernel"),
        "expand": config.get("expand", 2),
        "head_dim": need(config, "head_dim"),
        "n_groups": need(config, "n_groups"),
        "bias": config.get("use_bias", False),
        "conv_bias": config.get("use_conv_bias", True),
        "norm_eps": config.get("layer_norm_epsilon", 1e-5),
        **_limits(low, high),
    }


def _limits(low: float, high: float) -> dict[str, Any]:
    # JSON has no infinity: none is no limit.
    return {"dt_limit": [low, None if high == math.inf else high]} if low > 0.0 or high != math.inf else {}


def _number(limit: Any) -> float:
    # JSON has no infinity, so newer files spell it as an object.
    return float(limit["__float__"] if isinstance(limit, dict) else limit)


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """Layers keep their names, apart from the norm before each."""
    del config, options
    return rename_keys(weights, layer_rules())
