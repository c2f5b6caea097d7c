"""The field's own tasks: classes and tags with equal error rates, transcripts by CTC, and labels of frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassF1Score, MultilabelAveragePrecision
from torchmetrics.text import CharErrorRate, WordErrorRate

from longseq.domains.audio.decode import BLANK_ID, decode_batch
from longseq.domains.audio.labels import Vocabulary
from longseq.domains.audio.metrics import EqualErrorRate
from longseq.domains.metrics import TokenLoss
from longseq.domains.tasks import IGNORE, Batch, Classification, MultiLabel, Task


class SoundClassification(Classification):
    """One label for each clip, with the equal error rate among the metrics; labels may be mixed (mixup)."""

    def metrics(self) -> MetricCollection:
        found = super().metrics()
        found.add_metrics({"eer": EqualErrorRate()})
        return found


class SoundTagging(MultiLabel):
    """Any number of tags for each clip, with mean average precision and equal error rate among the metrics."""

    def metrics(self) -> MetricCollection:
        found = super().metrics()
        n = len(self.labels)
        found.add_metrics({"map": MultilabelAveragePrecision(n, validate_args=False), "eer": EqualErrorRate()})
        return found


class CTC(Task):
    """The symbols of a transcript in their order, without knowing when each is said: connectionist temporal classification.

    The model gives every frame a symbol or a blank; the loss sums over all ways of placing the transcript. It cannot give
    more symbols than there are frames.

    Args:
        vocabulary: the blank first, then characters or words.
        beam_width: prefixes kept in decoding; 1 takes the best symbol of each frame.

    Paper: Graves et al. 2006, https://doi.org/10.1145/1143844.1143891, section 3.
    """

    name = "ctc"

    def __init__(self, vocabulary: Sequence[str], *, beam_width: int = 1) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(list(vocabulary)[1:])
        self.beam_width = beam_width

    def head(self) -> dict[str, Any]:
        return {"name": "token", "n_outputs": len(self.vocabulary), "bias": True}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        log_probs_FBV = outputs.float().log_softmax(-1).transpose(0, 1)
        # By symbol and row, so that long transcripts weigh no more; impossible rows have no gradient.
        return F.ctc_loss(
            log_probs_FBV, batch["labels"], batch["output_lengths"], batch["label_lengths"], blank=BLANK_ID, zero_infinity=True
        )

    def metrics(self) -> MetricCollection:
        return MetricCollection({"cer": CharErrorRate(), "wer": WordErrorRate()}, compute_groups=False)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        metrics.update(self.texts(outputs, batch), references(batch))

    def texts(self, outputs: Tensor, batch: Batch) -> list[str]:
        """What the model hears."""
        log_probs = outputs.float().log_softmax(-1).cpu().numpy()
        rows = [row[:length] for row, length in zip(log_probs, batch["output_lengths"].tolist(), strict=True)]
        return [self.vocabulary.decode(ids) for ids in decode_batch(rows, self.beam_width)]

    def predictions(self, outputs: Tensor, batch: Batch) -> dict[str, np.ndarray]:
        found = {"prediction": np.array(self.texts(outputs, batch), dtype=object)}
        if "references" in batch:
            found["label"] = np.array(references(batch), dtype=object)
        return found

    def config(self) -> dict[str, Any]:
        return {"task": self.name, "vocabulary": self.vocabulary.symbols, "beam_width": self.beam_width}


def references(batch: Batch) -> list[str]:
    """The transcripts, which stand in the batch as code points padded with 0."""
    return ["".join(chr(code) for code in row if code) for row in batch["references"].tolist()]


class FrameLabels(Task):
    """A label at every frame, such as speech or pause: cross-entropy; `none` where no event is.

    Args:
        labels: the first is `none`.
    """

    name = "frames"
    per_position = True

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__()
        self.labels = list(labels)

    def head(self) -> dict[str, Any]:
        return {"name": "token", "n_outputs": len(self.labels), "bias": True}

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        return F.cross_entropy(outputs.float().flatten(0, 1), batch["labels"].flatten(), ignore_index=IGNORE)

    def metrics(self) -> MetricCollection:
        return MetricCollection(
            {
                "loss": TokenLoss("loss"),
                "accuracy": TokenLoss("accuracy"),
                "f1": MulticlassF1Score(len(self.labels), average="macro", ignore_index=IGNORE, validate_args=False),
            },
            compute_groups=False,
        )

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        labels, flat = batch["labels"].flatten(), outputs.float().flatten(0, 1)
        total = F.cross_entropy(flat, labels, ignore_index=IGNORE, reduction="sum")
        real = labels != IGNORE
        correct = ((flat.argmax(-1) == labels) & real).sum()
        metrics.update(total=total, count=real.sum(), correct=correct, preds=flat.argmax(-1), target=labels)

    def config(self) -> dict[str, Any]:
        return {"task": self.name, "labels": self.labels}


class MaskedSound(Task):
    """What is heard at hidden positions from those around them: squared error of the front end's own numbers.

    Targets are the standardised mel energies or cepstra of each frame, or the samples of each position, standardised in
    every row. A causal backbone fills in from the past; with `ahead` nothing is hidden and the next position is told.

    Args:
        n_values: P, numbers of a position.
        ahead: the next position of everything, for causal backbones.

    Paper: Mockingjay, https://arxiv.org/abs/1910.12638, section 2 (masked frames); APC, https://arxiv.org/abs/1904.03240,
    section 3 (`ahead`).
    """

    name = "masked_sound"
    per_position = True

    def __init__(self, n_values: int, *, ahead: bool = False) -> None:
        super().__init__()
        self.n_values, self.ahead = n_values, ahead

    def head(self) -> dict[str, Any]:
        return {"name": "token", "n_outputs": self.n_values, "bias": True}

    def errors(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sum of the squared errors at the positions that count, and their number."""
        counted_BL = batch["hidden"]
        errors_BL = (outputs.float() - batch["targets"]).square().mean(-1)
        return errors_BL.masked_fill(~counted_BL, 0.0).sum(), counted_BL.sum()

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        total, count = self.errors(outputs, batch)
        return total / count.clamp(min=1)

    def metrics(self) -> MetricCollection:
        return MetricCollection({"mse": TokenLoss("loss")}, compute_groups=False)

    def update(self, metrics: MetricCollection, outputs: Tensor, batch: Batch) -> None:
        total, count = self.errors(outputs, batch)
        metrics.update(total=total, count=count, correct=torch.zeros_like(count))

    def config(self) -> dict[str, Any]:
        return {"task": self.name, "ahead": self.ahead}


TASKS = ("classification", "multilabel", "regression", "ctc", "frames", "lm", "masked_sound")
TARGETS = {"classification": SoundClassification, "multilabel": SoundTagging}


def own_target(task: str) -> dict[str, str]:
    """The field's form of a shared task, as Hydra's `_target_`; empty where the shared one will do."""
    cls = TARGETS.get(task)
    return {} if cls is None else {"_target_": f"{cls.__module__}.{cls.__qualname__}"}
