"""The model card of an exported folder, and its small files: labels, tokenizer, scaler, predict.py."""

import json
from pathlib import Path
from typing import Any

from longseq.inference import Inference, Port
from longseq.pipelines.export_source import ExportSource
from longseq.version import __version__

SCRIPTS = Path(__file__).parent / "predict_scripts"
BEHIND = "# -- behind this line goes into predict.py\n"
# What a domain's own part of predict.py stands on.
PARTS = {
    "dna": ("answers", "tables"),
    "audio": ("answers", "waves", "transcripts"),
    "timeseries": ("answers", "tables", "times", "series"),
    "vision": ("answers", "pictures"),
}
WHAT = {
    "classification": "one of {n} classes",
    "multilabel": "any of {n} labels",
    "regression": "{n} quantities in their own units",
    "frames": "a label at every frame, of {n}",
    "base_labels": "a label at every base, of {n}",
    "profile": "{n} tracks along the genome",
    "ctc": "a transcript",
    "lm": "the next token",
    "mlm": "hidden tokens",
    "forecasting": "the next values of a series, with intervals",
    "imputation": "missing values of a series",
    "anomaly": "how unusual each step of a series is",
    "masked_patch": "hidden parts of an image",
    "masked_sound": "hidden parts of a sound",
}
SUGGESTION = {
    "dna": "sequences.fa",
    "audio": "recordings/*.wav",
    "timeseries": "table.csv",
    "vision": "images.npy",
}


