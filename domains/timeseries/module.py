"""Trains the tasks of series: longer forecasts by roll-out, calibration after each validation, two passes for anomalies."""

from typing import Any

import torch
from torch import Tensor

from longseq.domains.base import DomainModule
from longseq.domains.tasks import Batch
from longseq.domains.timeseries.conformal import ConformityScores
from longseq.domains.timeseries.tasks import AnomalyDetection, Forecasting
from longseq.embeddings_timeseries import ForecastHead, SeriesEmbedding
from longseq.model import SequenceModel


class SeriesModule(DomainModule):
    """The shared module with what series need beyond it.

    Calibration happens at the end of every validation, on its own windows, and is part of the model: the checkpoint that is
    kept, the test and the exported graph all hold it.

    Args:
        span: steps of the spans that are hidden in turn for anomaly scores.
        **options: of `DomainModule`.
    """

    def __init__(self, *, span: int = 8, **options: Any) -> None:
        super().__init__(**options)
        self.span = span
        self._conformity: ConformityScores | None = None

    def forward(self, batch: Batch) -> Tensor:
        head = self.model.head
        if isinstance(self.task, Forecasting) and isinstance(head, ForecastHead):
            steps = batch["targets"].shape[1]
            if steps != head.horizon:
                return roll_out(self.model, batch["inputs"], steps)
        return super().forward(batch)

    def evaluate_batch(self, batch: Batch) -> Tensor:
        if isinstance(self.task, AnomalyDetection):
            return self._fill_in_turn(batch)
        outputs = self(batch)
        if self._conformity is not None:
            self._add_conformity(outputs, batch)
        return outputs

    def _fill_in_turn(self, batch: Batch) -> Tensor:
        """Every step as filled in from the others: even spans hidden first, then odd ones."""
        targets_BLC = batch["targets"]
        even_L1 = (torch.arange(targets_BLC.shape[1], device=targets_BLC.device) // self.span % 2 == 0).unsqueeze(-1)
        first, second = (
            self.model(targets_BLC.masked_fill(hidden_L1, torch.nan), batch.get("mask")) for hidden_L1 in (even_L1, ~even_L1)
        )
        return torch.where(even_L1.unsqueeze(-1), first, second)

    # -- calibration

    def on_validation_epoch_start(self) -> None:
        super().on_validation_epoch_start()
        head = self.model.head
        if isinstance(self.task, Forecasting) and isinstance(head, ForecastHead) and self.task.calibrate:
            head.offset_FCQ.zero_()
            channels = head.offset_FCQ.shape[1]
            self._conformity = ConformityScores(self.task.quantiles, channels).to(self.device)

    def _add_conformity(self, outputs: Tensor, batch: Batch) -> None:
        embedding, chosen_B = self.model.embedding, batch["report"]
        if self._conformity is None or not isinstance(embedding, SeriesEmbedding) or not bool(chosen_B.any()):
            return
        _, scale_B1C = embedding.statistics(batch["inputs"][chosen_B])
        truth_BFC = batch["targets"][chosen_B]
        answer_BFCQ = outputs[chosen_B][..., : len(self.model.head.quantiles)]  # type: ignore[arg-type]
        self._conformity.update(answer_BFCQ, truth_BFC, scale_B1C[..., : truth_BFC.shape[-1]])

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        if self._conformity is None:
            return
        head = self.model.head
        assert isinstance(head, ForecastHead)
        head.offset_FCQ.copy_(self._conformity.compute())
        self._conformity = None


def roll_out(model: SequenceModel, inputs: Tensor, horizon: int) -> Tensor:
    """A forecast of any length from a model of a fixed horizon: its own point forecast becomes its next window.

    Intervals of the later rounds are those of a first round: they do not hold the uncertainty of what was fed back.

    Args:
        model: trained for F steps.
        inputs: `(B, L, C)`, or `(B, L + horizon, C + K)` with covariates known over the whole horizon.
        horizon: steps wanted.

    Returns:
        `(B, horizon, C, Q)`.
    """
    embedding, head = model.embedding, model.head
    assert isinstance(embedding, SeriesEmbedding) and isinstance(head, ForecastHead)
    n_channels, lookback = embedding.n_channels, embedding.lookback
    middle = len(head.quantiles) // 2
    window_BLC, known_BTK = inputs[:, :lookback, :n_channels], inputs[:, :, n_channels:]
    found: list[Tensor] = []
    done = 0
    while done < horizon:
        outputs = model(_window(embedding, window_BLC, known_BTK[:, done:]))
        found.append(outputs)
        done += head.horizon
        next_BFC = outputs[..., middle].to(window_BLC.dtype)
        # Channels that are read but not forecast are not known ahead.
        unknown = next_BFC.new_full((*next_BFC.shape[:2], n_channels - next_BFC.shape[-1]), torch.nan)
        window_BLC = torch.cat([window_BLC, torch.cat([next_BFC, unknown], -1)], 1)[:, -lookback:]
    return torch.cat(found, 1)[:, :horizon]


def _window(embedding: SeriesEmbedding, window_BLC: Tensor, known_BTK: Tensor) -> Tensor:
    if not embedding.n_covariates:
        return window_BLC
    missing = embedding.n_steps - known_BTK.shape[1]
    if missing > 0:
        # The last round may reach beyond the steps that are wanted.
        known_BTK = torch.cat([known_BTK, known_BTK[:, -1:].expand(-1, missing, -1)], 1)
    known_BTK = known_BTK[:, : embedding.n_steps]
    empty = window_BLC.new_full((len(window_BLC), embedding.n_steps - embedding.lookback, window_BLC.shape[-1]), torch.nan)
    return torch.cat([torch.cat([window_BLC, empty], 1), known_BTK], -1)
