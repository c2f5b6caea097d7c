"""Where a run keeps its files: a new folder, the one to resume, and the config that is saved in it."""

import json
import os
import re
import shlex
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from longseq.errors import ConfigError

if TYPE_CHECKING:
    from omegaconf import DictConfig

CONFIG, METRICS, PREDICTIONS, REPORT, MODEL = "config.yaml", "metrics.json", "predictions.csv", "report.html", "model"
CHECKPOINTS, BEST, LAST = "checkpoints", "best.ckpt", "last.ckpt"
# Before the number of a fold, in the name of its folder.
FOLD = "fold_"
# The self-pretraining's folder in the run's, and what is written there when it is over.
PRETRAINING, PRETRAINED = "pretraining", "pretraining.json"
# Stands for the run's folder while its config is written.
HERE = "RUN_DIR_OF_THIS_RUN"
# What metrics.json says of the weights of a run with averaged ones: which validated better.
AVERAGE, LAST_STEP = "moving average", "last step"
# Where the run is, for the processes that a distributed launcher starts with the same command.
ENVIRONMENT = "LONGSEQ_RUN_DIR"
# A run and its resumption may differ in these.
NOT_COMPARED = ("run_dir", "resume", "report", "baselines", "trainer", "logger", "callbacks")


def open_run_folder(cfg: "DictConfig") -> Path:
    """Chooses and makes the run's folder, writes it into `cfg.run_dir`, and saves the config there."""
    from omegaconf import open_dict

    folder = _choose(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    with open_dict(cfg):
        cfg.run_dir = str(folder)
    if int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))) == 0:
        if cfg.resume is None:
            _forget(folder)
        (folder / CONFIG).write_text(_saved(cfg), encoding="utf-8")
    os.environ[ENVIRONMENT] = str(folder)
    return folder


def _choose(cfg: "DictConfig") -> Path:
    launched = os.environ.get(ENVIRONMENT)
    if launched and "LOCAL_RANK" in os.environ:
        return Path(launched)
    if cfg.run_dir is not None:
        if "${" in str(cfg.run_dir):
            raise ConfigError(
                f"run_dir={cfg.run_dir}: found '${{' in the folder's name, which stands for another option wherever the run's "
                "config is read; choose a name without it"
            )
        return Path(cfg.run_dir)
    parent = Path("runs") / cfg.domain / str(cfg.backbone.name).replace(":", "_")
    name = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    parent.mkdir(parents=True, exist_ok=True)
    for suffix in ["", *(f"_{i}" for i in range(2, 1000))]:
        folder = parent / (name + suffix)
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    raise ConfigError(f"{parent} holds too many runs of this second; set run_dir=")


def _forget(folder: Path) -> None:
    """Removes what an older run in this folder could be taken for finished by, or resumed from."""
    for place in (folder, folder / PRETRAINING, *folder.glob(f"{FOLD}*")):
        for path in (place / METRICS, place / PRETRAINED, *place.glob(f"{CHECKPOINTS}/*.ckpt")):
            path.unlink(missing_ok=True)


