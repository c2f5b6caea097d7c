"""Trains the DNA tasks; averages the two strands at test."""

from typing import Any

from torch import Tensor

from longseq.domains.base import DomainModule
from longseq.domains.dna.tokenizer import reverse_complement_batch
from longseq.domains.tasks import Batch


class DNAModule(DomainModule):
    """The shared module with strand averaging.

    Args:
        rc_average: in evaluation, average the outputs for a sequence and its reverse complement (as probabilities for
            classes); twice the cost. Not for language models.
        **options: of `DomainModule`.
    """

    def __init__(self, *, rc_average: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.rc_average = rc_average

    def evaluate_batch(self, batch: Batch) -> Tensor:
        outputs = self(batch)
        if not self.rc_average or self.task.per_position:
            return outputs
        other = {**batch, "inputs": reverse_complement_batch(batch["inputs"], batch.get("mask"))}
        return self.task.combine([outputs, self(other)])
