"""Train a model on your data, or on the domain's embedded demo data.

Reads the data, trains the backbone with the task's head, keeps the best and the last checkpoint, tests the best one, and
prints its result beside trivial baselines. Leaves a run folder with the config, metrics, predictions, a report to open in
a browser, and the trained model, which longseq.load_model reads without Lightning.
"""

import signal
import threading
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from longseq.adapters import has_adapters, merge_weights
from longseq.checkpoint import load_into, save_model, write_atomically
from longseq.domains.base import DomainData, DomainModule
from longseq.domains.tasks import Task
from longseq.errors import ConfigError, LongseqError
from longseq.model import SequenceModel, build_model
from longseq.pipelines import console
from longseq.pipelines.averaging import keep_better_weights
from longseq.pipelines.callbacks import LengthWarmup, RunCheckpoints
from longseq.pipelines.cli import INTERRUPTED
from longseq.pipelines.option_types import check_types
from longseq.pipelines.results import environment, gather_predictions, write_metrics
from longseq.pipelines.run_folder import CHECKPOINTS, LAST, MODEL, PREDICTIONS, open_run_folder
from longseq.registry import create_backbone

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

    from longseq.pipelines.finetune_probe import Probe


def run(cfg: "DictConfig") -> dict[str, Any]:
    """Trains, tests and reports.

    Args:
        cfg: composed from configs/fit.yaml.

    Returns:
        What metrics.json holds, with `run_dir`, and `exit_code` 130 after Ctrl-C.
    """
    quiet_lightning()
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg)
    task = build_task(cfg, data)
    model = build_network(cfg, data, task)
    folder = open_run_folder(cfg)
    data.start(model, task)
    facts = {}
    if cfg.self_pretrain.epochs:
        from longseq.pipelines.self_pretrain import pretrain_on_task

        facts["self_pretrain"] = pretrain_on_task(cfg, folder, data, model)
    module = build_module(cfg, model, task)
    trainer = build_trainer(cfg)
    console.start(cfg, folder, data, module, trainer)
    return train_and_report(cfg, folder, data, module, trainer, facts=facts)


