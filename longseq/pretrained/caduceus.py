"""Caduceus: Ph (one strand) and PS (both strands, equivariant to the reverse complement)."""

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

CHECKPOINTS = tuple(
    PretrainedInfo(f"kuleshov-group/caduceus-{kind}_seqlen-{rest}", "caduceus", "dna", parameters, length, "Apache-2.0")
    for kind in ("ph", "ps")
    for rest, length, parameters in (
        ("131k_d_model-256_n_layer-16", 131072, "7.7M"),
        ("1k_d_model-118_n_layer-4_lr-8e-3", 1024, "0.47M"),
        ("1k_d_model-256_n_layer-4_lr-8e-3", 1024, "1.9M"),
    )
)
OPTIONS: Options = {}
_NAMES = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
TOKENS = {token: i for i, token in enumerate(_NAMES)}

_PREFIX = r"(?:caduceus\.)?backbone\."
_LAYER = _PREFIX + r"layers\.(\d+)\."
_MIXER = _LAYER + r"mixer\.(?:submodule\.)?"
_HEAD = r"lm_head\.(?:lm_head\.)?weight"


def matches(config: Config, keys: Collection[str]) -> bool:
    """Its layers hold two Mamba layers each."""
    del config
    return any(re.search(r"layers\.\d+\.mixer\.(submodule\.)?mamba_fwd\.", key) for key in keys)


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """Sizes, and the wiring of the published weights; the width of PS is that of both strands here."""
    del options
    _check(config)
    rcps, d_model = bool(need(config, "rcps")), need(config, "d_model")
    embedding_VD = find(weights, r"word_embeddings\.(embedding\.)?weight", "token embedding")
    rows = vocabulary(embedding_VD, need(config, "vocab_size"), d_model, config.get("pad_vocab_size_multiple", 8))
    layer = config.get("ssm_cfg") or {}
    backbone = {
        "name": "caduceus",
        "d_model": 2 * d_model if rcps else d_model,
        "n_layers": need(config, "n_layer"),
        "rcps": rcps,
        **{key: layer[key] for key in ("d_state", "d_conv", "expand", "dt_rank") if key in layer},
        "norm_eps": config.get("norm_epsilon", 1e-5),
        **({"exchange": False} if rcps and _is_unfused(config, weights) else {}),
    }
    tied = is_tied(embedding_VD, weights, _HEAD, True)
    if not rcps:
        head = {"name": "token", "n_outputs": rows, "tie": tied}
        return {"embedding": {"name": "token", "vocab_size": rows}, "backbone": backbone, "head": head}
    complement = _complement(config, weights, rows)
    return {
        "embedding": {"name": "strand", "vocab_size": rows, "complement": complement},
        "backbone": backbone,
        "head": {"name": "strand_token", "n_outputs": rows, "complement": complement, "tie": tied},
    }


def _check(config: Config) -> None:
    why = "that variant was not published, and is another network"
    require(config, "bidirectional", (True,), why)
    require(config, "bidirectional_strategy", ("add", None), why)
    require(config, "bidirectional_weight_tie", (True,), why)
    require(config, "rms_norm", (True,), why)
    layer = config.get("ssm_cfg") or {}
    require(layer, "bias", (False,), why)
    require(layer, "conv_bias", (True,), why)


def _is_unfused(config: Config, weights: Weights) -> bool:
    """Whether each strand goes through the layers by itself; names outweigh the config, which others may have edited."""
    if any(re.search(r"layers\.\d+\.norm\.submodule\.", name) for name in weights):
        return True
    return config.get("fused_add_norm", True) is False


def _complement(config: Config, weights: Weights, rows: int) -> list[int]:
    published = {int(token): int(other) for token, other in need(config, "complement_map").items()}
    complement = [published.get(token, token) for token in range(rows)]
    if any(not 0 <= other < rows for other in complement) or any(complement[complement[i]] != i for i in range(rows)):
        raise CheckpointError(f"config.json's complement_map is no pairing of {rows} tokens: {published}")
    for name, stored in weights.items():
        if name.endswith("complement_map") and stored.tolist()[:rows] != complement[: len(stored)]:
            raise CheckpointError(
                f"config.json pairs the tokens as {complement}, {name} as {stored.tolist()}: with other pairs the same weights "
                "are another network. Take the config.json that was published with them"
            )
    return complement


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """The projections that both directions share stand once."""
    del options
    rules = [
        (_PREFIX + r"embeddings\.word_embeddings\.embedding\.weight", "embedding.strand.embedding.weight"),
        (_PREFIX + r"embeddings\.word_embeddings\.weight", "embedding.embedding.weight"),
        (_LAYER + r"norm\.(?:submodule\.)?weight", r"backbone.blocks.\1.norm1.weight"),
        (_MIXER + r"mamba_(?:fwd|rev)\.(in_proj|out_proj)\.weight", r"backbone.blocks.\1.mixer.\2.weight"),
        (_MIXER + r"mamba_fwd\.(.+)", r"backbone.blocks.\1.mixer.forward_ssm.\2"),
        (_MIXER + r"mamba_rev\.(.+)", r"backbone.blocks.\1.mixer.reverse_ssm.\2"),
        (_PREFIX + r"norm_f\.(?:submodule\.)?weight", "backbone.final_norm.weight"),
        (_HEAD, "head.projection.weight"),
    ]
    rcps = bool(config.get("rcps"))
    if rcps:
        rules = [(pattern, new.replace("backbone.", "backbone.inner.")) for pattern, new in rules]
    return rename_keys(weights, rules, [(r".*\.complement_map", "it stands in config.json")])
