"""Batches from windows, and the names of what stands in them for the report."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from longseq.domains.base import Rows
from longseq.domains.tasks import Batch
from longseq.domains.timeseries.parts import Part
from longseq.domains.timeseries.series import Scale
from longseq.domains.timeseries.windows import SpanRows, WindowRows


class Collate:
    """Stacks the windows of a split; marks those that the report or calibration keeps.

    Args:
        scale: of the split's series; None for labelled series.
        forecast: windows have a past and a future; else spans to be filled in.
        every: every how manyth window is kept for the report, or for calibration.
        unknown: the truth still lies ahead.
    """

    def __init__(self, scale: Scale | None, *, forecast: bool, every: int, unknown: bool) -> None:
        self.scale, self.forecast, self.every, self.unknown = scale, forecast, every, unknown

    def __call__(self, rows: list[dict[str, Any]]) -> Batch:
        index = torch.tensor([row["index"] for row in rows])
        if self.scale is None:
            return self._labelled(rows, index)
        batch = self._forecast(rows) if self.forecast else self._spans(rows)
        which = np.array([row["series"] for row in rows])
        n_channels = batch["targets"].shape[-1]
        batch["scale"] = torch.from_numpy(self.scale.std_SC[which, :n_channels].astype(np.float32))
        batch["mase"] = torch.from_numpy(self.scale.mase_SC[which, :n_channels].astype(np.float32))
        if self.unknown:
            batch["unknown"] = torch.ones(len(rows), dtype=torch.bool)
        return {**batch, "index": index, "report": index % self.every == 0}

    def _forecast(self, rows: list[dict[str, Any]]) -> Batch:
        past_BLC = torch.from_numpy(np.stack([row["past"] for row in rows]))
        targets_BFC = torch.from_numpy(np.stack([row["future"] for row in rows]))
        if "known" not in rows[0]:
            return {"inputs": past_BLC, "targets": targets_BFC}
        known_BTK = torch.from_numpy(np.stack([row["known"] for row in rows]))
        ahead = known_BTK.shape[1] - past_BLC.shape[1]
        empty_BFC = past_BLC.new_full((len(rows), ahead, past_BLC.shape[-1]), torch.nan)
        return {"inputs": torch.cat([torch.cat([past_BLC, empty_BFC], 1), known_BTK], -1), "targets": targets_BFC}

    def _spans(self, rows: list[dict[str, Any]]) -> Batch:
        targets_BLC = torch.from_numpy(np.stack([row["values"] for row in rows]))
        hidden_BLC = torch.from_numpy(np.stack([row["hidden"] for row in rows]))
        scored_B1 = torch.tensor([row["scored"] for row in rows]).unsqueeze(1)
        fresh_BL = torch.arange(targets_BLC.shape[1]) >= scored_B1
        inputs_BLC = targets_BLC.masked_fill(hidden_BLC, torch.nan)
        batch = {"inputs": inputs_BLC, "targets": targets_BLC, "hidden": hidden_BLC, "fresh": fresh_BL}
        if "labels" in rows[0]:
            batch["labels"] = torch.from_numpy(np.stack([row["labels"] for row in rows]))
        return batch

    def _labelled(self, rows: list[dict[str, Any]], index: torch.Tensor) -> Batch:
        batch = {"inputs": torch.from_numpy(np.stack([row["values"] for row in rows])), "index": index}
        if "label" in rows[0]:
            batch["labels"] = torch.tensor([row["label"] for row in rows])
        return batch


def window_facts(rows: Rows, part: Part) -> dict[str, Any]:
    """What a split of windows holds."""
    series = part.series
    begin, end = int(part.begin[0]), int(part.end[0])
    facts: dict[str, Any] = {"rows": len(rows), "series": len(series), "channels": len(series.channels)}
    facts["steps"] = int((part.end - part.begin).sum())
    if len(series) == 1 and end > begin:
        facts |= {"from": str(series.time(0, begin))[:19], "to": str(series.time(0, end - 1))[:19]}
    return facts


def window_names(
    rows: WindowRows, index: np.ndarray, steps: int, task: str, channels: Sequence[str]
) -> dict[str, Sequence[Any]]:
    """Series, channel, times and step of numbers `(window * steps + step) * channels + channel`; scores have no channel."""
    n_channels = 1 if task == "anomaly" else len(channels)
    windows, rest = np.divmod(index, steps * n_channels)
    step, channel = np.divmod(rest, n_channels)
    chosen, inverse = np.unique(windows, return_inverse=True)
    ids, origins, times = [], [], []
    for window in chosen:
        series, first = rows.start(int(window))[:2] if isinstance(rows, SpanRows) else rows.place(int(window))
        ids.append(rows.series.ids[series])
        origins.append(rows.series.time(series, first - 1))
        times.append(rows.series.times(series, first, steps))
    found: dict[str, Any] = {"id": np.array(ids, dtype=object)[inverse].tolist()}
    if task != "anomaly":
        found["channel"] = np.array(channels, dtype=object)[channel].tolist()
    if task == "forecasting":
        found |= {"last_observed": np.array(origins)[inverse], "step": (step + 1).tolist()}
    found["time"] = np.stack(times)[inverse, step] if len(chosen) else []
    return found
