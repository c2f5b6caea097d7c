"""The parts of an exported folder: weights or graphs, each read back and compared with the model before it is kept."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from longseq.checkpoint import CONFIG, WEIGHTS, save_model
from longseq.inference import load_inference
from longseq.ops.tracing import exporting_onnx
from longseq.pipelines import export_card as card
from longseq.pipelines.export_check import ExportMismatchError, accept, measure_latency, relative_error, verify
from longseq.pipelines.export_formats import SUFFIXES, Runner, open_graph, quantize, write_graph
from longseq.pipelines.export_graphs import ExportError, Graph, sequence_graph
from longseq.pipelines.export_metrics import Evaluation, artefact_answer, compare
from longseq.pipelines.export_source import ExportSource
from longseq.pipelines.export_steps import step_graph
from longseq.pipelines.export_trace import trace
from longseq.version import __version__

if TYPE_CHECKING:
    from omegaconf import DictConfig


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
    config = {"format": 1, "longseq": __version__, **source.model.config, "reading": source.reading}
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
    with exporting_onnx(cfg.format == "onnx"):
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
