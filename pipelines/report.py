"""Write report.html into a run folder: one self-contained page with the result, curves, data, config and environment.

usage: longseq report <run folder>

`longseq fit` writes it at the end of a run by itself; this verb makes it anew, for example after an upgrade. The page holds
the test result beside the baselines, learning curves, the domain's pictures, the most confident mistakes, what the data
were, and how to repeat the run. It loads nothing from anywhere: send it by mail, or open it in ten years.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from longseq.checkpoint import write_atomically
from longseq.domains.plots import Html, RunFiles, Section, comparison, histogram, learning_curves, short, table
from longseq.domains.prediction_plots import prediction_sections
from longseq.errors import ConfigError
from longseq.pipelines.report_page import Chapter, page
from longseq.pipelines.run_folder import CONFIG, METRICS, PREDICTIONS, REPORT, read_config
from longseq.registry import backbone_info

CURVES = "metrics.csv"
MOST_VALUES = 40


def run(args: Sequence[str]) -> int:
    """The verb: `longseq report <folder>` or `longseq report run=<folder>`.

    Raises:
        ConfigError: unless exactly one finished run is named.
    """
    folders = [arg.removeprefix("run=") for arg in args]
    if len(folders) != 1 or folders[0].startswith("-") or re.match(r"\w+=", folders[0]):
        raise ConfigError(f"expected one run folder, as in: longseq report runs/dna/hyena/<time>; found {' '.join(args) or 'nothing'}")
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
        raise ConfigError(f"{folder} has no {METRICS}: the run has not finished. Go on with: longseq fit resume={folder}")
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(metrics, dict):
        raise ConfigError(f"{path} must hold a JSON object, found a {type(metrics).__name__}")
    curves = read_table(folder / CURVES)
    # Labels and ids as they were written: "01" is not 1, and "NA" is a name like any other.
    texts = {name: str for name in ("id", "chrom", "prediction", "label")}
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
        Chapter("result", "Result", comparison(files, files.monitor), lead=results(files)),
        Chapter("test", "Test set", prediction_sections(files)),
        Chapter("domain", domain_title(files), domain_sections(files)),
        Chapter("learning", "Learning curves", learning_curves(files), lead=no_curves(files)),
        Chapter("data", "Data", data_sections(files)),
        Chapter("run", "Model and run", run_sections(files)),
        Chapter("config", "Config", [], lead=config_text(files)),
    ]


# -- the head and the result


def head(files: RunFiles) -> str:
    """Title, warnings, the verdict in one sentence, and the figures that people ask for first."""
    metrics = files.metrics
    parts = [str(metrics.get(key, "?")) for key in ("domain", "backbone", "task")]
    lines = [f"<h1>{escape(parts[1])} on {escape(parts[0])}: {escape(parts[2])}</h1>"]
    lines.append(f'<p class="about">run <code>{escape(str(files.folder))}</code>, seed {escape(str(metrics.get("seed", "?")))}</p>')
    if metrics.get("synthetic"):
        text = (metrics.get("data") or {}).get("counts", {}).get("synthetic")
        detail = f": {escape(text)}" if isinstance(text, str) else ""
        lines.append(f'<p class="badge" role="note">Synthetic demo data{detail} – says nothing about real data</p>')
    if metrics.get("interrupted"):
        lines.append('<p class="badge" role="note">Interrupted before training ended</p>')
    lines.append(f'<p class="verdict">{verdict(files)}</p>')
    return "".join(lines) + tiles(files)


def verdict(files: RunFiles) -> Html:
    """The deciding test metric against the best baseline, in a sentence."""
    monitor, metrics = files.monitor, files.metrics
    value = (metrics.get("test") or {}).get(monitor)
    if not isinstance(value, (int, float)):
        return Html(f"No test {escape(monitor)} was measured.")
    text = f"Test {escape(monitor)} <b>{short(float(value))}</b>"
    rows = {name: row[monitor] for name, row in baselines(files).items() if isinstance(row.get(monitor), (int, float))}
    if not rows:
        return Html(f"{text}; no baseline to compare it with.")
    higher = files.higher_is_better(monitor)
    name = (max if higher else min)(rows, key=lambda key: rows[key])
    gain = value - rows[name] if higher else rows[name] - value
    beside = f"the best baseline, {escape(name)} ({short(float(rows[name]))})"
    if gain > 0:
        return Html(f"{text}, better by {short(float(gain))} than {beside}.")
    return Html(f"{text}: <b>not better</b> than {beside}.")


def baselines(files: RunFiles) -> Mapping[str, Mapping[str, Any]]:
    """The baselines' test metrics by name."""
    return files.metrics.get("baselines") or {}