def write_small_files(folder: Path, source: ExportSource, with_script: bool) -> None:
    """Writes tokenizer.json, labels.json, scaler.json and predict.py, as far as the model has such things."""
    config = source.model.config
    embedding = config.get("embedding", {})
    scales = ("mean", "std", "floor", "covariate_mean", "covariate_std")
    scaler = {f"embedding.{k}": embedding[k] for k in scales if embedding.get(k)}
    scaler |= {f"target.{k}": config[k] for k in ("mean", "std") if k in config}
    files = {
        "tokenizer.json": config.get("tokenizer"),
        "labels.json": config.get("labels") or config.get("vocabulary") or config.get("channels"),
        "scaler.json": scaler,
    }
    for name, content in files.items():
        if content:
            (folder / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if with_script and config.get("domain") in SUGGESTION:
        (folder / "predict.py").write_text(predict_script(str(config["domain"])), encoding="utf-8")


def predict_script(domain: str) -> str:
    """The text of predict.py: the domain's reader behind what all of them share, in one file without longseq."""
    shared = (SCRIPTS / "shared.py").read_text(encoding="utf-8")
    modules, bodies = set(), []
    for name in (*PARTS.get(domain, ()), domain):
        head, _, body = (SCRIPTS / f"{name}.py").read_text(encoding="utf-8").partition(BEHIND)
        assert head and body, f"{name}.py lacks its line"
        # Modules join those of the shared part; names of other parts come from the same file now.
        found = (*head.split("\n"), *shared.split("\n"))
        modules |= {line for line in found if line.startswith("import ") and " as " not in line}
        bodies.append(body.strip())
    lines = [line for line in shared.split("\n") if line not in modules]
    place = next(i for i, line in enumerate(lines) if line.startswith("from "))
    shared = "\n".join([*lines[:place], *sorted(modules), *lines[place:]])
    return "\n\n\n".join([shared.rstrip(), *bodies, 'if __name__ == "__main__":\n    main(Domain)\n'])


def metadata(inference: Inference, source: ExportSource) -> dict[str, str]:
    """What an artefact holds inside, each value as JSON."""
    config = inference.config
    found = {
        "version": __version__,
        "domain": config.get("domain"),
        "task": inference.task,
        "backbone": config.get("backbone", {}).get("name"),
        "labels": config.get("labels"),
        "vocabulary": config.get("vocabulary"),
        "tokenizer": config.get("tokenizer"),
        "sample_rate_hz": (config.get("tokenizer") or {}).get("sample_rate_hz"),
        "series": config.get("series"),
        "quantiles": config.get("quantiles"),
        "mean": config.get("embedding", {}).get("mean"),
        "std": config.get("embedding", {}).get("std"),
        "test": source.metrics.get("test"),
    }
    return {key: json.dumps(value) for key, value in found.items() if value is not None}


def model_card(source: ExportSource, report: dict[str, Any]) -> str:
    """README.md: what the model does, on which data, how well beside which baselines, its limits, and how to use it."""
    config, metrics = source.model.config, source.metrics
    domain, task = config.get("domain", ""), source.inference.task
    backbone = config.get("backbone", {}).get("name", "")
    tags = "".join(f"\n- {tag}" for tag in ("longseq", domain, task, backbone) if tag)
    n = len(config.get("labels", []))
    parts = [
        f"---\nlibrary_name: longseq\ntags:{tags}\n---\n",
        f"# {backbone} for {domain or 'sequences'}: {task}\n",
        f"Predicts {WHAT[task].format(n=n)}. {report['parameters']:,} parameters; exported by longseq {__version__} "
        f"as {report['format']} from `{source.name}`.\n",
        _data(source),
        _results(metrics),
        _limits(source, report),
        _use(source, report),
    ]
    return "\n".join(part for part in parts if part)


def _data(source: ExportSource) -> str:
    metrics = source.metrics
    lines = ["## Data\n"]
    if metrics.get("synthetic"):
        lines.append("Trained on **synthetic demo data**, which says nothing about real ones.\n")
    lines += [f"- `{place}`" for place in source.data_files]
    splits = metrics.get("data", {}).get("splits", {})
    for name, facts in splits.items():
        shown = ", ".join(f"{key} {_number(value)}" for key, value in facts.items() if not isinstance(value, dict))
        lines.append(f"- {name}: {shown}")
    for name, value in metrics.get("data", {}).get("counts", {}).items():
        lines.append(f"- {name}: {value}")
    labels = source.model.config.get("labels")
    if labels:
        lines.append(f"- labels: {', '.join(map(str, labels[:50]))}{' …' if len(labels) > 50 else ''}")
    return "\n".join(lines) + "\n" if len(lines) > 1 else ""


def _results(metrics: dict[str, Any]) -> str:
    test = metrics.get("test", {})
    if not test:
        return "## Results\n\nNot known: the model was exported without its run.\n"
    names = list(test)
    baselines = metrics.get("baselines", {})
    rows = [("**this model**", test), *baselines.items()]
    lines = ["## Results\n", f"On the test split, {'beside trivial baselines' if baselines else 'without baselines'}.\n"]
    lines += [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [f"| {name} | {' | '.join(_number(row.get(key)) for key in names)} |" for name, row in rows]
    return "\n".join(lines) + "\n"


def _limits(source: ExportSource, report: dict[str, Any]) -> str:
    inference, metrics = source.inference, source.metrics
    lines = ["## Limits\n"]
    graph = report["graphs"].get("sequence")
    unit = {"tokens": "tokens", "samples": "samples"}.get(inference.kind, "positions")
    if graph is not None and graph.get("longest"):
        lines.append(f"- Inputs of {graph['shortest']:,} to {graph['longest']:,} {unit}.")
    elif inference.max_length is not None:
        lines.append(f"- Inputs of up to {inference.max_length:,} {unit}.")
    lines += [f"- {text}." for text in _inputs(source)]
    if report["format"] == "aoti":
        version = report["environment"].get("torch")
        lines.append(f"- Compiled for processors like the one it was exported on, and for torch {version}.")
    if source.averaged is not None:
        lines.append(f"- The weights are a moving average (decay {source.averaged:g}), which is what was validated and tested.")
    if inference.rc_average:
        lines.append("- Answers are averaged over both strands.")
    if task_has_intervals(inference):
        calibrated = source.run_config is None or source.run_config.task.get("calibrate", True)
        how = "calibrated on the validation windows" if calibrated else "the network's own quantiles, not calibrated"
        lines.append(f"- Intervals are {how}; a series that changes its nature leaves them.")
    if "quantization" in report:
        lines.append(f"- {_quantized(report['quantization'])}.")
    leaks = str(metrics.get("data", {}).get("counts", {}).get("leaks in test", "0"))
    if not leaks.startswith("0"):
        lines.append(f"- {leaks}")
    step = report["graphs"].get("step", {})
    if step.get("reason"):
        lines.append(f"- No step graph: {step['reason']}.")
    lines.append("- It was tested on data like those it was trained on, and on no others.")
    return "\n".join(lines) + "\n"


def _inputs(source: ExportSource) -> list[str]:
    """What the inputs must be, in words."""
    config = source.model.config
    tokenizer, series, embedding = config.get("tokenizer") or {}, config.get("series") or {}, config.get("embedding", {})
    found = []
    if tokenizer.get("sample_rate_hz"):
        found.append(f"Sound at {tokenizer['sample_rate_hz']:,} Hz, mono")
    if series.get("channels"):
        ahead = f", {config['horizon']:,} are forecast" if "horizon" in config else ""
        names = ", ".join(map(str, series["channels"][:20])) + (" …" if len(series["channels"]) > 20 else "")
        found.append(f"Steps of {series['frequency']}, of which {embedding['lookback']:,} are read{ahead}; channels: {names}")
    if "size" in tokenizer:
        height, width = tokenizer["size"]
        found.append(f"Pictures are brought to {height} x {width} pixels of {tokenizer['channels']} channels")
    return found


def _quantized(found: dict[str, Any]) -> str:
    """What int8 cost."""
    text = f"Linear layers are int8 ({found['layers']} of them)"
    if "metrics" not in found:
        return f"{text}; what that does to the metrics was not measured: {found['not_measured']}"
    metrics = found["metrics"]
    name = next((name for name in metrics["model"] if name == metrics["monitor"]), next(iter(metrics["model"])))
    before, after = _number(metrics["model"][name]), _number(metrics["artefact"][name])
    return f"{text}: {metrics['split']}/{name} went from {before} to {after}"


def task_has_intervals(inference: Inference) -> bool:
    """Whether the answer holds more than one quantile."""
    return inference.task == "forecasting" and len(inference.config.get("quantiles", [])) > 1


def _use(source: ExportSource, report: dict[str, Any]) -> str:
    graph = report["graphs"].get("sequence")
    if graph is None:
        return '## Use\n\n```python\nimport longseq\n\nmodel = longseq.load_model("this folder")\n```\n'
    example = SUGGESTION.get(str(source.model.config.get("domain")), "data")
    needs = "numpy and onnxruntime" if report["format"] == "onnx" else "numpy and torch"
    lines = ["## Use\n", f"`predict.py` needs {needs}, and not longseq:\n"]
    lines += [f"    python predict.py {example} --output predictions.csv\n", f"The graph `{graph['file']}`:\n"]
    lines += [f"- {kind} `{p['name']}`: {p['dtype']} {p['shape']}" for kind in ("inputs", "outputs") for p in graph[kind]] + [
        ""
    ]
    step = report["graphs"].get("step", {})
    if "file" in step:
        lines.append(
            f"`{step['file']}` answers one position at a time: its state goes in and comes out, and begins with zeros.\n"
        )
    lines.append(f"Largest relative error against the model: {graph['largest_error']:.1e} (`export_report.json`).\n")
    return "\n".join(lines)


def ports(found: tuple[Port, ...]) -> list[dict[str, Any]]:
    """Inputs or outputs for the report."""
    return [{"name": port.name, "dtype": port.dtype, "shape": list(port.axes)} for port in found]


def _number(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-" if value is None else str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
