"""The pictures of series in the report: forecasts with their bands, errors by step and channel, coverage, scores over time."""

import itertools
import re
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from longseq.domains.plots import MUTED, SERIES, STYLE, dot_chart, new_figure, styled, thin
from longseq.domains.sections import RunFiles, Section, short, table

# pandas annotates most results as a union of all it could return, which nothing can be done with.
Frame: TypeAlias = Any
PANELS = 4
MOST_DOTS = 24
LAGS = 40
BANDS = ((0.95, 0.12), (0.8, 0.2), (0.5, 0.32))


def figures(run: RunFiles) -> list[Section]:
    """The sections that a run has by the columns of its predictions."""
    frame: Frame = run.predictions
    if frame is None or frame.empty or "time" not in frame:
        return []
    frame = frame.copy()
    frame["time"] = as_times(frame["time"])
    if "score" in frame:
        return score_over_time(frame)
    if not {"forecast", "truth", "channel"} <= set(frame.columns):
        return []
    frame = with_errors(frame)
    if frame.empty:
        return []
    sections = [*error_by_channel(frame)]
    if "step" not in frame:
        return [*filled_in(frame), *sections]
    return [*forecasts(frame), *error_by_step(frame), *sections, *coverage(frame), *residual_correlation(frame)]


def as_times(column: Any) -> Any:
    """Dates as dates; plain numbers of steps as they are."""
    if pd.api.types.is_numeric_dtype(column):
        return column
    return pd.to_datetime(column, errors="coerce")


def with_errors(frame: Frame) -> Frame:
    """The rows whose truth is known, with the channel's name and the error in units of the channel's deviation."""
    frame = frame[frame["truth"].notna() & frame["forecast"].notna()].copy()
    many = frame["id"].nunique() > 1 if "id" in frame else False
    names = frame["channel"].astype(str)
    frame["name"] = frame["id"].astype(str) + " " + names if many else names
    spread = frame.groupby("name")["truth"].transform("std").fillna(0.0)
    frame["error"] = frame["forecast"] - frame["truth"]
    frame["scaled"] = frame["error"] / spread.where(spread > 0, 1.0)
    return frame


def quantile_columns(frame: Frame) -> dict[float, str]:
    """The quantiles that are there, rising, with their columns."""
    found = {float(name[1:]): name for name in map(str, frame.columns) if re.fullmatch(r"q0?\.\d+", name)}
    return dict(sorted(found.items()))


def intervals(frame: Frame) -> dict[float, tuple[str, str]]:
    """Central intervals by level, narrow to wide, with the columns of their ends."""
    columns = quantile_columns(frame)
    pairs = {
        round(1 - 2 * q, 6): (name, columns[round(1 - q, 6)])
        for q, name in columns.items()
        if q < 0.5 and round(1 - q, 6) in columns
    }
    return dict(sorted(pairs.items()))


# -- forecasts


