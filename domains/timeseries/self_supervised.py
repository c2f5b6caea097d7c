"""Pretraining on a task's own windows: spans of what the model reads are hidden and filled in, under the same embedding."""

from typing import Any

import numpy as np
import torch

from longseq.backbone import Backbone
from longseq.domains.base import DomainData, Rows
from longseq.domains.loading import row_generator
from longseq.domains.tasks import Batch
from longseq.domains.timeseries.labelled import LabelledRows
from longseq.domains.timeseries.series import Scale
from longseq.domains.timeseries.windows import ForecastRows, hidden_spans
from longseq.errors import ConfigError


class HiddenRows(Rows):
    """Windows of another task with spans to be filled in.

    Args:
        rows: of forecasting, whose history is used, or of labelled series.
        hide: share of the steps that is hidden.
        span: mean length of a hidden span, in steps.
        together: hide all channels at once.
        seed: of the spans.
        fixed: hide the same spans in every epoch.
        scale: of the windows' series; None for labelled series.
    """

    def __init__(
        self, rows: Rows, *, hide: float, span: int, together: bool, seed: int, fixed: bool, scale: Scale | None
    ) -> None:
        self.rows, self.hide, self.span, self.together = rows, hide, span, together
        self.seed, self.fixed, self.scale = seed, fixed, scale
        self.lengths = rows.lengths

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        values = row["past"] if isinstance(self.rows, ForecastRows) else row["values"]
        rng = row_generator(self.seed, 0 if self.fixed else self.epoch + 1, index)
        hidden = hidden_spans(rng, values.shape, self.hide, self.span, self.together)
        found = {"index": index, "values": values, "hidden": hidden}
        if self.scale is not None:
            found |= {name: getattr(self.scale, f"{name}_SC")[row["series"]].astype(np.float32) for name in ("std", "mase")}
        return {**found, "known": row["known"]} if "known" in row else found


class HiddenSpans(DomainData):
    """A task's training and validation windows under the task imputation, with the embedding of the task itself.

    Args:
        data: the domain's data module, read, of forecasting or classification.

    Raises:
        ConfigError: for a task that needs no labels as it is.
    """

    domain = "timeseries"

    def __init__(self, data: Any) -> None:
        if data.task_name not in ("forecasting", "classification"):
            raise ConfigError(f"self_pretrain: task={data.task_name} needs no labels as it is; train it for more epochs")
        super().__init__(
            task="imputation",
            batch_size=data.batch_size,
            max_tokens=data.max_tokens,
            num_workers=data.num_workers,
            seed=data.seed,
        )
        self.data = data
        for name in ("train", "val"):
            # A file of its own for val numbers its series by itself.
            scale = data.parts[name].scale if name in data.parts else None
            self.splits[name] = HiddenRows(data.splits[name], **data.spans, fixed=name != "train", scale=scale)

    @property
    def length(self) -> int:
        """Steps that a window reads."""
        return self.data.tokenizer.lookback

    @property
    def max_length(self) -> int:
        return self.data.max_length

    def task_options(self) -> dict[str, Any]:
        labelled = self.data.task_name == "classification"
        channels = ["value"] if labelled else self.data.parts["train"].series.channels
        return {"channels": channels, "length": self.length}

    def model_options(self, backbone: Backbone) -> dict[str, Any]:
        return self.data.model_options(backbone)

    def head_options(self, backbone: Backbone, head: dict[str, Any]) -> dict[str, Any]:
        return {
            **head,
            "n_channels": self.data.n_inputs[0],
            "layout": self.data.tokenizer.layout(backbone),
            "n_tokens": self.data.max_length,
            "lookback": self.length,
        }

    def collate(self, rows: list[dict[str, Any]]) -> Batch:
        targets_BLC, hidden_BLC = (torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("values", "hidden"))
        index = torch.tensor([row["index"] for row in rows])
        scale_BC, mase_BC = self._scale(rows, targets_BLC)
        inputs = targets_BLC.masked_fill(hidden_BLC, torch.nan)
        if "known" in rows[0]:
            known_BTK = torch.from_numpy(np.stack([row["known"] for row in rows]))
            ahead = known_BTK.shape[1] - inputs.shape[1]
            empty_BFC = inputs.new_full((len(rows), ahead, inputs.shape[-1]), torch.nan)
            inputs = torch.cat([torch.cat([inputs, empty_BFC], 1), known_BTK], -1)
        return {
            "inputs": inputs,
            "targets": targets_BLC,
            "hidden": hidden_BLC,
            "scale": scale_BC,
            "mase": mase_BC,
            "index": index,
            "report": torch.zeros(len(rows), dtype=torch.bool),
        }

    def _scale(self, rows: list[dict[str, Any]], targets_BLC: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if "std" in rows[0]:
            std_BC, mase_BC = (torch.from_numpy(np.stack([row[name] for row in rows])) for name in ("std", "mase"))
            return std_BC, mase_BC
        train = self.data.splits["train"]
        assert isinstance(train, LabelledRows)
        std = float(np.nanstd(train.series.values_NL1)) or 1.0
        filled = targets_BLC.new_full((targets_BLC.shape[0], targets_BLC.shape[-1]), std)
        return filled, filled
