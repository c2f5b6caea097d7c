"""Run folders as `longseq fit` leaves them, made up in milliseconds, for the tests of what reads them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

MONITORS = {
    "classification": ("mcc", "max"),
    "multilabel": ("auroc", "max"),
    "regression": ("mse", "min"),
    "lm": ("loss", "min"),
}


def write_run(
    folder: Path,
    task: str,
    *,
    test: dict[str, float],
    baselines: dict[str, dict[str, float]] | None = None,
    predictions: pd.DataFrame | None = None,
    splits: dict[str, dict[str, Any]] | None = None,
    counts: dict[str, Any] | None = None,
    steps: int = 120,
    **more: Any,
) -> Path:
    """Writes config.yaml, metrics.json, metrics.csv and, if there are any, predictions.csv."""
    monitor, mode = MONITORS[task]
    folder.mkdir(parents=True, exist_ok=True)
    config = (
        f"domain: dna\nplots: longseq.domains.dna.plots\nseed: 7\ntask:\n  name: {task}\n  monitor: {monitor}\n  mode: {mode}\n"
    )
    config += "backbone:\n  name: hyena\n  d_model: 128\n  n_layers: 4\noptimizer:\n  name: adamw\n  lr: 0.001\n"
    (folder / "config.yaml").write_text(config)
    metrics: dict[str, Any] = {
        "domain": "dna",
        "backbone": "hyena",
        "task": task,
        "seed": 7,
        "synthetic": False,
        "interrupted": False,
        "train_seconds": 754.2,
        "training": {
            "parameters": 1_234_567,
            "trainable": 1_234_000,
            "epochs": 6,
            "steps": steps,
            "tokens": 98_765_432,
            "tokens_per_second": 130_953.7,
            "peak_gpu_memory_bytes": 5_678_901_234,
        },
        "environment": {
            "longseq": "0.1.0",
            "python": "3.12.3",
            "platform": "Linux-6.8-x86_64",
            "command": "longseq fit domain=dna 'data.train=<my files>/train.csv'",
            "device": "NVIDIA H100 80GB HBM3",
            "devices": 1,
            "precision": "bf16-mixed",
            "torch": "2.11.0+cu130",
        },
        "test": test,
        "validation": {name: value * 1.01 for name, value in test.items()},
        "baselines": baselines or {},
        "data": {"splits": splits or {}, "counts": counts or {}},
    }
    (folder / "metrics.json").write_text(json.dumps({**metrics, **more}, indent=2))
    logged_curves(monitor, mode, steps).to_csv(folder / "metrics.csv", index=False)
    if predictions is not None:
        predictions.to_csv(folder / "predictions.csv", index=False)
    return folder


def logged_curves(monitor: str, mode: str, steps: int) -> pd.DataFrame:
    """As Lightning's CSVLogger writes them: one row per logging call, with holes."""
    random = np.random.default_rng(3)
    rows: list[dict[str, float]] = []
    for step in range(steps):
        loss = 0.08 + 1.4 * np.exp(-4 * step / steps) + random.normal(0, 0.03)
        rows.append({"epoch": step * 6 // steps, "step": step, "train/loss_step": loss, "tokens/s": 131e3})
        if (step + 1) % (steps // 6) == 0:
            part = (step + 1) / steps
            score = 0.9 * (1 - np.exp(-3 * part)) if mode == "max" else 1.5 * np.exp(-2 * part)
            values = {f"val/{monitor}": score, "val/loss": 0.25 + np.exp(-3 * part), "val/extra": part}
            rows.append({"epoch": step * 6 // steps, "step": step, "train/loss_epoch": loss, **values})
    return pd.DataFrame(rows)


def class_predictions(classes: list[str], n: int = 300, seed: int = 0, skill: float = 2.0) -> pd.DataFrame:
    """A classifier's predictions.csv with intervals and lengths."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, len(classes), n)
    logits = random.normal(size=(n, len(classes))) * 1.3
    logits[np.arange(n), truth] += skill
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = np.array(classes)
    start = random.integers(10_000, 2_000_000, n)
    lengths = random.integers(200, 4000, n)
    frame = {
        "id": [f"peak_{i:05d}" for i in range(n)],
        "chrom": random.choice(["chr2", "chr10", "chrX"], n),
        "start": start,
        "end": start + lengths,
        "length": lengths,
        "prediction": names[probabilities.argmax(1)],
        "label": names[truth],
    }
    return pd.DataFrame({**frame, **{f"p_{name}": probabilities[:, i] for i, name in enumerate(classes)}})


def value_predictions(targets: list[str], n: int = 300) -> pd.DataFrame:
    """A regression's predictions.csv."""
    random = np.random.default_rng(1)
    frame: dict[str, Any] = {"id": [f"{i:04d}" for i in range(n)], "length": random.integers(100, 900, n)}
    truth = {name: random.normal(3, 2, n) for name in targets}
    frame |= {f"predicted_{name}": values * 0.8 + random.normal(0.6, 0.7, n) for name, values in truth.items()}
    return pd.DataFrame({**frame, **truth})


def label_predictions(labels: list[str], n: int = 300) -> pd.DataFrame:
    """A multi-label model's predictions.csv."""
    random = np.random.default_rng(2)
    truth = (random.random((n, len(labels))) < 0.3).astype(int)
    scores = 1 / (1 + np.exp(-(random.normal(size=truth.shape) + 3 * truth - 2)))
    frame: dict[str, Any] = {"id": [f"row{i}" for i in range(n)]}
    frame |= {f"p_{name}": scores[:, i] for i, name in enumerate(labels)}
    return pd.DataFrame({**frame, **{name: truth[:, i] for i, name in enumerate(labels)}})


def dna_splits(labels: dict[str, int] | None = None) -> dict[str, dict[str, Any]]:
    """Facts of the splits as the DNA domain gives them."""
    found: dict[str, dict[str, Any]] = {}
    for name, rows in (("train", 8123), ("val", 1017), ("test", 1024)):
        facts: dict[str, Any] = {"rows": rows, "bases": rows * 512, "shortest": 200, "median length": 512.0, "longest": 4000}
        found[name] = {**facts, "GC": 0.4123, "N": 0.00031}
        if labels:
            found[name]["labels"] = {key: count * rows // 1000 for key, count in labels.items()}
    return found
