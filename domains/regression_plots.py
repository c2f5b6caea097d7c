"""A report's sections for predicted numbers: predicted against true, residuals and the largest errors."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from longseq.domains.plots import MAX_POINTS, MUTED, STYLE, new_figure, styled
from longseq.domains.sections import Section, clip, identity, short, table

WORST = 15


def regression_sections(frame: pd.DataFrame, targets: Sequence[str], most: int = 3) -> list[Section]:
    """Predicted against true values, residuals and the largest errors; pictures of the first few targets."""
    first = min(list(frame.columns).index(f"predicted_{name}") for name in targets)
    sections = [target_table(frame, targets)] if len(targets) > 1 else []
    for name in targets[:most]:
        pair: Any = frame[[name, f"predicted_{name}"]].apply(pd.to_numeric, errors="coerce").dropna()
        if len(pair):
            truth, predicted = pair[name].to_numpy(float), pair[f"predicted_{name}"].to_numpy(float)
            rows = frame.iloc[:, :first].loc[pair.index].reset_index(drop=True)
            sections += [_scatter(name, truth, predicted), _residuals(name, truth, predicted)]
            sections.append(_worst_values(name, truth, predicted, rows))
    # Tables last: the pictures then stand beside each other.
    return sorted(sections, key=lambda section: section.figure is None)


def target_table(frame: pd.DataFrame, targets: Sequence[str]) -> Section:
    """Errors of each target, in its own unit."""
    rows = []
    for name in targets:
        truth, predicted = frame[name].to_numpy(float), frame[f"predicted_{name}"].to_numpy(float)
        error, spread = predicted - truth, float(np.var(truth))
        r2 = 1 - float(np.mean(error**2)) / spread if spread > 0 else None
        rows.append([name, float(np.sqrt(np.mean(error**2))), float(np.abs(error).mean()), r2])
    return Section("Per target", html=table(["target", "RMSE", "MAE", "R²"], rows, label="errors per target"))


def _sample(n: int, most: int = MAX_POINTS) -> np.ndarray:
    return np.arange(n) if n <= most else np.sort(np.random.default_rng(0).choice(n, most, replace=False))


def _cloud(x: np.ndarray, y: np.ndarray, labels: tuple[str, str]) -> Figure:
    figure, ax = new_figure()
    ax.plot(x, y, "o", markersize=3, alpha=0.5, markeredgewidth=0)
    ax.set(xlabel=labels[0], ylabel=labels[1])
    return figure


@styled(STYLE)
def _scatter(name: str, truth: np.ndarray, predicted: np.ndarray) -> Section:
    drawn = _sample(len(truth))
    figure = _cloud(truth[drawn], predicted[drawn], (f"true {clip(name)}", f"predicted {clip(name)}"))
    ends = [min(truth.min(), predicted.min()), max(truth.max(), predicted.max())]
    figure.axes[0].plot(ends, ends, color=MUTED, linestyle=":", linewidth=1)
    both_vary = np.std(truth) > 0 and np.std(predicted) > 0
    correlation = f"Pearson r {np.corrcoef(truth, predicted)[0, 1]:.3f}" if both_vary else "No correlation: one is constant"
    text = f"{correlation} over {len(truth):,} rows"
    caption = f"{text}. On the dotted line both are equal.{_drawn_note(len(drawn), len(truth))}"
    title = f"{name}: predicted against true"
    return Section(title, figure=figure, caption=caption, alt=f"{title}; {text}")


@styled(STYLE)
def _residuals(name: str, truth: np.ndarray, predicted: np.ndarray) -> Section:
    error, drawn = predicted - truth, _sample(len(truth))
    figure = _cloud(predicted[drawn], error[drawn], (f"predicted {clip(name)}", "residual"))
    figure.axes[0].axhline(0, color=MUTED, linestyle=":", linewidth=1)
    text = f"predicted minus true: mean {short(float(error.mean()))}, standard deviation {short(float(error.std()))}"
    caption = f"{text[0].upper()}{text[1:]}.{_drawn_note(len(drawn), len(truth))}"
    return Section(f"{name}: residuals", figure=figure, caption=caption, alt=f"residuals of {name}, {text}")


def _drawn_note(drawn: int, n: int) -> str:
    return f" {drawn:,} of {n:,} rows are drawn, at random." if drawn < n else ""


def _worst_values(name: str, truth: np.ndarray, predicted: np.ndarray, known: pd.DataFrame) -> Section:
    order = np.argsort(-np.abs(predicted - truth), kind="stable")[:WORST]
    rows = [[*identity(known, int(i)), float(truth[i]), float(predicted[i]), float(predicted[i] - truth[i])] for i in order]
    header = [*map(str, known.columns), "true", "predicted", "residual"]
    html = table(header, rows, label=f"largest errors of {name}", row_heads=min(1, known.shape[1]))
    return Section(f"{name}: largest errors", html=html, wide=len(header) > 5)