def tiles(files: RunFiles) -> str:
    """Four figures in large type."""
    training = files.metrics.get("training") or {}
    test = files.metrics.get("test") or {}
    found = [
        (f"test {files.monitor}", short(test.get(files.monitor))),
        ("parameters", magnitude(training.get("parameters"))),
        ("tokens/s in training", magnitude(training.get("tokens_per_second"))),
        ("training time", duration(files.metrics.get("train_seconds"))),
    ]
    return '<div class="tiles">' + "".join(f'<div class="tile"><b>{escape(v)}</b><span>{escape(k)}</span></div>' for k, v in found) + "</div>"


def results(files: RunFiles) -> str:
    """Test metrics of the model and the baselines; the deciding column first, the best value of each column in bold."""
    test = files.metrics.get("test") or {}
    if not test:
        return "<p>No test metrics were measured.</p>"
    model = str(files.metrics.get("backbone", "model"))
    rows = {model: test, **baselines(files)}
    names = sorted(dict.fromkeys(name for row in rows.values() for name in row), key=lambda name: name != files.monitor)
    best = {name: best_value(files, name, rows) for name in names}
    arrows = {True: " ↑", False: " ↓", None: ""}
    header = ["", *(name + arrows[files.higher_is_better(name)] for name in names)]
    body = [[label, *(bold(row.get(name), best[name]) for name in names)] for label, row in rows.items()]
    validation = files.metrics.get("validation") or {}
    if validation:
        body.insert(1, [f"{model}, validation", *(validation.get(name) for name in names)])
    html = table(header, body, label="test metrics of the model and the baselines").replace("<tbody><tr>", '<tbody><tr class="model">', 1)
    caption = f"Test set. {escape(files.monitor)} decides and chose the checkpoint; the best test value of each column is bold."
    return f'<div class="card">{html}<p class="caption">{caption}</p></div><br>'


def best_value(files: RunFiles, name: str, rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The best value of a column; None if it is not known which direction is better."""
    values = [float(row[name]) for row in rows.values() if isinstance(row.get(name), (int, float))]
    higher = files.higher_is_better(name)
    return None if higher is None or not values else (max(values) if higher else min(values))


def bold(value: Any, best: float | None) -> Any:
    """The value, in bold if it is the best."""
    return Html(f"<b>{escape(short(value))}</b>") if best is not None and value == best else value


# -- the domain


def domain_title(files: RunFiles) -> str:
    """The domain as a heading: DNA and other short names are abbreviations."""
    name = str(files.metrics.get("domain", "domain"))
    return name.upper() if len(name) <= 3 else name.capitalize()


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


# -- the data


def data_sections(files: RunFiles) -> list[Section]:
    """Facts of the splits, label counts and histograms, and what was skipped, cropped or found twice."""
    data = files.metrics.get("data") or {}
    splits = {name: facts for name, facts in (data.get("splits") or {}).items() if isinstance(facts, Mapping)}
    names = list(dict.fromkeys(key for facts in splits.values() for key in facts))
    nested = [key for key in names if any(isinstance(facts.get(key), Mapping) for facts in splits.values())]
    sections = []
    if plain := [key for key in names if key not in nested]:
        rows = [[key, *(facts.get(key) for facts in splits.values())] for key in plain]
        sections.append(Section("Splits", html=table(["", *splits], rows, label="facts of the splits")))
    for key in nested:
        values = {name: facts[key] for name, facts in splits.items() if isinstance(facts.get(key), Mapping)}
        sections.append(nested_section(key, values))
    if counts := data.get("counts"):
        rows = [[key, counted(str(key), value)] for key, value in counts.items()]
        sections.append(Section("While reading", html=table(["", ""], rows, label="what was found while reading"), wide=True))
    return sections


def nested_section(key: str, splits: Mapping[str, Mapping[str, Any]]) -> Section:
    """Counts of each split by value, such as labels; or a histogram, if there are `edges` and `counts`."""
    if all("edges" in facts and "counts" in facts for facts in splits.values()):
        figure = histogram({name: (facts["edges"], facts["counts"]) for name, facts in splits.items()}, key)
        rows = ", ".join(f"{name} {short(int(np.sum(facts['counts'])))}" for name, facts in splits.items())
        return Section(title_case(key), figure=figure, caption=f"Rows: {rows}.", alt=f"histogram of {key} in {', '.join(splits)}")
    values = list(dict.fromkeys(value for facts in splits.values() for value in facts))
    totals = {name: sum(v for v in facts.values() if isinstance(v, int)) for name, facts in splits.items()}
    rows = [[value, *(share(facts.get(value), totals[name]) for name, facts in splits.items())] for value in values[:MOST_VALUES]]
    caption = f"{MOST_VALUES} of {len(values)} are shown." if len(values) > MOST_VALUES else ""
    return Section(title_case(key), html=table(["", *splits], rows, label=key), caption=caption)


def title_case(text: str) -> str:
    """With a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:].replace("_", " ")


