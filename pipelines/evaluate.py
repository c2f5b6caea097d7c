"""Test a trained model again, on its run's data or on other files.

Loads the run's model folder, reads its data with your changes on top (data.test=other.csv), and prints the metrics beside
the baselines. The result and the predictions are kept in the run folder under evaluations/.
"""

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from longseq.checkpoint import load_model, write_atomically
from longseq.errors import ConfigError, DataError, LongseqError
from longseq.pipelines import console
from longseq.pipelines.cli import nearest
from longseq.pipelines.fit import build_data, build_module, build_task, build_trainer, quiet_lightning, scores
from longseq.pipelines.results import environment, gather_predictions, plain
from longseq.pipelines.run_folder import MODEL, read_config

if TYPE_CHECKING:
    from longseq.domains.base import DomainData


def run(cfg: DictConfig) -> dict[str, Any]:
    """Tests the model of `cfg.run`.

    Args:
        cfg: composed from configs/evaluate.yaml.

    Returns:
        What the written JSON holds.
    """
    quiet_lightning()
    folder = Path(cfg.run)
    saved = run_config(folder, cfg)
    L.seed_everything(saved.seed, workers=True, verbose=False)
    model = load_model(folder / MODEL)
    data = build_data(saved, "test")
    check_labels(model.config, data, folder)
    module = build_module(saved, model, build_task(saved, data))
    trainer = build_trainer(saved)
    result: dict[str, Any] = {
        "run": str(folder),
        "backbone": saved.backbone.name,
        "test": tested(cfg, trainer, module, data),
        "data": {"changes": OmegaConf.to_container(cfg.data), "splits": data.summary(), "counts": data.counts},
        "environment": environment(trainer),
    }
    predictions = gather_predictions(trainer, module, data)
    if trainer.is_global_zero:
        if cfg.baselines:
            result["baselines"] = data.baselines(module.task)
        path = folder / "evaluations" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}.json"
        write_atomically(path, json.dumps(plain(result), indent=2) + "\n")
        if predictions is not None:
            write_atomically(path.with_suffix(".csv"), predictions.to_csv(index=False))
        out = Console()
        console.show_data(out, data)
        out.print(console.results_table(result, "test result", str(saved.task.monitor), str(saved.task.mode)))
        out.print(f"written  {path}", highlight=False)
    return result


def tested(cfg: DictConfig, trainer: L.Trainer, module: L.LightningModule, data: "DomainData") -> dict[str, float]:
    """The test's metrics.

    Raises:
        ConfigError: if the model does not take what the changed options make of the data.
    """
    try:
        return scores(trainer.test(module, data, verbose=False))
    except ValueError as error:
        changed = [f"data.{key}={value}" for key, value in cfg.data.items()]
        if isinstance(error, LongseqError) or not changed:
            raise
        raise ConfigError(f"the model of run={cfg.run} does not fit {', '.join(changed)}: {error}") from error


def run_config(folder: Path, cfg: DictConfig) -> DictConfig:
    """The run's config with this command's data options and trainer, and nothing that writes into the run."""
    saved = read_config(folder)
    for key, value in cfg.data.items():
        if key not in saved.data:
            raise ConfigError(f"there is no option data.{key}{nearest(str(key), saved.data)}")
        saved.data[key] = value
    saved.trainer, saved.logger, saved.callbacks = cfg.trainer, {}, {}
    return saved


def check_labels(config: dict[str, Any], data: "DomainData", folder: Path) -> None:
    """Raises DataError if the data's labels are not those that the model answers with."""
    expected, found = config.get("labels"), data.task_options().get("labels")
    if expected != found:
        raise DataError(f"the model in {folder} answers with the labels {expected}, the data holds {found}")
