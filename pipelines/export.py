"""Export a trained model: safetensors, torch.export, ONNX or AOTInductor, checked against the model before it is kept.

Writes a folder with the artefact, a model card, labels, tokenizer and scaler, predict.py (numpy and onnxruntime or torch
alone), and export_report.json with sizes, hashes, errors and latencies. An artefact that does not answer as the model does
fails the command, and nothing is left behind.
"""

import json
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from longseq.checkpoint import CONFIG, WEIGHTS, replacing_folder, save_model
from longseq.errors import ConfigError, LongseqError
from longseq.inference import load_inference
from longseq.pipelines import export_card as card
from longseq.pipelines.export_check import (
    CARD,
    REPORT,
    VERSION,
    ExportMismatchError,
    accept,
    file_facts,
    measure_latency,
    relative_error,
    verify,
)
from longseq.pipelines.export_formats import SUFFIXES, Runner, check_format, open_graph, quantize, write_graph
from longseq.pipelines.export_graphs import LONGEST, ExportError, Graph, sequence_graph, step_graph, trace
from longseq.pipelines.export_metrics import Evaluation, artefact_answer, compare
from longseq.pipelines.export_source import ExportSource, open_source
from longseq.pipelines.results import plain
from longseq.version import __version__

if TYPE_CHECKING:
    from omegaconf import DictConfig

PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime", "numpy")


def run(cfg: "DictConfig") -> dict[str, Any]:
    """Exports the model of `cfg.run` or `cfg.model`.

    Args:
        cfg: composed from configs/export.yaml.

    Returns:
        What export_report.json holds, with `output`.
    """
    check_format(cfg.format)
    check_quantize(cfg)
    source = open_source(cfg.run, cfg.model)
    output = Path(cfg.output)
    check_output(output)
    length = exported_length(source, cfg.max_length)
    evaluation = open_evaluation(cfg, source)
    with replacing_folder(output) as folder:
        report = start_report(cfg, source)
        if cfg.format == "safetensors":
            write_safetensors(folder, source, report)
        else:
            write_config(folder, source)
            write_sequence(folder, source, length, cfg, evaluation, report)
            if cfg.step:
                write_step(folder, source, cfg, report)
        card.write_small_files(folder, source, with_script=cfg.format != "safetensors")
        (folder / CARD).write_text(card.model_card(source, report), encoding="utf-8")
        report["files"] = file_facts(folder)
        text = json.dumps(plain(report), indent=1, allow_nan=False)
        (folder / REPORT).write_text(text + "\n", encoding="utf-8")
    show(report, output)
    return {**report, "output": str(output)}


# -- what is asked for


def check_quantize(cfg: "DictConfig") -> None:
    """Raises ConfigError for a quantisation that there is not."""
    if cfg.quantize not in (None, "int8"):
        raise ConfigError(f"quantize must be int8 or null, found {cfg.quantize!r}")
    if cfg.quantize and cfg.format != "onnx":
        raise ConfigError(f"quantize=int8 is onnxruntime's and needs format=onnx, found format={cfg.format}")


def check_output(output: Path) -> None:
    """Raises ConfigError if something stands in the way that is no export: it would be lost."""
    if output.is_file():
        raise ConfigError(f"output={output} is a file; name a folder")
    if output.is_dir() and any(output.iterdir()) and not (output / REPORT).is_file():
        raise ConfigError(f"output={output} holds other files, and an export replaces the whole folder: name a new one")


def exported_length(source: ExportSource, asked: int | None) -> int:
    """The longest input of the graph, in tokens or samples.

    Raises:
        ConfigError: if the backbone cannot take so many.
    """
    limit = source.inference.max_length
    if asked is not None:
        if not source.inference.takes_mask:
            raise ConfigError("max_length: this model reads inputs of one size, which its config has fixed; leave it unset")
        least = 2 * source.inference.stride
        if not least <= asked <= (limit or LONGEST):
            most = limit or LONGEST
            raise ConfigError(f"max_length={asked} must lie between {least} and {most}, the most that this model takes")
        return int(asked)
    return min(value for value in (source.data_length, limit, LONGEST) if value is not None)


