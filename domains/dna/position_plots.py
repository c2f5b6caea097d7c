"""Answers along a few test sequences: predicted beside measured tracks, and the probabilities of labels at their bases."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from longseq.checkpoint import write_atomically
from longseq.domains.base import DomainData, DomainModule
from longseq.domains.dna.positions import sample_rows
from longseq.domains.dna.targets import TargetRows
from longseq.domains.dna.tasks import BaseLabels, Profile
from longseq.domains.plots import MUTED, SERIES, STYLE, styled
from longseq.domains.sections import RunFiles, Section
from longseq.domains.tasks import IGNORE

EXAMPLES = "positions.json"
# Beyond so many bins or bases a picture shows the beginning; beyond so many tracks or labels, the first.
WIDEST, MOST_SHOWN = 2000, 6


def save_examples(folder: Path, module: DomainModule, data: DomainData, most: int) -> None:
    """Writes what is measured and predicted along a few test rows into the run folder, where the report finds it.

    Args:
        folder: The run's.
        module: Trained, of the tasks `profile` or `base_labels`.
        data: Read.
        most: How many rows: those with the most signal, or with the most labelled bases.
    """
    rows, task = data.splits["test"], module.task
    if not isinstance(rows, TargetRows) or not isinstance(task, Profile | BaseLabels) or most < 1:
        return
    chosen = richest(rows, task, most)
    batch = {name: tensor.to(module.device) for name, tensor in data.collate([rows[i] for i in chosen]).items()}
    training = module.training
    with torch.inference_mode():
        outputs = module.eval().evaluate_batch(batch)
        answers = task.values(outputs) if isinstance(task, Profile) else outputs.float().softmax(-1)
    module.train(training)
    names = data.row_names("test", np.array(chosen))
    saved = []
    for i, row in enumerate(chosen):
        truth = rows[row]["targets"][:WIDEST]
        shown = [k for k, name in enumerate(task.labels) if name != getattr(task, "background", None)][:MOST_SHOWN]
        if isinstance(task, BaseLabels):
            truth = np.where(truth[:, None] == IGNORE, np.nan, truth[:, None] == np.arange(len(task.labels)))
        saved.append(
            {
                "id": str(names["id"][i]),
                "labels": [task.labels[k] for k in shown],
                "truth": as_lists(truth[:, shown]),
                "predicted": as_lists(answers[i, : len(truth), shown].cpu().numpy()),
                "bin_size": getattr(task, "bin_size", 1),
            }
        )
    write_atomically(folder / EXAMPLES, json.dumps(saved) + "\n")


def richest(rows: TargetRows, task: Profile | BaseLabels, most: int) -> list[int]:
    """Of up to 500 rows those whose targets vary most, or in which most bases have a label; ties in their order."""
    sampled = sample_rows(len(rows))
    if isinstance(task, Profile):
        scores = [float(np.nan_to_num(np.nanstd(rows.targets[i], 0) / task.std.cpu().numpy()).sum()) for i in sampled]
    else:
        background = task.labels.index(task.background) if task.background in task.labels else -1
        scores = [float(np.isin(rows.targets[i], [background, IGNORE], invert=True).sum()) for i in sampled]
    return [sampled[k] for k in np.argsort(-np.array(scores), kind="stable")[:most]]


def as_lists(values: NDArray[Any]) -> list[list[float | None]]:
    """A table for JSON, which knows no NaN."""
    return [[None if np.isnan(cell) else round(float(cell), 5) for cell in row] for row in values]


def position_sections(run: RunFiles) -> list[Section]:
    """A picture for each row that the test has left; none for other tasks."""
    path = run.folder / EXAMPLES
    if not path.is_file():
        return []
    profile, sections = str(run.metrics.get("task")) == "profile", []
    for example in json.loads(path.read_text(encoding="utf-8")):
        truth, predicted = (np.array(example[name], dtype=np.float64) for name in ("truth", "predicted"))
        figure = (tracks_figure if profile else labels_figure)(truth, predicted, example["labels"], example["bin_size"])
        caption = (
            "Filled: measured; line: predicted. Of the test rows those are shown whose tracks vary most."
            if profile
            else "Lines: the label's probability at each base; ticks on top: where it stands. The test rows with most labels."
        )
        title = f"Along {example['id']}"
        sections.append(
            Section(title, figure=figure, caption=caption, alt=f"{title}: {', '.join(example['labels'])}", wide=True)
        )
    return sections


@styled(STYLE)
def tracks_figure(truth: NDArray[np.float64], predicted: NDArray[np.float64], names: list[str], bin_size: int) -> Figure:
    """One panel for each track: measured as an area, predicted as a line, over bases from the row's beginning."""
    figure = Figure(figsize=(9.0, 0.7 + 1.1 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    # Each bin is as wide as its bases.
    edges = np.repeat(np.arange(len(truth) + 1) * bin_size, 2)[1:-1]
    for k, (ax, name) in enumerate(zip(panels, names, strict=True)):
        ax.fill_between(edges, np.repeat(truth[:, k], 2), color=MUTED, alpha=0.35, linewidth=0)
        ax.plot(edges, np.repeat(predicted[:, k], 2), color=SERIES[0], linewidth=1.2)
        ax.set_ylabel(name)
    panels[-1].set_xlabel("base of the row")
    return figure


@styled(STYLE)
def labels_figure(truth: NDArray[np.float64], predicted: NDArray[np.float64], names: list[str], bin_size: int) -> Figure:
    """One panel for each label: its probability, and ticks where it stands."""
    figure = Figure(figsize=(9.0, 0.7 + 1.0 * len(names)), layout="constrained")
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    bases = np.arange(len(truth)) * bin_size + 1
    for k, (ax, name) in enumerate(zip(panels, names, strict=True)):
        ax.plot(bases, predicted[:, k], color=SERIES[0], linewidth=1.0)
        ax.vlines(bases[truth[:, k] == 1], 1.02, 1.15, color=SERIES[1], linewidth=1.2)
        ax.set_ylim(-0.02, 1.18)
        ax.set_ylabel(name)
    panels[-1].set_xlabel("base of the row")
    return figure
