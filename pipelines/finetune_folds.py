"""Cross-validation: one fine-tuning per fold, each fold held out once, and the mean and deviation over them."""

import copy
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from rich.console import Console
from rich.table import Table

from longseq.checkpoint import write_atomically
from longseq.domains.loading import holding_out
from longseq.errors import ConfigError, LongseqError
from longseq.pipelines.console import format_value
from longseq.pipelines.fit import build_data
from longseq.pipelines.results import write_metrics
from longseq.pipelines.run_folder import FOLD, is_same_run, is_started, open_run_folder, read_metrics

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from longseq.pretrained import Opened

FOLDS = "folds.csv"
# What every fold says of itself and the whole says once.
SHARED = ("domain", "backbone", "task", "seed", "synthetic", "environment", "data")


def cross_validate(
    cfg: "DictConfig", opened: "Opened", finetune: Callable[["DictConfig", "Opened"], dict[str, Any]]
) -> dict[str, Any]:
    """Runs every fold in a folder of its own and reports mean and standard deviation.

    Resumed, it takes the folds that are finished as they are, and goes on inside the one that is not.

    Args:
        cfg: of the verb finetune, with `cv.folds`.
        opened: the checkpoint; every fold starts from it.
        finetune: one run.

    Raises:
        ConfigError: for fewer than two folds, several devices, or data whose split is not drawn at random.
    """
    folds = cfg.cv.folds
    if not isinstance(folds, int) or folds < 2:
        raise ConfigError(f"cv.folds must be 2 or more, found {folds!r}")
    if cfg.trainer.get("devices", 1) not in (1, "1", "auto") or cfg.trainer.get("num_nodes", 1) != 1:
        raise ConfigError("cv.folds runs in one process: set trainer.devices=1, or run the folds' seeds side by side")
    check_split(cfg, folds)
    folder = open_run_folder(cfg)
    found = []
    for index in range(folds):
        place = folder / f"{FOLD}{index + 1}"
        own = copy.deepcopy(cfg)
        begun = cfg.resume is not None and is_same_run(place, cfg)
        own.run_dir, own.resume = str(place), str(place) if begun and is_started(place) else None
        result = read_metrics(place) if begun else {}
        Console().print(f"\n[bold]fold {index + 1} of {folds}[/]{', finished before' if result else ''}")
        if not result:
            with holding_out(index, folds):
                result = finetune(own, opened)
        if result.get("exit_code"):
            return result
        found.append(result)
    summary = summarize(found)
    write_metrics(folder, summary)
    write_atomically(folder / FOLDS, fold_table(found).to_csv(index_label="fold"))
    if cfg.report:
        from longseq.pipelines.report import write_report

        write_report(folder)
    print_summary(summary, folder, str(cfg.task.monitor))
    return {**summary, "run_dir": str(folder)}


def check_split(cfg: "DictConfig", folds: int) -> None:
    """Reads the data of the last fold, which is the smallest, so that nothing is trained in vain.

    Raises:
        ConfigError: if the split is not drawn at random, or leaves a fold without rows.
    """
    with holding_out(folds - 1, folds) as fold:
        try:
            build_data(cfg)
        except LongseqError as error:
            raise type(error)(f"cv.folds={folds}: {error}" if fold.used else str(error)) from None
    if not fold.used:
        raise ConfigError(
            "cv.folds needs a split that is drawn at random from data.train, or by groups; these data are split by files, "
            "a column or chromosomes. Give one file as data.train, and leave data.val out"
        )


def summarize(results: list[dict[str, Any]]) -> dict[str, Any]:
    """metrics.json of the whole: means as `test` and `baselines`, deviations as `test_sd`, and every fold's own test."""
    tests = [result["test"] for result in results]
    baselines = [result.get("baselines") or {} for result in results]
    named = {name for rows in baselines for name in rows}
    return {
        **{key: results[0][key] for key in SHARED if key in results[0]},
        "interrupted": False,
        "train_seconds": sum(result["train_seconds"] for result in results),
        "training": results[0]["training"],
        "finetune": results[0]["finetune"],
        "test": over_folds(tests, statistics.mean),
        "test_sd": over_folds(tests, statistics.stdev),
        "baselines": {name: over_folds([rows.get(name, {}) for rows in baselines], statistics.mean) for name in sorted(named)},
        "folds": tests,
    }


def over_folds(rows: list[dict[str, float]], statistic: Callable[[list[float]], float]) -> dict[str, float]:
    """A statistic of each metric that all folds have."""
    names = [name for name in rows[0] if all(isinstance(row.get(name), (int, float)) for row in rows)]
    return {name: float(statistic([row[name] for row in rows])) for name in names}


def fold_table(results: list[dict[str, Any]]) -> pd.DataFrame:
    """One row per fold."""
    return pd.DataFrame([result["test"] for result in results], index=range(1, len(results) + 1))


def print_summary(summary: dict[str, Any], folder: Path, monitor: str) -> None:
    """Mean and standard deviation, with the baselines' means."""
    out = Console()
    names = sorted(summary["test"], key=lambda name: name != monitor)
    table = Table(title=f"mean and standard deviation over {len(summary['folds'])} folds", title_justify="left")
    table.add_column("")
    for label in (summary["backbone"], "sd", *summary["baselines"]):
        table.add_column(label, justify="right", overflow="fold")
    for name in names:
        rows = (summary["test"], summary["test_sd"], *summary["baselines"].values())
        table.add_row(name, *(format_value(row[name]) if name in row else "-" for row in rows))
    out.print(table)
    out.print(f"run      {folder}", highlight=False)
