"""Smaller settings for the embedded demo data, so that it trains on a laptop; what the user sets stays."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig


def apply_demo(cfg: "DictConfig", overrides: list[str]) -> "DictConfig":
    """Puts the domain's `demo` settings into the config when no data is given.

    Args:
        cfg: changed in place; its `demo` block goes away.
        overrides: what the user typed; these keys are left alone, and everything where an experiment is chosen.
    """
    from omegaconf import OmegaConf, open_dict

    with open_dict(cfg):
        demo: Any = OmegaConf.to_container(cfg.pop("demo", None) or OmegaConf.create())
    typed = {override.split("=")[0].lstrip("+~") for override in overrides}
    if cfg.data.get("train") is not None or "experiment" in typed:
        return cfg
    for group, settings in demo.items():
        for key, value in settings.items():
            if f"{group}.{key}" not in typed and key in cfg[group]:
                cfg[group][key] = value
    return cfg
