"""What is traced for an exported model: the whole of it over sequences, kernels as tables."""

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from longseq.backbones.hyena import HyenaFilter
from longseq.errors import LongseqError
from longseq.inference import Inference, Port
from longseq.layers.linear_ssm import LinearSSM

# Without a limit of the backbone's own. Scans by doubling hold a fixed number of rounds, so some limit there must be.
LONGEST = 1 << 22
# Kernels longer than this stay as the small network that computes them.
LARGEST_KERNEL_BYTES = 1 << 26


class ExportError(LongseqError):
    """This model, or this form of it, cannot be exported; the message says why."""


@dataclass
class Graph:
    """A module to be traced.

    Attributes:
        name: `sequence` or `step`.
        module: takes `inputs` and gives `outputs`.
        inputs: its inputs.
        outputs: its outputs.
        shortest: least length of a sequence.
        longest: greatest length.
    """

    name: str
    module: nn.Module
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    shortest: int = 1
    longest: int = 1

    @property
    def has_length(self) -> bool:
        """Whether the length varies."""
        return any("length" in port.axes for port in self.inputs)


def sequence_graph(inference: Inference, max_length: int) -> Graph:
    """The whole model, its kernels as tables; the one given stays as it is.

    Args:
        inference: the model.
        max_length: longest input, in tokens or samples.
    """
    module = copy.deepcopy(inference)
    materialize(module, max_length)
    longest = max_length if inference.takes_mask else 1
    # Sizes that can be 1 would be fixed in the graph: two positions at least.
    shortest = min(longest, inference.stride + 1)
    return Graph("sequence", module, inference.inputs, inference.outputs, shortest, longest)


def materialize(inference: Inference, max_length: int) -> list[str]:
    """Replaces what the parameters of linear time-invariant layers mean by the numbers themselves, as real buffers.

    Returns:
        Names of the layers that now hold tables.
    """
    done = []
    positions = -(-max_length // inference.stride)
    for name, module in list(inference.named_modules()):
        if isinstance(module, LinearSSM):
            module.materialize()
            done.append(name)
        if isinstance(module, HyenaFilter):
            # One more than is ever asked for, so that no slice touches the table's end, which a tracer would make a condition.
            length = min(positions, module.max_length) + 1
            if length * module.bias.numel() * 4 <= LARGEST_KERNEL_BYTES:
                parent, _, own = name.rpartition(".")
                setattr(inference.get_submodule(parent), own, KernelTable(module, length))
                done.append(name)
    return done


class KernelTable(nn.Module):
    """The first lags of a Hyena filter as a table; stands in for the network that computes them.

    Args:
        source: the filter.
        length: lags.
    """

    kernel_LD: Tensor

    def __init__(self, source: HyenaFilter, length: int) -> None:
        super().__init__()
        self.max_length, self.dtype = source.max_length, source.dtype
        self.bias, self.freq = source.bias, source.freq
        with torch.no_grad():
            self.register_buffer("kernel_LD", source(0, length).detach().clone())

    def forward(self, start: int, stop: int) -> Tensor:
        """The kernels (stop - start, filters) at lags `start` to `stop - 1`."""
        return self.kernel_LD[start:stop]