def open_evaluation(cfg: "DictConfig", source: ExportSource) -> Evaluation | str | None:
    """The data to measure on, or why there are none; None if nothing is to be measured."""
    split = cfg.evaluate or ("val" if cfg.quantize else None)
    if split is None:
        return None
    if source.run_config is None:
        problem = "a model folder does not say which data it belongs to; export with run="
    else:
        try:
            return Evaluation(source.run_config, cfg.data, split)
        except LongseqError as error:
            problem = str(error)
    if cfg.evaluate:
        raise ConfigError(f"evaluate={split}: {problem}")
    return problem


# -- writing


def start_report(cfg: "DictConfig", source: ExportSource) -> dict[str, Any]:
    """What is known before anything is written."""
    config = source.model.config
    return {
        "version": VERSION,
        "longseq": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "source": source.name,
        "format": str(cfg.format),
        "domain": config.get("domain"),
        "backbone": config.get("backbone", {}).get("name"),
        "task": source.inference.task,
        "parameters": sum(parameter.numel() for parameter in source.model.parameters()),
        "weights": "last step" if source.averaged is None else f"exponential moving average, decay {source.averaged:g}",
        "tolerance": float(cfg.tolerance),
        "environment": {"python": platform.python_version(), "threads": torch.get_num_threads(), **installed()},
        "graphs": {},
    }


def installed() -> dict[str, str]:
    """Versions of the packages that wrote the folder."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def write_safetensors(folder: Path, source: ExportSource, report: dict[str, Any]) -> None:
    """The model's own folder, read back and compared."""
    written = save_model(source.model, folder / "model")
    for path in written.iterdir():
        path.rename(folder / path.name)
    written.rmdir()
    loaded = load_inference(folder)
    errors = []
    for batch in (1, 3):
        inputs = source.inference.example(batch, None, seed=batch)
        with torch.no_grad():
            errors.append(relative_error(source.inference(*inputs).numpy(), loaded(*inputs).numpy()))
    report["largest_error"] = max(errors)
    if not max(errors) <= report["tolerance"]:
        raise ExportMismatchError(f"the weights read back from {WEIGHTS} give other answers (relative error {max(errors):.2g})")


def write_config(folder: Path, source: ExportSource) -> None:
    """config.json, which predict.py reads."""
    config = {"format": 1, "longseq": __version__, **source.model.config}
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def write_sequence(
    folder: Path,
    source: ExportSource,
    length: int,
    cfg: "DictConfig",
    evaluation: Evaluation | str | None,
    report: dict[str, Any],
) -> None:
    """The graph of whole sequences: written, checked, measured, and made int8 if asked for."""
    inference = source.inference
    graph = sequence_graph(inference, length)
    runner, facts = write_checked(folder, "model", graph, source, cfg)
    report["graphs"]["sequence"] = facts
    before = None
    if isinstance(evaluation, Evaluation):
        before = evaluation.score(inference, inference)
        after = evaluation.score(artefact_answer(runner, graph, inference), inference)
        report["metrics"] = {"split": evaluation.split, "monitor": evaluation.monitor, **compare(before, after)}
    if cfg.quantize:
        runner = write_int8(folder / facts["file"], graph, source, evaluation, before, report)
    if cfg.latency:
        report["latency"] = measure_latency(graph, inference, runner, list(cfg.latency))


def write_checked(
    folder: Path, stem: str, graph: Graph, source: ExportSource, cfg: "DictConfig"
) -> tuple[Runner, dict[str, Any]]:
    """Traces and writes a graph, opens it again and compares it with the model.

    Raises:
        ExportError: saying why it cannot be written.
        ExportMismatchError: if its answers are others.
    """
    inference = source.inference
    program = trace(graph, inference)
    path = folder / f"{stem}{SUFFIXES[cfg.format]}"
    more = write_graph(program, graph, path, cfg.format, card.metadata(inference, source), cfg.opset)
    runner = open_graph(path, cfg.format)
    checks = verify(graph, inference, runner)
    facts: dict[str, Any] = {
        "file": path.name,
        "bytes": sum(file.stat().st_size for file in folder.glob(f"{path.name}*")),
        "inputs": card.ports(graph.inputs),
        "outputs": card.ports(graph.outputs),
        "dynamic_axes": {port.name: {str(axis): name for axis, name in port.dynamic.items()} for port in graph.inputs},
        **more,
    }
    if graph.has_length:
        facts |= {"shortest": graph.shortest, "longest": graph.longest}
    what = f"format={cfg.format}, backbone={inference.config.get('backbone', {}).get('name')}, the {graph.name} graph"
    facts |= {"checks": checks, "largest_error": accept(checks, float(cfg.tolerance), what)}
    return runner, facts


