"""Figures as SVG that follow the reader's light or dark theme, and those that several domains share."""

import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from longseq.domains.sections import RunFiles, Section, clip, short

# Stand-ins that become CSS variables once the figure is SVG, so that one drawing is legible on light and on dark pages.
INK, MUTED, GRID, PAPER = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0101a{i}" for i in range(1, 9))
VARIABLES = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {c: f"--c{i}" for i, c in enumerate(SERIES, 1)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "longseq",
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    # A class may be called "$a_b$".
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.edgecolor": MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": cycler(color=SERIES),
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": False,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}
# The finest that was logged.
TRAIN_LOSS = ("train/loss_step", "train/loss", "train/loss_epoch")
# More points than this are not drawn: the eye sees no difference, and the page stays small.
MAX_POINTS = 1200
styled = matplotlib.rc_context


# -- SVG


def to_svg(figure: Figure, alt: str) -> str:
    """A figure as inline SVG: text as text, the page's own colours and fonts, nothing loaded from anywhere."""
    buffer = io.StringIO()
    with styled(STYLE):
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style.*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (d|x|y|points|transform)="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var({variable})")
    view = re.search(r'viewBox="[^"]*"', svg)
    inner = svg[svg.index(">") + 1 :]
    head = f'<svg {view[0] if view else ""} role="img" aria-label="{escape(alt)}">'
    return head + own_ids(inner.replace("xlink:href", "href"))