def share(value: Any, total: int) -> Any:
    """A count with its share of the total; anything else as it is."""
    if not isinstance(value, int) or isinstance(value, bool) or total <= 0:
        return value
    return Html(f"{value:,} <small>({value / total:.1%})</small>")


def counted(key: str, value: Any) -> Any:
    """The value; emphasised if rows of the test set also stand in train."""
    number = re.match(r"[\d,]+", str(value))
    leaks = "leak" in key.lower() and "removed" not in key.lower() and number is not None and int(number[0].replace(",", "")) > 0
    text = f'<span style="white-space:normal">{escape(short(value))}</span>'
    return Html(f'<span class="badge">Leak</span> {text}' if leaks else text)


# -- model, environment, config


def run_sections(files: RunFiles) -> list[Section]:
    """Model, training, hardware and versions, and the command that started it all."""
    training, environment = files.metrics.get("training") or {}, dict(files.metrics.get("environment") or {})
    command = environment.pop("command", None)
    model = {
        "backbone": Html(backbone_text(str(files.metrics.get("backbone", "")))),
        "parameters": training.get("parameters"),
        "trainable": training.get("trainable"),
        "epochs": training.get("epochs"),
        "steps": training.get("steps"),
        "tokens": training.get("tokens"),
        "tokens per second": training.get("tokens_per_second"),
        "peak GPU memory": memory(training.get("peak_gpu_memory_bytes")),
        "training time": duration(files.metrics.get("train_seconds")),
    }
    known = {*model, "tokens_per_second", "peak_gpu_memory_bytes"}
    model |= {key.replace("_", " "): value for key, value in training.items() if key not in known}
    hardware = {key: environment.pop(key) for key in ("device", "devices", "precision", "platform") if key in environment}
    sections = [
        Section("Model and training", html=definitions(model)),
        Section("Hardware and versions", html=definitions({**hardware, **environment})),
    ]
    if command:
        sections.append(Section("Command", html=f"<pre>{escape(str(command))}</pre>", wide=True))
    return sections


def backbone_text(name: str) -> str:
    """The backbone's name, what it is, and its paper."""
    try:
        info = backbone_info(name)
    except (ValueError, ImportError):
        return escape(name)
    link = f' (<a href="{escape(info.paper)}">paper</a>)' if info.paper.startswith("https://") else ""
    return f"{escape(name)}: {escape(info.summary)}{link}"


def definitions(values: Mapping[str, Any]) -> str:
    """Names with their values; those without a value are left out."""
    rows = [(k, v if isinstance(v, Html) else escape(short(v))) for k, v in values.items() if v is not None]
    return "<dl>" + "".join(f"<dt>{escape(str(key))}</dt><dd>{value}</dd>" for key, value in rows) + "</dl>"


def config_text(files: RunFiles) -> str:
    """config.yaml, folded."""
    text = (files.folder / CONFIG).read_text(encoding="utf-8")
    return f'<details class="card"><summary>{CONFIG}, {len(text.splitlines())} lines</summary><pre>{escape(text)}</pre></details>'


def foot(files: RunFiles) -> str:
    """Where the trained model is and how to use it."""
    version = escape(str((files.metrics.get("environment") or {}).get("longseq", "")))
    return f"longseq {version}. The trained model: <code>longseq.load_model(&quot;{escape(str(files.folder / 'model'))}&quot;)</code>"


def magnitude(value: Any) -> str:
    """A number with three digits and a unit: 1.25 M."""
    if not isinstance(value, (int, float)):
        return "–"
    for limit, unit in ((1e9, " B"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if unit == ' k' else limit):.3g}{unit}"
    return f"{value:,.0f}"


def duration(seconds: Any) -> str:
    """Seconds as people say them: 42 s, 3 min 20 s, 5 h 12 min."""
    if not isinstance(seconds, (int, float)):
        return "–"
    whole = round(seconds)
    if whole < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def memory(n_bytes: Any) -> str | None:
    """Bytes in GiB or MiB; None for none."""
    if not isinstance(n_bytes, (int, float)) or n_bytes <= 0:
        return None
    return f"{n_bytes / 2**30:.2f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"
