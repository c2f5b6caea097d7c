"""The graph of one position for an exported model: for backbones with a fixed state, which goes in and out by name."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from longseq.backbone import State
from longseq.embeddings_audio import WaveformEmbedding
from longseq.heads import PoolHead
from longseq.inference import POOLED, POSITIONED, Inference, Port
from longseq.pipelines.export_graphs import ExportError, Graph


def step_graph(inference: Inference) -> Graph:
    """The model for one position, with its state going in and out by name.

    Raises:
        ExportError: saying why there is no such graph.
    """
    reason = why_no_step(inference)
    if reason is not None:
        raise ExportError(reason)
    module = StepInference(copy.deepcopy(inference))
    ports = module.state_ports()
    shape: tuple[str | int, ...] = ("batch",)
    if inference.kind == "samples":
        shape = ("batch", inference.stride)
    elif inference.kind == "vectors":
        shape = ("batch", inference.inputs[0].axes[2])
    inputs = (Port("inputs", inference.inputs[0].dtype, shape), *ports)
    answer = inference.outputs[0]
    answer = Port(answer.name, answer.dtype, ("batch", answer.axes[-1]))
    return Graph("step", module, inputs, (answer, *(Port(f"new_{p.name}", p.dtype, p.axes) for p in ports)))


def why_no_step(inference: Inference) -> str | None:
    """Why a model has no step graph; None if it has one."""
    backbone, embedding, head = inference.model.backbone, inference.model.embedding, inference.model.head
    name = inference.config.get("backbone", {}).get("name", type(backbone).__name__)
    if not backbone.can_step:
        return f"backbone={name} sees both sides here, so it has no state to carry"
    if backbone.state_grows:
        return f"the state of backbone={name} grows with the sequence, and a graph's state has a fixed size"
    if inference.task not in (*POOLED, *POSITIONED):
        return f"task={inference.task} answers for whole windows"
    if inference.rc_average:
        return "averaging both strands needs the whole sequence"
    if inference.kind == "samples" and not isinstance(embedding, WaveformEmbedding):
        return f"{type(embedding).__name__} looks half a window ahead, so a frame's answer is not known when its last sample is"
    if inference.kind == "pixels":
        return "images are given whole"
    if inference.task in POOLED and not isinstance(head, PoolHead):
        return f"{type(head).__name__} needs the whole sequence"
    if inference.task in POSITIONED and inference.config.get("head", {}).get("name") == "strand_token":
        return "both strands need the whole sequence"
    return _state_changes(inference, name)


@torch.no_grad()
def _state_changes(inference: Inference, name: str) -> str | None:
    """What is wrong with the state's shapes as steps go by; None if nothing is."""
    module = StepInference(inference)
    state = module.init_state(2)
    shapes = [tensor.shape for tensor in state]
    if any(bool(tensor.any()) for tensor in state):
        return f"the state of backbone={name} does not begin at zero"
    for _ in range(8):
        try:
            _, *state = module(module.example_input(2), *state)
        except (TypeError, ValueError) as error:
            return f"backbone={name}: {error}"
        if [tensor.shape for tensor in state] != shapes:
            return f"the state of backbone={name} changes its shape from step to step"
    return None


