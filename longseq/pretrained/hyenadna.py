"""HyenaDNA: the original training files (weights.ckpt) and the ports for transformers (-hf).

Both hold the same tensors under two prefixes. Runs with gradient checkpointing have one more level in their names, which
the names themselves tell, whatever the config says. Frequencies and positions of the filters are computed from the
length that they were trained for, so files without them are complete.
"""

from collections.abc import Collection
from typing import Any

import torch

from longseq.errors import CheckpointError
from longseq.pretrained._formats import PretrainedInfo
from longseq.pretrained._renames import (
    Config,
    Options,
    Renaming,
    Weights,
    count,
    find,
    is_tied,
    need,
    rename_keys,
    require,
    vocabulary,
)

_SIZES = {
    "tiny-1k-seqlen": (1026, "0.44M"),
    "tiny-1k-seqlen-d256": (1026, "1.6M"),
    "tiny-16k-seqlen-d128": (16386, "0.44M"),
    "small-32k-seqlen": (32770, "3.3M"),
    "medium-160k-seqlen": (160002, "6.6M"),
    "medium-450k-seqlen": (450002, "6.6M"),
    "large-1m-seqlen": (1000002, "6.6M"),
}
CHECKPOINTS = tuple(
    PretrainedInfo(f"LongSafari/hyenadna-{size}{port}", "hyenadna", "dna", parameters, length, "BSD-3-Clause")
    for size, (length, parameters) in _SIZES.items()
    for port in ("", "-hf")
)
# Positions that will be needed: the filters keep the length that they were trained for, which may be longer.
OPTIONS: Options = {"max_length": None}
_NAMES = ("[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N")
TOKENS = {token: i for i, token in enumerate(_NAMES)}

_PREFIX = r"(?:model\.|hyena\.)?backbone\."
_LAYER = _PREFIX + r"layers\.(\d+)\."
_FILTER = _LAYER + r"mixer\.(?:layer\.)?filter_fn\."


def matches(config: Config, keys: Collection[str]) -> bool:
    """It has implicit filters."""
    del config
    return any(key.endswith("filter_fn.implicit_filter.0.weight") for key in keys)


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """Sizes from the original config, whose layer stands in a dict of its own, or from the port's flat one."""
    layer = {**config, **config.get("layer", {})}
    require(layer, "_name_", ("hyena", "hyena-filter"), "other layers are other networks")
    require(layer, "filter_cls", ("hyena-filter",), "only the implicit filter with a decaying window is built")
    d_model, embedding_VD = need(config, "d_model"), find(weights, r"word_embeddings\.weight", "token embedding")
    n_layers = need(config, "n_layer", "n_layers")
    rows = vocabulary(embedding_VD, need(config, "vocab_size"), d_model, config.get("pad_vocab_size_multiple", 8))
    head = r"(?:model\.|hyena\.)?lm_head\.weight"
    return {
        "embedding": {"name": "token", "vocab_size": rows, "dropout": config.get("embed_dropout", 0.0)},
        "backbone": {
            "name": "hyena",
            "d_model": d_model,
            "n_layers": n_layers,
            "max_length": _length(layer, weights, options["max_length"]),
            "order": layer.get("order", layer.get("hyena_order", 2)),
            "filter_order": need(layer, "filter_order"),
            "emb_dim": need(layer, "emb_dim"),
            "num_inner_mlps": layer.get("num_inner_mlps", 2),
            "short_filter_order": layer.get("short_filter_order", 3),
            "activation_freq": float(layer.get("w", layer.get("activation_freq", 10))),
            "norm": "layer",
            "norm_eps": config.get("layer_norm_epsilon", 1e-5),
            "mlp": "gelu_tanh",
            "mlp_ratio": need(config, "d_inner") / d_model,
        },
        "head": {"name": "token", "n_outputs": rows, "tie": is_tied(embedding_VD, weights, head, True)},
    }


