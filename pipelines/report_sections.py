"""A report's sections that every domain has: the verdict and the results, facts of the data, the model, and the config."""

import re
from collections.abc import Mapping
from html import escape
from typing import Any

import numpy as np

from longseq.domains.plots import histogram
from longseq.domains.sections import Html, RunFiles, Section, short, table
from longseq.pipelines.run_folder import CONFIG
from longseq.registry import backbone_info

MOST_VALUES = 40


# -- the head and the result


def head(files: RunFiles) -> str:
    """Title, warnings, the verdict in one sentence, and the figures that people ask for first."""
    metrics = files.metrics
    backbone, task, seed = (escape(str(metrics.get(key, "?"))) for key in ("backbone", "task", "seed"))
    lines = [f"<h1>{backbone} on {escape(domain_title(files))}: {task}</h1>"]
    lines.append(f'<p class="about">run <code>{escape(str(files.folder))}</code>, seed {seed}</p>')
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
    baselines = list(files.results.items())[1:]
    rows = {name: row[monitor] for name, row in baselines if isinstance(row.get(monitor), (int, float))}
    if not rows:
        return Html(f"{text}; no baseline to compare it with.")
    higher = files.higher_is_better(monitor)
    name = (max if higher else min)(rows, key=lambda key: rows[key])
    gain = value - rows[name] if higher else rows[name] - value
    beside = f"the best baseline, {escape(name)} ({short(float(rows[name]))})"
    if gain > 0:
        return Html(f"{text}, better by {short(float(gain))} than {beside}.")
    return Html(f"{text}: <b>not better</b> than {beside}.")


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
    blocks = (f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in found)
    return f'<div class="tiles">{"".join(blocks)}</div>'


def results(files: RunFiles) -> Section:
    """Test metrics of the model and the baselines; the deciding column first, the best value of each column in bold."""
    rows = files.results
    model = next(iter(rows))
    if not rows[model]:
        return Section("Test metrics", html="<p>None were measured.</p>")
    found = dict.fromkeys(name for row in rows.values() for name in row)
    names = sorted(found, key=lambda name: (name != files.monitor, name == "loss"))
    best = {name: best_value(files, name, rows) for name in names}
    arrows = {True: " ↑", False: " ↓", None: ""}
    header = ["", *(name + arrows[files.higher_is_better(name)] for name in names)]
    body = [[label, *(score(row.get(name), best[name]) for name in names)] for label, row in rows.items()]
    if validation := files.metrics.get("validation"):
        body.insert(1, [f"{model}, validation", *(score(validation.get(name), None) for name in names)])
    html = table(header, body, label="test metrics of the model and the baselines")
    html = html.replace("<tbody><tr>", '<tbody><tr class="model">', 1)
    caption = f"{files.monitor} decides, and chose the checkpoint."
    caption += " The best test value of each column is bold." if len(rows) > 1 else ""
    return Section("Test metrics", html=html, caption=caption)


def best_value(files: RunFiles, name: str, rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The best value of a column; None if there is only one, or it is not known which direction is better."""
    values = [float(row[name]) for row in rows.values() if isinstance(row.get(name), (int, float))]
    higher = files.higher_is_better(name)
    return None if higher is None or len(values) < 2 else (max(values) if higher else min(values))


def score(value: Any, best: float | None) -> Any:
    """A metric with as many digits as its neighbours; in bold if it is the best."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return value
    text = f"{value:#.4g}".rstrip(".")
    return Html(f"<b>{text}</b>" if value == best else text)


def domain_title(files: RunFiles) -> str:
    """The domain as a heading: DNA and other short names are abbreviations."""
    name = str(files.metrics.get("domain", "domain")).replace("timeseries", "time series")
    return name.upper() if len(name) <= 3 else name.capitalize()


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
        found = {str(key): counted(str(key), value) for key, value in counts.items()}
        sections.append(Section("While reading", html=definitions(found), wide=True))
    return sections


def nested_section(key: str, splits: Mapping[str, Mapping[str, Any]]) -> Section:
    """Counts of each split by value, such as labels; or a histogram, if there are `edges` and `counts`."""
    if all("edges" in facts and "counts" in facts for facts in splits.values()):
        figure = histogram({name: (facts["edges"], facts["counts"]) for name, facts in splits.items()}, key)
        rows = ", ".join(f"{name} {short(int(np.sum(facts['counts'])))}" for name, facts in splits.items())
        alt = f"histogram of {key} in {', '.join(splits)}"
        return Section(title_case(key), figure=figure, caption=f"Rows: {rows}.", alt=alt)
    values = list(dict.fromkeys(value for facts in splits.values() for value in facts))
    totals = {name: sum(v for v in facts.values() if isinstance(v, int)) for name, facts in splits.items()}
    shown = values[:MOST_VALUES]
    rows = [[value, *(share(facts.get(value), totals[name]) for name, facts in splits.items())] for value in shown]
    caption = f"{len(shown)} of {len(values)} are shown." if len(values) > MOST_VALUES else ""
    return Section(title_case(key), html=table(["", *splits], rows, label=key), caption=caption)


def title_case(text: str) -> str:
    """With a capital first letter, the rest as it is."""
    return text[:1].upper() + text[1:].replace("_", " ")


def share(value: Any, total: int) -> Any:
    """A count with its share of the total; anything else as it is."""
    if not isinstance(value, int) or isinstance(value, bool) or total <= 0:
        return value
    return Html(f"{value:,} <small>({value / total:.1%})</small>")


def counted(key: str, value: Any) -> Html:
    """The value; with a mark if rows of the test set also stand in train."""
    number = re.match(r"[\d,]+", str(value))
    leaks = "leak" in key.lower() and "removed" not in key.lower()
    found = leaks and number is not None and int(number[0].replace(",", "")) > 0
    mark = '<span class="mark">Leak</span> ' if found else ""
    return Html(mark + escape(short(value)))


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
        sections.append(Section("Command", html=f'<pre class="wrap">{escape(str(command))}</pre>', wide=True))
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
    summary = f"{CONFIG}, {len(text.splitlines())} lines"
    return f'<details class="card"><summary>{summary}</summary><pre>{escape(text)}</pre></details>'


def foot(files: RunFiles) -> str:
    """Where the trained model is and how to use it."""
    version = escape(str((files.metrics.get("environment") or {}).get("longseq", "")))
    model = escape(f'longseq.load_model("{files.folder / "model"}")')
    return f"longseq {version}. The trained model: <code>{model}</code>"


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