def write_int8(
    path: Path,
    graph: Graph,
    source: ExportSource,
    evaluation: Evaluation | str | None,
    before: dict[str, float] | None,
    report: dict[str, Any],
) -> Runner:
    """Makes the written graph int8, and says what that did to its size, its answers and its metrics."""
    inference, size = source.inference, path.stat().st_size
    count = quantize(path)
    runner = open_graph(path, "onnx")
    errors = [row["error"] for row in verify(graph, inference, runner)]
    found: dict[str, Any] = {"kind": "int8", "layers": count, "bytes": path.stat().st_size, "bytes_before": size}
    worst = float(np.max(errors))
    found["largest_error"] = worst if np.isfinite(worst) else None
    if isinstance(evaluation, Evaluation) and before is not None:
        after = evaluation.score(artefact_answer(runner, graph, inference), inference)
        found["metrics"] = {"split": evaluation.split, "monitor": evaluation.monitor, **compare(before, after)}
    else:
        found["not_measured"] = str(evaluation)
    report["quantization"] = found
    report["graphs"]["sequence"]["bytes"] = found["bytes"]
    return runner


def write_step(folder: Path, source: ExportSource, cfg: "DictConfig", report: dict[str, Any]) -> None:
    """The graph of one position, or why there is none."""
    try:
        graph = step_graph(source.inference)
    except ExportError as error:
        report["graphs"]["step"] = {"reason": str(error)}
        return
    _, facts = write_checked(folder, "step", graph, source, cfg)
    report["graphs"]["step"] = {**facts, "initial_state": "zeros"}


# -- the console


def show(report: dict[str, Any], output: Path) -> None:
    """Prints what was written, the errors and the latencies."""
    out = Console()
    table = Table(title=f"{report['backbone']}, {report['domain']}, {report['task']}: {report['format']}", title_justify="left")
    for column in ("graph", "file", "MB", "largest error", "note"):
        table.add_column(column, overflow="fold")
    for name, facts in report["graphs"].items():
        if "reason" in facts:
            table.add_row(name, "-", "-", "-", facts["reason"])
            continue
        note = f"opset {facts['opset']}" if "opset" in facts else ""
        table.add_row(name, facts["file"], f"{facts['bytes'] / 1e6:.2f}", f"{facts['largest_error']:.1e}", note)
    if not report["graphs"]:
        size = report["files"][WEIGHTS]["bytes"]
        table.add_row("-", WEIGHTS, f"{size / 1e6:.2f}", f"{report['largest_error']:.1e}", "longseq.load_model reads it")
    out.print(table)
    for row in report.get("latency", []):
        place = "" if row["length"] is None else f", length {row['length']:,}"
        ratio = row["eager_ms"] / max(row["artefact_ms"], 1e-9)
        out.print(
            f"latency  batch 1{place}: {row['artefact_ms']:.2f} ms, in eager {row['eager_ms']:.2f} ms ({ratio:.2f} x)",
            highlight=False,
        )
    show_metrics(out, report.get("metrics"), report["format"])
    quantization = report.get("quantization")
    if quantization is not None:
        ratio = quantization["bytes_before"] / quantization["bytes"]
        out.print(f"int8     {quantization['layers']} layers, {ratio:.2f} x smaller", highlight=False)
        show_metrics(out, quantization.get("metrics"), "int8")
        if "not_measured" in quantization:
            out.print(f"         metrics not measured: {quantization['not_measured']}")
    out.print(f"written  {output}", highlight=False)


def show_metrics(out: Console, metrics: dict[str, Any] | None, name: str) -> None:
    """Prints the metrics of the model and of the artefact."""
    if metrics is None:
        return
    for metric, value in metrics["model"].items():
        other = metrics["artefact"][metric]
        out.print(f"{metrics['split'] + '/' + metric:<16} {value:.6f} in eager, {other:.6f} as {name}", highlight=False)
