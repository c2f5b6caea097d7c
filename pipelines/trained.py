"""A trained model from its run or from its bare folder, with the configs of data, task and module that go with it."""

import inspect
import re
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import get_class
from omegaconf import DictConfig, OmegaConf

from longseq.checkpoint import load_model
from longseq.domains.base import DomainData, DomainModule
from longseq.domains.tasks import Task
from longseq.errors import ConfigError
from longseq.inference import task_of
from longseq.model import SequenceModel
from longseq.pipelines.cli import CONFIGS, nearest
from longseq.pipelines.fit import build, build_module
from longseq.pipelines.run_folder import MODEL, read_config

if TYPE_CHECKING:
    from collections.abc import Callable


class Trained:
    """A model and what it was trained with.

    Args:
        cfg: with `run` or `model`, `data`, `module` and `device`.

    Raises:
        ConfigError: if both or neither folder is named, or options are unknown.
        CheckpointError: if the folder holds no usable model.
    """

    def __init__(self, cfg: DictConfig) -> None:
        if (cfg.run is None) == (cfg.model is None):
            raise ConfigError("name either a run folder (run=runs/dna/hyena/...) or a model folder (model=...)")
        self.folder = Path(cfg.model) if cfg.run is None else Path(cfg.run) / MODEL
        self.device = choose_device(cfg.device)
        base = None if cfg.run is None else read_config(cfg.run)
        self.model: SequenceModel = load_model(self.folder)
        self.task_name = str(self.model.config.get("task") or task_of(self.model))
        self.config: dict[str, Any] = {**self.model.config, "task": self.task_name}
        self.base = self._defaults() if base is None else base
        self.cfg = cfg

    def _defaults(self) -> DictConfig:
        """What the domain's and the task's shipped configs say."""
        domain = self.config.get("domain")
        path = CONFIGS / "domain" / f"{domain}.yaml"
        if domain is None or not path.is_file():
            raise ConfigError(f"{self.folder}/config.json names no domain that is known here, found {domain!r}")
        task = OmegaConf.load(CONFIGS / "task" / f"{self.task_name}.yaml")
        found = OmegaConf.merge({"seed": 1, "task": task}, OmegaConf.load(path))
        assert isinstance(found, DictConfig)
        for name, value in self.config.get("inference", {}).items():
            if name in found.module:
                found.module[name] = value
        return found

    @property
    def domain(self) -> str:
        """Its name."""
        return str(self.base.domain)

    @property
    def package(self) -> str:
        """The Python package of the domain."""
        return str(self.base.data._target_).rsplit(".", 2)[0]

    # -- what runs it

    def data(self, given: Any) -> DomainData:
        """The data module with the model's own options, and a command's `data` on top; nothing is read yet."""
        cls: Any = get_class(self.base.data._target_)
        options: Any = OmegaConf.to_container(self.base.data, resolve=True)
        options |= cls.options_of(self.config) | dict.fromkeys(("train", "val", "test", "predict"))
        given = OmegaConf.to_container(given, resolve=True) if isinstance(given, DictConfig) else dict(given)
        known = [name for name in options if not name.startswith("_") and name not in ("train", "val", "test")]
        self._check("data", given, known)
        return build(OmegaConf.create({**options, **given}), task=self.task_name, seed=int(self.base.seed))

    def task(self, data: DomainData) -> Task:
        """The task as config.json describes it."""
        options: Any = OmegaConf.to_container(self.base.task, resolve=True)
        cls: Any = get_class(options["_target_"])
        accepted = set(parameters(cls))
        head = self.config.get("head", {})
        described = {
            **self.config,
            "vocab_size": head.get("n_outputs"),
            "n_values": head.get("n_outputs"),
            "unit": data.token_unit,
        }
        options = {name: value for name, value in options.items() if name in accepted}
        # Only training wants them, and they need the training data.
        options.pop("class_weights", None)
        own = {name: value for name, value in described.items() if name in accepted and value is not None}
        return cls(**{**options, **own})

    def module(self, data: DomainData) -> DomainModule:
        """The domain's module on the device, ready to predict."""
        merged = OmegaConf.merge(self.base, {"optimizer": {}, "schedule": {}, "compile": False})
        assert isinstance(merged, DictConfig)
        given: Any = OmegaConf.to_container(self.cfg.module, resolve=True)
        self._check("module", given, [str(name) for name in merged.module if not str(name).startswith("_")])
        for name, value in given.items():
            merged.module[name] = value
        module = build_module(merged, self.model, self.task(data))
        module.prepare(data)
        return module.to(self.device).eval().requires_grad_(False)

    def _check(self, group: str, given: Mapping[str, Any], known: list[str]) -> None:
        for name in given:
            if name not in known:
                raise ConfigError(f"domain={self.domain} has no option {group}.{name}{nearest(name, known)}")

    # -- what the domain adds

    def mode(self, name: str) -> "Callable[..., Any]":
        """A domain's own way of predicting: the function `predictions` of the file of that name in its folder.

        Raises:
            ConfigError: if there is none.
        """
        folder = Path(str(import_module(self.package).__path__[0]))
        path = folder / f"{name}.py"
        if not path.is_file() or not defines(path, "predictions"):
            own = [file.stem for file in sorted(folder.glob("*.py")) if defines(file, "predictions")]
            others = f"; domain={self.domain} also has {', '.join(own)}" if own else ""
            raise ConfigError(f"this model predicts task={self.task_name}, there is no task={name}{nearest(name, own)}{others}")
        return import_module(f"{self.package}.{name}").predictions


def defines(path: Path, function: str) -> bool:
    """Whether a file has a function of that name."""
    return re.search(rf"^def {function}\(", path.read_text(encoding="utf-8"), re.MULTILINE) is not None


def parameters(cls: type) -> list[str]:
    """Names of a class's options, those that it passes on to its parent included."""
    found: list[str] = []
    for base in cls.__mro__:
        own = inspect.signature(base.__init__).parameters.values() if "__init__" in vars(base) else []
        found += [p.name for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
        if own and not any(p.kind is p.VAR_KEYWORD for p in own):
            break
    return found


def choose_device(name: str) -> torch.device:
    """The device that `device=` names.

    Raises:
        ConfigError: if there is none of that name.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device("cuda" if name == "gpu" else str(name))
    except RuntimeError:
        device = torch.device("meta")
    # Torch knows more of them, on which nothing can be computed or that nobody has tried.
    if device.type not in ("cpu", "cuda", "mps"):
        raise ConfigError(f"device must be auto, cpu, cuda, cuda:1 or mps, found {name!r}")
    count = torch.cuda.device_count() if device.type == "cuda" else 1
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(f"device={name}, but torch sees {count or 'no'} GPUs (longseq doctor says why)")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device=mps, but torch sees no Apple GPU")
    return device
