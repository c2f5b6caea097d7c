"""Predictions of the model in this folder on your own files.

Needs Python 3.11, numpy, and onnxruntime (for .onnx) or torch (for .pt2); nothing else. Usage:

    python predict.py FILE [FILE ...] --output predictions.csv

An output that ends in .npz takes the model's answers as arrays, row by row, whatever the task is.
"""

import argparse
import csv
import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1
UNITS_OF_TOKENS = {"dna": "base", "audio": "sample", "vision": "dim"}
PER_POSITION = ("frames", "base_labels", "profile", "ctc", "lm", "mlm")


class InputError(Exception):
    """What is wrong with a file or an option; the message is the answer."""


@dataclass
class Row:
    """One row of input.

    Attributes:
        names: columns that identify it.
        inputs: what the graph takes, without the batch.
        extra: whatever its domain wants to know of it later.
    """

    names: dict[str, Any]
    inputs: np.ndarray
    extra: Any = None


class Model:
    """The graph of a folder with what its config and report say.

    Args:
        folder: as it was exported.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.report = self._json("export_report.json")
        if self.report["version"] > VERSION:
            raise InputError(
                f"{folder} has version {self.report['version']} of the format; this predict.py reads up to {VERSION}"
            )
        self.graph = self.report["graphs"]["sequence"]
        for name in ("config.json", self.graph["file"]):
            self._check(name)
        self.config = self._json("config.json")
        self.task = str(self.report["task"])
        self.labels = [str(label) for label in self.config.get("labels") or []]
        self.takes_mask = len(self.graph["inputs"]) == 2
        self.dtype = str(self.graph["inputs"][0]["dtype"])
        self.shape = self.graph["inputs"][0]["shape"]
        self.shortest, self.longest = self.graph.get("shortest", 1), self.graph.get("longest")
        self.run = self._open()

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{self.folder / name} cannot be read: {error}") from None

    def _check(self, name: str) -> None:
        path, facts = self.folder / name, self.report["files"][name]
        if not path.is_file():
            raise InputError(f"{path} is missing; copy the whole folder")
        size = path.stat().st_size
        if size < facts["bytes"]:
            raise InputError(f"{path} is truncated: {size} of {facts['bytes']} bytes; copy it again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != facts["sha256"]:
                raise InputError(f"{path} was changed after the export; export the model again")

    def _open(self) -> Callable[..., np.ndarray]:
        path, kind = self.folder / self.graph["file"], self.report["format"]
        if kind == "onnx":
            onnxruntime: Any = needed("onnxruntime")
            session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
            names = [entry.name for entry in session.get_inputs()]
            return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]
        torch: Any = needed("torch")
        # Of its archive's insides.
        logging.getLogger("torch.export").setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module="torch")
        if kind == "aoti":
            from torch._inductor import aoti_load_package

            module: Any = aoti_load_package(str(path))
        else:
            module = torch.export.load(path).module()

        def run(*arrays: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                return module(*(torch.from_numpy(array) for array in arrays)).numpy()

        return run

    def answers(self, rows: Sequence[Row], batch_size: int, pad: float, stride: int = 1) -> list[np.ndarray]:
        """The model's answer for every row, padding taken away.

        Args:
            rows: in any order and of any lengths.
            batch_size: rows of about one length that run together.
            pad: what fills shorter rows up.
            stride: places of the input that make one position of the answer.
        """
        lengths = np.array([len(row.inputs) for row in rows])
        order = np.argsort(lengths, kind="stable") if self.takes_mask else np.arange(len(rows))
        found: list[np.ndarray] = [np.empty(0)] * len(rows)
        for start in range(0, len(rows), batch_size):
            chosen = order[start : start + batch_size]
            answer = self.run(*self._batch([rows[i].inputs for i in chosen], pad))
            for i, row in zip(chosen, answer, strict=True):
                cut = self.takes_mask and self.task in PER_POSITION
                found[i] = row[: -(-int(lengths[i]) // stride)] if cut else row
        return found

    def _batch(self, inputs: list[np.ndarray], pad: float) -> tuple[np.ndarray, ...]:
        if not self.takes_mask:
            return (np.stack(inputs).astype(self.dtype),)
        length = max(self.shortest, max(len(x) for x in inputs))
        batch = np.full((len(inputs), length, *inputs[0].shape[1:]), pad, dtype=self.dtype)
        for i, x in enumerate(inputs):
            batch[i, : len(x)] = x
        return batch, np.arange(length) < np.array([[len(x)] for x in inputs])


def needed(name: str) -> Any:
    """A package, or what to do without it."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise InputError(f"this model needs {name}: pip install {name}") from None


