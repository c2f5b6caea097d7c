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

import torch

from longseq.checkpoint import replacing_folder
from longseq.errors import ConfigError, LongseqError
from longseq.pipelines import export_card as card
from longseq.pipelines.export_check import CARD, REPORT, VERSION, file_facts
from longseq.pipelines.export_console import show
from longseq.pipelines.export_formats import check_format
from longseq.pipelines.export_graphs import LONGEST, ExportError
from longseq.pipelines.export_metrics import Evaluation
from longseq.pipelines.export_source import ExportSource, open_source
from longseq.pipelines.export_write import write_config, write_safetensors, write_sequence, write_step
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
    check_output(output, Path(source.name))
    length = exported_length(source, cfg.max_length)
    evaluation = open_evaluation(cfg, source)
    try:
        report = write_folder(cfg, source, output, length, evaluation)
    except OSError as error:
        raise ExportError(f"output={output} cannot be written: {error}") from error
    show(report, output)
    return {**report, "output": str(output)}


def write_folder(
    cfg: "DictConfig", source: ExportSource, output: Path, length: int, evaluation: Evaluation | str | None
) -> dict[str, Any]:
    """Writes the whole folder, or nothing, and gives its report."""
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
    return report


# -- what is asked for


def check_quantize(cfg: "DictConfig") -> None:
    """Raises ConfigError for a quantisation that there is not."""
    if cfg.quantize not in (None, "int8"):
        raise ConfigError(f"quantize must be int8 or null, found {cfg.quantize!r}")
    if cfg.quantize and cfg.format != "onnx":
        raise ConfigError(f"quantize=int8 is onnxruntime's and needs format=onnx, found format={cfg.format}")


def check_output(output: Path, source: Path) -> None:
    """Raises ConfigError if something stands in the way that is no export, or the model itself: it would be lost."""
    if source.resolve().is_relative_to(output.resolve()):
        raise ConfigError(f"output={output} holds the model that is exported, and would take its place: name another folder")
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


# -- what is known


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
