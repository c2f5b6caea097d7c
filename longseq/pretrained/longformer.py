"""Longformer: base and large, with the head for masked tokens or that of a fine-tuned classifier.

Published windows count both sides: 512 is 256 neighbours on each. Tokens are global when `n_global` leading positions
say so (1, the usual choice for classification, by default) or `longseq.backbones.longformer.global_tokens` does. The table
of positions grows with the option `max_length`: `positions=copy` repeats the published ones, as their authors made them out
of RoBERTa's (https://arxiv.org/abs/2004.05150, section 5), `positions=interpolate` spreads them over the new length.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch.nn import functional as F

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
    PretrainedInfo("allenai/longformer-base-4096", "longformer", "text", "148M", 4096, "Apache-2.0"),
    PretrainedInfo("allenai/longformer-large-4096", "longformer", "text", "434M", 4096, "Apache-2.0"),
)
# Positions that will be needed, and what stands at those beyond the published table.
OPTIONS: Options = {"max_length": None, "positions": "copy"}
TOKENS: dict[str, int] = {}

_PREFIX = r"(?:longformer\.)?"
_LAYER = _PREFIX + r"encoder\.layer\.(\d+)\."


def matches(config: Config, keys: Collection[str]) -> bool:
    """Its attention has projections of their own for global tokens, and is that of an encoder."""
    del config
    return any(key.endswith("encoder.layer.0.attention.self.query_global.weight") for key in keys)


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """Sizes from the config of transformers; the head from what the file holds."""
    require(config, "attention_mode", ("longformer", "sliding_chunks"), "only windows that see both sides are built")
    require(config, "hidden_act", ("gelu",), "another activation is another network")
    require(config, "position_embedding_type", ("absolute",), "positions stand in the embedding")
    d_model, n_layers = need(config, "hidden_size"), need(config, "num_hidden_layers")
    rows = vocabulary(find(weights, r"word_embeddings\.weight", "token embedding"), need(config, "vocab_size"), d_model)
    eps = config.get("layer_norm_eps", 1e-12)
    return {
        "embedding": {
            "name": "roberta",
            "vocab_size": rows,
            "n_positions": _n_positions(config, options),
            "n_types": config.get("type_vocab_size", 2),
            "pad_id": config.get("pad_token_id", 1),
            "norm_eps": eps,
            "dropout": config.get("hidden_dropout_prob", 0.0),
        },
        "backbone": {
            "name": "longformer",
            "d_model": d_model,
            "n_layers": n_layers,
            "n_heads": need(config, "num_attention_heads"),
            "window": _windows(need(config, "attention_window"), n_layers),
            "rotary": False,
            "n_global": 1,
            "prenorm": False,
            "norm_eps": eps,
            "mlp": "gelu",
            "mlp_ratio": need(config, "intermediate_size") / d_model,
            "dropout": config.get("hidden_dropout_prob", 0.0),
        },
        "head": _head(weights, rows, eps),
    }


def _n_positions(config: Config, options: Options) -> int:
    """Rows of the table, those before the first position included."""
    wanted, how, offset = options["max_length"], options["positions"], config.get("pad_token_id", 1) + 1
    if how not in ("copy", "interpolate"):
        raise CheckpointError(f"positions must be copy or interpolate, found {how!r}")
    return max(need(config, "max_position_embeddings"), 0 if wanted is None else int(wanted) + offset)


def _grow_positions(renaming: Renaming, config: Config, options: Options) -> None:
    """A longer table of positions than the published one."""
    name = "embedding.positions.weight"
    offset, rows = config.get("pad_token_id", 1) + 1, _n_positions(config, options)
    # Without a wish for more positions a table of another length than the config's is a contradiction.
    if options["max_length"] is None or name not in renaming.tensors or rows <= len(renaming.tensors[name]):
        return
    table_LD = renaming.tensors[name]
    first, own_LD, wanted = table_LD[:offset], table_LD[offset:], rows - offset
    if options["positions"] == "copy":
        new_LD = own_LD.repeat(-(-wanted // len(own_LD)), 1)[:wanted]
    else:
        new_LD = F.interpolate(own_LD.T[None].float(), size=wanted, mode="linear", align_corners=True)[0].T.to(table_LD.dtype)
    renaming.tensors[name] = torch.cat([first, new_LD])
    renaming.notes.append(f"positions beyond {len(own_LD)} are made by positions={options['positions']}: train them")


def _windows(published: int | list[int], n_layers: int) -> list[int]:
    windows = [published] * n_layers if isinstance(published, int) else list(published)
    if len(windows) != n_layers or any(window < 2 or window % 2 for window in windows):
        raise CheckpointError(f"config.json has attention_window={published}: expected {n_layers} even numbers, one per layer")
    return [window // 2 for window in windows]


def _head(weights: Weights, rows: int, eps: float) -> dict[str, Any]:
    for name, kind in (
        ("classifier.out_proj.weight", "first_token"),
        ("classifier.weight", "token"),
        ("qa_outputs.weight", "token"),
    ):
        if name in weights:
            return {"name": kind, "n_outputs": weights[name].shape[0], **({"bias": True} if kind == "token" else {})}
    embedding_VD = find(weights, r"word_embeddings\.weight", "token embedding")
    tied = is_tied(embedding_VD, weights, r"lm_head\.decoder\.weight", True)
    return {"name": "masked_token", "n_outputs": rows, "tie": tied, "norm_eps": eps}


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """The blocks of BERT under the names of a post-norm stack."""
    affine = r"\.(weight|bias)"
    rules = [
        (_PREFIX + r"embeddings\.word_embeddings\.weight", "embedding.embedding.weight"),
        (_PREFIX + r"embeddings\.position_embeddings\.weight", "embedding.positions.weight"),
        (_PREFIX + r"embeddings\.token_type_embeddings\.weight", "embedding.types.weight"),
        (_PREFIX + r"embeddings\.LayerNorm" + affine, r"embedding.norm.\1"),
        (_LAYER + r"attention\.self\.((?:query|key|value)(?:_global)?)" + affine, r"backbone.blocks.\1.mixer.\2.\3"),
        (_LAYER + r"attention\.output\.dense" + affine, r"backbone.blocks.\1.mixer.out_proj.\2"),
        (_LAYER + r"attention\.output\.LayerNorm" + affine, r"backbone.blocks.\1.norm1.\2"),
        (_LAYER + r"intermediate\.dense" + affine, r"backbone.blocks.\1.mlp.fc1.\2"),
        (_LAYER + r"output\.dense" + affine, r"backbone.blocks.\1.mlp.fc2.\2"),
        (_LAYER + r"output\.LayerNorm" + affine, r"backbone.blocks.\1.norm2.\2"),
        (r"lm_head\.dense" + affine, r"head.dense.\1"),
        (r"lm_head\.layer_norm" + affine, r"head.norm.\1"),
        (r"lm_head\.(?:decoder\.)?bias", "head.projection.bias"),
        (r"lm_head\.decoder\.weight", "head.projection.weight"),
        (r"classifier\.dense" + affine, r"head.dense.\1"),
        (r"(?:classifier\.out_proj|classifier|qa_outputs)" + affine, r"head.projection.\1"),
    ]
    drops = [
        (_PREFIX + r"pooler\..+", "the pooler belongs to next-sentence prediction"),
        (_PREFIX + r"embeddings\.position_ids", "counted from the tokens"),
    ]
    if "lm_head.decoder.bias" in weights:
        # In the same place; where the two are not tied, this one is left over.
        drops.append((r"lm_head\.bias", "the decoder has its own"))
    renaming = rename_keys(weights, rules, drops)
    _grow_positions(renaming, config, options)
    return renaming