def records(model: Model, row: Row, answer: np.ndarray) -> Iterator[dict[str, Any]]:
    """Lines of the csv file for one row, as its task's predictions are written."""
    labels = model.labels
    if model.task == "classification":
        yield {**row.names, "prediction": labels[int(answer.argmax())], **named("p_", labels, answer)}
    elif model.task == "multilabel":
        yield {**row.names, **named("p_", labels, answer)}
    elif model.task == "regression":
        yield {**row.names, **named("predicted_", labels, answer)}
    elif model.task in ("frames", "base_labels"):
        place = "frame" if model.task == "frames" else "position"
        for i, frame in enumerate(answer):
            yield {**row.names, place: i, "prediction": labels[int(frame.argmax())], **named("p_", labels, frame)}
    elif model.task == "profile":
        for i, tracks in enumerate(answer):
            yield {**row.names, "bin": i, **named("predicted_", labels, tracks)}
    elif model.task == "lm":
        nats = surprise(row.inputs, answer)
        # Only some tokens count where the reader says so: N is no base.
        nats = nats if row.extra is None else nats[row.extra[1:]]
        unit = UNITS_OF_TOKENS.get(str(model.report["domain"]), "token")
        bits = float(nats.mean() / np.log(2)) if len(nats) else float("nan")
        yield {**row.names, "log_likelihood": -float(nats.sum()), f"bits_per_{unit}": bits}
    else:
        raise InputError(f"task={model.task} answers with arrays: give an --output that ends in .npz")


def named(prefix: str, labels: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    """One column per label."""
    return {f"{prefix}{label}": value for label, value in zip(labels, values, strict=True)}


def surprise(ids: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The negative log-likelihood, in nats, of each token but the first, after those before it."""
    before = logits[:-1].astype(np.float64)
    top = before.max(1, keepdims=True)
    log_sum = top[:, 0] + np.log(np.exp(before - top).sum(1))
    return log_sum - before[np.arange(len(ids) - 1), ids[1:]]


def open_text(path: Path) -> Any:
    """A text file, gzipped or not."""
    import gzip

    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: the file is empty")
    packed = path.open("rb").read(2) == b"\x1f\x8b"
    return gzip.open(path, "rt", encoding="utf-8-sig") if packed else path.open(encoding="utf-8-sig", newline="")


def read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a csv, tsv or semicolon-separated file."""
    with open_text(path) as file:
        first = file.readline()
        separator = max("\t;,", key=first.count)
        rows = [row for row in csv.reader(file, delimiter=separator) if any(cell.strip() for cell in row)]
    return [cell.strip() for cell in next(csv.reader([first], delimiter=separator))], rows


def write(model: Model, domain: Any, rows: Sequence[Row], answers: Sequence[np.ndarray], output: str | None) -> None:
    """Writes a csv file, an npz file, or to the terminal."""
    if output and output.endswith(".npz"):
        ids = np.array([json.dumps(row.names, default=str) for row in rows])
        np.savez(output, rows=ids, **{f"row{i}": answer for i, answer in enumerate(answers)})  # type: ignore[arg-type]
        return
    lines = [line for row, answer in zip(rows, answers, strict=True) for line in domain.records(model, row, answer)]
    if not lines:
        raise InputError("there is nothing to predict in these files")
    file = open(output, "w", newline="", encoding="utf-8") if output else sys.stdout  # noqa: SIM115, PTH123
    try:
        writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    finally:
        if output:
            file.close()


def main(domain_class: Any) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", help=domain_class.FILES)
    parser.add_argument("--output", help=".csv or .npz; without it predictions are printed")
    parser.add_argument("--batch-size", type=int, default=32)
    domain_class.add_options(parser)
    options = parser.parse_args()
    try:
        model = Model(Path(__file__).resolve().parent)
        domain = domain_class(model, options)
        rows = [row for name in options.files for row in domain.rows(Path(name))]
        if not rows:
            raise InputError("there is nothing to predict in these files")
        write(model, domain, rows, model.answers(rows, options.batch_size, domain.pad, domain.stride), options.output)
    except InputError as problem:
        sys.exit(f"predict.py: {problem}")
    except BrokenPipeError:
        sys.exit(0)