def _saved(cfg: "DictConfig") -> str:
    """The config as YAML, resolved but for paths in the run's folder: a run that was moved goes on where it is."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(OmegaConf.merge(cfg, {"run_dir": HERE}), resolve=True)
    return OmegaConf.to_yaml({**plain, "run_dir": cfg.run_dir}).replace(HERE, "${run_dir}")


def resume_from(cfg: "DictConfig", overrides: list[str]) -> "DictConfig":
    """The config of the run that `resume` names, with this command's own options on top; `cfg` itself if there is none.

    Args:
        cfg: the composed config.
        overrides: what the user typed.

    Raises:
        ConfigError: if the folder holds no checkpoint, or the command names another backbone, domain or task.
    """
    if cfg.resume is None:
        return cfg
    if cfg.resume == "auto":
        found = _newest_unfinished(cfg)
        if found is None:
            print("resume=auto: no unfinished run with this config; starting a new one")
        # The same command again: its own config holds.
        cfg.run_dir = cfg.run_dir if found is None else str(found)
        cfg.resume = None if found is None else str(found)
        return cfg
    folder = Path(cfg.resume)
    if folder.suffix == ".ckpt":
        folder = folder.parent.parent
    folder = whole_run(folder)
    if not is_started(folder):
        raise ConfigError(
            f"cannot resume {folder}: it has no {CHECKPOINTS}/{LAST} (no epoch was finished, or it is not a run folder)"
        )
    return _merge(folder, cfg, overrides)


def _merge(folder: Path, cfg: "DictConfig", overrides: list[str]) -> "DictConfig":
    from omegaconf import OmegaConf

    saved = read_config(folder)
    if _verb(saved) != _verb(cfg):
        raise ConfigError(f"{folder} was made by longseq {_verb(saved)}: go on with {resume_command(folder)}")
    choices = ("domain", "backbone", "task")
    for override in overrides:
        key, _, value = override.partition("=")
        if key in choices:
            held = saved[key] if key == "domain" else saved[key].name
            if value != held and cfg[key] != saved[key]:
                raise ConfigError(f"cannot resume {folder}: it was trained with {key}={held}, the command says {key}={value}")
        elif "/" not in key and key not in ("resume", "run_dir", "experiment") and OmegaConf.select(cfg, key) is not None:
            OmegaConf.update(saved, key.lstrip("+"), OmegaConf.select(cfg, key.lstrip("+")), force_add=True)
    saved.run_dir, saved.resume = str(folder), str(folder)
    return saved


def _newest_unfinished(cfg: "DictConfig") -> Path | None:
    # In fine-tuning the checkpoint says what the backbone is, and it has not been read yet.
    backbone, parent = cfg.backbone.get("name", "*"), Path("runs") / cfg.domain
    newest_first = sorted(parent.glob(f"{backbone}/*"), key=lambda path: path.name, reverse=True)
    folders = [Path(cfg.run_dir)] if cfg.run_dir else newest_first
    for folder in folders:
        if is_started(folder) and not (folder / METRICS).is_file() and is_same_run(folder, cfg):
            return folder
    return None


def is_started(folder: Path) -> bool:
    """Whether there is something to go on from: a checkpoint of the run, of its self-pretraining, or of a fold."""
    return any(any(folder.glob(f"{place}{CHECKPOINTS}/{LAST}")) for place in ("", f"{PRETRAINING}/", f"{FOLD}*/"))


def whole_run(folder: Path) -> Path:
    """The run that a fold or a self-pretraining belongs to, and with which it goes on; any other folder as it is."""
    part = folder.name.startswith(FOLD) or folder.name == PRETRAINING
    return folder.parent if part and (folder.parent / CONFIG).is_file() else folder


def resume_command(folder: Path) -> str:
    """What is typed to go on with a run: its verb and folder, quoted where Hydra or the shell would stumble."""
    typed = f"resume={folder}"
    if not re.fullmatch(r"[\w./\-+@%]+", str(folder)):
        quoted = str(folder).replace("\\", "\\\\").replace('"', '\\"')
        typed = shlex.quote(f'resume="{quoted}"')
    return f"longseq {_verb(read_config(folder))} {typed}"


def _verb(cfg: "DictConfig") -> str:
    return "finetune" if "finetune" in cfg else "fit"


def is_same_run(folder: Path, cfg: "DictConfig") -> bool:
    """Whether the folder's run was made with this config, but for what a run and its resumption may differ in."""
    return (folder / CONFIG).is_file() and _comparable(read_config(folder)) == _comparable(cfg)


def _comparable(cfg: "DictConfig") -> dict[str, Any]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    if "overrides" in plain:
        # What a checkpoint decides of these stands in the saved config alone; what was typed decides it again.
        plain = {key: value for key, value in plain.items() if key not in ("backbone", "data")}
        plain["overrides"] = sorted(o for o in plain["overrides"] if re.split("[.=]", o.lstrip("+"))[0] not in NOT_COMPARED)
    return {str(key): value for key, value in plain.items() if key not in NOT_COMPARED}


def read_config(folder: str | Path) -> "DictConfig":
    """The config that a run was made with.

    Raises:
        ConfigError: if the folder is not a run's.
    """
    from omegaconf import DictConfig, OmegaConf

    path = Path(folder) / CONFIG
    if not path.is_file():
        raise ConfigError(f"{folder} is not a run folder: it has no {CONFIG}")
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    return config


def read_metrics(folder: str | Path) -> dict[str, Any]:
    """metrics.json of a run; empty if it has not finished."""
    path = Path(folder) / METRICS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
