"""DNA's own pictures in the report: bits per base beside what four letters can hold, and errors by chromosome and length."""

from typing import Any

import numpy as np
import pandas as pd
from scipy.special import softmax

from longseq.domains.classification_plots import ClassScores, class_scores, confusion
from longseq.domains.dna.mutagenesis import mutagenesis_sections
from longseq.domains.dna.position_plots import position_sections
from longseq.domains.plots import comparison, dot_chart
from longseq.domains.sections import RunFiles, Section, table

# Fewer rows than this say nothing about a group.
FEWEST = 5
UNIFORM_BITS = 2.0


def figures(run: RunFiles) -> list[Section]:
    """The sections that a DNA run has by its task and by the columns of its predictions."""
    sections = bits_per_base(run)
    scored = row_scores(run.predictions)
    if scored is not None and run.predictions is not None:
        sections += by_chromosome(run.predictions, *scored) + by_length(run.predictions, *scored)
    return [*sections, *votes(run), *position_sections(run), *mutagenesis_sections(run)]


def bits_per_base(run: RunFiles) -> list[Section]:
    """A language model's bits per base beside the baselines and the 2 bits of four equally likely letters."""
    metric = next((name for name in run.metrics.get("test", {}) if name in ("bits_per_base", "bits_per_token")), None)
    if metric is None:
        return []
    drawn = comparison(run, metric, reference=("four equal letters, 2 bits", UNIFORM_BITS))
    caption = "What a base costs on average; 2 bits is no knowledge at all. Genomes are hard: a tenth of a bit is much."
    return [Section("Bits per base", figure=section.figure, caption=caption, alt=section.alt) for section in drawn]


def votes(run: RunFiles) -> list[Section]:
    """The confusion of whole records, whose windows vote by their mean log-probability; empty without windows."""
    frame = run.predictions
    if frame is None or not {"record", "prediction", "label"} <= set(frame):
        return []
    scores = class_scores(frame)
    if scores is None:
        return []
    records = np.asarray(scores.rows["record"])
    log_p = pd.DataFrame(np.log(np.clip(scores.probabilities, 1e-12, 1))).groupby(records).mean()
    truth: Any = pd.Series(scores.truth).groupby(records).first()
    voted = softmax(np.asarray(log_p), axis=1)
    accuracy = float((voted.argmax(1) == truth.to_numpy()).mean())
    alone = float((scores.probabilities.argmax(1) == scores.truth).mean())
    found = confusion(ClassScores(scores.classes, truth.to_numpy(), voted, pd.DataFrame({"record": truth.index})))
    caption = (
        f"{accuracy:.1%} of {len(truth):,} records are right, of their {len(frame):,} windows alone {alone:.1%}. "
        "A record's class is the one with the largest mean log-probability over its windows."
    )
    return [Section("Confusion of records", html=found.html, figure=found.figure, caption=caption, alt=found.alt)]


def row_scores(predictions: pd.DataFrame | None) -> tuple[str, Any] | None:
    """What is averaged over groups of rows, with its name: whether a class is right, or a value's absolute error."""
    if predictions is None:
        return None
    if "prediction" in predictions and "label" in predictions:
        return "accuracy", (predictions["prediction"] == predictions["label"]).astype(float)
    for name in map(str, predictions.columns):
        target = name.removeprefix("predicted_")
        if target != name and target in predictions:
            return f"mean absolute error of {target}", (predictions[name] - predictions[target]).abs()
    return None


def by_chromosome(predictions: pd.DataFrame, name: str, scores: Any) -> list[Section]:
    """The score on each chromosome of the test set, in the genome's order."""
    if "chrom" not in predictions:
        return []
    groups = scores.groupby(predictions["chrom"].astype(str))
    frame: Any = pd.DataFrame({"rows": groups.size(), "score": groups.mean()})
    frame = frame[frame["rows"] >= FEWEST].sort_index(key=lambda index: index.map(chromosome_order))
    frame.index = pd.Index([f"{chrom}, {rows:,} rows" for chrom, rows in frame["rows"].items()])
    if len(frame) < 2:
        return []
    caption = f"Chromosomes with at least {FEWEST} test rows."
    return _grouped("By chromosome", name, "chromosome", frame, float(scores.mean()), caption)


def chromosome_order(name: str) -> tuple[int, int, str]:
    """chr1, chr2, ..., chr10, chrX: numbers as numbers, before everything else."""
    bare = name.lower().removeprefix("chr")
    return (0, int(bare), "") if bare.isdigit() else (1, 0, bare)


def by_length(predictions: pd.DataFrame, name: str, scores: Any, n_groups: int = 5) -> list[Section]:
    """The score of shorter and of longer sequences, in groups of about as many rows."""
    column = next((c for c in ("length", "sequence_length") if c in predictions), None)
    if column is None:
        return []
    lengths: Any = pd.to_numeric(predictions[column], errors="coerce")
    if lengths.nunique() < n_groups:
        return []
    bins: Any = pd.qcut(lengths, n_groups, duplicates="drop")
    groups = scores.groupby(bins, observed=True)
    spans = lengths.groupby(bins, observed=True)
    frame: Any = pd.DataFrame({"rows": groups.size(), "score": groups.mean(), "first": spans.min(), "last": spans.max()})
    frame.index = pd.Index([f"{int(row['first']):,} to {int(row['last']):,} bases" for _, row in frame.iterrows()])
    frame = frame[frame["rows"] >= FEWEST]
    if len(frame) < 2:
        return []
    caption = "Groups of about as many rows, from short to long."
    return _grouped("By length", name, "length", frame, float(scores.mean()), caption)


def _grouped(title: str, name: str, group: str, frame: Any, mean: float, caption: str) -> list[Section]:
    known = frame[np.isfinite(frame["score"])]
    values = {str(key): float(value) for key, value in known["score"].items()}
    # A draft assembly has hundreds of scaffolds; a table holds them all.
    if len(values) > 40:
        return [Section(title, html=table([group, name], list(values.items()), label=title), caption=caption)]
    figure = dot_chart(values, name, reference=("all test rows", mean))
    text = ", ".join(f"{key} {value:.3f}" for key, value in values.items())
    return [Section(title, figure=figure, caption=caption, alt=f"{name} {title.lower()}: {text}")]