def _length(layer: Config, weights: Weights, needed: int | None) -> int:
    """The length that filters are measured against, which the file knows where it holds positions."""
    length = int(need(layer, "l_max", "max_seq_len"))
    for name, tensor in weights.items():
        if name.endswith(("pos_emb.t", "pos_emb.z")) and tensor.shape[1] != length:
            raise CheckpointError(
                f"config.json says a length of {length}, but {name} has {tensor.shape[1]} positions: with another length "
                "the same weights are other filters. Set it in config.json to what the weights were trained with"
            )
    if needed is not None and needed > length:
        raise CheckpointError(
            f"max_length={needed} is more than the {length} positions that these filters were trained for: crop the "
            "sequences, or take a checkpoint of a longer length"
        )
    return length


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """Names of the filter's network by place; `freq` is one parameter under several names."""
    del options
    n_inner = count(weights, r"layers\.0\.mixer\.(?:layer\.)?filter_fn\.implicit_filter\.(\d*[02468])\.bias") - 1
    linear = [
        (_FILTER + rf"implicit_filter\.{2 * i}\.(weight|bias)", rf"backbone.blocks.\1.mixer.filter.layers.{i}.\2")
        for i in range(n_inner + 1)
    ]
    rules = [
        (_PREFIX + r"embeddings\.word_embeddings\.weight", "embedding.embedding.weight"),
        (_LAYER + r"(norm1|norm2)\.(weight|bias)", r"backbone.blocks.\1.\2.\3"),
        (_LAYER + r"mlp\.(?:layer\.)?(fc1|fc2)\.(weight|bias)", r"backbone.blocks.\1.mlp.\2.\3"),
        (
            _LAYER + r"mixer\.(?:layer\.)?(in_proj|out_proj|short_filter)\.(weight|bias)",
            r"backbone.blocks.\1.mixer.\2.\3",
        ),
        *linear,
        (_FILTER + r"implicit_filter\.\d*[13579]\.freq", r"backbone.blocks.\1.mixer.filter.freq"),
        (_FILTER + rf"implicit_filter\.{2 * n_inner + 2}\.weight", r"backbone.blocks.\1.mixer.filter.output.weight"),
        (_FILTER + r"modulation\.deltas", r"backbone.blocks.\1.mixer.filter.deltas"),
        (_FILTER + r"bias", r"backbone.blocks.\1.mixer.filter.bias"),
        (_PREFIX + r"ln_f\.(weight|bias)", r"backbone.final_norm.\1"),
        (r"(?:model\.|hyena\.)?lm_head\.weight", "head.projection.weight"),
    ]
    drops = [(_FILTER + r"pos_emb\.(z|t)", "computed from the length")]
    renaming = rename_keys(weights, rules, drops)
    renaming.computed = ("backbone.blocks.*.mixer.filter.deltas",)
    _note_positions(renaming, weights)
    _apply_switches(renaming, {**config, **config.get("layer", {})})
    return renaming


def _note_positions(renaming: Renaming, weights: Weights) -> None:
    renaming.notes.append(
        "the authors' implementations disagree on a constant of the filters' window, and the files do not say which one "
        "they were trained with: shift=0.0 is that of the training code, shift=0.05 that of the standalone file"
    )
    for name, z_1LE in weights.items():
        if name.endswith("pos_emb.z") and not torch.allclose(z_1LE, _positions(z_1LE), atol=2e-3):
            renaming.notes.append(f"{name} was trained and differs from the formula that is used here")


def _positions(z_1LE: torch.Tensor) -> torch.Tensor:
    """`[t, cos(f w), -sin(f w)]` of the published shape."""
    length, bands = z_1LE.shape[1], (z_1LE.shape[2] - 1) // 2
    lag_L1 = torch.arange(length, dtype=torch.float64)[:, None]
    angle_LE = lag_L1 * torch.linspace(1e-4, bands - 1, bands, dtype=torch.float64) * (2 * torch.pi / length)
    z_LE = torch.cat([lag_L1 / max(1, length - 1), angle_LE.cos(), -angle_LE.sin()], dim=1)
    return z_LE.to(z_1LE.dtype).unsqueeze(0)


def _apply_switches(renaming: Renaming, layer: dict[str, Any]) -> None:
    """Options that are a value of parameters here: no window is one that does not decay, no bias is a bias of zero."""
    for name, tensor in renaming.tensors.items():
        if name.endswith(".filter.bias") and layer.get("use_bias", True) is False:
            renaming.tensors[name] = torch.zeros_like(tensor)
        if name.endswith(".filter.deltas") and layer.get("modulate", True) is False:
            renaming.tensors[name] = torch.zeros_like(tensor)
