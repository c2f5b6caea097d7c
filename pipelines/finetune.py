"""Train a pretrained model on your data: all of it, its head alone, or low-rank adapters.

Loads a run folder, an exported model folder, a published checkpoint's folder or file, or one from the hub, says what became
of each of its tensors, puts a head for your labels on it, and trains, tests and reports as `longseq fit` does. The run folder
holds the key report and the optimiser's groups too; the model in it is a plain one, with adapters merged.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import pandas as pd

from longseq.checkpoint import write_atomically
from longseq.errors import ConfigError
from longseq.pipelines import console
from longseq.pipelines.finetune_console import describe
from longseq.pipelines.finetune_folds import cross_validate
from longseq.pipelines.finetune_model import build_for_task, open_for_task
from longseq.pipelines.finetune_modes import Plan, UnfreezeLayers, apply_mode, group_rows, scale_learning_rates
from longseq.pipelines.finetune_options import check_modes
from longseq.pipelines.finetune_probe import Probe, can_cache
from longseq.pipelines.fit import build_data, build_module, build_task, build_trainer, quiet_lightning, train_and_report
from longseq.pipelines.results import plain
from longseq.pipelines.run_folder import CHECKPOINTS, MODEL, open_run_folder

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from longseq.domains.base import DomainModule
    from longseq.pretrained import KeyReport, Opened

KEY_REPORT, GROUPS = "key_report.json", "parameter_groups.csv"


def run(cfg: "DictConfig") -> dict[str, Any]:
    """Loads, trains, tests and reports.

    Args:
        cfg: composed from configs/finetune.yaml.

    Returns:
        What metrics.json holds, with `run_dir`, and `exit_code` 130 after Ctrl-C.
    """
    quiet_lightning()
    check_modes(cfg)
    check_folder(cfg)
    opened = open_for_task(cfg)
    return finetune(cfg, opened) if cfg.cv.folds is None else cross_validate(cfg, opened, finetune)


def check_folder(cfg: "DictConfig") -> None:
    """Raises ConfigError if the run would be written over what it starts from."""
    if cfg.run_dir is None or cfg.resume is not None or not cfg.get("pretrained"):
        return
    place, source = Path(cfg.run_dir).resolve(), Path(str(cfg.pretrained)).expanduser().resolve()
    if source in (place, place / MODEL) or source.parent in (place / MODEL, place / CHECKPOINTS):
        raise ConfigError(f"run_dir={cfg.run_dir} is where the pretrained model stands, which would be lost: choose another")


def finetune(cfg: "DictConfig", opened: "Opened") -> dict[str, Any]:
    """One fine-tuning in a folder of its own."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg)
    task = build_task(cfg, data)
    model, report = build_for_task(cfg, opened, data, task)
    if any(name.startswith("head.") for name in report.reinitialized):
        data.start(model, task)
    fresh = {*report.reinitialized, *report.missing}
    plan = apply_mode(cfg, model.train(), fresh)
    module = build_module(cfg, model, task)
    scale_learning_rates(cfg, module)
    folder = open_run_folder(cfg)
    trainer = build_trainer(cfg)
    if cfg.finetune.unfreeze_every is not None:
        trainer.callbacks.append(UnfreezeLayers(cfg.finetune.unfreeze_every, fresh))  # type: ignore[attr-defined]
    console.start(cfg, folder, data, module, trainer, verb="finetune")
    facts = finetune_facts(cfg, report, plan, module)
    if trainer.is_global_zero:
        describe(report, plan, facts)
        write_facts(folder, report, facts)
    probe = Probe(module, data, cfg, trainer) if can_cache(cfg, module) else None
    return train_and_report(cfg, folder, data, module, trainer, probe=probe, facts={"finetune": facts})


def finetune_facts(cfg: "DictConfig", report: "KeyReport", plan: Plan, module: "DomainModule") -> dict[str, Any]:
    """What the console and the report say of the fine-tuning, as plain values."""
    parameters = list(module.model.parameters())
    total, trainable = (sum(p.numel() for p in found) for found in (parameters, [p for p in parameters if p.requires_grad]))
    return {
        "pretrained": str(cfg.pretrained),
        "mode": plan.mode,
        "adapted": None if plan.adapted is None else str(plan.adapted),
        "frozen": plan.frozen,
        "notes": plan.notes,
        "parameters": total,
        "trainable": trainable,
        "share": trainable / total,
        "groups": group_rows(module),
        "keys": report.to_dict(),
    }


def write_facts(folder: Path, report: "KeyReport", facts: dict[str, Any]) -> None:
    """The key report and the groups as files of the run folder."""
    write_atomically(folder / KEY_REPORT, json.dumps(plain(report.to_dict()), indent=2) + "\n")
    write_atomically(folder / GROUPS, pd.DataFrame(facts["groups"]).to_csv(index=False))
