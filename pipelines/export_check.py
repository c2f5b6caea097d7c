"""Proof that an exported folder does what the model does: errors against eager, latencies, and hashes of its files."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from longseq.errors import CheckpointError, LongseqError
from longseq.inference import POOLED, Inference
from longseq.pipelines.export_formats import Runner, open_graph
from longseq.pipelines.export_graphs import Graph
from longseq.pipelines.export_steps import StepInference
from longseq.pipelines.export_trace import example_of

REPORT, CARD = "export_report.json", "README.md"
# Of the report: raised when a reader of an older one would misunderstand it.
VERSION = 1
BATCHES = (1, 3)
# Lengths of the streams that a step graph is led through.
STEPS = (1, 9, 16)
# Seconds spent on one latency, and runs at least.
BUDGET_S, LEAST_RUNS = 1.0, 3


class ExportMismatchError(LongseqError):
    """An artefact that does not answer as the model does."""


def relative_error(expected: np.ndarray, found: np.ndarray) -> float:
    """The largest difference over the largest value; infinite where one is NaN, infinite or of another shape alone."""
    if expected.shape != found.shape or not np.array_equal(np.isfinite(expected), np.isfinite(found)):
        return float("inf")
    finite = np.isfinite(expected)
    if not finite.any():
        return 0.0
    a, b = expected[finite].astype(np.float64), found[finite].astype(np.float64)
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-6))


def check_lengths(graph: Graph, inference: Inference) -> list[int]:
    """Three lengths within the graph's range, one of them odd; fewer where there are not so many, none where it is fixed."""
    if not graph.has_length:
        return []
    stride = inference.stride
    odd = 37 * stride + (37 * stride + 1) % 2
    wanted = [16 * stride, odd, 130 * stride]
    if graph.longest < wanted[-1]:
        wanted = [graph.longest, graph.longest - 1, graph.longest // 2]
    return sorted({min(graph.longest, max(graph.shortest, length)) for length in wanted})


def verify(graph: Graph, inference: Inference, runner: Runner) -> list[dict[str, Any]]:
    """Compares an artefact with the model that it was made from.

    Args:
        graph: what was exported.
        inference: the model, as it was before anything was done to it.
        runner: the artefact.

    Returns:
        One row for each batch size and length (steps for step graphs): `batch`, `length` (None where it is fixed), `error`.
    """
    if isinstance(graph.module, StepInference):
        sizes = [(batch, steps) for batch in BATCHES for steps in STEPS]
        return [{"batch": b, "length": n, "error": _step_error(graph, inference, runner, b, n)} for b, n in sizes]
    rows = []
    for batch in BATCHES:
        for length in check_lengths(graph, inference) or [None]:
            inputs = example_of(graph, inference, batch, length)
            with torch.no_grad():
                expected = inference(*inputs).numpy()
            rows.append({"batch": batch, "length": length, "error": relative_error(expected, runner(*inputs)[0])})
    return rows


@torch.no_grad()
def _step_error(graph: Graph, inference: Inference, runner: Runner, batch: int, n_steps: int) -> float:
    """The largest error of an artefact that goes its own way through so many steps, against the whole sequence at once."""
    step = graph.module
    assert isinstance(step, StepInference)
    inputs = inference.example(batch, n_steps * inference.stride)[0]
    stride = inference.stride
    pieces = [inputs[:, i * stride : (i + 1) * stride] if inference.kind == "samples" else inputs[:, i] for i in range(n_steps)]
    state, errors = step.init_state(batch), []
    eager = step.init_state(batch)
    answers = []
    for piece in pieces:
        answer, *new = runner(piece.contiguous(), *state)
        state = [torch.from_numpy(tensor) for tensor in new]
        expected, *eager = step(piece, *eager)
        errors.append(relative_error(expected.numpy(), answer))
        answers.append(answer)
    whole = inference(inputs, torch.ones_like(inputs, dtype=torch.bool)).numpy()
    stepped = answers[-1] if inference.task in POOLED else np.stack(answers, axis=1)
    return max([*errors, relative_error(whole, stepped)])


def accept(rows: Sequence[dict[str, Any]], tolerance: float, what: str) -> float:
    """The largest error of a check.

    Raises:
        ExportMismatchError: if it is above the tolerance.
    """
    worst = max(rows, key=lambda row: row["error"])
    if not worst["error"] <= tolerance:
        place = f"batch {worst['batch']}" + ("" if worst["length"] is None else f", length {worst['length']}")
        raise ExportMismatchError(
            f"{what} does not answer as the model: relative error {worst['error']:.2g} at {place}, allowed is {tolerance:g}. "
            "Nothing was written. Another format may do (torch, onnx, aoti); please report the backbone and the versions"
        )
    return float(worst["error"])


# -- latency


def latency_lengths(graph: Graph, inference: Inference, positions: Sequence[int]) -> list[int | None]:
    """Input lengths of so many positions, as far as the graph goes; [None] where the length is fixed."""
    if not graph.has_length:
        return [None]
    return [*sorted({min(graph.longest, max(graph.shortest, n * inference.stride)) for n in positions})]


def measure_latency(graph: Graph, inference: Inference, runner: Runner, positions: Sequence[int]) -> list[dict[str, Any]]:
    """Milliseconds of one row through the artefact and through the model in eager, median over repeated runs."""
    rows = []
    for length in latency_lengths(graph, inference, positions):
        inputs = example_of(graph, inference, 1, length)

        def eager(inputs: tuple[torch.Tensor, ...] = inputs) -> Any:
            with torch.no_grad():
                return inference(*inputs)

        def artefact(inputs: tuple[torch.Tensor, ...] = inputs) -> Any:
            return runner(*inputs)

        rows.append({"length": length, "eager_ms": median_ms(eager), "artefact_ms": median_ms(artefact)})
    return rows


def median_ms(call: Callable[[], Any]) -> float:
    """Milliseconds of a call."""
    call()
    times, started = [], time.perf_counter()
    while len(times) < LEAST_RUNS or (time.perf_counter() - started < BUDGET_S and len(times) < 100):
        before = time.perf_counter()
        call()
        times.append(time.perf_counter() - before)
    return round(1000 * float(np.median(times)), 4)


# -- the folder


def file_facts(folder: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of every file in a folder but the report and the model card, which its owner may edit."""
    return {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (REPORT, CARD)
    }


def sha256(path: Path) -> str:
    """Of a file, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_folder(folder: str | Path) -> dict[str, Any]:
    """The report of an exported folder whose files are as they were written.

    Raises:
        CheckpointError: if a file is missing, truncated or changed, or if a later version wrote the folder.
    """
    folder = Path(folder)
    path = folder / REPORT
    if not path.is_file():
        raise CheckpointError(f"{folder} is not an exported model: it has no {REPORT} (longseq export makes such folders)")
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        version, files, _ = int(report["version"]), dict(report["files"]), dict(report["graphs"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}; export the model again") from None
    if version > VERSION:
        raise CheckpointError(
            f"{folder} was written by longseq {report.get('longseq')} in version {version} of the format, this one reads up to "
            f"{VERSION}: upgrade longseq"
        )
    try:
        for name, facts in files.items():
            _check_file(folder / name, facts)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: {error!r}; export the model again") from None
    return report


def _check_file(path: Path, facts: dict[str, Any]) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing; export the model again")
    size = path.stat().st_size
    if size < facts["bytes"]:
        raise CheckpointError(f"{path} is truncated: {size} of {facts['bytes']} bytes; copy it again")
    if sha256(path) != facts["sha256"]:
        raise CheckpointError(f"{path} was changed after the export ({REPORT} holds another hash); export the model again")


class ExportedModel:
    """An exported folder as a function, with onnxruntime or torch and without the model's code.

    Args:
        folder: as `longseq export` wrote it, in any format but safetensors; its files are checked first.

    Raises:
        CheckpointError: as `check_folder`, and for a folder of safetensors.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.report = check_folder(folder)
        graph = self.report["graphs"].get("sequence")
        if graph is None:
            raise CheckpointError(f"{folder} holds weights and no graph: longseq.load_inference reads it")
        self.inputs, self.outputs = graph["inputs"], graph["outputs"]
        self.shortest, self.longest = graph.get("shortest"), graph.get("longest")
        self._run = open_graph(self.folder / graph["file"], self.report["format"])

    def __call__(self, *inputs: np.ndarray) -> np.ndarray:
        """The answer for arrays in the order of `inputs`.

        Raises:
            ValueError: for inputs of another number, type or length than the graph takes.
        """
        if len(inputs) != len(self.inputs):
            raise ValueError(f"{self.folder} takes {len(self.inputs)} inputs, found {len(inputs)}")
        for port, array in zip(self.inputs, inputs, strict=True):
            if str(array.dtype) != port["dtype"] or array.ndim != len(port["shape"]):
                raise ValueError(
                    f"{port['name']} must be {port['dtype']} {port['shape']}, found {array.dtype} {list(array.shape)}"
                )
            if "length" in port["shape"] and not self.shortest <= array.shape[port["shape"].index("length")] <= self.longest:
                raise ValueError(
                    f"{port['name']} has length {array.shape[1]}; this export takes {self.shortest} to {self.longest}"
                )
        return self._run(*(torch.from_numpy(np.ascontiguousarray(array)) for array in inputs))[0]
