"""Options of fine-tuning: their kinds, what they make of it, and which exclude each other."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import OmegaConf

from longseq.errors import ConfigError
from longseq.pipelines.option_types import check_types

if TYPE_CHECKING:
    from omegaconf import DictConfig


@dataclass
class LoraOptions:
    """Kinds of the options `finetune.lora`; configs/finetune.yaml says what they are and their defaults."""

    r: int
    alpha: float | None
    dropout: float
    targets: str | Sequence[str]
    train_also: str | Sequence[str]


@dataclass
class ModeOptions:
    """Kinds of the options `finetune`."""

    freeze: str | Sequence[str] | None
    cache_features: bool
    cache_passes: int
    lora: Mapping[str, Any]
    layer_decay: float
    head_lr_multiplier: float
    unfreeze_every: int | None
    reinit_layers: int | Literal["all"]


def patterns(value: Any) -> list[str]:
    """One pattern or a list of them, as a list."""
    several = isinstance(value, Sequence) and not isinstance(value, str)
    return [str(each) for each in ((value if several else [value]) if value is not None else ())]


def mode_name(options: "DictConfig") -> str:
    """What the options make of fine-tuning, in a word or two."""
    if options.reinit_layers == "all":
        return "from scratch"
    if "backbone" in patterns(options.freeze):
        return "linear probe"
    if options.lora.r > 0:
        return "LoRA"
    if options.unfreeze_every is not None:
        return "gradual unfreezing"
    return "partial fine-tuning" if options.freeze else "full fine-tuning"


def check_modes(cfg: "DictConfig") -> None:
    """Raises ConfigError for options of the wrong kind or out of range, and modes that exclude each other."""
    options = cfg.finetune
    check_types("finetune", ModeOptions, plain_options(options))
    check_types("finetune.lora", LoraOptions, plain_options(options.lora))
    whole, lora = "backbone" in patterns(options.freeze), options.lora.r > 0
    if options.lora.r < 0:
        raise ConfigError(f"finetune.lora.r must be 0 (no adapters) or more, found {options.lora.r}")
    if options.lora.alpha is not None and not options.lora.alpha > 0:
        raise ConfigError(f"finetune.lora.alpha must be above 0, or the adapters change nothing; found {options.lora.alpha}")
    if options.cache_passes < 1:
        raise ConfigError(f"finetune.cache_passes must be at least 1, found {options.cache_passes}")
    if lora and whole:
        raise ConfigError("finetune.lora.r and finetune.freeze=backbone exclude each other: LoRA trains the backbone's layers")
    if options.unfreeze_every is not None and (lora or whole):
        raise ConfigError("finetune.unfreeze_every needs a backbone to unfreeze: leave out finetune.freeze=backbone and LoRA")
    if options.unfreeze_every is not None and options.unfreeze_every < 1:
        raise ConfigError(f"finetune.unfreeze_every must be at least 1 epoch, found {options.unfreeze_every}")
    if not 0.0 < options.layer_decay <= 1.0:
        raise ConfigError(f"finetune.layer_decay must lie in (0, 1], found {options.layer_decay}")
    if not options.head_lr_multiplier > 0.0:
        raise ConfigError(f"finetune.head_lr_multiplier must be above 0, found {options.head_lr_multiplier}")
    if options.reinit_layers == "all" and (lora or whole or options.unfreeze_every is not None):
        raise ConfigError("finetune.reinit_layers=all starts from nothing: a frozen backbone would stay random")


def plain_options(options: "DictConfig") -> dict[str, Any]:
    """A part of the config as a dict."""
    found: Any = OmegaConf.to_container(options, resolve=True)
    return found
