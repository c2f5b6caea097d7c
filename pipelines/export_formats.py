"""Traced graphs as files, and files as functions again: torch.export's .pt2, ONNX, and packages of AOTInductor."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from longseq.errors import CheckpointError, ConfigError
from longseq.pipelines.export_aoti import aoti_runner, compile_package, compiler
from longseq.pipelines.export_graphs import ExportError, Graph
from longseq.pipelines.export_trace import quiet

FORMATS = ("safetensors", "torch", "onnx", "aoti")
SUFFIXES = {"torch": ".pt2", "onnx": ".onnx", "aoti": ".aoti.pt2"}
# The newest that onnxruntime has kernels for throughout; and the newest whose DFT it runs at a length that varies.
OPSET, OPSET_WITH_DFT = 20, 18
# A protobuf file ends at 2 GiB; weights beyond this stand beside it.
LARGEST_INLINE_BYTES = 1_800_000_000

Runner = Callable[..., list[np.ndarray]]


def check_format(name: str) -> None:
    """Raises ConfigError if a format is unknown, or cannot be written on this machine."""
    if name not in FORMATS:
        raise ConfigError(f"format must be one of {', '.join(FORMATS)}, found {name!r}")
    if name == "onnx":
        require_onnx("onnx", "onnxscript", "onnxruntime")
    if name == "aoti" and compiler() is None:
        raise ConfigError(
            "format=aoti compiles the model and needs a C++ compiler, but neither CXX, g++ nor clang++ was found: install one "
            "(Debian and Ubuntu: apt install g++), or choose format=torch or format=onnx"
        )


def require_onnx(*packages: str) -> None:
    """Raises ConfigError naming the extra if a package is missing."""
    from importlib.util import find_spec

    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise ConfigError(f"format=onnx needs {', '.join(missing)}: pip install 'longseq[export]'")


# -- writing


def write_graph(
    program: torch.export.ExportedProgram, graph: Graph, path: Path, how: str, metadata: dict[str, str], opset: int | None
) -> dict[str, Any]:
    """Writes one traced graph.

    Args:
        program: of the graph.
        graph: names of its inputs and outputs.
        path: the file.
        how: `torch`, `onnx` or `aoti`.
        metadata: kept inside the file.
        opset: of ONNX; None chooses.

    Returns:
        Facts for the report: `opset` of ONNX files.

    Raises:
        ExportError: if the exporter refuses.
    """
    try:
        with torch.no_grad(), quiet():
            if how == "torch":
                torch.export.save(program, path, extra_files={"longseq.json": json.dumps(metadata)})
                return {}
            if how == "aoti":
                compile_package(program, path, metadata)
                return {}
            return _write_onnx(program, graph, path, metadata, opset)
    except (ConfigError, ExportError, OSError, KeyboardInterrupt):
        raise
    except Exception as error:
        lines = [line.strip() for line in str(error).strip().split("\n") if line.strip()]
        raise ExportError(
            f"the {graph.name} graph cannot be written as format={how}: {type(error).__name__}: {' '.join(lines[:3])}"
        ) from error


def _write_onnx(
    program: torch.export.ExportedProgram, graph: Graph, path: Path, metadata: dict[str, str], opset: int | None
) -> dict[str, Any]:
    has_dft = any("fft" in str(node.target) for node in program.graph.nodes)
    chosen = opset or (OPSET_WITH_DFT if has_dft else OPSET)
    if has_dft and graph.has_length and chosen > OPSET_WITH_DFT:
        raise ConfigError(
            f"opset={chosen}: this graph holds a Fourier transform whose length varies, which onnxruntime runs up to "
            f"opset {OPSET_WITH_DFT} only; leave opset unset"
        )
    names = [port.name for port in graph.inputs], [port.name for port in graph.outputs]
    written = torch.onnx.export(
        program, (), dynamo=True, opset_version=chosen, input_names=names[0], output_names=names[1], verbose=False
    )
    assert written is not None
    written.model.metadata_props.update({f"longseq.{key}": value for key, value in metadata.items()})
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    written.save(str(path), external_data=n_bytes > LARGEST_INLINE_BYTES)
    return {"opset": chosen}


# -- reading


def open_graph(path: Path, how: str) -> Runner:
    """A written graph as a function of arrays.

    Raises:
        CheckpointError: if the file is damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    try:
        if how == "onnx":
            return onnx_runner(path)
        with quiet():
            if how == "torch":
                return torch_runner(torch.export.load(path).module())
            from torch._inductor import aoti_load_package

            return aoti_runner(aoti_load_package(str(path)))
    except Exception as error:
        first = str(error).strip().split("\n")[0]
        raise CheckpointError(f"{path} is truncated or corrupted ({path.stat().st_size} bytes): {first}") from None


def onnx_runner(path: Path) -> Runner:
    """A session on the processor with as many threads as torch uses."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]

    def run(*inputs: Tensor) -> list[np.ndarray]:
        found: Any = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        return found

    return run


def torch_runner(module: Callable[..., Any]) -> Runner:
    """A torch module as a function that gives a list of arrays."""

    def run(*inputs: Tensor) -> list[np.ndarray]:
        with torch.no_grad():
            found = module(*inputs)
        return [tensor.numpy() for tensor in (found if isinstance(found, (tuple, list)) else (found,))]

    return run


# -- int8


def quantize(path: Path) -> int:
    """Makes the linear layers of an ONNX file int8 (weights by channel; activations when it runs), in place.

    Returns:
        How many products of matrices are int8 now.

    Raises:
        ExportError: if there is none to be made so.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    small = path.with_name(f"int8-{path.name}")
    model = onnx.load(path)
    # Shapes inside the graph are those of before the writer's own optimisation; the quantiser infers them again.
    del model.graph.value_info[:]
    with quiet():
        quantize_dynamic(model, small, per_channel=True, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])
    model = onnx.load(small, load_external_data=False)
    count = sum(node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul") for node in _nodes(model.graph))
    if not count:
        small.unlink()
        raise ExportError("quantize=int8: onnxruntime found no linear layer in this graph that it can make int8")
    small.replace(path)
    return count


def _nodes(graph: Any) -> list[Any]:
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _nodes(attribute.g)
    return found