def train_and_report(
    cfg: "DictConfig",
    folder: Path,
    data: DomainData,
    module: DomainModule,
    trainer: L.Trainer,
    *,
    probe: "Probe | None" = None,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains, tests the best weights, and writes what the run leaves.

    Args:
        cfg: of `fit` or `finetune`.
        folder: the run's.
        data: read.
        module: to train and to test.
        trainer: for both.
        probe: trains the module's head on kept features in place of the module.
        facts: more entries for metrics.json.

    Returns:
        As `run`.
    """
    started = time.perf_counter()
    trained = (module, data) if probe is None else (probe.module, probe.data)
    interrupted = train(trainer, *trained, cfg)
    metrics: dict[str, Any] = {
        "domain": cfg.domain,
        "backbone": cfg.backbone.name,
        "task": task_name(cfg),
        "seed": cfg.seed,
        "synthetic": bool(data.counts.get("synthetic", False)),
        "interrupted": interrupted,
        "train_seconds": time.perf_counter() - started,
        "training": training_figures(trainer, trained[0]),
        "environment": environment(trainer),
        **(facts or {}),
    }
    if interrupted:
        metrics["validation"] = {k: float(v) for k, v in trainer.callback_metrics.items()}
        if trainer.is_global_zero:
            console.interrupted(folder, metrics)
        return {**metrics, "run_dir": str(folder), "exit_code": INTERRUPTED}
    weights = keep_better_weights(trainer, *trained)
    if weights is not None:
        metrics["weights"] = weights
    best, metrics["validation"] = best_checkpoint(trainer)
    if probe is not None:
        best = probe.give_head(best)
    metrics["test"] = scores(trainer.test(module, data, best, verbose=False, weights_only=False))
    predictions = gather_predictions(trainer, module, data)
    if trainer.is_global_zero:
        finish(cfg, folder, data, module, best, metrics, predictions)
    return {**metrics, "run_dir": str(folder)}


# -- the parts of a run


def build(entry: Any, **options: Any) -> Any:
    """Hydra's instantiate, with our own errors as they were raised: they are answers, not faults of the config system."""
    try:
        return instantiate(entry, **options, _convert_="all")
    except InstantiationException as error:
        if isinstance(error.__cause__, LongseqError):
            raise error.__cause__ from None
        raise


def build_data(cfg: "DictConfig", stage: str = "fit") -> DomainData:
    """The domain's data module, with the user's files read; for the stage `test`, train and val need not give a row."""
    check_config(cfg)
    data: DomainData = build(cfg.data, task=task_name(cfg), seed=cfg.seed)
    data.setup(stage)
    return data


def check_config(cfg: "DictConfig") -> None:
    """Raises ConfigError for options of the wrong kind, before anything is read."""
    for part in ("data", "module", "trainer"):
        options: Any = OmegaConf.to_container(cfg[part], resolve=True) if cfg.get(part) else {}
        # Ours, and no trainer's.
        own = {"precision": None} if options.get("precision") == "auto" else {}
        if options.get("_target_"):
            check_types(part, get_class(options["_target_"]), {**options, **own})


def task_name(cfg: "DictConfig") -> str:
    """The task as in `task=`."""
    return str(cfg.task.name)


def build_task(cfg: "DictConfig", data: DomainData) -> Task:
    """The task, told by the data what its labels, vocabulary and the like are."""
    options = {key: value for key, value in cfg.task.items() if key not in ("name", "monitor", "mode")}
    return build({**options, **data.task_options()})


def build_network(cfg: "DictConfig", data: DomainData, task: Task) -> SequenceModel:
    """A fresh model: the backbone as configured, with the embedding and the head that data and task ask for."""
    options: Any = OmegaConf.to_container(cfg.backbone, resolve=True)
    # The length that a backbone is built for is the data's, unless the user says otherwise.
    if "max_length" in options and options["max_length"] is None:
        options["max_length"] = data.max_length
    options |= grid_options(options, data)
    try:
        backbone = create_backbone(**options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"backbone: {error}") from error
    check_causality(task.name, backbone.causal, options["name"])
    config = {
        "domain": cfg.domain,
        **task.config(),
        **data.model_options(backbone),
        "backbone": options,
        "head": data.head_options(backbone, task.head()),
    }
    try:
        return build_model(config, backbone)
    except ValueError as error:
        raise error if isinstance(error, LongseqError) else ConfigError(f"the model cannot be built: {error}") from error


def grid_options(options: Mapping[str, Any], data: DomainData) -> dict[str, Any]:
    """The grid that a backbone with scan orders reads, and the place of a class token beside its cells."""
    if not options.get("scan_orders") or options.get("grid") is not None:
        return {}
    return {"grid": list(data.grid), "grid_token": data.grid_token}


def check_causality(task: str, causal: bool, backbone: str) -> None:
    """Raises ConfigError for a language model on a backbone that sees what it should predict, and the other way round."""
    if task == "lm" and not causal:
        raise ConfigError(
            f"task=lm predicts the next token, but backbone={backbone} sees the future here: choose a causal form "
            "(backbone.causal=true, or backbone.bidirectional=false) or task=mlm"
        )
    if task == "mlm" and causal:
        raise ConfigError(
            f"task=mlm fills in tokens from both sides, but backbone={backbone} sees only the past here: "
            "add +backbone.bidirectional=true, or choose task=lm"
        )


def build_module(cfg: "DictConfig", model: SequenceModel, task: Task) -> DomainModule:
    """The LightningModule that trains the model."""
    plain: dict[str, Any] = {
        "optimizer": OmegaConf.to_container(cfg.optimizer, resolve=True),
        "schedule": OmegaConf.to_container(cfg.schedule, resolve=True),
    }
    return build(cfg.module, task=task, model=model, compile=cfg.compile, **plain, _recursive_=False)


def build_trainer(cfg: "DictConfig") -> L.Trainer:
    """Lightning's trainer with the run's loggers and callbacks."""
    options: Any = OmegaConf.to_container(cfg.trainer, resolve=True)
    if options.get("precision") == "auto":
        gpu = torch.cuda.is_available() and options.get("accelerator") in ("auto", "gpu", "cuda")
        options["precision"] = "bf16-mixed" if gpu else "32-true"
    loggers = [build(entry) for entry in (cfg.logger or {}).values() if entry]
    callbacks = [build(entry) for entry in (cfg.callbacks or {}).values() if entry]
    warmup = cfg.get("length_warmup")
    if warmup is not None and warmup.stages:
        stages: Any = OmegaConf.to_container(warmup, resolve=True)
        check_types("length_warmup", LengthWarmup, stages)
        callbacks.append(LengthWarmup(**stages))
    progress = {"enable_progress_bar": "progress" in (cfg.callbacks or {})}
    return build({**progress, **options}, logger=loggers or False, callbacks=callbacks, default_root_dir=cfg.run_dir)


def train(trainer: L.Trainer, module: DomainModule, data: L.LightningDataModule, cfg: "DictConfig") -> bool:
    """Runs the training loop; returns whether Ctrl-C ended it."""
    checkpoint = Path(cfg.run_dir) / CHECKPOINTS / LAST
    resume = checkpoint if cfg.resume is not None and checkpoint.is_file() else None
    handler = signal.getsignal(signal.SIGINT)
    try:
        # The run's own checkpoint: it holds random states, which are not tensors.
        trainer.fit(module, data, ckpt_path=resume, weights_only=False if resume else None)
    except (SystemExit, Exception) as error:
        if not came_of_ctrl_c(error):
            raise
        return True
    finally:
        # Lightning's shutdown leaves Ctrl-C ignored.
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, handler)
    return False