class StepInference(nn.Module):
    """A model over one position: the next token, or the next samples of one position, and the state, by its tensors.

    What pools over positions answers for those seen so far; behind the last it is the answer for the whole sequence.

    Args:
        inference: whose `why_no_step` is None.
    """

    def __init__(self, inference: Inference) -> None:
        super().__init__()
        self.inference = inference
        embedding, head = inference.model.embedding, inference.model.head
        self.stem = list(_stem(embedding)) if isinstance(embedding, WaveformEmbedding) else []
        self.pool = head.pool if isinstance(head, PoolHead) and inference.task in POOLED else None
        tree = inference.model.init_state(2)
        self.names = [f"state.backbone{path}" for path, _ in _leaves(tree)]
        self.names += [f"state.stem.{i}" for i in range(len(self.stem))]
        self.names += [] if self.pool in (None, "last") else ["state.pooled", "state.count"]
        self._tree = _skeleton(tree)

    def init_state(self, batch_size: int) -> list[Tensor]:
        """The state before the first position: zeros."""
        model = self.inference.model
        state = [tensor.contiguous().clone() for _, tensor in _leaves(model.init_state(batch_size))]
        device = self.inference.mean.device
        state += [torch.zeros(batch_size, channels, history, device=device) for channels, history in self.stem]
        widths = [] if self.pool in (None, "last") else [model.backbone.d_model, 1]
        return state + [torch.zeros(batch_size, width, device=device) for width in widths]

    def state_ports(self) -> tuple[Port, ...]:
        """The state's tensors."""
        state = self.init_state(2)
        return tuple(
            Port(name, str(tensor.dtype).removeprefix("torch."), ("batch", *tensor.shape[1:]))
            for name, tensor in zip(self.names, state, strict=True)
        )

    def example_input(self, batch_size: int, position: int = 0) -> Tensor:
        """What stands at one position of the model's example, which is the same whatever the number of rows."""
        stride = self.inference.stride
        inputs = self.inference.example(batch_size, (position + 1) * stride, seed=position)[0]
        # A compiled graph reads its inputs by the strides of the example: those of callers' own arrays, not of a slice.
        if self.inference.kind == "samples":
            return inputs[:, position * stride :].contiguous()
        return inputs[:, position].contiguous()

    def forward(self, inputs: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """The answer at (or up to) this position, and the state behind it.

        Args:
            inputs: ids (B,), samples (B, stride) or values (B, C).
            *state: as in `names`.
        """
        model = self.inference.model
        n_pooled = 0 if self.pool in (None, "last") else 2
        n_backbone = len(state) - len(self.stem) - n_pooled
        backbone = _rebuild(self._tree, iter(state[:n_backbone]))
        stem, pooled = state[n_backbone : len(state) - n_pooled], state[len(state) - n_pooled :]
        x_BD, stem = self._embed(inputs, stem)
        y_BD, backbone = model.backbone.step(x_BD, backbone)
        # Contiguous, as they come in again at the next step.
        new = [tensor.contiguous() for _, tensor in _leaves(backbone)]
        if self.pool is None:
            return self.inference.answer(model.head(y_BD.unsqueeze(1)).squeeze(1)), *new, *stem
        y_BD, pooled = self._pool(y_BD, pooled)
        return self.inference.answer(model.head(y_BD.unsqueeze(1))), *new, *stem, *pooled

    def _embed(self, inputs: Tensor, stem: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        embedding = self.inference.model.embedding
        if not isinstance(embedding, WaveformEmbedding):
            x_BLD, _ = embedding(inputs.unsqueeze(1))
            return x_BLD.squeeze(1), stem
        x_BDL, kept = inputs.unsqueeze(1), []
        for convolution, norm, history in zip(embedding.convolutions, embedding.norms, stem, strict=True):
            x_BDL = torch.cat([history, x_BDL], dim=2)
            kept.append(x_BDL[:, :, x_BDL.shape[2] - history.shape[2] :].clone())
            x_BDL = nn.functional.gelu(norm(convolution(x_BDL).transpose(1, 2))).transpose(1, 2)
        return embedding.projection(x_BDL.squeeze(2)), tuple(kept)

    def _pool(self, y_BD: Tensor, pooled: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        if self.pool == "last":
            return y_BD, ()
        kept_BD, count_B1 = pooled
        if self.pool == "mean":
            kept_BD = kept_BD + y_BD
            return kept_BD / (count_B1 + 1), (kept_BD, count_B1 + 1)
        other_BD = torch.maximum(kept_BD, y_BD) if self.pool == "max" else kept_BD
        kept_BD = torch.where(count_B1 > 0, other_BD, y_BD)
        return kept_BD, (kept_BD, count_B1 + 1)


def _stem(embedding: WaveformEmbedding) -> Iterator[tuple[int, int]]:
    """Channels and inputs kept of each convolution."""
    for convolution in embedding.convolutions:
        assert isinstance(convolution, nn.Conv1d)
        yield convolution.in_channels, convolution.kernel_size[0] - convolution.stride[0]


def _leaves(state: State, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a nested state, each with its place such as `.0.conv`."""
    if isinstance(state, Tensor):
        yield path, state
    elif state is not None:
        items = state.items() if isinstance(state, dict) else enumerate(state)
        for key, child in items:
            yield from _leaves(child, f"{path}.{key}")


def _skeleton(state: State) -> Any:
    """The nesting of a state without its tensors."""
    if isinstance(state, Tensor):
        return True
    if isinstance(state, dict):
        return {key: _skeleton(child) for key, child in state.items()}
    return None if state is None else [_skeleton(child) for child in state]


def _rebuild(skeleton: Any, tensors: Iterator[Tensor]) -> State:
    """The nested state of so many tensors."""
    if skeleton is True:
        return next(tensors)
    if isinstance(skeleton, dict):
        return {key: _rebuild(child, tensors) for key, child in skeleton.items()}
    return None if skeleton is None else [_rebuild(child, tensors) for child in skeleton]
