"""Models that longseq itself saved: a model folder, or the folder of a run."""

from collections.abc import Collection
from typing import Any

from longseq.pretrained._formats import PretrainedInfo
from longseq.pretrained._renames import Config, Options, Renaming, Weights, need, rename_keys

CHECKPOINTS: tuple[PretrainedInfo, ...] = ()
OPTIONS: Options = {}
TOKENS: dict[str, int] = {}


def matches(config: Config, keys: Collection[str]) -> bool:
    """Its config.json says what the model is made of."""
    del keys
    return all(isinstance(config.get(key), dict) and "name" in config[key] for key in ("embedding", "backbone", "head"))


def model_config(config: Config, weights: Weights, options: Options) -> dict[str, Any]:
    """The saved config, without the marks of the file."""
    del weights, options
    for key in ("embedding", "backbone", "head"):
        need(config, key)
    return {key: value for key, value in config.items() if key not in ("format", "longseq")}


def rename(weights: Weights, config: Config, options: Options) -> Renaming:
    """Names stay as they are."""
    del config, options
    return rename_keys(weights, ())
