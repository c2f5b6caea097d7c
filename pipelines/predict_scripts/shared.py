"""Predictions of the model in this folder on your own files.

Needs Python 3.11, numpy, and onnxruntime (for .onnx) or torch (for .pt2); nothing else. Usage:

    python predict.py FILE [FILE ...] --output predictions.csv

An output that ends in .npz takes the model's answers as arrays, row by row, whatever the task is.
"""

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

VERSION = 1
PER_POSITION = ("frames", "base_labels", "profile", "ctc", "lm", "mlm", "masked_sound")


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
        try:
            if self.report["version"] > VERSION:
                raise InputError(
                    f"{folder} has version {self.report['version']} of the format; this predict.py reads up to {VERSION}"
                )
            self.graph = self.report["graphs"]["sequence"]
            # With the graph's own file those that hold its weights, if it is too large for one.
            names = [name for name in self.report["files"] if name.startswith(self.graph["file"])]
            for name in {"config.json", self.graph["file"], *names}:
                self._check(name)
            self.config = self._json("config.json")
            self.task = str(self.report["task"])
            self.takes_mask = len(self.graph["inputs"]) == 2
            self.dtype = str(self.graph["inputs"][0]["dtype"])
        except (KeyError, TypeError, IndexError) as error:
            raise InputError(f"{folder / 'export_report.json'} is damaged ({error!r}); export the model again") from None
        self.labels = [str(label) for label in self.config.get("labels") or []]
        self.shortest, self.longest = self.graph.get("shortest", 1), self.graph.get("longest")
        self.along = self.takes_mask and self.task in PER_POSITION
        self.cropped = 0
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
        package: Any = needed("onnxruntime" if kind == "onnx" else "torch")
        try:
            return onnx_session(path, package) if kind == "onnx" else torch_module(path, kind, package)
        except Exception as error:
            # The file is whole, as its hash says.
            wrote = self.report["environment"].get(package.__name__, "another version")
            raise InputError(
                f"{path} cannot be opened by {package.__name__} {package.__version__} (it was exported with {wrote}): "
                f"{type(error).__name__}: {str(error).strip()[:200]}"
            ) from None

    def middle(self, length: int, more: int = 0) -> tuple[int, int]:
        """Which part of an input is read: all of it, or its middle where it is too long and gets one answer.

        Args:
            length: of the input.
            more: tokens that stand around it.
        """
        if self.along or not self.longest or length + more <= self.longest:
            return 0, length
        self.cropped += 1
        start = (length + more - self.longest) // 2
        return start, start + self.longest - more

    def windows(self, length: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
        """How an input is read: all at once, or in windows that overlap where it is too long and answered for along its length.

        Args:
            length: of the input.
            stride: places of the input that make one position of the answer.

        Yields:
            First and last place that are read, and those that are answered for.
        """
        limits = [limit for limit in (self.longest, self.config.get("reading", {}).get("long_window")) if limit]
        if not self.along or not limits or length <= min(limits):
            yield 0, length, 0, length
            return
        # Tracks and labels of bases are tiled by segments with context on either side; other windows begin where inputs do.
        tiles = self.task in ("profile", "base_labels")
        unit = 2 * stride if tiles else stride
        window = max(unit, min(limits) // unit * unit)
        behind = 0 if self.task == "lm" else window // (4 * stride) * stride
        # What stands before is all that a language model reads.
        before = max(0, window // 2 - 1) if self.task == "lm" else behind
        done = 0
        while done < length:
            first = max(0, done - before)
            last = min(length, done + window - behind if tiles else first + window)
            stop = min(length, done + window - 2 * behind) if tiles else length if last == length else last - behind
            yield first, last, done, stop
            done = stop

    def answers(self, rows: Sequence[Row], batch_size: int, pad: float, stride: int = 1) -> list[np.ndarray]:
        """The model's answer for every row, padding taken away.

        Args:
            rows: in any order and of any lengths.
            batch_size: rows of about one length that run together.
            pad: what fills shorter rows up.
            stride: places of the input that make one position of the answer.
        """
        pieces = [(i, *place) for i, row in enumerate(rows) for place in self.windows(len(row.inputs), stride)]
        lengths = np.array([last - first for _, first, last, _, _ in pieces])
        order = np.argsort(lengths, kind="stable") if self.takes_mask else np.arange(len(pieces))
        found: list[list[np.ndarray]] = [[] for _ in rows]
        parts: list[np.ndarray] = [np.empty(0)] * len(pieces)
        for begin in range(0, len(pieces), batch_size):
            chosen = order[begin : begin + batch_size]
            answer = self.run(*self._batch([rows[pieces[k][0]].inputs[slice(*pieces[k][1:3])] for k in chosen], pad))
            for k, part in zip(chosen, answer, strict=True):
                _, first, _, start, stop = pieces[k]
                # A copy, or the whole batch would be kept for it.
                parts[k] = part[(start - first) // stride : -(-(stop - first) // stride)].copy() if self.along else part
        for (i, *_), part in zip(pieces, parts, strict=True):
            found[i].append(part)
        return [parts[0] if len(parts) == 1 else np.concatenate(parts) for parts in found]

    def _batch(self, inputs: list[np.ndarray], pad: float) -> tuple[np.ndarray, ...]:
        if not self.takes_mask:
            return (np.stack(inputs).astype(self.dtype),)
        length = max(self.shortest, max(len(x) for x in inputs))
        batch = np.full((len(inputs), length, *inputs[0].shape[1:]), pad, dtype=self.dtype)
        for i, x in enumerate(inputs):
            batch[i, : len(x)] = x
        return batch, np.arange(length) < np.array([[len(x)] for x in inputs])


def onnx_session(path: Path, onnxruntime: Any) -> Callable[..., np.ndarray]:
    """An ONNX file as a function of arrays."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    return lambda *arrays: session.run(None, dict(zip(names, arrays, strict=True)))[0]


def torch_module(path: Path, kind: str, torch: Any) -> Callable[..., np.ndarray]:
    """A .pt2 file, traced or compiled, as a function of arrays."""
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


def needed(name: str) -> Any:
    """A package, or what to do without it."""
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise InputError(f"this model needs {name}: pip install {name}") from None
