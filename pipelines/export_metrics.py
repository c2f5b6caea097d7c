"""A run's metrics once more, through an exported artefact: the same batches, the same task, other arithmetic."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from longseq.errors import ConfigError, LongseqError
from longseq.inference import POOLED, Inference
from longseq.pipelines.export_formats import Runner
from longseq.pipelines.export_graphs import Graph

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from longseq.domains.base import DomainData
    from longseq.domains.tasks import Task

Answer = Callable[..., Tensor]


class Evaluation:
    """A split of a run's data, read once.

    Args:
        saved: the run's config.
        changes: options of its data.
        split: `val` or `test`.

    Raises:
        LongseqError: if the data cannot be read, saying why.
    """

    def __init__(self, saved: "DictConfig", changes: "DictConfig", split: str) -> None:
        from longseq.pipelines.cli import nearest
        from longseq.pipelines.fit import build_data, build_task, quiet_lightning

        if split not in ("val", "test"):
            raise ConfigError(f"evaluate must be val, test or null, found {split!r}")
        if saved.task.name == "anomaly":
            raise LongseqError("anomaly scores are compared with labels that the graph does not see")
        quiet_lightning()
        saved = saved.copy()
        for key, value in changes.items():
            if key not in saved.data:
                raise ConfigError(f"there is no option data.{key}{nearest(str(key), saved.data)}")
            saved.data[key] = value
        self.split = split
        self.monitor = str(saved.task.monitor)
        self.data: DomainData = build_data(saved)
        self.task: Task = build_task(saved, self.data)

    def score(self, answer: Answer, inference: Inference) -> dict[str, float]:
        """The task's metrics of a model's answers."""
        metrics = self.task.metrics()
        with torch.no_grad():
            for batch in self.data.loader(self.split):
                inputs = (batch["inputs"], batch["mask"]) if inference.takes_mask else (batch["inputs"],)
                outputs = outputs_from(answer(*inputs), inference, self.task)
                self.task.update(metrics, outputs, batch)
        return {name: float(value) for name, value in metrics.compute().items()}


def artefact_answer(runner: Runner, graph: Graph, inference: Inference) -> Answer:
    """An artefact as a function of tensors, rows shorter than the graph's least length filled up."""

    def answer(inputs: Tensor, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return torch.from_numpy(runner(inputs.contiguous())[0])
        missing = max(0, graph.shortest - inputs.shape[1])
        found = torch.from_numpy(runner(F.pad(inputs, (0, missing)), F.pad(mask, (0, missing)))[0])
        place = inference.stride * int(inference.config.get("bin_size", 1))
        return found if inference.task in POOLED or not missing else found[:, : -(-inputs.shape[1] // place)]

    return answer


def outputs_from(answer: Tensor, inference: Inference, task: "Task") -> Tensor:
    """What the model must have put out for an answer: the inverse of `Inference.answer`, as metrics take outputs."""
    if inference.task in (*POOLED, "base_labels", "profile"):
        return task.outputs_from(answer)
    if inference.task == "frames":
        return answer.clamp(min=1e-12).log()
    if inference.task == "imputation":
        return answer.unsqueeze(-1)
    if inference.task == "masked_patch" and not inference.config.get("normalize_cells", False):
        return (answer - inference.mean) / inference.std
    return answer


def compare(before: dict[str, float], after: dict[str, float]) -> dict[str, Any]:
    """Two rows of metrics and their differences."""
    return {"model": before, "artefact": after, "change": {name: after[name] - before[name] for name in before}}