def own_ids(svg: str) -> str:
    """Keeps only the ids that something refers to, under names that no other figure of the page has."""
    used = set(re.findall(r'(?:url\(|href=")#([^)"]+)', svg))
    prefix = "f" + hashlib.sha1(svg.encode(), usedforsecurity=False).hexdigest()[:8]
    svg = re.sub(r'\s+id="([^"]+)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r"url\(#", f"url(#{prefix}", svg).replace('href="#', f'href="#{prefix}')
    return re.sub(r"\n\s*", "\n", svg)


def new_figure(width: float = 4.2, height: float = 2.9) -> tuple[Figure, Axes]:
    """A figure of one panel, in inches; call it, and draw, within `styled(STYLE)`."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def thin(values: np.ndarray, most: int = MAX_POINTS) -> np.ndarray:
    """At most so many values, evenly spread, the first and the last among them."""
    if len(values) <= most:
        return values
    return values[np.unique(np.linspace(0, len(values) - 1, most).astype(np.int64))]


@styled(STYLE)
def dot_chart(
    values: Mapping[str, float], xlabel: str, *, highlight: str | None = None, reference: tuple[str, float] | None = None
) -> Figure:
    """One dot per name on a common axis, best for few values that are near each other.

    Args:
        values: from top to bottom.
        xlabel: the axis, with its unit.
        highlight: the name that is emphasised.
        reference: a named vertical line.
    """
    figure, ax = new_figure(height=0.75 + 0.3 * len(values))
    names = list(values)[::-1]
    for i, name in enumerate(names):
        emphasised = name == highlight
        colour = SERIES[0] if emphasised or highlight is None else MUTED
        ax.plot(values[name], i, "o", color=colour, markersize=8 if emphasised else 6)
        ax.annotate(
            short(float(values[name])),
            (values[name], i),
            (8, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight="bold" if emphasised else "normal",
        )
    if reference:
        ax.axvline(reference[1], color=SERIES[1], linestyle="--", linewidth=1, label=reference[0])
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), borderaxespad=0.2)
    ax.set_yticks(range(len(names)), [clip(name, 28) for name in names])
    ax.set_ylim(-0.6, len(names) - 0.4)
    # Room for the last number to the right of its dot.
    ax.margins(x=0.2)
    ax.xaxis.set_major_locator(MaxNLocator(4))
    ax.grid(axis="y", visible=False)
    ax.set_xlabel(xlabel)
    return figure


def comparison(run: RunFiles, metric: str, *, reference: tuple[str, float] | None = None) -> list[Section]:
    """A test metric of the model and of each baseline that has it, best on top; empty if there is nothing to compare."""
    rows = run.results
    values = {name: float(row[metric]) for name, row in rows.items() if isinstance(row.get(metric), (int, float))}
    if len(values) < 2:
        return []
    ordered = dict(sorted(values.items(), key=lambda item: item[1], reverse=bool(run.higher_is_better(metric))))
    model = next(iter(rows))
    figure = dot_chart(ordered, f"test {metric}", highlight=model, reference=reference)
    text = "; ".join(f"{name} {short(value)}" for name, value in ordered.items())
    return [Section(f"Test {metric} beside the baselines", figure=figure, caption="Best on top.", alt=f"test {metric}: {text}")]


@styled(STYLE)
def histogram(counts: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str) -> Figure:
    """Outlines of histograms over each other, each as shares of its own rows.

    Args:
        counts: per name the edges of the bins, and one count fewer.
        xlabel: the axis, with its unit.
    """
    figure, ax = new_figure()
    for name, (edges, heights) in counts.items():
        shares = np.asarray(heights, dtype=float) / max(1.0, float(np.sum(heights)))
        ax.stairs(shares, np.asarray(edges, dtype=float), label=name, linewidth=1.6)
    ax.set(xlabel=xlabel, ylabel="share of rows")
    ax.legend()
    return figure


# -- learning curves


def learning_curves(run: RunFiles, most: int = 6) -> list[Section]:
    """The training and validation loss, and every other validation metric that was measured more than once."""
    names = [str(name) for name in run.curves.columns]
    sections = _loss_curves(run, names)
    metrics = [name for name in names if name.startswith("val/") and name != "val/loss"]
    metrics = [name for name in metrics if len(series(run.curves, name)[0]) > 1]
    metrics.sort(key=lambda name: name != f"val/{run.monitor}")
    return sections + [_metric_curve(run, name) for name in metrics[: most - len(sections)]]


def series(curves: pd.DataFrame, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values at which a column was logged, without NaN and infinity."""
    if name not in curves:
        return np.empty(0), np.empty(0)
    values = numbers(curves[name])
    steps = numbers(curves["step"]) if "step" in curves else np.arange(float(len(values)))
    known = np.isfinite(values) & np.isfinite(steps)
    return steps[known], values[known]


def numbers(column: Any) -> np.ndarray:
    """A column as floats; NaN where it holds none."""
    return np.asarray(pd.to_numeric(column, errors="coerce"), dtype=float)


def smooth(steps: np.ndarray, values: np.ndarray, most: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Means over equal numbers of neighbouring points, at most so many; together they weigh every point once."""
    parts = np.array_split(np.arange(len(values)), min(most, len(values)))
    return np.array([steps[p].mean() for p in parts]), np.array([values[p].mean() for p in parts])


@styled(STYLE)
def _loss_curves(run: RunFiles, names: Sequence[str]) -> list[Section]:
    train = next((name for name in TRAIN_LOSS if name in names), "")
    drawn = {"train": series(run.curves, train), "validation": series(run.curves, "val/loss")}
    drawn = {name: points for name, points in drawn.items() if len(points[0])}
    if not drawn:
        return []
    figure, ax = new_figure()
    for name, (steps, values) in drawn.items():
        x, y = smooth(steps, values)
        ax.plot(x, y, marker="o" if len(x) < 40 else "", label=name)
    everything = np.concatenate([values for _, values in drawn.values()])
    logarithmic = everything.min() > 0 and everything.max() > 8 * everything.min()
    if logarithmic:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(float(value))))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_ylabel("loss" + (" (log scale)" if logarithmic else ""))
    ax.legend()
    count = len(drawn["train"][0]) if "train" in drawn else 0
    caption = f"Each point is the mean of about {count / 200:.0f} logged steps." if count >= 300 else ""
    last = ", ".join(f"{name} ends at {short(float(values[-1]))}" for name, (_, values) in drawn.items())
    return [Section("Loss", figure=figure, caption=caption, alt=f"loss against steps: {last}")]


@styled(STYLE)
def _metric_curve(run: RunFiles, name: str) -> Section:
    steps, values = series(run.curves, name)
    metric = name.partition("/")[2]
    figure, ax = new_figure()
    ax.plot(thin(steps), thin(values), marker="o" if len(steps) < 40 else "")
    caption = ""
    if metric == run.monitor:
        best = int(np.argmax(values) if run.higher_is_better(metric) else np.argmin(values))
        ax.plot(steps[best], values[best], "o", color=SERIES[1], markersize=8, label=f"best: {short(float(values[best]))}")
        ax.legend()
        caption = f"Best at step {short(int(steps[best]))}; {metric} decides which checkpoint is kept."
    ax.set_xlabel("step")
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_ylabel(f"validation {metric}")
    alt = f"validation {metric} ends at {short(float(values[-1]))}"
    return Section(f"Validation {metric}", figure=figure, caption=caption, alt=alt)
