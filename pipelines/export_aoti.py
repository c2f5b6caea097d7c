"""Graphs compiled by AOTInductor: packages of machine code, for processors like this one and the torch that wrote them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longseq.pipelines.export_graphs import ExportError

OPTIONS: dict[str, Any] = {
    # Whether the compiler knows the processor's vector instructions is asked for each set of them by a program of its own,
    # some ten seconds in all; those that can compile torch's headers do.
    "cpp.vec_isa_ok": True,
}
# Computed positions, such as those that a selective scan gathers from, are tensors that are read. The compiler would rather
# write them out as formulas of the length in every load, and its algebra of a thousand of those takes hours.
POSITIONS_READ = {"constant_and_index_propagation": False}


def compiler() -> str | None:
    """The C++ compiler that AOTInductor would use."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and shutil.which(name):
            return name
    return None


def compile_package(program: torch.export.ExportedProgram, path: Path, metadata: dict[str, str]) -> None:
    """Compiles a traced graph, and writes the package.

    Args:
        program: the graph.
        path: the file, which must end in .pt2.
        metadata: kept inside the file.

    Raises:
        ExportError: if it holds what cannot be compiled.
    """
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.exc import InductorError

    refuse_loops(program)
    options = {**OPTIONS, "aot_inductor.metadata": {f"longseq.{key}": value for key, value in metadata.items()}}
    try:
        aoti_compile_and_package(program, package_path=str(path), inductor_configs={**options, **POSITIONS_READ})
    except InductorError:
        # Some graphs (torch 2.11: with constants among the positions) are compiled with formulas alone.
        aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def refuse_loops(program: torch.export.ExportedProgram) -> None:
    """Raises ExportError for a graph with a loop over positions, which the compiler (torch 2.11) cannot write.

    It makes a `while_loop` of a scan, in which every step writes its output into one tensor, and its C++ code forgets the
    loop's inputs that are written to.
    """
    if program.graph.find_nodes(op="call_function", target=torch.ops.higher_order.scan):
        raise ExportError(
            "this backbone goes through a sequence one position after the other, and AOTInductor cannot compile such a loop "
            f"(torch {torch.__version__}): use format=onnx or format=torch"
        )


def aoti_runner(package: Callable[..., Any]) -> Callable[..., list[np.ndarray]]:
    """A compiled package as a function that gives a list of arrays; what it refuses while running is an ExportError."""

    def answer(*inputs: Tensor) -> list[np.ndarray]:
        try:
            # The package reads memory as if its inputs were contiguous, and does not ask whether they are.
            with torch.no_grad():
                found = package(*(tensor.contiguous() for tensor in inputs))
        except RuntimeError as error:
            shapes = ", ".join(str(tuple(tensor.shape)) for tensor in inputs)
            raise ExportError(
                f"torch {torch.__version__}'s AOTInductor compiled this model to a package that fails on inputs of {shapes} "
                f"({str(error).strip().splitlines()[0][:80]}...): use format=torch or format=onnx"
            ) from None
        return [tensor.numpy() for tensor in (found if isinstance(found, (tuple, list)) else (found,))]

    return answer
