"""The files of a finished run: metrics.json and predictions.csv."""

import json
import math
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pandas as pd
import torch

from longseq.checkpoint import write_atomically
from longseq.domains.base import DomainData, DomainModule
from longseq.pipelines.run_folder import METRICS
from longseq.version import __version__

PACKAGES = ("torch", "lightning", "torchmetrics", "torchaudio", "timm", "numpy", "scikit-learn", "transformers", "triton")


def gather_predictions(trainer: L.Trainer, module: DomainModule, data: DomainData) -> pd.DataFrame | None:
    """What the test has just predicted, in the input's order; None for tasks that predict per position.

    Every process must call it; each has tested its share, and all get the whole table.
    """
    batches = module.test_predictions
    if trainer.world_size > 1:
        shares: list[Any] = [None] * trainer.world_size
        torch.distributed.all_gather_object(shares, batches)
        batches = [batch for share in shares for batch in share]
    return predictions_table(batches, data, "test") if batches else None


def predictions_table(batches: list[dict[str, np.ndarray]], data: DomainData, split: str) -> pd.DataFrame:
    """One row per example with what identifies it first, in the order of the input."""
    columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
    order = np.argsort(columns["index"], kind="stable")
    index = columns.pop("index")[order]
    names = data.row_names(split, index)
    return pd.DataFrame({**names, **{name: values[order] for name, values in columns.items()}})


def write_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Writes metrics.json; its presence says that the run has finished."""
    write_atomically(folder / METRICS, json.dumps(plain(metrics), indent=2) + "\n")


def plain(value: Any) -> Any:
    """Numbers, lists and dicts that JSON knows; NaN and infinity become null."""
    if isinstance(value, dict):
        return {str(key): plain(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(child) for child in value]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return plain(value.tolist())
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def environment(trainer: L.Trainer) -> dict[str, Any]:
    """Versions and hardware."""
    found: dict[str, Any] = {
        "longseq": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": " ".join(["longseq", *sys.argv[1:]]),
        "device": torch.cuda.get_device_name() if trainer.strategy.root_device.type == "cuda" else cpu_name(),
        "devices": trainer.world_size,
        "precision": str(trainer.precision),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def cpu_name() -> str:
    """The processor's model name and the number of threads that torch uses."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'}, {torch.get_num_threads()} threads"
