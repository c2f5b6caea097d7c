"""Scores the variants of a VCF file: what the model says with the alternative allele, less what it says with the reference.

Both alleles are put into the same stretch of the genome, centred on the variant and equally long, and read on both
strands, whose answers are averaged. Classes and labels: the difference of probabilities and of log-odds; quantities and
tracks: the difference of values; labels of bases: the largest change at any base; language models: the log-likelihood ratio.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from longseq.domains.base import DomainModule
from longseq.domains.dna.bad_rows import BadRows
from longseq.domains.dna.genome import Genome
from longseq.domains.dna.tokenizer import A_ID, MASK_ID, T_ID, encode_bytes, reverse_complement_batch
from longseq.domains.dna.vcf import Variant, read_vcf
from longseq.domains.prediction import Predictions
from longseq.errors import ConfigError
from longseq.model import SequenceModel

PART_VARIANTS, DEFAULT_WINDOW = 1024, 1024
PROBABILITIES = {"classification": "softmax", "multilabel": "sigmoid"}


def predictions(
    module: DomainModule,
    *,
    vcf: str,
    genome: str,
    window: int | None = None,
    batch_size: int = 32,
    both_strands: bool = True,
    on_bad: str = "error",
    cache_dir: str | None = None,
) -> VariantPredictions:
    """What `longseq predict task=variant_effect data.vcf=… data.genome=…` writes.

    Args:
        module: The trained model and its task.
        vcf: The variants, also gzipped.
        genome: FASTA of the assembly that they were called on.
        window: Bases that the model sees around a variant; None for the length it was trained on.
        batch_size: Variants at a time.
        both_strands: Average the answers for both strands; models that are equivariant need it not.
        on_bad: `error` refuses lines that cannot be scored, `skip` leaves them out and counts them.
        cache_dir: Of compressed genomes.

    Raises:
        DataError: A line cannot be scored.
        ConfigError: An option has no such value, or the model answers nothing that alleles could change.
    """
    bad = BadRows(on_bad)
    scorer = VariantScorer(module.model, window=window, batch_size=batch_size, both_strands=both_strands)
    opened = Genome(Path(genome).expanduser(), cache_dir)
    variants = read_vcf(vcf, opened, longest=max(1, scorer.window // 2), bad=bad)
    return VariantPredictions(scorer, opened, variants, bad)


def predict_variants(
    model: SequenceModel, genome: str | Path | Genome, vcf: str | Path, *, on_bad: str = "error", **options: Any
) -> Iterator[dict[str, Any]]:
    """The same in Python: a dict for every alternative allele, in the file's order.

    Args:
        model: From `longseq.load_model`.
        genome: The assembly.
        vcf: The variants.
        on_bad: `error` or `skip`.
        **options: Of `VariantScorer`.
    """
    opened = genome if isinstance(genome, Genome) else Genome(Path(genome).expanduser())
    scorer = VariantScorer(model, **options)
    variants = read_vcf(vcf, opened, longest=max(1, scorer.window // 2), bad=BadRows(on_bad))
    for first in range(0, len(variants), PART_VARIANTS):
        yield from scorer.table(opened, variants[first : first + PART_VARIANTS]).to_dict("records")  # type: ignore[misc]


class VariantPredictions(Predictions):
    """Scores in parts of 1,024 variants.

    Args:
        scorer: Model and window.
        genome: The assembly.
        variants: All of them.
        bad: The lines that were left out.
    """

    def __init__(self, scorer: VariantScorer, genome: Genome, variants: Sequence[Variant], bad: BadRows) -> None:
        self.scorer, self.genome, self.variants = scorer, genome, variants
        self.bad = bad

    def __len__(self) -> int:
        return -(-len(self.variants) // PART_VARIANTS)

    @property
    def sizes(self) -> Sequence[int]:
        return [min(PART_VARIANTS, len(self.variants) - first) for first in range(0, len(self.variants), PART_VARIANTS)]

    @property
    def unit(self) -> str:
        return "variants"

    @property
    def notes(self) -> Mapping[str, Any]:
        return {"variants": len(self.variants), **({"skipped": self.bad.message()} if self.bad.count else {})}

    def table(self, part: int) -> pd.DataFrame:
        return self.scorer.table(self.genome, self.variants[part * PART_VARIANTS : (part + 1) * PART_VARIANTS])


def allele_windows(genome: Genome, variant: Variant, window: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """The stretch around a variant with either allele, both of `window` bases, and where the alleles begin in it.

    What stands left of the alleles is the same in both; on the right a shorter allele shows more of the genome.
    """
    place = (window - max(len(variant.ref), len(variant.alt))) // 2
    start = variant.pos - 1
    left = genome.fetch(variant.chrom, start - place, start)
    behind = start + len(variant.ref)
    right = genome.fetch(variant.chrom, behind, behind + window)
    found = [np.concatenate([left, encode_bytes(a.encode()), right])[:window] for a in (variant.ref, variant.alt)]
    return found[0], found[1], place


class VariantScorer:
    """Scores variants with one model, on the device it is on.

    Args:
        model: With the config that it was saved with.
        window: Bases that it sees around a variant; None for the length it was trained on.
        batch_size: Variants at a time.
        both_strands: Average the answers for both strands.

    Raises:
        ConfigError: The model's task has no answer that alleles could change, or the window does not fit the model.
    """

    def __init__(
        self, model: SequenceModel, *, window: int | None = None, batch_size: int = 32, both_strands: bool = True
    ) -> None:
        self.model, self.config, self.batch_size = model.eval(), model.config, batch_size
        self.task = str(self.config.get("task"))
        if self.task not in (*PROBABILITIES, "regression", "profile", "base_labels", "lm", "mlm"):
            raise ConfigError(f"task=variant_effect needs a model of DNA with answers for sequences, found task={self.task}")
        limit = self.config["backbone"].get("max_length")
        self.window = int(window or self.config.get("input_length") or limit or DEFAULT_WINDOW)
        if limit is not None and self.window > limit:
            raise ConfigError(f"data.window={self.window} is longer than the {limit} bases that the model takes")
        if self.window < 2 or self.window % int(self.config.get("bin_size", 1)):
            raise ConfigError(
                f"data.window={self.window} must be at least 2 and a multiple of {self.config.get('bin_size', 1)}"
            )
        # An equivariant model says the same of both strands.
        self.both_strands = both_strands and not getattr(model.backbone, "reverse_complement", False)
        self.labels = [str(name) for name in self.config.get("labels", [])]

    def table(self, genome: Genome, variants: Sequence[Variant]) -> pd.DataFrame:
        """chrom, pos, id, ref, alt and the scores of some variants."""
        frames = []
        for first in range(0, len(variants), self.batch_size):
            chosen = variants[first : first + self.batch_size]
            windows = [allele_windows(genome, variant, self.window) for variant in chosen]
            names = {field: [getattr(v, field) for v in chosen] for field in ("chrom", "pos", "id", "ref", "alt")}
            frames.append(pd.DataFrame({**names, **self.scores(windows, chosen)}))
        return pd.concat(frames, ignore_index=True)

    @torch.inference_mode()
    def scores(self, windows: Sequence[tuple[Any, Any, int]], variants: Sequence[Variant]) -> dict[str, NDArray[Any]]:
        """Columns for a batch of variants."""
        device = next(self.model.parameters()).device
        ref_BL, alt_BL = (torch.from_numpy(np.stack([w[i] for w in windows])).long().to(device) for i in (0, 1))
        if self.task == "lm":
            return ratio(*(self._over_strands(lambda ids, _: log_likelihood(self.model, ids), ids) for ids in (ref_BL, alt_BL)))
        if self.task == "mlm":
            return ratio(*self._masked(ref_BL, alt_BL, [w[2] for w in windows], variants))
        ref, alt = (self._over_strands(lambda ids, _: self.answers(ids), ids) for ids in (ref_BL, alt_BL))
        if self.task == "base_labels":
            return self._largest_changes(ref, alt, [w[2] for w in windows], variants)
        if self.task == "profile":
            return self._profile_changes(ref, alt)
        return self._differences(ref, alt)

    def answers(self, ids_BL: Tensor) -> Tensor:
        """What the model's user wants: probabilities, or values in their own unit."""
        outputs = self.model(ids_BL).float()
        if self.task in ("classification", "base_labels"):
            return outputs.softmax(-1)
        if self.task == "multilabel":
            return outputs.sigmoid()
        mean, std = (torch.tensor(self.config[name], device=outputs.device) for name in ("mean", "std"))
        if self.task == "profile" and self.config.get("loss") == "poisson":
            return F.softplus(outputs) * mean
        return outputs * torch.where(std > 0, std, 1.0) + mean

    def _over_strands(
        self, function: Callable[[Tensor, Tensor | None], Tensor], ids_BL: Tensor, hidden_BL: Tensor | None = None
    ) -> Tensor:
        """The mean over both strands; what lies along the sequence is turned round."""
        forward = function(ids_BL, hidden_BL)
        if not self.both_strands:
            return forward
        other = function(reverse_complement_batch(ids_BL), None if hidden_BL is None else hidden_BL.flip(1))
        if self.task in ("profile", "base_labels"):
            other = other.flip(1)
        if self.task == "profile" and self.config.get("other_strand"):
            other = other[..., self.config["other_strand"]]
        return (forward + other) / 2

    def _differences(self, ref: Tensor, alt: Tensor) -> dict[str, NDArray[Any]]:
        columns: dict[str, NDArray[Any]] = {}
        # Of two classes one says it all.
        chosen = [1] if self.task == "classification" and len(self.labels) == 2 else range(len(self.labels))
        for i in chosen:
            name, before, after = self.labels[i], ref[:, i].double(), alt[:, i].double()
            columns |= {f"ref_{name}": array(before), f"alt_{name}": array(after), f"delta_{name}": array(after - before)}
            if self.task in PROBABILITIES:
                columns[f"delta_log_odds_{name}"] = array(torch.logit(after, eps=1e-12) - torch.logit(before, eps=1e-12))
        return columns

    def _profile_changes(self, ref: Tensor, alt: Tensor) -> dict[str, NDArray[Any]]:
        columns: dict[str, NDArray[Any]] = {}
        for i, name in enumerate(self.labels):
            before, after = ref[..., i].double(), alt[..., i].double()
            change = after - before
            largest = change.gather(1, change.abs().argmax(1, keepdim=True)).squeeze(1)
            columns |= {f"ref_{name}": array(before.mean(1)), f"alt_{name}": array(after.mean(1))}
            columns |= {f"delta_{name}": array(change.mean(1)), f"largest_delta_{name}": array(largest)}
        return columns

    def _largest_changes(
        self, ref: Tensor, alt: Tensor, places: Sequence[int], variants: Sequence[Variant]
    ) -> dict[str, NDArray[Any]]:
        """Of every label the change of its probability that is largest at any base, and how far from the variant."""
        shown = [i for i, name in enumerate(self.labels) if name != self.config.get("background")]
        deltas, offsets = np.zeros((len(variants), len(shown))), np.zeros((len(variants), len(shown)), dtype=np.int64)
        for row, (place, variant) in enumerate(zip(places, variants, strict=True)):
            before, after = align_alleles(ref[row], alt[row], place, len(variant.ref), len(variant.alt))
            change = (after - before)[:, shown].cpu().numpy()
            at = np.abs(change).argmax(0)
            deltas[row], offsets[row] = change[at, np.arange(len(shown))], at - place
        names = [self.labels[i] for i in shown]
        columns = {f"delta_{name}": deltas[:, i] for i, name in enumerate(names)}
        return columns | {f"offset_{name}": offsets[:, i] for i, name in enumerate(names)}

    def _masked(
        self, ref_BL: Tensor, alt_BL: Tensor, places: Sequence[int], variants: Sequence[Variant]
    ) -> tuple[Tensor, Tensor]:
        """Log-likelihoods of the alleles behind a mask; where they differ in length, of all bases of the unmasked windows.

        A masked sum over more bases would be smaller for no other reason than that.
        """
        same = torch.tensor([len(v.ref) == len(v.alt) for v in variants], device=ref_BL.device)
        hidden_BL = torch.zeros_like(ref_BL, dtype=torch.bool)
        for row, (place, variant) in enumerate(zip(places, variants, strict=True)):
            hidden_BL[row, place : place + len(variant.ref)] = True

        def score(ids: Tensor, hidden: Tensor | None) -> Tensor:
            masked = masked_likelihood(self.model, ids, hidden)
            return masked if same.all() else torch.where(same, masked, masked_likelihood(self.model, ids, None))

        return self._over_strands(score, ref_BL, hidden_BL), self._over_strands(score, alt_BL, hidden_BL)


