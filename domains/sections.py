"""What a domain hands to the report, and what it gets: the files of a run, sections, and tables as HTML."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

LOWER_IS_BETTER = (
    "loss",
    "mse",
    "mae",
    "rmse",
    "mape",
    "smape",
    "mase",
    "crps",
    "perplexity",
    "brier",
    "ece",
    "wer",
    "cer",
    "eer",
    "real_time_factor",
)
HIGHER_IS_BETTER = (
    "accuracy",
    "mcc",
    "f1",
    "auroc",
    "auprc",
    "precision",
    "recall",
    "kappa",
    "r2",
    "pearson",
    "spearman",
    "map",
)


@dataclass(frozen=True)
class RunFiles:
    """What stands in a run folder.

    Attributes:
        folder: the run's.
        config: as plain dicts and lists.
        metrics: metrics.json.
        curves: metrics.csv, empty if nothing was logged.
        predictions: of the test rows; None for tasks that predict at every position.
    """

    folder: Path
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    curves: pd.DataFrame
    predictions: pd.DataFrame | None = None

    @property
    def monitor(self) -> str:
        """The metric that decides, without its split."""
        return str((self.config.get("task") or {}).get("monitor", "loss"))

    @property
    def results(self) -> dict[str, Mapping[str, Any]]:
        """Test metrics by name: the model's own first, then the baselines'."""
        baselines = self.metrics.get("baselines") or {}
        model = str(self.metrics.get("backbone", "model"))
        # A small CNN may be the baseline of a large one.
        name = f"{model} (this run)" if model in baselines else model
        return {name: self.metrics.get("test") or {}, **baselines}

    def higher_is_better(self, metric: str) -> bool | None:
        """Which direction of a metric is better; None if that is not known."""
        if metric == self.monitor:
            return (self.config.get("task") or {}).get("mode", "min") == "max"
        metric = metric.removesuffix("_original")
        if metric in LOWER_IS_BETTER or metric.startswith("bits_per_"):
            return False
        return True if metric in HIGHER_IS_BETTER or metric.endswith("accuracy") else None


@dataclass(frozen=True)
class Section:
    """One block of a report: a figure or a piece of HTML.

    Attributes:
        title: a few words.
        html: ready HTML; whoever makes it escapes what comes from the user.
        figure: drawn under `longseq.domains.plots.STYLE`, in the colours that stand there.
        caption: what to see, and how it was computed.
        alt: the figure in words, for those who do not see it; the title if empty.
        wide: over the page's full width.
    """

    title: str
    html: str = ""
    figure: Figure | None = None
    caption: str = ""
    alt: str = ""
    wide: bool = field(default=False, kw_only=True)


# -- HTML


class Html(str):
    """Text that is HTML already and is not escaped again."""

    __slots__ = ()


def short(value: Any) -> str:
    """A value for the eye: four significant digits, thousands separated, a dash for what is not there."""
    if isinstance(value, (np.integer, np.floating, np.bool_)):
        value = value.item()
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e15 else f"{value:.4g}"
    return str(value)


def table(header: Sequence[str], rows: Iterable[Sequence[Any]], *, label: str, row_heads: int = 1) -> Html:
    """An HTML table in a box that scrolls by itself; numbers stand to the right.

    Args:
        header: names of the columns.
        rows: of any values; `Html` goes in as it is, everything else is escaped.
        label: what the table is, for screen readers.
        row_heads: leading cells of a row that name it.
    """
    body = list(rows)
    numeric = [k >= row_heads and any(is_number(row[k]) for row in body) for k in range(len(header))]
    head = "".join(f'<th scope="col"{" class=num" * n}>{cell(name)}</th>' for name, n in zip(header, numeric, strict=True))
    lines = []
    for row in body:
        cells = [f'<th scope="row">{cell(value)}</th>' for value in row[:row_heads]]
        cells += [f"<td{' class=num' if is_number(value) else ''}>{cell(value)}</td>" for value in row[row_heads:]]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return Html(
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def cell(value: Any) -> str:
    """A table cell's content; long texts are cut, with the whole in the tooltip."""
    if isinstance(value, Html):
        return str(value)
    text = short(value)
    return escape(text) if len(text) <= 160 else f'<span title="{escape(text[:2000])}">{escape(text[:80])}…</span>'


def is_number(value: Any) -> bool:
    """Whether a cell holds a number, or a number in bold."""
    if isinstance(value, Html):
        return re.fullmatch(r"[-+−\d.,e%]+", re.sub(r"<[^>]*>", "", value)) is not None
    return value is None or (isinstance(value, (int, float, np.number)) and not isinstance(value, bool))


def identity(rows: pd.DataFrame, i: int) -> list[object]:
    """What names a row; numbers without thousands separators, for they are looked up elsewhere."""
    return [str(value) for value in rows.iloc[i].tolist()] if rows.shape[1] else []


def clip(name: str, most: int = 24) -> str:
    """A user's name, short enough for an axis or a legend."""
    return name if len(name) <= most else f"{name[: most - 1]}…"
