"""Write report.html into a run folder: one self-contained page with the result, curves, data, config and environment.

usage: longseq report <run folder>

`longseq fit` writes it at the end of a run by itself; this verb makes it anew, for example after an upgrade. The page holds
the test result beside the baselines, learning curves, the domain's pictures, the most confident mistakes, what the data
were, and how to repeat the run. It loads nothing from anywhere: send it by mail, or open it in ten years.
"""

import json
import re
from collections.abc import Callable, Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from longseq.checkpoint import write_atomically
from longseq.domains.plots import comparison, learning_curves
from longseq.domains.prediction_plots import prediction_sections
from longseq.domains.sections import RunFiles, Section
from longseq.errors import ConfigError
from longseq.pipelines.report_finetune import finetune_sections
from longseq.pipelines.report_page import Chapter, page
from longseq.pipelines.report_sections import config_text, data_sections, domain_title, foot, head, results, run_sections
from longseq.pipelines.run_folder import METRICS, PREDICTIONS, REPORT, read_config, resume_command

CURVES = "metrics.csv"


def run(args: Sequence[str]) -> int:
    """The verb: `longseq report <folder>` or `longseq report run=<folder>`.

    Raises:
        ConfigError: unless exactly one finished run is named.
    """
    folders = [arg.removeprefix("run=") for arg in args]
    if len(folders) != 1 or folders[0].startswith("-") or re.match(r"\w+=", folders[0]):
        found = " ".join(args) or "nothing"
        raise ConfigError(f"expected one run folder, as in: longseq report runs/dna/hyena/<time>; found {found}")
    print(write_report(Path(folders[0])))
    return 0


def write_report(folder: Path) -> Path:
    """Writes report.html of a finished run, whole or not at all.

    Args:
        folder: with config.yaml and metrics.json; metrics.csv and predictions.csv are used if they are there.

    Returns:
        The path of the page.

    Raises:
        ConfigError: if the folder is not a run's, or the run has not finished.
    """
    files = read_run(folder)
    name = f"{files.metrics.get('domain', '')} · {files.metrics.get('backbone', '')}"
    path = folder / REPORT
    write_atomically(path, page(f"{name} · longseq", head(files), chapters(files), foot(files)))
    return path


def read_run(folder: Path) -> RunFiles:
    """The files of a run.

    Raises:
        ConfigError: if config.yaml or metrics.json is missing or broken.
    """
    config: Any = OmegaConf.to_container(read_config(folder))
    path = folder / METRICS
    if not path.is_file():
        raise ConfigError(f"{folder} has no {METRICS}: the run has not finished. Go on with: {resume_command(folder)}")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(metrics, dict):
        raise ConfigError(f"{path} must hold a JSON object, found a {type(metrics).__name__}")
    curves = read_table(folder / CURVES)
    # Labels and ids as they were written: "01" is not 1, and "NA" is a name like any other.
    texts = dict.fromkeys(("id", "chrom", "prediction", "label"), str)
    predictions = read_table(folder / PREDICTIONS, dtype=texts, keep_default_na=False, na_values=[""])
    return RunFiles(folder, config, metrics, pd.DataFrame() if curves is None else curves, predictions)


def read_table(path: Path, **options: Any) -> pd.DataFrame | None:
    """A csv file; None if it is missing or empty."""
    if not path.is_file():
        return None
    try:
        return pd.read_csv(path, **options)
    except pd.errors.EmptyDataError:
        return None
    except pd.errors.ParserError as error:
        raise ConfigError(f"{path} is damaged: {error}") from None


def chapters(files: RunFiles) -> list[Chapter]:
    """The page's content, the result first."""
    return [
        Chapter("result", "Result", [results(files), *comparison(files, files.monitor)]),
        Chapter("test", "Test set", prediction_sections(files)),
        Chapter("domain", domain_title(files), domain_sections(files)),
        Chapter("learning", "Learning curves", learning_curves(files), lead=no_curves(files)),
        Chapter("data", "Data", data_sections(files)),
        Chapter("finetune", "Pretraining", finetune_sections(files)),
        Chapter("run", "Model and run", run_sections(files)),
        Chapter("config", "Config", [], lead=config_text(files)),
    ]


# -- the domain


def domain_sections(files: RunFiles) -> list[Section]:
    """What `figures(run)` of the module named by the config's `plots` draws.

    A picture that fails must not cost the user the rest of the page, so the failure stands in its place.
    """
    module = files.config.get("plots")
    if not module:
        return []
    try:
        figures: Callable[[RunFiles], list[Section]] = import_module(str(module)).figures
        return list(figures(files))
    except Exception as error:
        text = escape(f"{module} could not draw its figures: {type(error).__name__}: {error}")
        return [Section("Figures of the domain", html=f'<p class="note">{text}</p>', wide=True)]


def no_curves(files: RunFiles) -> str:
    """A note in place of the curves, if there are none."""
    if not files.curves.empty:
        return ""
    return f"<p>Nothing was logged to <code>{CURVES}</code>: the run had no csv logger (logger=csv).</p>"
