"""Our models as they would stand on the hub: the same weights under published names, with the published config."""

import json
import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from longseq.checkpoint import load_model
from longseq.model import SequenceModel

MIXER, HYENA_MIXER = r"backbone\.blocks\.(\d+)\.mixer\.", r"hyena.backbone.layers.\1.mixer."
HYENA = {
    r"embedding\.embedding\.weight": "hyena.backbone.embeddings.word_embeddings.weight",
    r"backbone\.final_norm\.(\w+)": r"hyena.backbone.ln_f.\1",
    r"backbone\.blocks\.(\d+)\.(norm\d|mlp\.fc\d)\.(\w+)": r"hyena.backbone.layers.\1.\2.\3",
    rf"{MIXER}(\w+_proj|short_filter)\.(\w+)": rf"{HYENA_MIXER}\2.\3",
    **{rf"{MIXER}filter\.layers\.{j}\.(\w+)": rf"{HYENA_MIXER}filter_fn.implicit_filter.{2 * j}.\2" for j in range(3)},
    rf"{MIXER}filter\.freq": rf"{HYENA_MIXER}filter_fn.implicit_filter.1.freq",
    rf"{MIXER}filter\.output\.weight": rf"{HYENA_MIXER}filter_fn.implicit_filter.6.weight",
    rf"{MIXER}filter\.deltas": rf"{HYENA_MIXER}filter_fn.modulation.deltas",
    rf"{MIXER}filter\.bias": rf"{HYENA_MIXER}filter_fn.bias",
    r"head\.projection\.weight": "lm_head.weight",
}
MAMBA = {
    r"embedding\.embedding\.weight": "backbone.embeddings.weight",
    r"backbone\.final_norm\.weight": "backbone.norm_f.weight",
    r"backbone\.blocks\.(\d+)\.norm1\.weight": r"backbone.layers.\1.norm.weight",
    rf"{MIXER}(.+)": r"backbone.layers.\1.mixer.\2",
    r"head\.projection\.weight": "lm_head.weight",
}
STRANDS, BOTH = r"backbone\.inner\.blocks\.(\d+)\.", r"caduceus.backbone.layers.\1."
CADUCEUS = {
    r"embedding\.strand\.embedding\.weight": "caduceus.backbone.embeddings.word_embeddings.embedding.weight",
    rf"{STRANDS}norm1\.weight": rf"{BOTH}norm.weight",
    rf"{STRANDS}mixer\.((?:in|out)_proj\.weight)": rf"{BOTH}mixer.submodule.mamba_fwd.\2",
    rf"{STRANDS}mixer\.forward_ssm\.(.+)": rf"{BOTH}mixer.submodule.mamba_fwd.\2",
    rf"{STRANDS}mixer\.reverse_ssm\.(.+)": rf"{BOTH}mixer.submodule.mamba_rev.\2",
    r"backbone\.inner\.final_norm\.weight": "caduceus.backbone.norm_f.weight",
    r"head\.projection\.weight": "lm_head.lm_head.weight",
}
RULES = {"hyena": HYENA, "mamba": MAMBA, "caduceus": CADUCEUS}


def hyena_config(model: SequenceModel) -> dict[str, Any]:
    """Of a port for transformers."""
    own = model.config["backbone"]
    return {
        "model_type": "hyenadna",
        "d_model": own["d_model"],
        "n_layer": own["n_layers"],
        "d_inner": 4 * own["d_model"],
        "vocab_size": 12,
        "max_seq_len": model.backbone.max_length,
        "emb_dim": 5,
        "filter_order": 64,
        "hyena_order": 2,
        "activation_freq": own.get("activation_freq", 10),
    }


def mamba_config(model: SequenceModel) -> dict[str, Any]:
    """Of a port for transformers, with the keys of the original beside them, as the converted files have."""
    own = model.config["backbone"]
    return {
        "model_type": "mamba",
        "hidden_size": own["d_model"],
        "d_model": own["d_model"],
        "intermediate_size": 2 * own["d_model"],
        "num_hidden_layers": own["n_layers"],
        "n_layer": own["n_layers"],
        "state_size": own.get("d_state", 16),
        "conv_kernel": own.get("d_conv", 4),
        "vocab_size": 16,
        "pad_vocab_size_multiple": 8,
        "ssm_cfg": {},
        "rms_norm": True,
    }


def caduceus_config(model: SequenceModel) -> dict[str, Any]:
    """Of a model of both strands."""
    own = model.config["backbone"]
    complement = [0, 1, 2, 3, 4, 5, 6, 10, 9, 8, 7, *range(11, 16)]
    return {
        "model_type": "caduceus",
        "d_model": own["d_model"] // 2,
        "n_layer": own["n_layers"],
        "vocab_size": 16,
        "ssm_cfg": {"d_state": own.get("d_state", 16), "d_conv": 4, "expand": 2, "dt_rank": "auto", "bias": False},
        "rms_norm": True,
        "fused_add_norm": own.get("exchange", True),
        "pad_vocab_size_multiple": 8,
        "norm_epsilon": 1e-5,
        "bidirectional": True,
        "bidirectional_strategy": "add",
        "bidirectional_weight_tie": True,
        "rcps": True,
        "complement_map": {str(i): other for i, other in enumerate(complement)},
    }


CONFIGS = {"hyena": hyena_config, "mamba": mamba_config, "caduceus": caduceus_config}


def renamed(model: SequenceModel, rules: dict[str, str]) -> dict[str, Tensor]:
    """A model's tensors under published names."""
    found = {}
    for name, tensor in model.state_dict().items():
        new = next((re.sub(pattern, to, name) for pattern, to in rules.items() if re.fullmatch(pattern, name)), None)
        assert new is not None, name
        found[new] = tensor.clone()
    return found


def publish(run: Path, folder: Path) -> Path:
    """Writes a run's model into a new folder in the published format of its backbone."""
    model = load_model(run / "model")
    name = str(model.config["backbone"]["name"])
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIGS[name](model)))
    save_file(renamed(model, RULES[name]), folder / "model.safetensors")
    return folder