def log_likelihood(model: SequenceModel, ids_BL: Tensor) -> Tensor:
    """Sum of the log-probabilities of all bases but the first under a causal model, (B,); N counts nothing."""
    log_p = model(ids_BL[:, :-1]).float().log_softmax(-1)
    return _sum_bases(log_p, ids_BL[:, 1:])


def masked_likelihood(model: SequenceModel, ids_BL: Tensor, hidden_BL: Tensor | None) -> Tensor:
    """Sum of the log-probabilities of hidden bases, or, with nothing hidden, of all bases, (B,)."""
    shown = ids_BL if hidden_BL is None else ids_BL.masked_fill(hidden_BL, MASK_ID)
    return _sum_bases(model(shown).float().log_softmax(-1), ids_BL, hidden_BL)


def _sum_bases(log_p_BLV: Tensor, ids_BL: Tensor, chosen_BL: Tensor | None = None) -> Tensor:
    counted = (ids_BL >= A_ID) & (ids_BL <= T_ID)
    counted = counted if chosen_BL is None else counted & chosen_BL
    picked = log_p_BLV.gather(-1, ids_BL.unsqueeze(-1)).squeeze(-1).double()
    return (picked * counted).sum(1)


def align_alleles(ref: Tensor, alt: Tensor, place: int, n_ref: int, n_alt: int) -> tuple[Tensor, Tensor]:
    """Answers (L, C) for either allele in the reference's places: inserted bases give their largest, deleted ones 0."""
    if n_ref == n_alt:
        return ref, alt
    shared = min(n_ref, n_alt)
    head = alt[: place + shared]
    tail = alt[place + n_alt :]
    if n_alt > n_ref:
        head = head.clone()
        head[-1] = alt[place + shared - 1 : place + n_alt].amax(0)
        aligned = torch.cat([head, tail])
    else:
        aligned = torch.cat([head, alt.new_zeros(n_ref - n_alt, alt.shape[1]), tail])
    length = min(len(ref), len(aligned))
    return ref[:length], aligned[:length]


def ratio(ref: Tensor, alt: Tensor) -> dict[str, NDArray[Any]]:
    """Log-likelihoods in nats, and the alternative's less the reference's."""
    return {
        "ref_log_likelihood": array(ref),
        "alt_log_likelihood": array(alt),
        "log_likelihood_ratio": array(alt.double() - ref.double()),
    }


def array(values: Tensor) -> NDArray[Any]:
    """A column."""
    return values.double().cpu().numpy()
