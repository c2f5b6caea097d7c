"""Trains the DNA tasks; averages the two strands at test."""

from pathlib import Path
from typing import Any

from torch import Tensor

from longseq.domains.base import DomainData, DomainModule
from longseq.domains.dna import position_plots
from longseq.domains.dna.mutagenesis import choose_examples, save_examples
from longseq.domains.dna.tokenizer import reverse_complement_batch
from longseq.domains.tasks import Batch

# Tasks with an answer for the whole sequence, which substitutions change.
EXPLAINED = ("classification", "multilabel", "regression")


class DNAModule(DomainModule):
    """The shared module with strand averaging.

    Args:
        rc_average: in evaluation, average the outputs for a sequence and its reverse complement (as probabilities for
            classes); twice the cost. Not for language models.
        examples: test sequences that are left for the report, which shows what each of their bases does; 0 for none.
        **options: of `DomainModule`.
    """

    def __init__(self, *, rc_average: bool = False, examples: int = 3, **options: Any) -> None:
        super().__init__(**options)
        self.rc_average, self.examples = rc_average, examples

    def evaluate_batch(self, batch: Batch) -> Tensor:
        # Tasks along the sequence know how to turn the other strand's answers round.
        turn = getattr(self.task, "turn", None)
        if turn is None or not self.rc_average:
            return super().evaluate_batch(batch)
        other = self({**batch, "inputs": reverse_complement_batch(batch["inputs"], batch.get("mask"))})
        return self.task.combine([self(batch), turn(other, batch)])

    def views(self, batch: Batch) -> list[Batch]:
        if not self.rc_average or self.task.per_position:
            return [batch]
        return [batch, {**batch, "inputs": reverse_complement_batch(batch["inputs"], batch.get("mask"))}]

    def on_test_end(self) -> None:
        """Leaves a few test sequences in the run folder, once, in the main process."""
        folder = Path(self.trainer.default_root_dir)
        data = getattr(self.trainer, "datamodule", None)
        if not self.trainer.is_global_zero or not isinstance(data, DomainData) or not (folder / "config.yaml").is_file():
            return
        # A finished run's report shows that run's own test, whatever is evaluated with it later.
        if (folder / "metrics.json").is_file():
            return
        if self.task.name in EXPLAINED and self.examples > 0:
            chosen = choose_examples(self.test_predictions, self.examples)
            save_examples(folder, data.splits["test"], data.row_names, chosen)
        # One process of several cannot run a sharded model alone.
        if self.trainer.world_size == 1:
            position_plots.save_examples(folder, self, data, self.examples)
