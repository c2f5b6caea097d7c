"""Graphs as torch.export sees them, batch and length free."""

import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from longseq.inference import Inference
from longseq.pipelines.export_graphs import ExportError, Graph
from longseq.pipelines.export_steps import StepInference

SUGGESTED = re.compile(r"\b(\w+) = Dim\('\1'((?:, \w+=\d+)+)\)")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the exporters' warnings, which are about their own insides."""
    import logging

    loggers = [
        logging.getLogger(name) for name in ("torch.onnx", "torch.export", "torch._export", "onnxscript", "onnx_ir", "root")
    ]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)


def example_of(graph: Graph, inference: Inference, batch_size: int, length: int | None = None) -> tuple[Tensor, ...]:
    """Inputs of a graph: a batch of sequences, or one position behind some others and the state there."""
    if not isinstance(graph.module, StepInference):
        return inference.example(batch_size, length, seed=batch_size + (length or 0))
    step = graph.module
    state = step.init_state(batch_size)
    with torch.no_grad():
        for position in range(2):
            _, *state = step(step.example_input(batch_size, position), *state)
    return (step.example_input(batch_size, 2), *state)


def trace(graph: Graph, inference: Inference) -> torch.export.ExportedProgram:
    """A graph as torch.export sees it, batch and length free.

    Raises:
        ExportError: naming what the tracer met.
    """
    example = example_of(graph, inference, 2, min(graph.longest, max(graph.shortest, 41 * inference.stride + 3)))
    limits = {"batch": {"min": 1}, "length": {"min": graph.shortest, "max": graph.longest}}
    problem: Exception | None = None
    # The tracer says in its error which range it can prove; sizes of windows and pools decide. What it cannot prove of the
    # number of frames of a sound is left to an assertion in the graph.
    deferred = False
    for _ in range(5):
        used = {name for port in graph.inputs for name in port.dynamic.values()}
        dims = {name: torch.export.Dim(name, **limits[name]) for name in used}
        shapes: tuple[Any, ...] = tuple({axis: dims[name] for axis, name in port.dynamic.items()} for port in graph.inputs)
        if graph.name == "step":
            shapes = (shapes[0], shapes[1:])
        # What was traced before in this process must not count.
        torch._dynamo.reset()
        try:
            with torch.no_grad(), quiet():
                program = torch.export.export(
                    graph.module, example, dynamic_shapes=shapes, prefer_deferred_runtime_asserts_over_guards=deferred
                )
        except Exception as error:
            problem = error
            if _narrow(limits, str(error)):
                continue
            if deferred or "Constraints violated" not in str(error):
                break
            deferred = True
            continue
        graph.shortest, graph.longest = int(limits["length"]["min"]), int(limits["length"]["max"])
        return program
    name = inference.config.get("backbone", {}).get("name", "")
    first = str(problem).strip().split("\n")
    raise ExportError(
        f"backbone={name}, task={inference.task}: torch.export cannot trace the {graph.name} graph for any batch and length: "
        f"{type(problem).__name__}: {' '.join(line.strip() for line in first[:3])}"
    ) from problem


def _narrow(limits: dict[str, dict[str, int]], message: str) -> bool:
    """Takes up the ranges that a tracer's error suggests; False if there is nothing new among them."""
    changed = False
    for name, ranges in SUGGESTED.findall(message):
        for bound, text in re.findall(r"(min|max)=(\d+)", ranges):
            value, known = int(text), limits.get(name, {}).get(bound)
            better = known is None or (value > known if bound == "min" else value < known)
            if name in limits and better:
                limits[name][bound], changed = value, True
    return changed and all(limit.get("min", 1) <= limit.get("max", math.inf) for limit in limits.values())