def came_of_ctrl_c(error: BaseException) -> bool:
    """Whether it was raised while a Ctrl-C was dealt with: Lightning's shutdown exits, or fails on what was half built."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, KeyboardInterrupt):
        cause = cause.__context__
    return cause is not None


def best_checkpoint(trainer: L.Trainer) -> tuple[Path | None, dict[str, float]]:
    """The best checkpoint and its validation metrics; None if no validation has chosen one: then the last weights count."""
    keepers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, RunCheckpoints)]
    keeper = keepers[0] if keepers else None
    if keeper is None or not keeper.best.is_file():
        return None, {}
    return keeper.best, {name.removeprefix("val/"): value for name, value in keeper.best_metrics.items()}


def scores(results: Any) -> dict[str, float]:
    """Lightning's result without the split in front of the names."""
    return {name.partition("/")[2]: float(value) for name, value in results[0].items()}


def trained_model(module: DomainModule, checkpoint: Path | None) -> SequenceModel:
    """A plain model with the checkpoint's weights, whatever the strategy made of the module's own."""
    if checkpoint is None and not has_adapters(module.model):
        return module.model
    weights = module.model.state_dict() if checkpoint is None else checkpoint_weights(checkpoint)
    model = build_model(module.model.config)
    load_into(model, merge_weights(module.model, weights), checkpoint or "this run")
    return model


def checkpoint_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The model's tensors in a checkpoint of Lightning's."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=False)["state_dict"]
    return {name.removeprefix("model."): tensor for name, tensor in state.items() if name.startswith("model.")}


def training_figures(trainer: L.Trainer, module: DomainModule) -> dict[str, Any]:
    """Size, speed and memory of the training that has just run."""
    parameters = list(module.model.parameters())
    figures: dict[str, Any] = {
        "parameters": sum(p.numel() for p in parameters),
        "trainable": sum(p.numel() for p in parameters if p.requires_grad),
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "tokens": module.tokens,
        "tokens_per_second": module.tokens * trainer.world_size / max(module.seconds, 1e-9),
    }
    if module.device.type == "cuda" or torch.cuda.is_available():
        figures["peak_gpu_memory_bytes"] = torch.cuda.max_memory_allocated()
    return figures


def finish(
    cfg: "DictConfig",
    folder: Path,
    data: DomainData,
    module: DomainModule,
    best: Path | None,
    metrics: dict[str, Any],
    predictions: "pd.DataFrame | None",
) -> None:
    """Writes everything that a finished run leaves, and prints the result."""
    save_model(trained_model(module, best), folder / MODEL, extra=data.model_files())
    if predictions is not None:
        write_atomically(folder / PREDICTIONS, predictions.to_csv(index=False))
    if cfg.baselines:
        metrics["baselines"] = data.baselines(module.task)
    metrics["data"] = {"splits": data.summary(), "counts": data.counts}
    write_metrics(folder, metrics)
    if cfg.report:
        from longseq.pipelines.report import write_report

        write_report(folder)
    console.finish(folder, metrics, str(cfg.task.monitor), str(cfg.task.mode))


def quiet_lightning() -> None:
    """Silences the advice of Lightning and torchmetrics that does not concern the user of this command."""
    import logging

    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in (
        ".*does not have many workers.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*The number of training batches.*smaller than the logging interval.*",
        ".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*",
        ".*Experiment logs directory.*exists.*",
        ".*GPU available but not used.*",
        ".*You are using a custom batch sampler.*",
        ".*will save all targets and predictions in the buffer.*",
        ".*The variance of predictions or target is close to zero.*",
        # A class that no row of val or test has; its score is left out of the mean.
        ".*No (positive|negative) samples in targets.*",
        ".*score for one or more classes was `nan`.*",
        # Of several processes: the metrics agree among themselves, and the training loss is this process's.
        ".*It is recommended to use `self.log.*sync_dist=True.*",
        # A frozen part is in eval mode on purpose.
        ".*in eval mode at the start of training.*",
    ):
        warnings.filterwarnings("ignore", text)
