"""Pretraining on the task's own data, before the task: longseq fit self_pretrain.epochs=N.

Paper: Never Train from Scratch, https://arxiv.org/abs/2310.02980: the same data without their labels, as a language model or
with masks, brings long-sequence models ten points and more, and makes comparisons between backbones fair.
"""

import copy
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from omegaconf import OmegaConf, open_dict
from rich.console import Console

from longseq.checkpoint import load_model, save_model, write_atomically
from longseq.domains.base import DomainData
from longseq.errors import ConfigError
from longseq.model import SequenceModel
from longseq.pipelines import console
from longseq.pipelines.cli import CONFIGS, nearest_of
from longseq.pipelines.fit import (
    best_checkpoint,
    build,
    build_module,
    build_network,
    build_task,
    build_trainer,
    train,
    trained_model,
    training_figures,
)
from longseq.pipelines.option_types import check_types
from longseq.pipelines.results import plain
from longseq.pipelines.run_folder import MODEL, PRETRAINED, PRETRAINING

if TYPE_CHECKING:
    from omegaconf import DictConfig

# What belongs to the task and has no place in pretraining: it starts untrained.
TASKS_OWN = ("embedding.class_vector",)


@dataclass
class SelfPretrainOptions:
    """Kinds of the options `self_pretrain`; configs/fit.yaml says what they are and their defaults."""

    epochs: int
    task: str | None
    lr: float | None


def pretrain_on_task(cfg: "DictConfig", folder: Path, data: DomainData, model: SequenceModel) -> dict[str, Any]:
    """Pretrains a network of the task's shape and gives its backbone and embedding to the task's model.

    Args:
        cfg: of the verb fit.
        folder: the run's; the pretraining keeps its checkpoints, logs and model in a folder of it.
        data: of the task, read.
        model: the task's, whose weights are replaced.

    Returns:
        Task, epochs, validation metrics and seconds, for the report.

    Raises:
        ConfigError: if the domain has nothing to pretrain with on these data.
    """
    place = folder / PRETRAINING
    own = pretraining_config(cfg, place)
    if cfg.resume is not None and (place / MODEL).is_dir() and (place / PRETRAINED).is_file():
        # A run that is resumed has this behind it; what else stands in its folder may be of other options.
        take(model, load_model(place / MODEL))
        found: dict[str, Any] = json.loads((place / PRETRAINED).read_text(encoding="utf-8"))
        return found
    inputs = pretraining_data(cfg, own, data, model.backbone.causal)
    task = build_task(own, inputs)
    network = build_network(own, inputs, task)
    module, trainer = build_module(own, network, task), build_trainer(own)
    out = Console()
    if trainer.is_global_zero:
        rows = len(inputs.splits["train"])
        out.print(f"[bold]self-pretraining[/] task={task.name} on {rows:,} training rows, {own.trainer.max_epochs} epochs")
    started = time.perf_counter()
    if train(trainer, module, inputs, own):
        if trainer.is_global_zero:
            seen = {name: float(value) for name, value in trainer.callback_metrics.items()}
            console.interrupted(place, {"training": training_figures(trainer, module), "validation": seen})
        raise KeyboardInterrupt
    best, validation = best_checkpoint(trainer)
    pretrained = trained_model(module, best)
    names = take(model, pretrained)
    facts = {
        "task": task.name,
        "epochs": cfg.self_pretrain.epochs,
        "validation": validation,
        "seconds": time.perf_counter() - started,
        "tensors": len(names),
        "training": training_figures(trainer, module),
    }
    if trainer.is_global_zero:
        save_model(pretrained, place / MODEL)
        write_atomically(place / PRETRAINED, json.dumps(plain(facts), indent=2) + "\n")
        shown = ", ".join(f"{name} {value:.4g}" for name, value in validation.items())
        out.print(
            f"  pretrained in {facts['seconds']:.0f} s; validation {shown}; {len(names)} tensors taken over", highlight=False
        )
    return facts


def pretraining_config(cfg: "DictConfig", place: Path) -> "DictConfig":
    """The run's config with the pretraining's epochs and folder, and with its task where the command names one."""
    check_types("self_pretrain", SelfPretrainOptions, {str(key): value for key, value in cfg.self_pretrain.items()})
    if cfg.self_pretrain.epochs < 0:
        raise ConfigError(f"self_pretrain.epochs must be 0 (none) or more, found {cfg.self_pretrain.epochs}")
    name, known = cfg.self_pretrain.task, [path.stem for path in (CONFIGS / "task").glob("*.yaml")]
    if name is not None and name not in known:
        raise ConfigError(f"self_pretrain.task={name} is no task{nearest_of(str(name), sorted(known), 'Tasks')}")
    own = copy.deepcopy(cfg)
    with open_dict(own):
        # The run's own `resume` holds here too: there is a checkpoint if the pretraining is what was interrupted.
        own.run_dir = str(place)
        own.trainer.max_epochs, own.trainer.max_steps = cfg.self_pretrain.epochs, -1
        if cfg.self_pretrain.lr is not None:
            own.optimizer.lr = cfg.self_pretrain.lr
        # Mixtures of labels need labels.
        for option in ("mixup", "cutmix"):
            if option in own.module:
                own.module[option] = 0.0
    if name is not None:
        choose_task(own, str(name))
    return own


def choose_task(own: "DictConfig", name: str) -> None:
    """Puts a shipped task's config in the place of the run's."""
    with open_dict(own):
        own.task = OmegaConf.load(CONFIGS / "task" / f"{name}.yaml")


def pretraining_data(cfg: "DictConfig", own: "DictConfig", data: DomainData, causal: bool) -> DomainData:
    """The domain's own view of the same rows, which says the task; or its data module read anew for a task that was named."""
    named = cfg.self_pretrain.task
    if named in (None, "lm", "mlm"):
        inputs = data.self_supervised(causal if named is None else named == "lm")
        if named in (None, inputs.task_name):
            choose_task(own, inputs.task_name)
            return inputs
    read: DomainData = build(own.data, task=str(own.task.name), seed=cfg.seed)
    read.setup("fit")
    return read


@torch.no_grad()
def take(model: SequenceModel, pretrained: SequenceModel) -> list[str]:
    """Copies backbone and embedding; returns the names of the tensors.

    Raises:
        ConfigError: if the pretraining's network lacks any of the task's.
    """
    theirs = pretrained.state_dict()
    names = [name for name in model.state_dict() if not name.startswith("head.") and name not in TASKS_OWN]
    other = [name for name in names if name not in theirs or theirs[name].shape != model.state_dict()[name].shape]
    if other:
        raise ConfigError(
            f"self_pretrain.task={pretrained.config.get('task')} makes another network of these data than the task does "
            f"({other[0]} is missing or of another shape): choose a task that reads the input in the same way"
        )
    own = model.state_dict()
    for name in names:
        own[name].copy_(theirs[name])
    return names