def chosen_windows(frame: Frame, most: int = PANELS) -> list[tuple[str, object]]:
    """A few (channel, last observed) pairs, spread over time and over the channels."""
    names = list(dict.fromkeys(frame["name"]))
    found = []
    for i in range(most):
        name = names[i * len(names) // most] if len(names) >= most else names[i % len(names)]
        origins = frame.loc[frame["name"] == name, "last_observed"].unique()
        found.append((name, origins[min(len(origins) - 1, (2 * i + 1) * len(origins) // (2 * most))]))
    return list(dict.fromkeys(found))


@styled(STYLE)
def forecasts(frame: Frame) -> list[Section]:
    """Single windows: the truth before and after the origin, the forecast, and its bands."""
    windows = chosen_windows(frame)
    rows = -(-len(windows) // 2)
    figure = Figure(figsize=(8.8, 2.5 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, 2, i + 1) for i in range(len(windows))]
    for ax, (name, origin) in zip(axes, windows, strict=True):
        draw_window(ax, frame[frame["name"] == name], origin)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    bands = ", ".join(f"{100 * level:g} %" for level in intervals(frame)) or "none"
    caption = f"Windows of the test set, evenly chosen, not by their error; original units. Bands: {bands}."
    alt = "forecasts beside the truth for " + "; ".join(f"{name} from {origin}" for name, origin in windows)
    return [Section("Forecasts", figure=figure, caption=caption, alt=alt, wide=True)]


def draw_window(ax: Axes, channel: Frame, origin: object) -> None:
    """One panel."""
    window = channel[channel["last_observed"] == origin].sort_values("step")
    times, horizon = window["time"], len(window)
    # What other windows say of the truth before this one's origin.
    past = channel[channel["time"] < times.iloc[0]].drop_duplicates("time").sort_values("time").tail(2 * horizon)
    if horizon > 1 and len(past):
        past = past[past["time"] >= times.iloc[0] - (times.iloc[-1] - times.iloc[0]) * 2]
    ax.plot([*past["time"], *times], [*past["truth"], *window["truth"]], color=MUTED, linewidth=1.2, label="truth")
    found = intervals(window)
    for level, alpha in BANDS:
        if level in found:
            low, high = found[level]
            label = f"{100 * level:g} %"
            ax.fill_between(times, window[low], window[high], color=SERIES[0], alpha=alpha, linewidth=0, label=label)
    ax.plot(times, window["forecast"], color=SERIES[0], label="forecast", marker="o" if horizon == 1 else "")
    ax.set_title(str(channel["name"].iloc[0])[:50], fontsize=9)
    dated(ax, times)


def dated(ax: Axes, times: Any) -> None:
    """Dates below the axis, in few words."""
    if pd.api.types.is_numeric_dtype(times):
        return
    # More labels of hours would run into each other; fewer than seven cannot be placed on all ranges.
    locator = AutoDateLocator(minticks=3, maxticks=7)
    ax.xaxis.set_major_locator(locator)
    ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


@styled(STYLE)
def filled_in(frame: Frame, most: int = 60) -> list[Section]:
    """Hidden values and what they were filled in with, of a few channels."""
    names = list(dict.fromkeys(frame["name"]))[:PANELS]
    rows = -(-len(names) // 2)
    figure = Figure(figsize=(8.8, 2.5 * rows), layout="constrained")
    axes = [figure.add_subplot(rows, min(2, len(names)), i + 1) for i in range(len(names))]
    for ax, name in zip(axes, names, strict=True):
        part = frame[frame["name"] == name].drop_duplicates("time").sort_values("time").head(most)
        ax.plot(part["time"], part["truth"], "o", color=MUTED, markersize=3.5, label="truth")
        ax.plot(part["time"], part["forecast"], "o", color=SERIES[0], markersize=3.5, label="filled in")
        ax.vlines(part["time"], part["truth"], part["forecast"], color=SERIES[0], linewidth=0.8, alpha=0.5)
        ax.set_title(str(name)[:50], fontsize=9)
        dated(ax, part["time"])
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    caption = f"The first {most} hidden values of {len(names)} channels in test at most, original units."
    alt = f"hidden values and what they were filled in with, of {', '.join(map(str, names))}"
    return [Section("Filled in", figure=figure, caption=caption, alt=alt, wide=True)]


# -- errors


@styled(STYLE)
def error_by_step(frame: Frame) -> list[Section]:
    """How the error grows with the distance from the last observation."""
    absolute = frame["scaled"].abs().groupby(frame["step"]).mean()
    if len(absolute) < 2:
        return []
    figure, ax = new_figure()
    steps = np.asarray(absolute.index, dtype=float)
    ax.plot(thin(steps), thin(absolute.to_numpy(float)), marker="o" if len(steps) < 40 else "")
    ax.set_xlabel("steps ahead")
    ax.set_ylabel("mean |error| / deviation")
    ax.set_ylim(bottom=0)
    caption = f"Error in units of each channel's deviation in these windows; mean over {frame['name'].nunique()} channels."
    alt = (
        f"mean absolute error from {short(float(absolute.iloc[0]))} at step 1 to {short(float(absolute.iloc[-1]))} at the last"
    )
    return [Section("Error by horizon", figure=figure, caption=caption, alt=alt)]


def error_by_channel(frame: Frame) -> list[Section]:
    """Which series and channels are forecast well; many of them as a table of the worst."""
    groups = frame.groupby("name", sort=False)
    scaled = groups["scaled"].apply(lambda error: float(error.abs().mean())).sort_values()
    if len(scaled) < 2:
        return []
    caption = "Mean absolute error in units of each channel's deviation in these windows."
    if len(scaled) <= MOST_DOTS:
        values = {str(name): float(value) for name, value in scaled.items()}
        figure = dot_chart(values, "mean |error| / deviation", reference=("all", float(frame["scaled"].abs().mean())))
        text = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        return [Section("Error by series", figure=figure, caption=caption, alt=f"error by series: {text}")]
    original = groups["error"].apply(lambda error: float(error.abs().mean()))
    worst = scaled.index[::-1][:MOST_DOTS]
    rows = [[name, float(scaled[name]), float(original[name])] for name in worst]
    html = table(["series", "|error| / deviation", "|error|, original units"], rows, label="error by series")
    return [Section("Error by series", html=html, caption=f"{caption} The {MOST_DOTS} worst of {len(scaled)}.")]


# -- intervals and residuals


@styled(STYLE)
def coverage(frame: Frame) -> list[Section]:
    """How often the truth lies in each interval, beside how often it should."""
    found = intervals(frame)
    if not found:
        return []
    reached = {level: float(frame["truth"].between(frame[low], frame[high]).mean()) for level, (low, high) in found.items()}
    figure, ax = new_figure()
    ax.plot([0, 1], [0, 1], color=MUTED, linestyle="--", linewidth=1, label="as promised")
    ax.plot(list(reached), list(reached.values()), "o-", label="reached")
    for level, value in reached.items():
        ax.annotate(f"{value:.1%}", (level, value), (6, -10), textcoords="offset points", fontsize=8)
    ax.set(xlabel="level of the interval", ylabel="share of true values inside", xlim=(0, 1.08), ylim=(0, 1.05))
    ax.legend(loc="upper left")
    text = ", ".join(f"{100 * level:g} %: {value:.1%}" for level, value in reached.items())
    caption = "Below the line the intervals are too narrow, above it too wide."
    return [Section("Coverage", figure=figure, caption=caption, alt=f"coverage of the intervals: {text}")]


def correlation_by_lag(errors: np.ndarray, lags: int) -> np.ndarray:
    """(lags,) autocorrelation of (N, F) errors along their rows, from lag 1 on; the channels' means are taken off before."""
    power = float((errors**2).mean())
    if power <= 0:
        return np.zeros(lags)
    return np.array([float((errors[:, lag:] * errors[:, :-lag]).mean()) / power for lag in range(1, lags + 1)])


@styled(STYLE)
def residual_correlation(frame: Frame) -> list[Section]:
    """How alike the errors of neighbouring steps of one forecast are."""
    horizon = int(frame["step"].max())
    wide = frame.pivot_table(index=["name", "last_observed"], columns="step", values="scaled").dropna()
    lags = min(LAGS, horizon - 1)
    if lags < 2 or len(wide) < 5:
        return []
    errors = (wide - wide.groupby("name").transform("mean")).to_numpy(float)
    values = correlation_by_lag(errors, lags)
    figure, ax = new_figure()
    ax.bar(np.arange(1, lags + 1), values, color=SERIES[0], width=0.7)
    ax.axhline(0, color=MUTED, linewidth=0.8)
    ax.set_xlabel("lag, in steps")
    ax.set_ylabel("autocorrelation")
    caption = (
        "Of the errors along one forecast, each step's mean error taken off. Peaks at a season are a pattern that was missed."
    )
    alt = f"autocorrelation of the errors: {values[0]:.2f} at lag 1, {values[-1]:.2f} at lag {lags}"
    return [Section("Residual autocorrelation", figure=figure, caption=caption, alt=alt)]


# -- anomaly scores


@styled(STYLE)
def score_over_time(frame: Frame) -> list[Section]:
    """The scores of the first series over time, with the labelled steps if there are any."""
    name = frame["id"].iloc[0]
    part = frame[frame["id"] == name].sort_values("time")
    scores = part["score"].to_numpy(float)
    figure = Figure(figsize=(8.8, 2.9), layout="constrained")
    ax = figure.add_subplot()
    # The highest of each stretch: thinning by every so manyth would lose the peaks.
    edges = np.unique(np.linspace(0, len(scores), min(len(scores), 1200) + 1).astype(int))
    peaks = np.array([begin + int(np.nanargmax(np.nan_to_num(scores[begin:end]))) for begin, end in itertools.pairwise(edges)])
    ax.plot(part["time"].iloc[peaks], scores[peaks], linewidth=0.9, label="score")
    marked = part["anomaly"].to_numpy(float) > 0.5 if "anomaly" in part else np.zeros(len(part), dtype=bool)
    if marked.any():
        ax.plot(part["time"][marked], scores[marked], "o", color=SERIES[1], markersize=3, label="labelled anomaly")
        ax.legend()
    if np.nanmin(scores) > 0:
        ax.set_yscale("log")
        # Powers of ten would be written as a formula, which the reports' text is not read as.
        ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    ax.set_ylabel("anomaly score")
    rows = [[row["id"], str(row["time"]), float(row["score"])] for _, row in frame.nlargest(15, "score").iterrows()]
    html = table(["series", "time", "score"], rows, label="highest scores", row_heads=2)
    caption = f"Series {name}: mean squared standardised error of filling each step in from the others."
    drawn = Section(
        "Anomaly scores",
        figure=figure,
        caption=caption,
        alt=f"scores over time, highest {short(float(np.nanmax(scores)))}",
        wide=True,
    )
    return [drawn, Section("Highest scores", html=html)]
